"""`proxycast judge show`: what a judge knows, in words."""

import numpy as np
from judged_corpora import learned
from proxycast.experiments.judges.judge_file import FittedScorer, ScorerTask, Share, write_judge
from test_main import refused, said


def test_a_judge_of_corpora_is_shown(tmp_path):
    judge = learned(np.linspace(0, 1, 12), truth_noise=0.5)
    write_judge(judge, tmp_path / "judge.json")
    text = said("judge", "show", tmp_path / "judge.json")
    assert text.startswith(f"judge        of corpora, by study {judge.study} (proxycast ")
    assert f"learned from 12: {judge.candidates[0]}, " in text and " and 4 more\n" in text
    for proxy in judge.corpus_proxies:
        assert f"this proxy decided {proxy.mean.value:.2f} [{proxy.mean.low:.2f}, " in text
        assert f"off by {proxy.link.left_out_error[proxy.link.form]:.3g} (root mean square, left out)\n" in text
    assert text.count("\nproxy ") == len(judge.corpus_proxies) > 1


def test_a_judge_of_models_is_shown(tmp_path):
    judge = learned(np.linspace(0, 1, 5))
    task = {"means": [0.0], "sds": [1.0]}
    scorer = FittedScorer(
        scorer="univariate",
        tail="bytes",
        statistics=["margin"],
        weightings=["uniform"],
        coefficients=[1.0],
        two_tasks=Share(value=0.756, low=0.61, high=0.9),
        family=Share(value=None, low=None, high=None),
        tasks={"sums": ScorerTask(**task, link=judge.corpus_proxies[0].link), "dates": ScorerTask(**task, link=None)},
    )
    of_models = {"kind": "model_selection", "target_size": None, "corpus_proxies": [], "scorers": [scorer]}
    write_judge(judge.model_copy(update=of_models), tmp_path / "judge.json")
    text = said("judge", "show", tmp_path / "judge.json")
    assert "of models, by study" in text and "univariate, of 1 proxies; tail bytes\n" in text
    assert "Spearman's rho 0.76 [0.61, 0.90] on tasks that were held out\n" in text and "family" not in text
    assert "predicts accuracy in 1: sums\n" in text and "target" not in text


def test_what_is_no_judge_is_refused(tmp_path):
    for name, content in (("other.json", '{"format": 99}'), ("bad.json", "{"), ("plain.json", "{}")):
        (tmp_path / name).write_text(content)
        assert f"{name}: " in refused("judge", "show", tmp_path / name)
    assert "no such file" in refused("judge", "show", tmp_path / "none.json")
