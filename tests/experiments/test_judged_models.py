"""Judges of model selection: scorers that outlive their study, against the scorers themselves."""

import numpy as np
import polars as pl
import pytest
from judged_corpora import READING
from proxycast.config.experiments.selection_options import ModelSelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.judges.judge_application import apply_judge, judged_values
from proxycast.experiments.judges.judge_file import Judge, read_judge, write_judge
from proxycast.experiments.judges.judged_models import MODELS_SCHEMA
from proxycast.experiments.judges.scorer_judges import model_judge
from proxycast.experiments.model_selection.known_models import known_models
from proxycast.experiments.model_selection.model_tables import judged_tables
from proxycast.experiments.model_selection.scorers import Sparse3, Univariate, standardise
from proxycast.options import InputError
from proxycast.proxy_formulas import STATISTICS
from scipy import stats
from selection_study import CHECKPOINTS, FAST, MODELS, PROXIES, TASKS, gather, proxies_of, targets_of

TARGET = Target(metric="accuracy", table="truth.csv")
SOLUTIONS = 6


def of_study(seed=0, noise=0.4, tails=("tokens",)):
    proxies = proxies_of(seed, noise, tails)
    return proxies.with_columns(solutions=pl.lit(SOLUTIONS, pl.UInt32), tokens=pl.lit(60, pl.UInt32))


def judge_of(checkpoints, targets, proxies, scorers) -> Judge:
    known = known_models(checkpoints, proxies, targets, TASKS, "accuracy")
    told = ModelSelectionOptions(scorers=[name for name in scorers if name != "rank_svm_rbf"])
    tables = judged_tables(known, TARGET, FAST, told, None, {}, 1)
    options = ModelSelectionOptions(scorers=scorers)
    inputs = checkpoints, targets, proxies, TASKS, TARGET, options, tables
    return model_judge("models", *inputs, reading=READING, tokenizers=["a", "b"])


@pytest.fixture(scope="module")
def judge() -> Judge:
    return judge_of(CHECKPOINTS, targets_of(), of_study(), ("univariate", "sparse3", "rank_svm_rbf"))


def solutions_of(proxies: pl.DataFrame, spread=0.1, seed=3) -> pl.DataFrame:
    """Values of single solutions whose mean over a task is that of `proxies`."""
    rng = np.random.default_rng(seed)
    own = proxies.filter(pl.col("weighting") != "none")
    noise = rng.normal(size=(len(own), SOLUTIONS))
    noise = spread * (noise - noise.mean(1, keepdims=True))
    parts = [
        own.with_columns(value=pl.col("value") + pl.Series(noise[:, n]), solution=pl.lit(f"s{n}"))
        for n in range(SOLUTIONS)
    ]
    return pl.concat(parts).select("checkpoint", "task", "solution", "statistic", "weighting", "value", "tail")


def applied(judge: Judge, proxies: pl.DataFrame, tokenizers=("a",), values=None) -> pl.DataFrame:
    values = solutions_of(proxies) if values is None else values
    return apply_judge(judge, values, CHECKPOINTS, reading=READING, tokenizers=tokenizers, options=FAST)


def test_a_judge_of_models_is_the_same_after_it_was_written_and_read(judge, tmp_path):
    write_judge(judge, tmp_path / "judge.json")
    assert read_judge(tmp_path / "judge.json") == judge
    assert [scorer.scorer for scorer in judge.scorers] == ["univariate", "sparse3"]  # the RBF RankSVM is not linear
    for scorer in judge.scorers:
        assert scorer.two_tasks.low <= scorer.two_tasks.value <= scorer.two_tasks.high
        assert list(scorer.tasks) == TASKS and all(task.link.n == len(MODELS) for task in scorer.tasks.values())


@pytest.mark.parametrize(("name", "scorer"), [("univariate", Univariate()), ("sparse3", Sparse3())])
def test_new_models_are_scored_as_by_the_scorer_itself(judge, name, scorer):
    known = gather(proxies=of_study())
    features = known.features["tokens"]
    scorer.fit(features.reshape(-1, len(PROXIES)), known.truth.ravel(), np.repeat(range(len(TASKS)), len(MODELS)))
    new = of_study(seed=7)
    table = applied(judge, new).filter(scorer=name)
    assert dict(table.schema) == MODELS_SCHEMA
    for task in TASKS:
        of_task = new.filter(pl.col("weighting") != "none", task=task)
        X = np.array(
            [
                [
                    STATISTICS[s].sign * of_task.filter(checkpoint=model, statistic=s, weighting=w)["value"].item()
                    for s, w in known.proxies
                ]
                for model in MODELS
            ]
        )
        ours = table.filter(task=task).sort("model")
        assert ours["score"].to_numpy() == pytest.approx(scorer.predict(X))
        assert ours["place"].to_numpy() == pytest.approx(stats.rankdata(-scorer.predict(X)))
    everything = table.filter(task="all").sort("model")["score"].to_numpy()
    means = np.mean([stats.zscore(table.filter(task=task).sort("model")["score"]) for task in TASKS], axis=0)
    assert everything == pytest.approx(means)
    assert table["place"].to_list()[0] == 1 and table["place_low"].null_count() == 0


def test_the_metric_is_predicted_by_the_link_of_the_task(judge):
    """The judge's own models: with its own means and deviations the score is the one that the link was fitted to."""
    table = applied(judge, of_study())
    scorer = judge.scorers[0]
    known = gather(proxies=of_study())
    ((statistic, weighting),) = zip(scorer.statistics, scorer.weightings)
    column = known.features["tokens"][..., known.proxies.index((statistic, weighting))]
    groups = np.repeat(range(len(TASKS)), len(MODELS))
    scores = (scorer.coefficients[0] * standardise(column.reshape(-1, 1), groups)).reshape(column.shape)
    for t, task in enumerate(TASKS):
        link = scorer.tasks[task].link
        assert (link.lowest, link.highest) == (pytest.approx(scores[t].min()), pytest.approx(scores[t].max()))
        found = table.filter(scorer="univariate", task=task).sort("model")
        if link.form == "linear":
            line = stats.linregress(scores[t], known.truth[t])
            expected = line.intercept + line.slope * scores[t]
            assert found["predicted"].to_numpy() == pytest.approx(np.clip(expected, 0, 1), abs=1e-6)
        assert (found["predicted_low"] <= found["predicted"]).all()
        assert (found["predicted"] <= found["predicted_high"]).all()
    assert table.filter(task="all")["predicted"].null_count() == len(table.filter(task="all"))


def test_errors_are_those_of_models_that_were_left_out(judge):
    """The standard deviation of a link exceeds that of the residuals of its own line, which knows every model."""
    for scorer in judge.scorers:
        known = gather(proxies=of_study())
        for t, task in enumerate(TASKS):
            link = scorer.tasks[task].link
            if link.form == "linear":
                rows = applied(judge, of_study()).filter(scorer=scorer.scorer, task=task).sort("model")
                residuals = known.truth[t] - rows["predicted"].to_numpy()
                assert link.residual_variance > (residuals**2).mean()


def test_intervals_cover_models_that_the_judge_never_saw():
    """Scorers that could choose among noise: half of the models teach, the others are predicted."""
    covered, total = 0, 0
    names = CHECKPOINTS["checkpoint"].to_numpy()
    for seed in range(5):
        targets, proxies = targets_of(seed, noise=0.05), of_study(seed + 50)
        rng = np.random.default_rng(seed)
        train = CHECKPOINTS.filter(pl.col("checkpoint").is_in(rng.permutation(names)[:8].tolist()))
        judge = judge_of(train, targets, proxies, ("univariate",))
        rest = CHECKPOINTS.join(train, on="checkpoint", how="anti")
        table = apply_judge(judge, solutions_of(proxies), rest, options=FAST).filter(pl.col("task") != "all")
        joined = table.join(targets, left_on=["model", "task"], right_on=["checkpoint", "task"])
        covered += joined.filter(pl.col("value").is_between("predicted_low", "predicted_high")).height
        total += joined.height
    assert total == 5 * 4 * 4 and covered / total > 0.88


def test_what_lies_outside_is_told(judge):
    def of(table: pl.DataFrame) -> set[str]:
        return {warning for row in table["warnings"] for warning in row.split("; ") if warning}

    assert "tokenizer: not that of the judge" in of(applied(judge, of_study(), tokenizers=("z",)))
    renamed = of_study().with_columns(pl.col("task").replace("sums", "poems"))
    table = applied(judge, renamed)
    assert "task: the judge did not see it, so no metric is predicted" in of(table.filter(task="poems"))
    assert table.filter(task="poems")["predicted"].null_count() == len(table.filter(task="poems"))
    assert table.filter(task="poems")["place"].null_count() == 0
    fewer = solutions_of(of_study()).filter(pl.col("solution") != "s0")
    assert "task sums: 5 solutions, the judge saw 6, so these are others" in of(applied(judge, None, values=fewer))


def test_a_proxy_that_is_missing_is_named(judge):
    scorer = judge.scorers[1]
    lost = solutions_of(of_study()).filter(pl.col("statistic") != scorer.statistics[0])
    with pytest.raises(InputError, match=f"{scorer.statistics[0]}/.* over the tail in tokens is missing"):
        applied(judge, None, values=lost)
    some = solutions_of(of_study()).filter(
        ~(
            (pl.col("statistic") == scorer.statistics[0])
            & (pl.col("solution") == "s1")
            & (pl.col("checkpoint") == MODELS[0])
        )
    )
    with pytest.raises(InputError, match=f"{MODELS[0]}, task .*, solution s1: found . proxies of the scorer"):
        applied(judge, None, values=some)


def test_a_scorer_of_an_unknown_statistic_or_of_none_is_refused(judge, tmp_path):
    first = judge.scorers[0]
    strange = first.model_copy(update={"statistics": ["margn", *first.statistics[1:]]})
    with pytest.raises(
        InputError, match="judge models, scorer univariate: its statistic 'margn' is unknown; known are"
    ):
        applied(judge.model_copy(update={"scorers": [strange]}), of_study())
    empty = {"statistics": [], "weightings": [], "coefficients": []}
    empty |= {"tasks": {n: t.model_copy(update={"means": [], "sds": []}) for n, t in first.tasks.items()}}
    write_judge(judge.model_copy(update={"scorers": [first.model_copy(update=empty)]}), tmp_path / "judge.json")
    with pytest.raises(InputError, match=r"judge.json: scorers\[0\].statistics: found none"):
        read_judge(tmp_path / "judge.json")


def test_two_models_can_be_ordered(judge):
    """The smallest case: two models, one task."""
    two, task = CHECKPOINTS[:2], of_study().filter(task="sums")
    table = apply_judge(judge, solutions_of(task), two, options=FAST)
    assert table.group_by("scorer", "task").len()["len"].to_list() == [2] * 4
    assert sorted(table.filter(scorer="sparse3", task="all")["place"]) == [1, 2]


def test_candidates_are_the_last_checkpoints():
    """As in the experiment, and baselines of tasks are kept beside proxies of solutions."""
    earlier = CHECKPOINTS.with_columns(pl.col("checkpoint") + "-early", step=pl.lit(3, pl.Int64))
    values = solutions_of(of_study()).with_columns(denominator=pl.lit(1.0))
    candidates, found = judged_values(pl.concat([CHECKPOINTS, earlier]), of_study().lazy(), values.lazy(), [])
    assert candidates["checkpoint"].to_list() == CHECKPOINTS["checkpoint"].to_list()
    assert set(found.filter(weighting="none")["solution"]) == {""}
