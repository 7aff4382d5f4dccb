"""Join a task's given solutions (the problems that have one) and the solutions of each writer."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.solutions.rows import Solution, read_problems, read_solutions, write_solutions

with job(snakemake.log[0]):
    given = [row for row in read_problems(Path(snakemake.input.problems)) if isinstance(row, Solution)]
    written = [solution for path in snakemake.input.written for solution in read_solutions(Path(path))]
    write_solutions(given + written, Path(snakemake.output[0]))
