# What happens when the jobs of a study begin and end. Dry runs, reports and jobs on a cluster (--no-hooks) run without it.
import os

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
    except InputError as error:
        raise WorkflowError(str(error)) from None


onsuccess:
    PROGRESS.end("done")
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    PROGRESS.end("failed")
    for line in failures(workflow, PLAN):
        logger.error(line)
