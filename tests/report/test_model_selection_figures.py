"""Figures of model selections whose scores are made up and whose tables are the real ones."""

import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from matplotlib.colors import to_hex
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.experiments.model_selection.fold_tables import (
    folds_table,
    method_summary,
    predictions_table,
    proxies_table,
    stability_table,
)
from proxycast.experiments.model_selection.folds import CHOSEN_SCHEMA, LABELS, leave_one_label_out, leave_two_tasks_out
from proxycast.experiments.model_selection.known_models import KnownModels, Method
from proxycast.experiments.model_selection.task_truth import task_truth_table
from proxycast.experiments.model_selection.writer_comparison import WRITERS_SCHEMA
from proxycast.experiments.reliability import ABOVE_CEILING
from proxycast.options import InputError
from proxycast.report import model_selection_figures as plots
from proxycast.report import style

TASKS = ("arithmetic", "sorting", "dates", "spelling", "retrieval", "logic")
FAMILIES = ("GPT-2", "GPT-NeoX", "Llama")
SCORERS = {"univariate": 1.0, "sparse3": 0.6, "rank_svm_linear": 0.5, "rank_svm_rbf": 0.5}
BASELINES = {
    **{"generic_cross_entropy": 1.6, "generic_bits_per_byte": 1.5, "expert_cross_entropy": 1.1, "bits_per_byte": 1.2},
    "rbridge": 1.0,
}
PROXIES = [(s, w) for s in style.STATISTIC_LOOKS for w in style.WEIGHTING_LOOKS]
OPTIONS = SelectionOptions(bootstrap_replicates=100)


class Study:
    """Models of known quality; a method sees it through noise of the given strength. Tables by `model_selection`."""

    def __init__(
        self, tasks=TASKS, families=FAMILIES, each=6, tails=("tokens", "bytes"), writers=("a", "b"), recipes=(), seed=0
    ):
        self.rng = np.random.default_rng(seed)
        shape = len(tasks), len(families) * each
        quality = self.rng.normal(size=shape[1]) + 0.4 * self.rng.normal(size=shape)
        truth = np.clip(0.5 + 0.13 * quality, 0.02, 0.98)
        seen = {Method(name, "baseline", tail): noise for name, noise in BASELINES.items() for tail in tails}
        seen |= {Method("parameters", "baseline", ""): 1.3, Method("training_compute", "baseline", ""): 1.2}
        baselines = {method: quality + noise * self.rng.normal(size=shape) for method, noise in seen.items()}
        noise = self.rng.normal(size=(*shape, len(PROXIES)))
        names = [f for f in families for _ in range(each)]
        self.known = KnownModels(
            models=[f"{name.lower()}-mixture{n}-4M-s0-step2000" for n, name in enumerate(names)],
            families=names,
            tasks=list(tasks),
            truth=truth,
            problems=np.full(shape, 200.0),
            proxies=PROXIES,
            features={tail: quality[..., None] * self.rng.uniform(-0.5, 2, len(PROXIES)) + noise for tail in tails},
            baselines=baselines | {Method("chance", "baseline", ""): np.zeros(shape)},
            left_out={Method("rbridge", "baseline", "other"): "known for 12 of 18 models in every task"},
            recipes=[recipes[n % len(recipes)] for n in range(shape[1])] if recipes else [],
        )
        two_tasks = leave_two_tasks_out(self.known)
        by_label = [leave_one_label_out(self.known, split)[0] for split in LABELS]
        self.splits = [folds for folds in (two_tasks, *by_label) if folds]
        scores = [[self._scores(quality, fold) for fold in folds] for folds in self.splits]
        every = [fold for folds in self.splits for fold in folds]
        flat = [found for of_split in scores for found in of_split]
        self.summary = pl.concat(method_summary(self.known, *both, OPTIONS) for both in zip(self.splits, scores))
        self.folds = folds_table(self.known, every, flat)
        self.predictions = predictions_table(self.known, every, flat)
        self.stability = stability_table(self._chosen(every, tails), every)
        self.truth = task_truth_table(self.known, {})
        self.proxies = proxies_table(self.known, OPTIONS)
        self.writers = self._writers(writers)

    def _scores(self, quality, fold):
        values = quality[np.ix_(fold.tasks, fold.test)]
        tails = list(self.known.features)
        learned = {Method(name, "scorer", tail): noise for name, noise in SCORERS.items() for tail in tails}
        learned |= {Method("best_proxy_in_hindsight", "oracle", tail): 0.2 for tail in tails}
        own = {method: values + noise * self.rng.normal(size=values.shape) for method, noise in learned.items()}
        return own | {method: v[np.ix_(fold.tasks, fold.test)] for method, v in self.known.baselines.items()}

    def _chosen(self, folds, tails):
        rows, likely = [], 1 / np.arange(1, len(PROXIES) + 1) ** 1.5
        for fold in folds:
            for scorer, count in (("univariate", 1), ("sparse3", 3), ("rank_svm_linear", 5)):
                for tail in tails:
                    for place in self.rng.choice(len(PROXIES), count, replace=False, p=likely / likely.sum()):
                        proxy = PROXIES[place * 7 % len(PROXIES)]
                        sign = self.rng.choice([1.0, -1.0], p=[0.95, 0.05])
                        rows.append((fold.split, fold.number, fold.held_out, scorer, tail, *proxy, sign))
        return pl.DataFrame(rows, CHOSEN_SCHEMA, orient="row")

    def _writers(self, writers):
        rows = []
        for writer in ("all", *writers):
            for method in ("univariate", "rank_svm_linear", "cross_entropy/uniform"):
                for number, draw in [(n, d) for n in (10, 30, 100) for d in range(5)] + [(None, 0)]:
                    value = 0.75 - 1.2 / np.sqrt(number or 200) + 0.04 * self.rng.normal()
                    rows.append((writer, number, draw, method, value, min(1, value + 0.2)))
        return pl.DataFrame(rows, WRITERS_SCHEMA, orient="row")

    def figures(self, method="rank_svm_linear"):
        return {
            "methods": plots.methods_compared(self.summary, self.folds, self.truth),
            "predicted_against_true_rank": plots.predicted_against_true_rank(
                self.predictions, self.folds, method, self.truth
            ),
            "proxies_chosen": plots.proxies_chosen(self.stability),
            "solutions_and_writers": plots.solutions_and_writers(self.writers),
            "model_selection_heatmap": plots.model_selection_heatmap(self.proxies),
        }


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def figures(study):
    return study.figures()


def words(figure):
    return [text.get_text() for text in texts(figure)[0]]


def test_no_text_overlaps_another_and_none_is_cut(figures):
    for name, figure in figures.items():
        assert overlapping(figure) == [], name


def test_the_same_tables_give_the_same_svg(study, tmp_path):
    summary, folds = (table.filter(split="two_tasks") for table in (study.summary, study.folds))
    for folder in "ab":
        style.save(plots.methods_compared(summary, folds, study.truth), tmp_path / folder)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


def test_many_tasks_and_families_are_drawn_without_overlaps(study):
    tasks = pl.DataFrame({"task": [f"task {n}" for n in range(10)]})
    one = study.predictions.filter(pl.col("model").is_in(study.known.models[:11]), task=TASKS[0], method="sparse3")
    families = one.with_columns(family=pl.format("family {}", pl.col("model").rank("dense") % 10))
    figure = plots.predicted_against_true_rank(families.drop("task").join(tasks, how="cross"), study.folds, "sparse3")
    assert overlapping(figure) == []
    markers = [line for line in figure.axes[0].lines if line.get_marker() in style.MARKERS]
    assert len({(line.get_color(), line.get_marker()) for line in markers}) == 10


def test_few_models_of_one_family_and_one_tail_are_drawn_without_overlaps():
    few = Study(tasks=TASKS[:3], families=["only"], each=5, tails=["tokens"], writers=["given"])
    assert len(plots.methods_compared(few.summary, few.folds, few.truth).axes) == 1
    for name, figure in few.figures().items():
        assert overlapping(figure) == [], name


def test_methods_show_every_mean_with_its_interval_best_first_within_a_kind(study, figures):
    figure = figures["methods"]
    names = [label.get_text() for label in figure.axes[0].get_yticklabels()]
    assert names[0] == "Scorers" and names[-2:] == ["Oracle", "Best proxy in hindsight"]
    best = study.summary.filter(split="two_tasks").unique("method", keep="first", maintain_order=True)
    for kind, first in (("scorer", "Scorers"), ("baseline", "Baselines")):
        expected = [plots.method_name(m) for m in best.filter(kind=kind)["method"] if m != "chance"]
        place = names.index(first) + 1
        expected = [name for name in expected if name != "rBridge" or "rBridge" in names]
        assert names[place : place + len(expected)] == expected
    for axes, split in zip(figure.axes, ("two_tasks", "family"), strict=True):
        rows = study.summary.filter(pl.col("method") != "chance", split=split).drop_nulls("spearman")
        bars = {tuple(round(x, 6) for x in segment[:, 0]) for c in axes.collections for segment in c.get_segments()}
        assert bars == {(round(low, 6), round(high, 6)) for low, high in rows.select("low", "high").iter_rows()}
        assert sorted(t.get_text() for t in axes.texts if t.get_text() != "best baseline") == sorted(
            f"{value:.2f}" for value in rows["spearman"]
        )
        (line,) = [line for line in axes.lines if line.get_linestyle() == "--" and line.get_linewidth() == 0.9]
        assert line.get_xdata()[0] == rows.filter(kind="baseline")["spearman"].max()


def test_a_truth_that_is_noise_and_missing_intervals_are_told():
    """Four models: no intervals. Two tasks, and the mean over all, that may be noise: title, panels and note say so."""
    study = Study(families=("Llama",), each=4, tails=("tokens",))
    row = {"verdict": "noise", "reliability": -0.34, "reliability_low": -1.0, "reliability_high": 0.41}
    noise = pl.col("task").is_in(["all", "dates", "logic"])
    study.truth = study.truth.with_columns(verdict=pl.lit("good")).with_columns(
        pl.when(noise).then(pl.lit(value)).otherwise(name).alias(name) for name, value in row.items()
    )
    methods = plots.methods_compared(study.summary, study.folds, study.truth)
    ranks = plots.predicted_against_true_rank(study.predictions, study.folds, "rank_svm_linear", study.truth)
    assert overlapping(methods) == overlapping(ranks) == []
    shown = " ".join(words(methods)).replace("\n", " ")
    assert "The truth may be noise: the mean over tasks has a reliability of -0.34 [-1.00, 0.41]." in shown
    assert "The truth may be noise in dates, logic." in shown
    missing = "Without an interval: too few models, or every sample of them gives the same extreme value."
    assert missing in shown and missing in " ".join(words(plots.model_selection_heatmap(study.proxies))).replace(
        "\n", " "
    )
    panels = [axes.get_title(loc="left") for axes in ranks.axes]
    assert [title for title in panels if title.endswith(": noise?")] == ["dates: noise?", "logic: noise?"]


def test_methods_above_the_ceiling_are_called_luck(study, figures):
    assert "Beyond it: luck" not in " ".join(words(figures["methods"]))
    above = study.summary.with_columns(note=pl.lit(ABOVE_CEILING))
    assert "Beyond it: luck" in " ".join(words(plots.methods_compared(above, study.folds, study.truth)))


def test_methods_tell_what_is_hindsight_and_what_is_left_out(figures):
    note = next(text for text in words(figures["methods"]) if "Oracle:" in text)
    assert "truth of the held-out models" in note and "known for 12 of 18 models" in note
    colours = {label.get_text(): to_hex(label.get_color()) for label in figures["methods"].axes[0].get_yticklabels()}
    assert len({colours[name] for name in ("Linear RankSVM", "rBridge", "Best proxy in hindsight")}) == 3


def test_points_of_folds_are_the_means_over_their_tasks(study, figures):
    drawn = {
        tuple(np.round(np.sort(line.get_xdata()), 6)) for line in figures["methods"].axes[0].lines if line.get_alpha()
    }
    rows = study.folds.filter(split="two_tasks", method="sparse3", tail="bytes")
    expected = [rows.filter(fold=fold)["spearman"].mean() for fold in rows["fold"].unique()]
    assert tuple(np.round(np.sort(expected), 6)) in drawn


def test_ranks_are_means_over_the_folds_of_a_task(study, figures):
    figure = figures["predicted_against_true_rank"]
    assert [axes.get_title(loc="left") for axes in figure.axes] == list(
        study.predictions["task"].unique(maintain_order=True)
    )
    for axes in figure.axes:
        task = axes.get_title(loc="left")
        rows = study.predictions.filter(split="two_tasks", method="rank_svm_linear", tail="tokens", task=task)
        expected = {}
        for model, true, predicted in rows.select("model", "true_rank", "predicted_rank").iter_rows():
            expected.setdefault((model, true), []).append(predicted)
        assert all(len(ranks) == len(TASKS) - 1 for ranks in expected.values())
        drawn = [point for line in axes.lines if line.get_marker() in "osD" for point in zip(*line.get_data())]
        means = [(true, np.mean(ranks)) for (_, true), ranks in expected.items()]
        np.testing.assert_allclose(sorted(drawn), sorted(means))
        bars = sorted(tuple(s[:, 1]) for c in axes.collections for s in c.get_segments())
        np.testing.assert_allclose(bars, sorted((min(ranks), max(ranks)) for ranks in expected.values()))
        own = study.folds.filter(split="two_tasks", method="rank_svm_linear", tail="tokens", task=task)["spearman"]
        shown = [text.get_text() for text in axes.texts if text.get_text()]
        assert f"ρ {own.mean():.2f}" in shown
        off = sorted(expected, key=lambda key: -abs(key[1] - np.mean(expected[key])))[:2]
        assert {model.removesuffix("-step2000") for model, _ in off} == {text for text in shown if "mixture" in text}


def test_a_method_without_predictions_is_an_input_error(study):
    with pytest.raises(InputError, match="nothing to draw for nonsense"):
        plots.predicted_against_true_rank(study.predictions, study.folds, "nonsense")


def test_chosen_proxies_stand_by_share_in_the_colour_of_their_statistic(study, figures):
    figure = figures["proxies_chosen"]
    assert [axes.get_title(loc="left").split(":")[0] for axes in figure.axes] == [
        *("Best single proxy", "Best three proxies", "Linear RankSVM")
    ]
    axes = figure.axes[2]
    rows = study.stability.filter(split="two_tasks", scorer="rank_svm_linear", tail="tokens")
    assert f"agreement of folds {rows['jaccard'][0]:.2f}" in axes.get_title(loc="left")
    assert f"8 of {len(rows)} proxies" in axes.get_title(loc="left")
    rows = rows.head(8)
    assert [bar.get_width() for bar in axes.patches] == rows["share"].to_list()
    assert rows["share"].is_sorted(descending=True)
    names = [label.get_text() for label in axes.get_yticklabels()]
    for name, bar, statistic in zip(names, axes.patches, rows["statistic"], strict=True):
        assert name.startswith(style.look(statistic).label + ", ")
        assert to_hex(bar.get_facecolor()) == style.look(statistic).colour.lower()
    signs = [f"sign alike {share:.0%}" for share in rows["same_sign"] if share < 1]
    assert [text.get_text() for text in axes.texts] == signs
    family = study.stability.filter(split="family", scorer="rank_svm_linear", tail="tokens")
    shares = rows.select("statistic", "weighting").join(family, on=["statistic", "weighting"], maintain_order="left")
    assert [line.get_xdata()[0] for line in axes.lines] == shares["share"].to_list()


def test_a_recipe_held_out_has_a_panel_and_a_marker():
    made = Study(recipes=("none", "sft", "rl"), each=4, tasks=TASKS[:4])
    figure = plots.methods_compared(made.summary, made.folds, made.truth)
    assert overlapping(figure) == []
    assert [axes.get_title(loc="left") for axes in figure.axes][2] == "A recipe held out too, 18 folds"
    chosen = plots.proxies_chosen(made.stability)
    assert overlapping(chosen) == [] and any("Triangles: the share where a recipe" in text for text in words(chosen))
    drawn = [line for axes in chosen.axes for line in axes.lines if line.get_marker() == "^"]
    assert drawn and {line.get_xdata()[0] for line in drawn} <= set(made.stability.filter(split="recipe")["share"])


def test_scorers_that_name_no_proxies_leave_words(study):
    assert any("names the proxies" in text for text in words(plots.proxies_chosen(study.stability.clear())))
    assert any("parts of its solutions" in text for text in words(plots.solutions_and_writers(study.writers.clear())))


def test_lines_of_writers_are_means_over_draws(study, figures):
    figure = figures["solutions_and_writers"]
    for axes, value in ((figure.axes[1], "spearman"), (figure.axes[4], "agreement")):
        assert axes.get_title(loc="left") == ("Linear RankSVM" if value == "spearman" else "")
        lines = [line for line in axes.lines if line.get_linestyle() == "-" and len(line.get_xdata()) == 4]
        assert [to_hex(line.get_color()) for line in lines] == ["#000000", *(c.lower() for c in style.COLOURS[:2])]
        for line, writer in zip(lines, ("all", "a", "b"), strict=True):
            rows = study.writers.filter(writer=writer, method="rank_svm_linear")
            means = [rows.filter(pl.col("number").eq_missing(n))[value].mean() for n in (10, 30, 100, None)]
            np.testing.assert_allclose(line.get_ydata(), means)
    assert [label.get_text() for label in figure.axes[3].get_xticklabels()] == ["10", "30", "100", "all"]
    assert {"All writers", "a", "b"} <= set(words(figure))


def test_the_only_writer_is_drawn_once(study):
    rows = study.writers.filter(pl.col("writer") != "b")
    figure = plots.solutions_and_writers(rows)
    assert "a" in words(figure) and "All writers" not in words(figure)


def test_heat_map_prints_the_mean_over_tasks_of_every_proxy(study, figures):
    shown = [text for text in words(figures["model_selection_heatmap"]) if text.replace(".", "").lstrip("-").isdigit()]
    rows = study.proxies.filter(pl.col("tail") != "bytes", task="all")
    assert sorted(shown) == sorted(f"{value:.2f}" for value in rows["spearman"])
    assert len(shown) == 80 + len(BASELINES) + 3
    one = rows.filter(statistic="margin", weighting="entropy")["spearman"].item()
    tasks = study.proxies.filter(pl.col("task") != "all", statistic="margin", weighting="entropy", tail="tokens")
    assert one == pytest.approx(tasks["spearman"].mean())


def test_every_method_has_a_name_of_its_own():
    names = [plots.method_name(m) for m in (*SCORERS, *BASELINES, "best_proxy_in_hindsight", "cross_entropy/uniform")]
    assert len(set(names)) == len(names)
    assert "Cross-entropy, uniform weighting" in names and not any("_" in name for name in names)
