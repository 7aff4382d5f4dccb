"""Run the script of one job in this process, as Snakemake would run it: for a debugger, a profiler, or an edit to try.

    python -m proxycast.study.by_hand --configfile config/smoke.yaml results/smoke/proxies.parquet
    python -m pdb -m proxycast.study.by_hand --configfile config/smoke.yaml results/smoke/proxies.parquet

1. Snakemake plans the file with a dry run, so that every check of a study is made and no result changes.
2. The job that makes the file gives its script the object `snakemake`: inputs, outputs, parameters, configuration.
3. Folders of its outputs and its log are made, and the script runs as `__main__`.

Old outputs stay until the script replaces them. Snakemake does not know what was made by hand: to let a study rest on
it, run the rule again (`snakemake --forcerun <rule>`).
"""

import argparse
import logging
import os
import runpy
import sys
from pathlib import Path

from snakemake.api import SnakemakeApi
from snakemake.iocontainers import Snakemake
from snakemake.jobs import Job
from snakemake.settings.types import ConfigSettings, DAGSettings, OutputSettings, ResourceSettings

from proxycast.options import InputError


def planned_job(configfiles: list[Path], file: str, cores: int) -> Job:
    """The job that makes `file`, as a dry run of Snakemake plans it. Raises `InputError`."""
    # The Snakefile reads the command line, too: a dry run changes nothing.
    sys.argv = ["snakemake", "--dry-run", "--cores", str(cores), file, "--configfile", *map(str, configfiles)]
    with SnakemakeApi(OutputSettings(log_level_override=logging.WARNING, enable_file_logging=False)) as api:
        try:
            workflow = api.workflow(ResourceSettings(cores=cores), ConfigSettings(configfiles=configfiles))
            dag = workflow.dag(DAGSettings(targets={file}, forcetargets=True))
            dag.execute_workflow(executor="dryrun")
        except Exception as error:
            api.print_exception(error)
            sys.exit(1)
        (job,) = workflow._workflow.dag.targetjobs
    if not job.is_script:
        raise InputError(f"{file}: rule {job.rule.name} runs no script")
    if missing := [path for path in job.input if not os.path.exists(path)]:
        raise InputError(f"{file}: rule {job.rule.name} lacks its input. Make first:\n" + "\n".join(missing))
    return job


def run_script(job: Job) -> None:
    """Run a job's script here, with the object that Snakemake hands to it."""
    rule = job.rule
    script = Path(rule.basedir.get_path_or_uri(secret_free=True), rule.script).resolve()
    parts = (job.input, job.output, job.params, job.wildcards, job.threads, job.resources, job.log)
    snakemake = Snakemake(*parts, rule.workflow.config, rule.name, None, str(script.parent))
    for path in [*job.output, *job.log]:
        path.prepare()
    print(f"rule {rule.name} runs {os.path.relpath(script)} and logs to {job.log}", flush=True)
    runpy.run_path(str(script), init_globals={"snakemake": snakemake}, run_name="__main__")


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m proxycast.study.by_hand", description=__doc__.splitlines()[0])
    parser.add_argument("file", help="an output of the job, as in results/smoke/proxies.parquet")
    parser.add_argument("--configfile", type=Path, action="append", required=True, help="the study's file")
    parser.add_argument("--cores", type=int, default=1, help="the most threads of the job")
    arguments = parser.parse_args()
    try:
        job = planned_job(arguments.configfile, arguments.file, arguments.cores)
    except InputError as error:
        sys.exit(f"error: {error}")
    run_script(job)


if __name__ == "__main__":
    main()
