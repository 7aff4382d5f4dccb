"""Opens a study for Snakemake: what the Snakefile and its rules know of it.

The main process checks the configuration, the results and every input, and writes down the study as it is then. Jobs
read that file, so that an edit reaches none of them, and plan no more than their own checkpoints.
"""

import gc
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from snakemake.exceptions import WorkflowError
from snakemake.logging import logger

from proxycast.cluster.disk import disk_plan
from proxycast.cluster.model_jobs import ModelJobs
from proxycast.cluster.site import Site, read_site, require_site_kept, site_of_profile
from proxycast.cluster.slurm_plugin import repair_plugin
from proxycast.config.study import Study
from proxycast.options import InputError, printable
from proxycast.processes import visible_gpus
from proxycast.report import snakemake_report
from proxycast.study.checkpoint_plan import checkpoints_of_command, plan_checkpoints, runs_jobs
from proxycast.study.checkpoints import Checkpoint
from proxycast.study.checks import (
    changed_since,
    check_inputs,
    edits_of,
    end_edits,
    require_plain_results,
    require_same_disk,
)
from proxycast.study.code_fingerprint import code_fingerprint, codes_now, keep_digests
from proxycast.study.loader import FROZEN, frozen, load_plan
from proxycast.study.repair import broken_results, remove
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import require_keys_once
from proxycast.tables import change_nothing, edited, fingerprint, input_states, stat_of, write_json

if TYPE_CHECKING:
    from snakemake.workflow import Workflow


@dataclass
class Opened:
    """A study in one process of Snakemake. The fields with a default are for the main process alone."""

    plan: Plan
    site: Site | None
    checkpoints: list[Checkpoint]  # in a job: those that it needs
    code: dict[str, str]  # script -> fingerprint of its code, as parameters of rules have it
    model_jobs: ModelJobs
    record: Path | None = None  # what the last run left: device, edits
    runs_jobs: bool = True  # else no file may be changed
    to_make: list[Path] = field(default_factory=list)  # damaged files, and what has to be made again for them
    edits: dict[str, int] | None = None  # file -> when it was edited while a study ran
    scripts: dict[Path, str] = field(default_factory=dict)  # file of a script -> fingerprint at the start
    inputs: dict[Path, tuple | None] = field(default_factory=dict)  # the user's file -> its `stat_of` at the start

    @property
    def study(self) -> Study:
        return self.plan.study

    def state_of(self, paths: str | Path | Sequence[str | Path]) -> str:
        """A parameter of rules that read the user's files, which may change while their times do not."""
        paths = [paths] if isinstance(paths, (str, Path)) else paths
        own = [path for path in map(Path, paths) if self.plan.results not in path.parents]
        if self.edits is not None:
            self.inputs |= {path: stat_of(path) if path.exists() else None for path in own if path not in self.inputs}
        return input_states(own, edits=self.edits)

    def keep_edits(self) -> None:
        """Warn of files that were edited while the study ran, and keep their names for the next start."""
        codes = codes_now(self.scripts)
        edits = changed_since(self.inputs) + [path for path, code in self.scripts.items() if codes[path] != code]
        end_edits(edits, self.record)
        for path in map(printable, map(str, edits)):
            logger.warning(
                f"{path} was edited while the study ran; what is made of it is made again at the next start."
            )


def open_study(workflow: "Workflow", config: dict, arguments: Sequence[str]) -> Opened:
    """The study of a configuration, which is changed in place. `arguments`: Snakemake's command line.

    Raises `WorkflowError` with what is wrong.
    """
    # A plan is a million objects that stay. To look through them for garbage would take a tenth of the time.
    gc.freeze()
    gc.set_threshold(50_000, 20, 100)
    where = str((workflow.overwrite_configfiles or workflow.configfiles)[-1])
    try:
        opened = (_open if workflow.is_main_process else _open_in_job)(workflow, config, arguments, where)
        opened.model_jobs.check()
    except (InputError, OSError) as error:  # such as a results folder that may not be written
        raise WorkflowError(str(error)) from None
    # Jobs of one machine take turns at its GPUs, unless the command line says --resources gpu=<n>.
    if opened.site is None and visible_gpus() and "gpu" not in workflow.global_resources:
        workflow.register_resource("gpu", len(visible_gpus()))
    return opened


def record_of(plan: Plan) -> Path:
    """What the last run of a study left for the next."""
    return Path(f".snakemake/proxycast/{plan.study.study}.json")


def check_before_jobs(plan: Plan, record: Path, writes: bool) -> tuple[list[Checkpoint], list[Path]]:
    """Refuse what no job could use (`InputError`): the checkpoints, and the files that have to be made again.

    With `writes` those files are removed, and what was checked is recorded.
    """
    require_plain_results(plan.results)
    require_same_disk(plan.results, record, write=writes)
    checkpoints = plan_checkpoints(plan)
    broken, to_make = broken_results(plan.results)
    for path in broken:
        logger.warning(f"{printable(str(path))} was truncated, damaged or lacked a part, and is made again.")
    if writes:
        remove(to_make)
    check_inputs(plan, checkpoints, record=writes)
    return checkpoints, to_make


def _open_in_job(workflow: "Workflow", config: dict, arguments: Sequence[str], where: str) -> Opened:
    site, plan = read_site(config.pop("site", None)), load_plan(config, where)
    checkpoints = checkpoints_of_command(plan, arguments)
    jobs = ModelJobs(plan, checkpoints, site, correct=False)
    return Opened(plan, site, checkpoints, config[FROZEN]["code"], jobs)


def _open(workflow: "Workflow", config: dict, arguments: Sequence[str], where: str) -> Opened:
    require_site_kept(arguments)
    if FROZEN in config:
        raise InputError(f"{where}: {FROZEN}: unknown key; jobs alone read a study that is frozen")
    for path in workflow.overwrite_configfiles or workflow.configfiles:
        require_keys_once(Path(path))
    given = dict(config)
    site = read_site(site_of_profile(config, workflow.config_settings.config, where))
    plan, writes = load_plan(config, where), runs_jobs(arguments)
    if not writes:
        change_nothing()
    repair_plugin()
    snakemake_report.repair()
    record = record_of(plan)
    checkpoints, to_make = check_before_jobs(plan, record, writes)
    for line in disk_plan(plan, checkpoints):
        logger.info(line)
    edits = edits_of(record, write=writes)
    scripts = {path: code_fingerprint(path) for path in Path(workflow.basedir, "workflow/scripts").glob("*.py")}
    keep_digests()
    code = {path.stem: edited(found, edits.get(str(path))) for path, found in scripts.items()}
    # Jobs read the study as it is now, from one file that is named by its content. Edits are for the next start.
    study_of_jobs = plan.results / "study" / f"{fingerprint(frozen(given, plan, code))}.json"
    if writes:
        write_json(frozen(given, plan, code), study_of_jobs)
    workflow.config_settings.configfiles = [study_of_jobs.absolute()]
    config.update(frozen(config, plan, code))
    jobs = ModelJobs(plan, checkpoints, site)
    return Opened(plan, site, checkpoints, code, jobs, record, writes, to_make, edits, scripts)
