"""The answer at the top of the page: its numbers are the tables', and it stands whatever is missing."""

import re
from types import SimpleNamespace

import answered_studies
import polars as pl
import pytest
from answered_studies import BUDGETS, Tables
from hypothesis import given, settings
from hypothesis import strategies as st
from judged_corpora import FAST, TARGET, learned
from proxycast.config.truth import Target
from proxycast.experiments.forecasting.run_end import SUMMARY_SCHEMA
from proxycast.experiments.judges.judge_application import judged_table, judged_values
from proxycast.report.page.answer import answer_markup, answers
from proxycast.report.page.answers.wording import Answer, cost, listed, percent, two_digits

QUALITIES = [0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8]
LAST = {"size": "small", "step": 4, "statistic": "cross_entropy", "weighting": "uniform"}


@pytest.fixture(scope="module")
def judged(tmp_path_factory):
    return answered_studies.corpora(QUALITIES, tmp_path_factory.mktemp("judged"), truth_noise=1.0)


@pytest.fixture(scope="module")
def unjudged(tmp_path_factory):
    return answered_studies.corpora(QUALITIES, tmp_path_factory.mktemp("unjudged"), target=None)


@pytest.fixture(scope="module")
def models(tmp_path_factory):
    return answered_studies.models(tmp_path_factory.mktemp("models"))


@pytest.fixture(scope="module")
def forecasts(tmp_path_factory):
    return answered_studies.forecasts(tmp_path_factory.mktemp("forecasts"), runs=3, rehearsal=0.5)


def only(results) -> Answer:
    [answer] = answers(results)
    return answer


def fact(answer: Answer, label: str) -> str:
    [text] = [text for name, text in answer.facts if name == label]
    return text


def changed(results: Tables, study=None, **tables) -> Tables:
    """The study with other tables, named without folder, and another `study.target`."""
    target = results.study.target if study is None else study
    [folder] = {name.split("/")[0] for name in results.tables if "/" in name}
    changes = {f"{folder}/{name}": table for name, table in tables.items()}
    return Tables(
        results.tables | changes, target, results.study.highlighted, results.study.forecasting, results.results
    )


def of_last(results: Tables, name: str, **where) -> dict:
    return results.tables[f"data_selection/{name}"].filter(**LAST, **where).row(0, named=True)


def test_each_number_of_the_sentence_is_its_tables(judged):
    right = of_last(judged, "decision_accuracy", truth="accuracy", task="all", seed="mean")
    choice = of_last(judged, "choices", seed="mean")
    assert choice["picked"] != choice["best"] and right["decision_accuracy"] < 1
    leader = judged.tables["data_selection/ranking"].filter(**LAST).sort("predicted", descending=True)["corpus"][0]
    flops = judged.tables["checkpoints"]
    two_seeds = 2 * flops.filter(size="small", step=4)["flops"][0] / flops.filter(role="target")["flops"].max()
    ends = f"[{right['low']:.2f}, {right['high']:.2f}]"
    price = f"{100 * choice['regret']:.1f} points [{100 * choice['regret_low']:.0f}, {100 * choice['regret_high']:.1f}]"
    assert only(judged).sentence == (
        f"{leader} leads among 8 corpora; {right['decision_accuracy']:.2f} {ends} of pairs decided rightly at "
        f"{100 * two_seeds:.0f} % of the target's compute; every other corpus can be told apart from it; picking it "
        f"instead of the true best ({choice['best']}) costs {price}."
    )


def test_each_number_of_the_facts_is_its_tables(judged):
    answer, truth = only(judged), judged.tables["data_selection/truth"].row(0, named=True)
    right = of_last(judged, "decision_accuracy", truth="accuracy", task="all", seed="mean")
    single = of_last(judged, "decision_accuracy", truth="accuracy", task="all", seed="single")
    assert fact(answer, "Noise ceiling").startswith(
        f"a perfect prediction is expected to decide {truth['ceiling_decision_accuracy']:.2f} "
        f"[{truth['ceiling_decision_accuracy_low']:.2f}, {truth['ceiling_decision_accuracy_high']:.2f}] rightly"
    )
    assert f"decides {single['decision_accuracy']:.2f} [" in fact(answer, "One seed")
    assert fact(answer, "Best baseline").startswith(f"in hindsight {right['best_baseline']} (")
    random = of_last(judged, "choices", seed="mean")["random_regret"]
    assert fact(answer, "Other picks").startswith(f"a random one costs {100 * random:.0f} points")
    flops = judged.tables["checkpoints"].filter(role="proxy", size="small", step=4)["flops"].sum()
    tokens = pl.read_parquet(judged.results / "proxies.parquet").unique(["checkpoint", "task"])["tokens"].sum()
    assert fact(answer, "Cost") == (
        f"{flops:.2e} FLOPs to train 16 small models to this step; {tokens:,} tokens scored by 64 checkpoints in all"
    ).replace("e+", "e")
    assert not answer.missing and not answer.warning


@pytest.mark.parametrize(
    ("difference", "low", "high", "said"),
    [
        (0.1, 0.05, 0.2, "cross_entropy/uniform beats it (difference +0.10 [+0.05, +0.20])"),
        (-0.1, -0.2, -0.05, "it beats cross_entropy/uniform (difference -0.10 [-0.20, -0.05])"),
        (0.1, -0.05, 0.2, "cross_entropy/uniform is not shown to beat it"),
        (0.0, None, None, "cross_entropy/uniform is as good as it, but how sure that is remains unknown"),
    ],
)
def test_a_plain_baseline_that_is_as_good_is_told(judged, difference, low, high, said):
    ends = pl.lit(difference, pl.Float64), pl.lit(low, pl.Float64), pl.lit(high, pl.Float64)
    table = judged.tables["data_selection/decision_accuracy"]
    table = table.with_columns(**dict(zip(("difference", "difference_low", "difference_high"), ends)))
    assert said in fact(only(changed(judged, decision_accuracy=table)), "Best baseline")


@pytest.mark.parametrize(
    ("value", "low", "is_told"), [(0.7, 0.4, True), (0.7, 0.6, False), (0.3, None, True), (0.7, None, False)]
)
def test_an_order_that_may_be_a_guess_is_told(judged, value, low, is_told):
    table = judged.tables["data_selection/decision_accuracy"]
    table = table.with_columns(
        decision_accuracy=value, low=pl.lit(low, pl.Float64), high=pl.lit(low and 0.9, pl.Float64)
    )
    said = only(changed(judged, decision_accuracy=table)).sentence
    assert ("of the target's compute, not shown to beat guessing (0.5);" in said) == is_told


def test_who_cannot_be_told_apart_is_told(judged):
    pairs = judged.tables["data_selection/pairs"]
    leader = judged.tables["data_selection/ranking"].filter(**LAST).sort("place")["corpus"].to_list()

    def said(*unsure: str) -> str:
        told = ~(pl.col("better").eq(leader[0]) & pl.col("worse").is_in(unsure))
        return only(changed(judged, pairs=pairs.with_columns(told_apart=told))).sentence

    assert f"; {leader[3]} cannot be told apart from it;" in said(leader[3])
    assert "; none of the other 7 corpora can be told apart from it;" in said(*leader[1:])
    assert f"; these 2 corpora cannot be told apart from it: {leader[1]} and {leader[3]};" in said(leader[1], leader[3])
    unknown = only(changed(judged, pairs=pairs.with_columns(told_apart=pl.lit(None, pl.Boolean))))
    assert "; whether any other corpus can be told apart from it is not known;" in unknown.sentence
    assert unknown.missing[0].startswith("How sure the order is:") and "Undecided" not in dict(unknown.facts)


def test_leaders_that_tie(judged):
    ranking = judged.tables["data_selection/ranking"].with_columns(place=pl.col("place").clip(2.5))
    best = sorted(ranking.filter(**LAST).filter(pl.col("place") == 2.5)["corpus"])
    choices = judged.tables["data_selection/choices"].with_columns(picked=pl.lit(", ".join(best)))
    tied = only(changed(judged, ranking=ranking, choices=choices)).sentence
    assert tied.startswith(f"{best[0]} and {best[1]} tie for the lead among 8 corpora;")
    assert "; picking one of them instead of the true best (" in tied
    all_tie = only(changed(judged, ranking=ranking.with_columns(place=4.5))).sentence
    assert all_tie.startswith("all 8 corpora tie, so nothing is chosen: c00, c01, c02, c03 and 4 more;")
    assert "told apart" not in all_tie


def test_a_leader_without_a_truth_is_not_said_to_be_judged(judged):
    leader = judged.tables["data_selection/ranking"].filter(**LAST).sort("place")["corpus"][0]
    unknown = pl.when(pl.col("corpus") != leader).then("truth")
    ranking = judged.tables["data_selection/ranking"].with_columns(unknown)
    choices = judged.tables["data_selection/choices"].with_columns(picked=pl.lit("c03"))
    answer = only(changed(judged, ranking=ranking, choices=choices))
    assert "; picking c03, the first with a truth, instead of the true best" in answer.sentence
    assert f"The truth of {leader}: ranked with the others, but not judged." in answer.missing


def test_a_pick_that_is_the_true_best(judged):
    leader = judged.tables["data_selection/ranking"].filter(**LAST).sort("place")["corpus"][0]
    choices = judged.tables["data_selection/choices"].with_columns(best=pl.lit(leader), regret=0.0)
    assert re.search(
        "; picking it costs 0 points .*, as none is better by the truth.",
        only(changed(judged, choices=choices)).sentence,
    )


def test_a_truth_that_may_be_noise_is_told_first(judged):
    truth = judged.tables["data_selection/truth"].with_columns(verdict=pl.lit("noise"))
    answer = only(changed(judged, truth=truth))
    assert answer.warning.startswith("The truth may be noise: accuracy has a reliability of ")
    html = answer_markup([answer])
    assert html.index("The truth may be noise") < html.index(answer.sentence[:9])


def test_without_a_truth_the_agreement_of_proxies_is_told(unjudged):
    answer = only(unjudged)
    agreement = unjudged.tables["data_selection/agreement"].filter(
        size="small", step=4, other_size="small", other_step=4
    )
    assert answer.sentence.endswith(
        f"; the order by bits_per_byte correlates with this one at {agreement['spearman'][0]:.2f}."
    )
    assert (
        "rightly" not in answer.sentence
        and "How often such an order is right: the study has no truth." in answer.missing
    )
    third = agreement.with_columns(other_statistic=pl.lit("margin"), other_weighting=pl.lit("uniform"), spearman=-0.25)
    answer = only(changed(unjudged, agreement=pl.concat([agreement, third])))
    assert answer.sentence.endswith(
        "; the orders by 2 other proxies correlate with this one at -0.25 (margin/uniform) or more."
    )


def test_a_judge_says_whom_it_puts_first_and_why_it_may_be_believed(unjudged):
    checkpoints, _, proxies, of_solutions = answered_studies.made_study(QUALITIES, target=False)
    budgets = [(budget.size, budget.step) for budget in BUDGETS]
    candidates, values = judged_values(checkpoints, proxies.lazy(), of_solutions.lazy(), budgets)
    table = judged_table({"mine": learned([0.1 * n for n in range(9)])}, values, candidates, options=FAST)
    first = table.filter(size="small", step=4, place=1.0).row(0, named=True)
    told = fact(only(changed(unjudged, judged=table)), "Judge mine")
    expected = f"{first['predicted']:.3g} [{first['predicted_low']:.3g}, {first['predicted_high']:.3g}]"
    assert told.startswith(
        f"puts {first['corpus']} first by {first['statistic']}, which is expected to score {expected} in accuracy; "
        f"{first['evidence']}; caution: "
    )


def test_one_seed_few_corpora_and_no_baseline_are_told(tmp_path):
    one_seed = only(answered_studies.corpora(QUALITIES, tmp_path / "one", seeds=(0,)))
    assert any(
        "there is one seed, so intervals of places are over solutions alone" in line for line in one_seed.missing
    )
    assert "The noise ceiling: reliability unknown: one seed." in one_seed.missing
    few = answered_studies.corpora(QUALITIES[:3], tmp_path / "few", truth_noise=1.0)
    assert "The interval of the share of pairs decided rightly: too few corpora (3)." in only(few).missing
    assert re.search(r"; \d\.\d\d of pairs decided rightly at", only(few).sentence)
    table = few.tables["data_selection/decision_accuracy"].with_columns(best_baseline=pl.lit(None, pl.String))
    assert (
        "Whether a plain baseline does as well: there is none." in only(changed(few, decision_accuracy=table)).missing
    )


def test_one_corpus(judged):
    ranking = judged.tables["data_selection/ranking"].filter(corpus="c00").with_columns(place=1.0)
    alone = Tables({"data_selection/ranking": ranking}, TARGET)
    assert only(alone).sentence == "c00 is the only corpus, so there is nothing to choose between."
    assert "What the pick costs: the tables do not have it." in only(alone).missing


def test_lists_of_400_corpora_are_cut(judged):
    row = judged.tables["data_selection/ranking"].filter(**LAST).head(1).drop("corpus", "place")
    names = pl.DataFrame({"corpus": [f"n{n:03d}" for n in range(400)], "place": [float(n + 1) for n in range(400)]})
    pairs = names.select(
        better=pl.lit("n000"), worse="corpus", told_apart=pl.lit(False), **{k: pl.lit(v) for k, v in LAST.items()}
    )
    many = Tables({"data_selection/ranking": names.join(row, how="cross"), "data_selection/pairs": pairs[1:-1]}, None)
    assert only(many).sentence == (
        "n000 leads among 400 corpora; these 398 corpora cannot be told apart from it: n001, n002, n003, n004 and "
        "394 more."
    )


def test_names_are_text_on_the_page(tmp_path):
    evil = "<b>\"x'&"
    answer = only(answered_studies.corpora(QUALITIES, tmp_path, rename={"c07": evil}))
    assert answer.sentence.startswith(f"{evil} leads")
    html = answer_markup([answer])
    assert "<b>" not in html and "&lt;b&gt;&#34;x&#39;&amp; leads" in html


def test_the_answer_of_a_model_selection(models):
    answer, ranking = only(models), models.tables["model_selection/ranking"]
    first = ranking.row(0, named=True)
    assert answer.sentence.startswith(
        f"{first['model']} leads among 8 models; such an order has a rank correlation of "
    )
    assert f" of {first['held_out_spearman']:.2f} [" in answer.sentence
    scorer = {"method": pl.lit("univariate"), "kind": pl.lit("scorer"), "rests_on": pl.lit("in sample")}
    by_scorer = only(changed(models, ranking=ranking.with_columns(**scorer)))
    where = {"method": "univariate", "tail": first["tail"], "split": "two_tasks"}
    summary, choice = (
        models.tables[f"model_selection/{t}"].filter(**where).row(0, named=True) for t in ("summary", "choices")
    )
    rho = f"{summary['spearman']:.2f} [{summary['low']:.2f}, {summary['high']:.2f}]"
    assert f"rank correlation of {rho} with the truth on tasks that were held out;" in by_scorer.sentence
    price = cost(choice, "regret", "accuracy", "regret_low", "regret_high")
    assert by_scorer.sentence.endswith(f"; its pick instead of the true best costs {price} on such a task.")
    baseline = summary["best_baseline"].split(" (")[0]
    assert fact(by_scorer, "Best baseline").startswith(f"in hindsight {baseline}, ")
    assert any("univariate was fitted (in sample)" in line for line in by_scorer.missing)


def test_models_without_a_truth(tmp_path):
    answer = only(answered_studies.models(tmp_path, judged=False, solutions=1))
    assert "; another order correlates with this one at " in answer.sentence
    assert "How often such an order is right: the study has no truth." in answer.missing


def test_the_end_of_a_run_is_forecast():
    row = {"run": "r", "task": "arc", "horizon": 4.0, "is_end": True, "step": 90_000, "tokens": 3.8e11, "flops": 2e22}
    row |= {"method": "pooled", "last_value": 0.5, "predicted": 0.61, "low": 0.58, "high": 0.64, "truth": None}
    row |= {"caution": "", "rehearsal_coverage": 0.875}
    bare = row | {"task": "boolq", "low": None, "high": None, "truth": 0.7, "caution": "the truth is noise"}
    table = pl.DataFrame([row, bare, row | {"horizon": 2.0, "is_end": False}], schema=SUMMARY_SCHEMA)
    study = Tables(
        {"forecasting/summary": table}, Target(metric="accuracy"), forecasting=SimpleNamespace(confidence=0.9)
    )
    answer = only(study)
    assert answer.sentence == (
        "Run r is forecast to score 0.610 [0.580, 0.640] on arc and 0.610 on boolq (it scored 0.700) in accuracy at "
        "its end (step 90,000)."
    )
    assert fact(answer, "At the cut") == "0.500 on arc and 0.500 on boolq"
    assert fact(answer, "Forecast for") == "3.80e11 tokens, 2.00e22 FLOPs"
    assert fact(answer, "In rehearsals") == "such intervals of pooled held 88 % of the truths, before the cut"
    assert "Whether the forecast on boolq can be trusted: the truth is noise." in answer.missing
    going_on = only(changed(study, summary=table.filter(task="arc")))
    assert going_on.missing[0] == "How right this forecast is: no run has reached its end, so nothing judges it yet."


def test_the_error_of_forecasts_is_told_beside_that_of_the_last_value(forecasts):
    errors = forecasts.tables["forecasting/errors"].filter(task="all", horizon=18.0)
    own, last = (errors.filter(method=method).row(0, named=True) for method in ("chosen", "last_value"))
    answer = only(forecasts)
    assert f"the root mean square error of {own['forecasts']} forecasts there is " in answer.sentence
    assert cost(own, "rmse", "accuracy", "rmse_low", "rmse_high") in answer.sentence
    assert answer.sentence.endswith(f", that of the last value {100 * last['rmse']:.1f} points.")
    assert fact(answer, "Coverage") == f"the intervals hold {100 * own['coverage']:.0f} % of {own['forecasts']} truths"


def test_numbers_are_short_and_without_exponents():
    assert [two_digits(x) for x in (0.0, -0.0, 0.412, 9.97, 12.4, 1234.5, -0.05)] == "0 0 0.41 10 12 1234 -0.05".split()
    assert [percent(x) for x in (2e-5, 0.46, 1.0, 3e-9)] == ["0.002 %", "46 %", "100 %", "0.0000003 %"]
    row = {"regret": 0.004, "low": 0.0, "high": 0.011}
    assert cost(row, "regret", "accuracy", "low", "high") == "0.4 points [0, 1.1]"
    assert cost(row, "regret", "perplexity", "low", "high") == "0.004 [0, 0.011] in perplexity"
    assert (
        listed(["a"]) == "a"
        and listed(["a", "b", "c"]) == "a, b and c"
        and listed([*"abcdef"]) == "a, b, c, d and 2 more"
    )


def test_a_study_without_tables_has_no_answer():
    assert answers(Tables({}, TARGET)) == []
    assert "no ranking and no forecast" in answer_markup([])


numbers = st.none() | st.floats(allow_nan=True, allow_infinity=True)
KEPT = {
    "statistic",
    "weighting",
    "size",
    "step",
    "corpus",
    "seeds",
    "task",
    "seed",
    "split",
    "kind",
    "method",
    "horizon",
}


@settings(max_examples=60, deadline=None)
@given(data=st.data())
def test_whatever_is_missing_there_is_a_sentence(data, judged, models, forecasts):
    """Tables are left out at random, and any number of the others may be null, NaN or infinite."""
    study = data.draw(st.sampled_from([judged, models, forecasts]))
    tables = {}
    for name, table in study.tables.items():
        decides = name.endswith("/ranking") or name == "forecasting/summary"
        if not decides and data.draw(st.booleans()):
            continue
        floats = [c for c in table.columns if table[c].dtype == pl.Float64 and c not in KEPT | {"place"}]
        values = {
            c: pl.lit(data.draw(numbers), pl.Float64) for c in data.draw(st.sets(st.sampled_from(floats or [""]))) if c
        }
        tables[name] = table.with_columns(**values)
    target = data.draw(st.sampled_from([None, study.study.target]))
    answer = only(Tables(tables, target, study.study.highlighted, study.study.forecasting))
    said = " ".join(
        [answer.warning, answer.sentence, *(text for fact in answer.facts for text in fact), *answer.missing]
    )
    assert answer.sentence.endswith(".")
    assert re.search(" leads among 8 |^Run r0 (is forecast to score|has no forecast) ", answer.sentence)
    assert not re.search(r"\b(None|nan|inf|null)\b|–", said), said


def test_what_is_cheapest_is_told_of_three_kinds(judged):
    schema = {"statistic": pl.String, "weighting": pl.String, "kind": pl.String, "threshold": pl.Float64}
    rows = [
        ("cross_entropy", "uniform", "proxy", 0.8, 0.5),  # named in advance
        ("cross_entropy", "uniform", "proxy", 0.9, None),
        ("margin", "entropy", "proxy", 0.9, 0.02),
        ("margin", "uniform", "proxy", 0.9, 0.3),
        ("expert_cross_entropy", "none", "baseline", 0.9, 0.25),
    ]
    reached = pl.DataFrame(rows, schema | {"compute_fraction": pl.Float64}, orient="row")
    assert fact(only(changed(judged, compute_to_reach=reached)), "Cheapest") == (
        "one seed first decides 0.9 of pairs rightly by margin/entropy (a proxy, in hindsight) at 2 %, by "
        "expert_cross_entropy (a plain baseline) at 25 % of the target's compute; by none that is named in advance"
    )
    assert "Cheapest" not in dict(only(changed(judged, compute_to_reach=reached.clear())).facts)


def test_the_other_named_orders_are_told_with_their_picks(judged):
    """Else the answer could be the luckiest of several."""
    choices = judged.tables["data_selection/choices"].filter(seed="mean")
    told = fact(only(judged), "Other orders")
    for proxy in judged.study.highlighted:
        for budget in BUDGETS:
            where = {"size": budget.size, "step": budget.step, "statistic": proxy.statistic}
            if where | {"weighting": proxy.weighting} != LAST:
                [row] = choices.filter(weighting=proxy.weighting, **where).rows(named=True)
                assert f"{row['picked']} ({cost(row, 'regret', TARGET.metric)}" in told


def test_pairs_that_nobody_could_compare_are_no_pairs_that_are_told_apart(unjudged):
    pairs = unjudged.tables["data_selection/pairs"]
    [leader] = unjudged.tables["data_selection/ranking"].filter(place=1, **LAST)["corpus"]
    of_leader = (pl.col("better") == leader) | (pl.col("worse") == leader)
    known = pairs.with_columns(told_apart=pl.when(of_leader & (pl.col("worse") == "c00")).then(None).otherwise(True))
    assert (
        "of 1 corpus it is not known whether they can be told apart from it"
        in only(changed(unjudged, pairs=known)).sentence
    )
