# What is told while Snakemake runs, and when it ends. Jobs on a cluster run without it (--no-hooks).
import os

from proxycast.console import Progress
from proxycast.jobs import STALL_VARIABLE
from proxycast.summary import failures, summary

# Jobs inherit it, on a cluster too.
if SITE and SITE.stall_minutes:
    os.environ.setdefault(STALL_VARIABLE, str(SITE.stall_minutes))

PROGRESS = Progress(workflow, PLAN, CHECKPOINTS, logger)


onstart:
    PROGRESS.start()


onsuccess:
    PROGRESS.end("done")
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    PROGRESS.end("failed")
    for line in failures(workflow, PLAN):
        logger.error(line)
