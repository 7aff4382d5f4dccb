"""Opens a study: its plan, its checkpoints, the checks before the first job. Runs one of its jobs by hand."""
