"""Judges that a study names: read, checked and frozen when it is opened, before anything runs."""

import json
from pathlib import Path

import numpy as np
import pytest
from judged_corpora import learned
from proxycast.experiments.judges.judge_file import Judge, write_judge
from proxycast.options import InputError
from proxycast.study.loader import frozen, load_plan
from proxycast.study.yaml_files import read_yaml

CONFIG = Path(__file__).parents[2] / "config"


@pytest.fixture(scope="module")
def judge() -> Judge:
    return learned(np.linspace(0, 1, 8))


def smoke(path: Path, **changes) -> dict:
    return {**read_yaml(CONFIG / "smoke.yaml"), "judges": {"there": str(path)}, **changes}


def refused(values: dict) -> str:
    with pytest.raises(InputError) as caught:
        load_plan(values, "study.yaml", CONFIG)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_a_judge_is_read_once_and_frozen_with_the_study(judge, tmp_path):
    path = tmp_path / "judge.json"
    write_judge(judge, path)
    values = smoke(path)
    plan = load_plan(values, "study.yaml", CONFIG)
    assert plan.judges == {"there": judge}
    as_jobs_read_it = json.loads(json.dumps(frozen(values, plan, {})))
    path.unlink()
    assert load_plan(as_jobs_read_it, "the study", CONFIG).judges == plan.judges
    assert f"{path}: no such file" in refused(values)


def test_a_judge_that_does_not_fit_the_study_is_refused(judge, tmp_path):
    path = tmp_path / "judge.json"
    write_judge(judge, path)
    said = refused(smoke(path, extraction={"tail_tokens": 50}))
    assert said == (
        f"{path}: made with extraction.tail_tokens 1000, but this study has 50, with which proxies have other values; "
        "set extraction.tail_tokens: 1000, or make a judge with 50"
    )
    assert "proxies.rank_ties mean, but this study has worst" in refused(smoke(path, proxies={"rank_ties": "worst"}))
    direct = judge.corpus_proxies[0].model_copy(update={"statistic": "exact_match"})
    write_judge(judge.model_copy(update={"corpus_proxies": [direct]}), path)
    assert f"{path}: its proxy exact_match/none is none that this study computes" in refused(smoke(path))
    rbridge = direct.model_copy(update={"statistic": "rbridge"})
    write_judge(judge.model_copy(update={"corpus_proxies": [rbridge]}), path)
    assert "it needs `writers`" in refused(smoke(path))


def test_a_study_does_not_judge_itself(judge, tmp_path, monkeypatch):
    own = Path("results/smoke/data_selection/judge.json")
    write_judge(judge, tmp_path / own)
    monkeypatch.chdir(tmp_path)
    assert f"judges.there: {own} is what this study writes" in refused(smoke(own))


def test_a_judge_of_corpora_ranks_no_models_and_no_curve(judge, tmp_path):
    path = tmp_path / "judge.json"
    write_judge(judge, path)
    models = read_yaml(CONFIG / "miniature_model_selection.yaml") | {"judges": {"there": str(path)}}
    assert f"{path}: kind: found 'data_selection', a judge of judged; this study needs one of 'model_selection'" in (
        refused(models)
    )
    forecast = read_yaml(CONFIG / "miniature_forecasting.yaml") | {"judges": {"there": str(path)}}
    assert "judges: they rank corpora or models" in refused(forecast)
    published = read_yaml(CONFIG / "published_datadecide.yaml") | {"judges": {"there": str(path)}}
    assert "judges: they rank corpora or models" in refused(published)


def test_a_damaged_judge_is_refused_when_the_study_is_opened(tmp_path):
    path = tmp_path / "judge.json"
    path.write_text('{"format": 1, "study": ')
    assert refused(smoke(path)).startswith(f"{path}: cannot be read as JSON: damaged, or no judge")
