"""Starts the step in which a job of Slurm works: `python -m proxycast.cluster.job_step <what srun is told>`.

Of what Slurm and the user have set, only what names the job and its cluster reaches srun. The rest is about the whole
job, or about the one that the main Snakemake runs in, and may contradict what srun is told.
"""

import os
import sys

KEPT = frozenset(
    "SLURM_CONF SLURM_JOB_ID SLURM_JOBID SLURM_CLUSTER_NAME SLURM_SUBMIT_DIR SLURM_SUBMIT_HOST".split()
)  # SLURM_CONF: where srun finds the cluster


def main() -> None:
    others = ("SLURM_", "SRUN_", "SBATCH_")
    environment = {name: value for name, value in os.environ.items() if name in KEPT or not name.startswith(others)}
    os.execvpe("srun", ["srun", *sys.argv[1:]], environment)


if __name__ == "__main__":
    main()
