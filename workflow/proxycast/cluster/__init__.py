"""What surrounds a study's jobs: the site, GPUs, Slurm, what a job asks for, what a study takes and how far it is."""
