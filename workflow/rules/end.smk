# What happens when the jobs of a study begin and end. Dry runs, reports and jobs on a cluster (--no-hooks) run without it.
import os

from proxycast.checks import begin_edits, changed_since, end_edits
from proxycast.code_fingerprint import code_now
from proxycast.console import Progress
from proxycast.jobs import STALL_VARIABLE
from proxycast.summary import failures, summary

# Jobs inherit it, on a cluster too.
if SITE and SITE.stall_minutes:
    os.environ.setdefault(STALL_VARIABLE, str(SITE.stall_minutes))

PROGRESS = Progress(workflow, PLAN, CHECKPOINTS, logger)


onstart:
    if workflow.execution_settings.keep_incomplete:
        # It records the job that failed as finished, with the inputs and parameters of now, over an old output.
        raise WorkflowError(
            "--keep-incomplete: with it Snakemake takes old outputs of failed jobs for new ones; leave it out"
        )
    try:
        PROGRESS.start()
        begin_edits(INPUTS, RECORD)
    except InputError as error:
        raise WorkflowError(str(error)) from None


def tell_edits():
    edits = changed_since(INPUTS) + [Path(path) for path, code in SCRIPTS.items() if code_now(Path(path)) != code]
    end_edits(edits, RECORD)
    for path in edits:
        logger.warning(
            f"{printable(str(path))} was edited while the study ran; what is made of it is made again at the next start."
        )


onsuccess:
    PROGRESS.end("done")
    tell_edits()
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    PROGRESS.end("failed")
    tell_edits()
    for line in failures(workflow, PLAN):
        logger.error(line)
