"""Studies of statistics that others measured: their corpora, models and tasks, what is checked, and what comes out."""

import csv
import json
from itertools import combinations, product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from proxycast.command import study_check
from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.experiments.data_selection.data_tables import data_selection_tables, order_tables
from proxycast.experiments.model_selection.model_ranking import NO_SOLUTIONS
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checkpoints import budgets_of, checkpoints_table, scored_checkpoints
from proxycast.study.checks import check_inputs
from proxycast.study.cross_checks import check_together
from proxycast.study.loader import load_plan
from proxycast.study.study_plan import Plan
from proxycast.truth.outside_statistics import compared_rows, statistics_and_truth
from scipy.stats import spearmanr
from test_checks import TRUTH, solutions, study  # noqa: F401  fixtures

FAST = SelectionOptions(bootstrap_replicates=100)
CORPORA, TASKS = ["web", "wiki", "books", "code", "forum"], ["sums", "arcs"]
MODELS = [f"{family}/{n}" for family, n in product("ab", range(4))]


def write(rows: list[dict], path: str = "numbers.csv") -> None:
    names = list(dict.fromkeys(name for row in rows for name in row))
    with open(path, "w", newline="") as file:
        writer = csv.DictWriter(file, names)
        writer.writeheader()
        writer.writerows(rows)


def corpora_rows() -> list[dict]:
    """Two sizes of small models with two seeds, and the large models' accuracy."""
    rng, rows = np.random.default_rng(0), []
    for (n, corpus), task, seed in product(enumerate(CORPORA), TASKS, (0, 1)):
        key = {"unit": corpus, "task": task, "seed": seed}
        for size, parameters in (("small", 10), ("middle", 20)):
            of_model = {"size": size, "step": 8, "parameters": parameters, "tokens": 1000}
            rows += [key | of_model | {"statistic": "nll", "value": 3 - n / 9 + rng.normal() / 5}]
            rows += [key | of_model | {"statistic": "accuracy", "value": 0.3 + rng.random() / 5}]
        of_model = {"size": "large", "step": 9, "parameters": 100, "tokens": 9000}
        rows += [key | of_model | {"statistic": "accuracy", "value": 0.4 + n / 20, "n": 50}]
    return rows


def data_study(**changes) -> dict:
    statistics = {"table": "numbers.csv", "higher_is_better": {"nll": False}}
    budgets = [{"name": "b", "size": "small", "step": 8}]
    right = {"study": "mine", "statistics": statistics, "target": {"size": "large", "metric": "accuracy"}}
    return right | {"budgets": budgets, "highlighted": [{"statistic": "nll", "weighting": "none"}]} | changes


def models_rows() -> list[dict]:
    """A statistic that knows tasks, one that does not, and the errors."""
    rng, rows = np.random.default_rng(1), []
    for n, model in enumerate(MODELS):
        key = {"unit": model, "family": model[0]}
        rows.append(key | {"statistic": "loss", "value": 3 - n / 9 + rng.normal() / 5})
        for task in ("sums", "arcs", "words"):
            rows.append(key | {"task": task, "statistic": "margin", "value": rng.normal()})
            rows.append(key | {"task": task, "statistic": "error", "value": 0.9 - n / 12 + rng.random() / 9})
    return rows


def models_study(**changes) -> dict:
    statistics = {"table": "numbers.csv", "higher_is_better": {"loss": False}}
    target = {"metric": "error", "higher_is_better": False}
    return {"study": "mine", "statistics": statistics, "target": target, "model_selection": {}} | changes


@pytest.fixture
def opened(tmp_path, monkeypatch):
    """A function that opens a study of a table, and checks its inputs: its plan and the table of its checkpoints."""
    monkeypatch.chdir(tmp_path)

    def build(values: dict, rows: list[dict]) -> tuple[Plan, pl.DataFrame]:
        write(rows)
        plan = load_plan(values, "study.yaml", tmp_path)
        checkpoints = plan_checkpoints(plan)
        check_inputs(plan, checkpoints)
        assert not plan.runs_models and scored_checkpoints(plan, checkpoints) == []
        return plan, checkpoints_table(checkpoints, {})

    return build


def read(plan: Plan, checkpoints: pl.DataFrame) -> tuple[pl.DataFrame, pl.DataFrame]:
    options, target = plan.study.statistics, plan.study.target
    table = compared_rows(plan.outside, options.table, target)
    return statistics_and_truth(table, options.table, options, target, checkpoints, plan.task_names)


def test_corpora_and_tasks_of_a_table(opened):
    plan, checkpoints = opened(data_study(), corpora_rows())
    assert plan.corpus_names == CORPORA and plan.task_names == TASKS and plan.solution_names == []
    row = checkpoints.row(by_predicate=pl.col("checkpoint") == "wiki-small-seed1-step8", named=True)
    known = {"corpus": "wiki", "size": "small", "seed": 1, "step": 8, "parameters": 10, "tokens": 1000, "role": "proxy"}
    assert known.items() <= row.items() and row["flops"] == 6 * 10 * 1000 and row["source"] == ""
    assert checkpoints.filter(role="target")["checkpoint"].to_list() == [
        f"{corpus}-large-seed{seed}-step9" for corpus in CORPORA for seed in (0, 1)
    ]
    assert len(checkpoints) == 5 * 2 * 3


def test_a_data_selection_of_a_table_agrees_with_a_loop(opened):
    """Also the small models' own accuracy is a baseline there."""
    rows = corpora_rows()
    plan, checkpoints = opened(data_study(), rows)
    statistics, truth = read(plan, checkpoints)
    tables = data_selection_tables(
        *(checkpoints, truth, plan.task_names, plan.study.target, FAST, plan.study.budgets, plan.study.highlighted),
        outside=statistics,
    )

    def mean(corpus: str, **where) -> float:
        found = [r["value"] for r in rows if all(r.get(k) == v for k, v in {"unit": corpus, **where}.items())]
        return sum(found) / len(found)

    for (statistic, sign), size, seed in product((("nll", -1), ("accuracy", 1)), ("small", "middle"), (0, 1)):
        right = 0.0
        for a, b in combinations(CORPORA, 2):
            true = mean(a, statistic="accuracy", size="large") - mean(b, statistic="accuracy", size="large")
            at = {"statistic": statistic, "size": size, "seed": seed}
            right += (sign * (mean(a, **at) - mean(b, **at)) * true > 0) / 10
        found = tables["decision_accuracy"].filter(statistic=statistic, size=size, seed=str(seed), task="all")
        assert found["decision_accuracy"].item() == pytest.approx(right)
        assert found["kind"].item() == "baseline" and found["weighting"].item() == "none"
    ranked = tables["ranking"].filter(corpus="wiki")
    assert ranked["statistic"].to_list() == ["nll"]
    assert ranked["predicted"].item() == pytest.approx(-mean("wiki", statistic="nll", size="small"))
    assert "nll" in tables["summary"].filter("highlighted")["statistic"]


def test_a_model_selection_of_a_table_agrees_with_scipy(opened):
    """Models keep their names, which need not be names of files."""
    rows = models_rows()
    plan, checkpoints = opened(models_study(), rows)
    assert checkpoints["checkpoint"].to_list() == MODELS and checkpoints["run"].to_list() == MODELS
    assert checkpoints["family"].to_list() == [name[0] for name in MODELS] and set(checkpoints["role"]) == {"candidate"}
    assert plan.task_names == ["sums", "arcs", "words"] and any("no judge.json" in line for line in plan.left_out)
    statistics, truth = read(plan, checkpoints)
    options = ModelSelectionOptions(scorers=["univariate", "sparse3"])
    tables = model_selection_tables(
        *(checkpoints, truth, None, plan.task_names, plan.study.target, FAST, options, NO_SOLUTIONS, []),
        outside=statistics,
    )

    def values(statistic: str, task: str) -> list[float]:
        found = {r["unit"]: r["value"] for r in rows if r["statistic"] == statistic and r.get("task") in (task, None)}
        return [found[name] for name in MODELS]

    proxies = tables["proxies"].filter(kind="baseline")
    for statistic, task in product(("loss", "margin"), plan.task_names):
        rho = spearmanr(values(statistic, task), values("error", task))[0]  # less of both is better
        assert proxies.filter(statistic=statistic, task=task)["spearman"].item() == pytest.approx(rho)
    assert set(tables["chosen"].select("statistic", "weighting").iter_rows()) <= {("loss", "none"), ("margin", "none")}
    summary = tables["summary"].filter(split="two_tasks")
    assert set(summary["method"]) >= {"univariate", "loss", "margin", "chance"} and "sparse3" not in summary["method"]
    # The winner is named, by what did best on tasks that were held out.
    ranking = tables["ranking"].filter(task="all", method="loss")
    order = sorted(MODELS, key=lambda name: values("loss", "sums")[MODELS.index(name)])
    assert ranking["model"].to_list() == order and ranking["place_low"].null_count() == len(MODELS)
    assert set(tables["ranking"]["method"]) == {"loss", "margin", "univariate"}
    folds = [spearmanr(values("loss", task), values("error", task))[0] for task in plan.task_names]
    assert summary.filter(method="loss")["spearman"].item() == pytest.approx(np.mean(folds))


@pytest.mark.parametrize("judged", [True, False])
def test_models_of_a_table_are_ranked_though_the_default_proxies_are_not_in_it(opened, judged):
    values = models_study()
    if not judged:
        del values["target"]
        values["statistics"] = {"table": "numbers.csv", "higher_is_better": {"loss": False, "error": False}}
    plan, checkpoints = opened(values, models_rows())
    statistics, truth = read(plan, checkpoints)
    tables = model_selection_tables(
        *(checkpoints, truth if judged else None, None, plan.task_names, plan.study.target, FAST),
        *(ModelSelectionOptions(scorers=["univariate"]), NO_SOLUTIONS, plan.study.highlighted),
        outside=statistics,
    )
    assert {"loss", "margin"} <= set(tables["ranking"]["method"]) and ("summary" in tables) == judged


def test_the_default_budget_of_corpora_that_only_a_table_names(opened):
    values = data_study()
    del values["budgets"]
    plan = opened(values, corpora_rows())[0]
    assert [(b.size, b.step) for b in budgets_of(plan, plan_checkpoints(plan))] == [("middle", 8)]
    rows = [row | {"step": 7} if (row["unit"], row["size"]) in {("web", "small")} else row for row in corpora_rows()]
    rows = [row for row in rows if row["size"] != "middle"]
    with pytest.raises(InputError, match="no size and step that all corpora have; their last ones are web: small at"):
        opened(values, rows)


def test_corpora_of_a_table_are_ordered_without_a_truth(opened):
    rows, values = [row for row in corpora_rows() if row["size"] != "large"], data_study()
    del values["target"]
    values["statistics"]["higher_is_better"] = {"nll": False, "accuracy": True}
    plan, checkpoints = opened(values, rows)
    tables = order_tables(
        *(checkpoints, None, None, plan.task_names, FAST, plan.study.budgets, plan.study.highlighted),
        outside=read(plan, checkpoints)[0],
    )
    assert plan.selects_data and plan.corpus_names == CORPORA
    means = {
        c: [r["value"] for r in rows if (r["unit"], r["size"], r["statistic"]) == (c, "small", "nll")] for c in CORPORA
    }
    assert tables["ranking"]["corpus"].to_list() == sorted(CORPORA, key=lambda corpus: sum(means[corpus]))
    with pytest.raises(
        InputError, match="column size: empty in all rows of 'a/0'; .*`model_selection: {}` ranks models"
    ):
        signs = {"table": "numbers.csv", "higher_is_better": {"loss": False, "error": False}}
        opened(
            values | {"statistics": signs, "highlighted": [{"statistic": "loss", "weighting": "none"}]}, models_rows()
        )


def test_check_names_what_ranks_models_of_a_table(opened, capsys, monkeypatch):
    monkeypatch.setattr(study_check, "change_nothing", lambda: None)  # which would hold for the tests that follow
    opened(models_study(), models_rows())
    Path("study.yaml").write_text(json.dumps(models_study()))
    study_check.check_study(Path("study.yaml"))
    said = capsys.readouterr().out
    assert "ranked by    loss, margin\n" in said and "checkpoints  8 (role candidate; " in said


def test_what_ranks_must_have_values_at_the_budgets(opened):
    rows = [row for row in corpora_rows() if (row["size"], row["statistic"]) != ("middle", "nll")]
    opened(data_study(), rows)
    values = data_study(budgets=[])  # the default is the largest size
    with pytest.raises(
        InputError, match="no row of nll, which `highlighted` names, for middle at step 8, .*: small at"
    ):
        opened(values, rows)


def test_what_ranks_without_a_truth_must_be_in_the_table(opened):
    """Models are ranked by all that it has; the proxies named in advance may name one, and corpora need it."""
    signs = {"table": "numbers.csv", "higher_is_better": {"loss": False, "error": False}}
    values = {"study": "mine", "statistics": signs, "model_selection": {}}
    for name in ("loss", "training_compute"):
        opened(values | {"highlighted": [{"statistic": name, "weighting": "none"}]}, models_rows())
    with pytest.raises(InputError, match=r"highlighted\[0\]: found los, weighting none; no model is run, .*: loss, m"):
        opened(values | {"highlighted": [{"statistic": "los", "weighting": "none"}]}, models_rows())
    values = data_study()
    opened(values, corpora_rows())
    del values["highlighted"]
    with pytest.raises(InputError, match="highlighted: missing; no model is run, .*numbers.csv, .*: nll, accuracy"):
        opened(values, corpora_rows())


def test_a_truth_table_names_a_model_by_its_name(opened):
    rows = [row for row in models_rows() if row["statistic"] != "error"]
    truth = [r for r in models_rows() if r["statistic"] == "error"]
    Path("truth.csv").write_text(
        "checkpoint,task,metric,value\n" + "".join(f"{r['unit']},{r['task']},error,{r['value']}\n" for r in truth)
    )
    target = {"metric": "error", "higher_is_better": False, "table": "truth.csv"}
    plan, checkpoints = opened(models_study(target=target), rows)
    assert plan.task_names == ["sums", "arcs", "words"] and read(plan, checkpoints)[1].is_empty()
    lines = Path("truth.csv").read_text().splitlines()
    Path("truth.csv").write_text("\n".join(lines[:-1]))
    with pytest.raises(InputError, match="truth.csv: error missing for 1 of checkpoint/task: b/3/words"):
        opened(models_study(target=target), rows)


def changed(rows: list[dict], where: dict, **values) -> list[dict]:
    return [row | values if where.items() <= row.items() else row for row in rows]


def left_out(rows: list[dict], **where) -> list[dict]:
    return [row for row in rows if not where.items() <= row.items()]


@pytest.mark.parametrize(
    "rows, words",
    [
        (
            left_out(corpora_rows(), unit="wiki", task="arcs", size="small", seed=1, statistic="nll"),
            "numbers.csv: no row of nll, task arcs, for wiki-small-seed1-step8, and 0 more are missing; a statistic",
        ),
        (
            left_out(corpora_rows(), unit="wiki", task="arcs", size="large", seed=1),
            "numbers.csv: accuracy missing for 1 of checkpoint/task: wiki-large-seed1-step9/arcs",
        ),
        (
            [*left_out(corpora_rows(), unit="code"), {"unit": "code", "task": "sums", "statistic": "nll", "value": 1}],
            "numbers.csv, row .*, column size: empty in all rows of 'code'",
        ),
        (
            changed(corpora_rows(), {"size": "small"}, tokens=""),
            "numbers.csv, row 2, column tokens: not known of 'web', size 'small', and no ladder tells it",
        ),
        (left_out(corpora_rows(), size="large"), "target.size: 'large' is no size of this study"),
        (
            changed(corpora_rows(), {"unit": "code", "size": "small"}, parameters=11),
            "numbers.csv: checkpoints: parameters of small at step 8: found 11, but 10 in numbers.csv; corpora are",
        ),
    ],
)
def test_tables_of_corpora_that_are_wrong(opened, rows, words):
    with pytest.raises(InputError, match=words):
        opened(data_study(), rows)


@pytest.mark.parametrize(
    "changes, words",
    [
        (
            {
                "statistics": {
                    "table": "numbers.csv",
                    "higher_is_better": {"loss": False},
                    "decision_accuracies": "a.csv",
                }
            },
            "statistics.decision_accuracies: needs a ladder, which knows the compute, and target.size",
        ),
        ({"forecasting": {"fit_up_to_step": 9}}, "statistics and forecasting: found both; .*forecasting.curve"),
        ({"miniature": {"sizes": {}}}, "study.yaml: miniature"),
        (
            {"writers": {"strong": {"hub": "me/strong"}}},
            "study.yaml: writers: a study with statistics and without tasks",
        ),
        ({"statistics": {"table": "numbers.csv"}}, "column statistic: found 'loss', which has no sign"),
        ({"statistics": {"table": "absent.csv", "higher_is_better": {"loss": False}}}, "absent.csv: no such file"),
    ],
)
def test_studies_that_are_wrong(opened, changes, words):
    with pytest.raises(InputError, match=words):
        opened(models_study(**changes), models_rows())


def test_a_model_whose_family_nobody_knows_is_one_of_its_own(opened):
    _, checkpoints = opened(models_study(), changed(models_rows(), {"unit": "a/1"}, family=""))
    assert checkpoints["family"].to_list() == ["a", "a/1", "a", "a", *"bbbb"]
    rows = [{k: v for k, v in row.items() if k != "family"} for row in models_rows()]
    assert set(opened(models_study(), rows)[1]["family"]) == {"unknown"}


# Beside models that are run


def test_statistics_beside_models_that_are_run(study):  # noqa: F811
    """A row without a size is of every small model; nothing of it is read by the models."""
    statistics = {"table": "numbers.csv", "higher_is_better": {"quality": True}}
    write([{"unit": name, "task": "", "statistic": "quality", "value": n} for n, name in enumerate("ab")])
    plan, checkpoints = study(**TRUTH, statistics=statistics)
    check_inputs(plan, checkpoints)
    table = checkpoints_table(checkpoints, {})
    found, truth = statistics_and_truth(
        *(plan.outside, "numbers.csv", plan.study.statistics, plan.study.target, table, plan.task_names)
    )
    assert plan.runs_models and truth.is_empty()
    assert found.select("checkpoint", "task", "value").rows() == [
        ("a-small-seed0-step1", "sums", 0.0),
        ("b-small-seed0-step1", "sums", 1.0),
    ]
    write([{"unit": "a", "task": "", "statistic": "quality", "value": 1}])
    with pytest.raises(InputError, match="numbers.csv: no row of quality, task sums, for b-small-seed0-step1"):
        check_inputs(*study(**TRUTH, statistics=statistics))
    write([{"unit": "c", "task": "", "statistic": "quality", "value": 1}])
    with pytest.raises(
        InputError, match="numbers.csv, row 2, column unit: found 'c', which is no corpus .*it names a, b"
    ):
        check_inputs(*study(**TRUTH, statistics=statistics))


def test_statistics_beside_models_rank_without_a_truth(study):  # noqa: F811
    write([{"unit": name, "task": "", "statistic": "quality", "value": n} for n, name in enumerate("ab")])
    statistics = {"table": "numbers.csv", "higher_is_better": {"quality": True}}
    for name, ranks in (("quality", True), ("qualitu", False)):
        highlighted = [{"statistic": name, "weighting": "none"}]
        plan, _ = study(target=None, statistics=statistics, highlighted=highlighted)
        if ranks:
            check_together(plan, "study.yaml")
            continue
        with pytest.raises(InputError, match="no baseline 'qualitu'; did you mean 'quality'?"):
            check_together(plan, "study.yaml")
