# What is told when Snakemake ends. Jobs on a cluster run without it (--no-hooks).
from proxycast.summary import failures, summary


onsuccess:
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    for line in failures(workflow, PLAN):
        logger.error(line)
