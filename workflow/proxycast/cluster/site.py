"""The properties of a cluster: the section `config: site:` of the Slurm profile."""

from argparse import ArgumentParser
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from proxycast.cluster.slurm_plugin import SLURM_RESOURCES, unfit_for_shell
from proxycast.config.errors import closest, parse
from proxycast.options import InputError, Options
from proxycast.study.yaml_files import read_yaml

PROFILE = "slurm/config.yaml"
DEFAULT_TERAFLOPS = 300


class Site(Options):
    """The section `config: site:` of the Slurm profile. Without it no job asks for a GPU."""

    gpu_request: Literal["gres", "gpus"] | None = Field(
        None, description="how the cluster wants GPUs: --gres=gpu:<model>:<n> or --gpus=<model>:<n>; without it none"
    )
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory of one GPU. Unit: GB")
    gpu_model: str | None = Field(None, pattern=r"^[A-Za-z0-9_.]+$", description="name of the GPU as Slurm knows it")
    gpus_per_node: int = Field(8, ge=1, description="most GPUs that one job may have")
    gpu_teraflops: float = Field(
        DEFAULT_TERAFLOPS, gt=0, description="peak of one GPU in bfloat16, dense, by its data sheet. Unit: TFLOPS"
    )
    # Snakemake hands the numbers of a profile on as text.
    gpu_jobs: dict[str, Annotated[int | str, Field(union_mode="left_to_right")]] = Field(
        {}, description="further resources of jobs with GPUs: slurm_partition, qos, constraint"
    )
    most_memory_gb: float | None = Field(
        None, gt=0, description="memory of the largest node; no job that runs models asks for more"
    )
    longest_hours: float = Field(
        24, gt=0, description="time limit of the partition where models run; no job that runs them asks for more"
    )
    stall_minutes: float | None = Field(
        None, gt=0, description="a job whose log has not grown for so long ends itself, and is tried again"
    )

    @model_validator(mode="after")
    def _memory_of_gpus(self) -> Self:
        if self.gpu_request and self.gpu_memory_gb is None:
            raise ValueError("gpu_memory_gb: missing; how many GPUs a job needs depends on it; as in gpu_memory_gb: 80")
        return self

    @model_validator(mode="after")
    def _known_resources(self) -> Self:
        """Find typing errors: Snakemake takes any resource, and an executor ignores those that it does not know."""
        for name in self.gpu_jobs.keys() - SLURM_RESOURCES:
            if meant := closest(name, SLURM_RESOURCES):
                raise ValueError(f"gpu_jobs.{name}: unknown{meant}")
        # The plugins of clusters write some of them into a shell's command as they are.
        for name, value in self.gpu_jobs.items():
            if why := unfit_for_shell(name, value):
                raise ValueError(f"gpu_jobs.{name}: {why}")
        return self


def site_of_profile(config: dict, given: Mapping, where: str) -> object:
    """Remove the site block from a configuration, and return the block that the profile gave Snakemake (`given`).

    `InputError` if a file of the study has one: a study may be somebody else's, and must not decide what a cluster is
    asked for.
    """
    if config.pop("site", None) != given.get("site"):
        raise InputError(
            f"{where}: site: found in a study; it is read from the profile alone ({PROFILE}: config.site); move it"
        )
    return given.get("site")


def read_site(values: object) -> Site | None:
    """The site block of the profile, if there is one; `InputError` names the profile and the key."""
    return None if values is None else parse(Site, values, PROFILE, within="config.site")


def require_site_kept(arguments: Sequence[str]) -> None:
    """`InputError` if --config on Snakemake's command line replaces the profile's `config: site:`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--config", "-C", nargs="*")
    given = parser.parse_known_args(arguments)[0]
    profile = Path(given.profile or "", "config.yaml")
    if not (given.profile and given.config is not None and profile.is_file()):
        return
    if "site" in (read_yaml(profile).get("config") or {}):
        raise InputError(
            f"{profile}: config.site: --config on the command line takes its place; put what it changes into a file "
            "of its own, behind the study: --configfile config/<study>.yaml <changes>.yaml"
        )
