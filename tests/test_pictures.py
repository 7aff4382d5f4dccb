"""The pictures of README and of the site: one command makes them all, and none lies about unused."""

import re
import runpy
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parents[1]
PICTURES = ROOT / "docs" / "figures"
SHOWN = re.compile(r"\]\([^)\s]*figures/([\w.]+)\)")


@pytest.fixture
def command(tmp_path):
    names = runpy.run_path(str(ROOT / "docs" / "pictures.py"))
    names["main"].__globals__.update(ROOT=tmp_path, FIGURES=tmp_path / "figures")
    (tmp_path / "figures").mkdir()
    return names


def test_the_command_makes_every_picture_that_is_shown_and_no_other(command):
    made = {*command["OF_FIGURES"], *command["OF_PAGES"]}
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    shown = {name for page in pages for name in SHOWN.findall(page.read_text(encoding="utf8"))}
    assert shown == made == {path.name for path in PICTURES.iterdir()}
    assert all((ROOT / study).is_file() for study, *_ in (command["OF_FIGURES"] | command["OF_PAGES"]).values())


def test_a_figure_is_taken_from_its_study_and_unfinished_studies_are_named(command, tmp_path, capsys):
    figure = tmp_path / "results/miniature/data_selection/pareto_frontier.png"
    figure.parent.mkdir(parents=True)
    Image.new("RGB", (3, 2)).save(figure)
    assert command["main"](["pareto_frontier.png", "published_datadecide.png"]) == 1
    assert (tmp_path / "figures/pareto_frontier.png").read_bytes() == figure.read_bytes()
    assert [path.name for path in (tmp_path / "figures").iterdir()] == ["pareto_frontier.png"]
    assert capsys.readouterr().out == (
        "not finished: snakemake --configfile config/published_datadecide.yaml --cores 2\n"
    )
    assert command["main"](["other.png"]) == 2
