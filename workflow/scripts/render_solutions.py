"""Render a task's expert solutions from rows of a data set."""

from pathlib import Path

from proxycast.config.tasks import Rows
from proxycast.jobs import job
from proxycast.solutions.rows import write_solutions
from proxycast.solutions.templates import render_solutions

with job(snakemake.log[0]):
    rows, output = Rows(**snakemake.params.rows), Path(snakemake.output[0])
    downloaded = Path(snakemake.input[0]) if rows.hub else None
    write_solutions(render_solutions(rows.paths(downloaded), rows, f"task {output.stem}"), output)
