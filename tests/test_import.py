"""`import proxycast` loads nothing. That it needs no Snakemake is tested with the library's page: test_tutorials.py."""

import re
import subprocess
import sys

import proxycast
import pytest
from conftest import ROOT


def run(code: str) -> str:
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_importing_the_package_loads_nothing_of_it():
    loaded = run("import sys\nbefore = set(sys.modules)\nimport proxycast\nprint(*set(sys.modules) - before)").split()
    assert {name for name in loaded if name.startswith("proxycast")} == {"proxycast"}
    assert not {"torch", "transformers", "polars", "numpy", "pydantic", "snakemake"} & set(loaded)


def test_solutions_are_read_without_torch():
    loaded = run("import sys\nfrom proxycast import load_solutions, proxies\nprint(*sys.modules)").split()
    assert "polars" in loaded and not {"torch", "transformers", "snakemake", "sklearn"} & set(loaded)


def test_planning_loads_none_of_what_only_jobs_need():
    """Each start of Snakemake plans, and so does each job."""
    modules = "proxycast.cluster.opening, proxycast.cluster.status.console, proxycast.cluster.status.summary"
    loaded = run(f"import sys, {modules}\nprint(*sys.modules)").split()
    assert "polars" in loaded and not {"torch", "transformers", "scipy", "matplotlib", "sklearn"} & set(loaded)


def test_each_name_has_an_example_that_runs():
    """test_tutorials.py runs the Python blocks of all pages."""
    pages = "".join(page.read_text() for page in (ROOT / "docs/tutorials").glob("*.md"))
    examples = "\n".join(re.findall(r"^```python\n(.*?)^```$", pages, re.DOTALL | re.MULTILINE))
    assert [name for name in proxycast.__all__ if not re.search(rf"\b{name}\b", examples)] == []


def test_the_names_are_those_that_type_checkers_see():
    assert set(proxycast.__all__) == set(proxycast.HOMES) <= set(dir(proxycast))
    text = (ROOT / "workflow/proxycast/__init__.py").read_text()
    for name, module in proxycast.HOMES.items():
        assert getattr(proxycast, name).__module__ == module
        [line] = [line for line in text.splitlines() if line.strip().startswith(f"from {module} import")]
        assert name in line.replace(",", " ").split()
    with pytest.raises(AttributeError, match="no attribute 'rate'"):
        proxycast.rate  # noqa: B018
