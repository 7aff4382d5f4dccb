"""Snakemake's linter has two kinds of remarks on the workflow. CONTRIBUTING.md says why they stand."""

import re
from concurrent.futures import ThreadPoolExecutor

import forked_python
from conftest import copy_project

# Together they have every rule but read_statistics, which needs a table of others.
STUDIES = ("data_selection", "model_selection", "forecasting")
EXCEPTIONS = {
    "Mixed rules and functions in same snakefile.",
    "Specify a conda environment or container for each rule.",
}


def test_the_linter_has_no_new_kind_of_remark(tmp_path):
    project = copy_project(tmp_path)

    def remarks(study: str) -> set[str]:
        arguments = ["--lint", "--configfile", f"config/{study}.yaml"]
        run = forked_python.run("snakemake", *arguments, cwd=project, merged=True)
        assert "Lints for" in run.stdout, run.stdout
        return set(re.findall(r"^ {4}\* (.*):$", run.stdout, re.MULTILINE))

    with ThreadPoolExecutor() as pool:
        assert set().union(*pool.map(remarks, STUDIES)) == EXCEPTIONS
