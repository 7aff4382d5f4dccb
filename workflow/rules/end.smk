# Hooks for the start and end of a study's jobs. Dry runs, reports and jobs on a cluster (--no-hooks) run without them.
import os

from proxycast.cluster.status.console import Progress
from proxycast.cluster.status.summary import failures, summary
from proxycast.jobs import STALL_VARIABLE
from proxycast.options import InputError
from proxycast.study.checks import begin_edits
from snakemake.exceptions import WorkflowError

# Jobs inherit this variable, on a cluster too.
if SITE and SITE.stall_minutes:
    os.environ.setdefault(STALL_VARIABLE, str(SITE.stall_minutes))

PROGRESS = Progress(workflow, PLAN, CHECKPOINTS, logger)


onstart:
    if workflow.execution_settings.keep_incomplete:
        # Snakemake would record a failed job as finished, with its new inputs and parameters, although the output is old.
        raise WorkflowError(
            "--keep-incomplete: with it Snakemake takes old outputs of failed jobs for new ones; leave it out"
        )
    try:
        PROGRESS.start()
        begin_edits(OPENED.inputs, OPENED.record)
    except InputError as error:
        raise WorkflowError(str(error)) from None


onsuccess:
    PROGRESS.end("done")
    OPENED.keep_edits()
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    PROGRESS.end("failed")
    OPENED.keep_edits()
    for line in failures(workflow, PLAN):
        logger.error(line)
