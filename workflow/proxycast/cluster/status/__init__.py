"""How far a study is, what runs, and what became of its jobs: in files, logs and Slurm's queue."""
