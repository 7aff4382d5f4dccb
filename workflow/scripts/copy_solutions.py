"""Read a task's expert solutions, check every row, and write them in the common format."""

from pathlib import Path

from proxycast.jobs import job
from proxycast.solutions.rows import read_solutions, write_solutions

with job(snakemake.log[0]):
    write_solutions(read_solutions(Path(snakemake.input[0])), Path(snakemake.output[0]))
