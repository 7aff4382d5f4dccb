# What happens when the jobs of a study begin and end. Dry runs, reports and jobs on a cluster (--no-hooks) run without it.
from proxycast.study_lock import lock_study
from proxycast.summary import failures, summary


onstart:
    if holder := lock_study(PLAN.results):
        raise WorkflowError(f"{holder} works on this study ({RESULTS}). Wait for its end, or stop it.")


onsuccess:
    for line in summary(workflow, PLAN):
        logger.info(line)


onerror:
    for line in failures(workflow, PLAN):
        logger.error(line)
