"""docs/how/mixtures.md: its corpora and study are made as it says, and its mixtures are the study's."""

import os
import re
import runpy

import pytest
import yaml
from conftest import ROOT
from proxycast.study.loader import load_plan


def test_the_study_of_the_page_can_be_opened(tmp_path, monkeypatch):
    page = (ROOT / "docs/how/mixtures.md").read_text()
    [script] = re.findall(r"^```python\n(.*?)^```$", page, re.DOTALL | re.MULTILINE)
    [study] = re.findall(r"^```yaml\n(study: .*?)^```$", page, re.DOTALL | re.MULTILINE)
    monkeypatch.chdir(tmp_path)
    os.makedirs("config/tasks")
    os.symlink(ROOT / "config/tasks/miniature", "config/tasks/miniature")
    (tmp_path / "draw.py").write_text(script)
    runpy.run_path("draw.py")
    plan = load_plan(yaml.safe_load(study), "config/drawn.yaml")
    assert len(plan.mixtures) == 24 and plan.selects_data
    assert {source for shares in plan.mixtures.values() for source in shares} == {"web", "math", "qa", "wiki", "forum"}
    assert all(sum(shares.values()) == pytest.approx(1) for shares in plan.mixtures.values())
