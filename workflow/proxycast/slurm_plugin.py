"""Two faults of Snakemake's Slurm plugin (2.8.0, which is pinned) that let a study wait for ever, and their cure."""

import sys


def repair() -> None:
    """Let the plugin, where Snakemake has imported it, learn what became of its jobs whatever Slurm answers.

    Before each look at its jobs it asks slurmctld how long a job that has ended is remembered (MinJobAge). Without an
    answer it takes sacct in place of squeue, whether accounting runs or not, and goes on asking it, also when slurmctld
    is back: here the last answer stands. And sacct calls a job "CANCELLED by 1000", which it takes for one that runs.
    """
    plugin = sys.modules.get("snakemake_executor_plugin_slurm")
    if plugin is None:
        return
    get_min_job_age, known, query_job_status = plugin.get_min_job_age, [], plugin.query_job_status

    def remembered() -> int | None:
        known.extend(age for age in [get_min_job_age()] if age is not None)
        return known[-1] if known else None

    async def query_states(command: str, logger) -> tuple[dict[str, str] | None, float | None]:
        states, seconds = await query_job_status(command, logger)
        return states and {job: state.partition(" ")[0] for job, state in states.items()}, seconds

    plugin.get_min_job_age, plugin.query_job_status = remembered, query_states
