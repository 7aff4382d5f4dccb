"""The page's sections of a data selection, from tables that the experiment makes of made-up corpora."""

import json
import re
from html.parser import HTMLParser
from itertools import combinations, product

import numpy as np
import polars as pl
import pytest
import vl_convert
from proxycast.config.study import Study
from proxycast.experiments.data_selection.data_tables import data_selection_tables, order_tables
from proxycast.experiments.data_selection.rate_check import RATES_SCHEMA
from proxycast.report.page.blocks import Chart, Html, Note, Table
from proxycast.report.page.charts import MOST_MARKS
from proxycast.report.page.html_page import page_html
from proxycast.report.page.of_corpora.corpus_evidence import evidence_section
from proxycast.report.page.of_corpora.corpus_frontier import COMPARED, frontier_section, pareto_dataset
from proxycast.report.page.of_corpora.corpus_mixtures import mixture_blocks
from proxycast.report.page.of_corpora.corpus_orders import colours_of
from proxycast.report.page.of_corpora.corpus_ranking import MOST_DRAWN, ranking_section
from proxycast.report.page.of_corpora.corpus_rates import rate_blocks
from proxycast.report.page.of_corpora.proxy_heat_map import heat_map_section
from proxycast.report.page.of_corpora.scatter_names import placed_names
from proxycast.report.page.study_results import StudyResults
from proxycast.tables import write_table

TASKS, STEPS = ["homes", "sums"], [2, 4]
PROXIES = [(s, w) for s in ("cross_entropy", "top5_accuracy") for w in ("uniform", "entropy")]
ODD = '<b>"odd" & co</b>'
FIVE = ["base", "core", ODD, "web", "wiki"]


def made_up(corpora, seeds=(0, 1), solutions=4, quality=None, replicates=100):
    """Study and tables: the better a corpus, the better its statistics, up to noise; the first proxy is the best."""
    rng = np.random.default_rng(0)
    quality = np.arange(len(corpora)) / len(corpora) if quality is None else quality
    checkpoints, of_solutions, targets = [], [], []
    for (corpus, good), seed in product(zip(corpora, quality), seeds):
        for role, size, n, steps in (("proxy", "small", 100, STEPS), ("target", "large", 1000, [8])):
            for step in steps:
                name, tokens = f"{corpus}-{size}-seed{seed}-step{step}", 32 * step
                row = {"checkpoint": name, "run": name, "corpus": corpus, "family": "llama", "size": size}
                row |= {"parameters": n, "active_parameters": n, "step": step, "tokens": tokens, "role": role}
                checkpoints.append(row | {"flops": 6.0 * n * tokens, "seed": seed, "source": "", "revision": ""})
                if role == "target":
                    targets += [(name, task, "accuracy", good + 0.05 * rng.normal(), 40) for task in TASKS]
                    continue
                for (statistic, weighting), task, s in product(PROXIES, TASKS, range(solutions)):
                    sign = -1 if statistic == "cross_entropy" else 1
                    noise = (0.1 if weighting == "uniform" else 0.6) * rng.normal()
                    value = sign * (good + noise)
                    of_solutions.append((name, task, f"s{s}", statistic, weighting, value, 1.0, "tokens"))
    columns = ["checkpoint", "task", "solution", "statistic", "weighting", "value", "denominator", "tail"]
    of_solutions = pl.DataFrame(of_solutions, columns, orient="row")
    keys = ["checkpoint", "task", "statistic", "weighting", "tail"]
    proxies = of_solutions.group_by(keys, maintain_order=True).agg(pl.col("value").mean()).lazy()
    targets = pl.DataFrame(targets, ["checkpoint", "task", "metric", "value", "n"], orient="row")
    study = Study(
        study="made_up",
        corpora={"suite": "all"},
        tasks={"suite": "all"},
        ladder={"name": "ladder"},
        target={"size": "large", "metric": "accuracy"},
        selection={"bootstrap_replicates": replicates},
        highlighted=[{"statistic": s, "weighting": "uniform"} for s in ("cross_entropy", "top5_accuracy")],
        budgets=[{"name": f"step {step}", "size": "small", "step": step} for step in STEPS],
    )
    return study, pl.DataFrame(checkpoints), targets, proxies, of_solutions.lazy()


def with_truth(corpora, **options):
    study, checkpoints, targets, proxies, of_solutions = made_up(corpora, **options)
    tables = data_selection_tables(
        checkpoints,
        targets,
        TASKS,
        study.target,
        study.selection,
        study.budgets,
        study.highlighted,
        proxies=proxies,
        of_solutions=of_solutions,
    )
    return study, checkpoints, tables


def without_truth(corpora, **options):
    study, checkpoints, _, proxies, of_solutions = made_up(corpora, **options)
    study = study.model_copy(update={"target": None})
    small = checkpoints.filter(role="proxy")
    tables = order_tables(small, proxies, of_solutions, TASKS, study.selection, study.budgets, study.highlighted)
    return study, small, tables


def written(folder, study, checkpoints, tables) -> StudyResults:
    write_table(checkpoints, folder / "checkpoints.parquet", "")
    for name, table in tables.items():
        write_table(table, folder / f"data_selection/{name}.parquet", "")
    return StudyResults(study, folder, study.budgets, TASKS)


def sections_of(results):
    pareto = pareto_dataset(results)
    ranking, frontier = ranking_section(results), frontier_section(results, pareto)
    return [ranking, frontier, heat_map_section(results), evidence_section(results, pareto)]


def blocks_of(sections, kind):
    return [block for section in sections for block in section.blocks if isinstance(block, kind)]


class Cells(HTMLParser):
    """Texts of the cells of every table by the id of the block around it; values of buttons with their texts."""

    def __init__(self, html: str):
        super().__init__()
        self.tables, self.buttons, self.table, self.inside, self.button = {}, {}, None, False, None
        self.feed(html)

    def handle_starttag(self, tag, attributes):
        attributes = dict(attributes)
        if tag == "table":
            self.table = self.tables.setdefault(attributes.get("id", f"grid {len(self.tables)}"), [])
        elif tag == "tr" and self.table is not None:
            self.table.append([])
        elif tag in ("td", "th") and self.table is not None:
            self.table[-1].append("")
            self.inside = True
        elif tag == "button":
            self.button = attributes.get("data-value")

    def handle_endtag(self, tag):
        if tag in ("td", "th"):
            self.inside = False
        elif tag == "button":
            self.button = None

    def handle_data(self, text):
        if self.inside:
            self.table[-1][-1] += text.strip()
        if self.button is not None:
            self.buttons.setdefault(self.button, []).append(text.strip())


@pytest.fixture(scope="module")
def five():
    return with_truth(FIVE)


@pytest.fixture
def results(five, tmp_path):
    return written(tmp_path, *five)


def test_every_number_of_a_dataset_is_that_of_its_table(results):
    """The csv of the page, and what charts draw, against the files that the study wrote."""
    datasets = {d.name: d for c in blocks_of(sections_of(results), (Chart, Html)) for d in c.datasets}
    datasets |= {table.dataset.name: table.dataset for table in blocks_of(sections_of(results), Table)}
    assert {"ranking", "pairs", "pareto", "at_budgets", "predictions", "compute_to_reach", "agreement"} <= set(datasets)
    for name, dataset in datasets.items():
        table = pl.read_parquet(results.results / f"{dataset.table}.parquet")
        shared = [column for column in dataset.frame.columns if column in table.columns]
        found = dataset.frame.select(shared)
        assert len(found) and len(found.join(table.select(shared), shared, "anti", nulls_equal=True)) == 0, name


def test_the_page_shows_the_numbers_of_the_tables(results):
    html = page_html("t", sections_of(results), "")
    cells = Cells(html)
    ranking = results.table("data_selection/ranking")
    rows = ranking.filter(statistic="cross_entropy", step=4).sort("place", "corpus")
    header, *body = cells.tables["ranking-table-cross-entropy-uniform-small-4-rows"]
    assert [row[0] for row in body] == rows["corpus"].to_list()
    low, high = rows["predicted_low"][0], rows["predicted_high"][0]
    assert body[0][header.index("Predicted score")] == f"{rows['predicted'][0]:.4g} [{low:.4g}, {high:.4g}]"
    assert body[-1][header.index("True rank")].startswith(f"{rows['true_rank'][-1]:.3g}")
    at = results.table("data_selection/decision_accuracy").filter(task="all", seed="single")
    for statistic, weighting in PROXIES:
        found = cells.buttons[f"{statistic}/{weighting}"]
        wanted = at.filter(statistic=statistic, weighting=weighting).sort("step", descending=True)["decision_accuracy"]
        assert found == [f"{value:.2f}" for value in wanted]


def test_the_matrix_says_who_cannot_be_told_apart(results):
    block = next(b for b in blocks_of(sections_of(results), Html) if b.id == "pairs-cross-entropy-uniform-small-4")
    (_, *rows) = next(iter(Cells(block.markup).tables.values()))
    pairs = results.table("data_selection/pairs").filter(statistic="cross_entropy", weighting="uniform", step=4)
    undecided = (~pairs["told_apart"]).sum()
    signs = [sign for row in rows for sign in row[1:]]
    assert signs.count("=") == 2 * undecided and signs.count("+") == signs.count("−") == len(pairs) - undecided
    names = [row[0].split(". ", 1)[1] for row in rows]
    for pair in pairs.filter("told_apart").iter_rows(named=True):
        assert rows[names.index(pair["better"])][1 + names.index(pair["worse"])] == "+"
    assert f"Undecided: {undecided} of {len(pairs)} pairs" in block.caption


def test_what_corpora_are_called_is_escaped(results):
    html = page_html("t", sections_of(results), "")
    assert ODD not in html and "&lt;b&gt;&#34;odd&#34; &amp; co&lt;/b&gt;" in html


def drawn(chart: Chart, **parameters) -> str:
    """The chart as SVG, with controls set to other values."""
    spec = json.loads(json.dumps(chart.spec)) | {"datasets": {d.name: d.frame.to_dicts() for d in chart.datasets}}
    for parameter in spec["params"]:
        parameter["value"] = parameters.get(parameter["name"], parameter["value"])
    return vl_convert.vegalite_to_svg(json.dumps(spec | {"width": 600}))


def points(svg: str) -> int:
    """Points of all layers."""
    groups = re.findall(r'<g class="mark-symbol role-mark[^"]*"[^>]*>(.*?)</g>', svg, re.DOTALL)
    return sum(group.count("<path") for group in groups)


def test_charts_draw_what_their_controls_choose(results):
    charts = {chart.id: chart for chart in blocks_of(sections_of(results), Chart)}
    assert {"ranking-chart", "frontier", "scatter", "over-training"} <= set(charts)
    for order in ("cross_entropy/uniform/small/4", "top5_accuracy/uniform/small/2"):
        svg, (statistic, _, _, step) = drawn(charts["ranking-chart"], order=order), order.split("/")
        rows = results.table("data_selection/ranking").filter(statistic=statistic, step=int(step))
        heights = {}
        for corpus in rows["corpus"]:
            escaped = corpus.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
            label = re.search(rf'translate\([-\d.]+,([\d.]+)\)"[^>]*>{re.escape(escaped)}</text>', svg)
            heights[corpus] = float(label[1])
        assert sorted(heights, key=heights.get) == rows.sort("place", "corpus")["corpus"].to_list()
    for proxy in PROXIES:
        assert points(drawn(charts["scatter"], proxy="/".join(proxy))) == len(FIVE)
    everything = drawn(charts["frontier"])
    assert "threshold 0.8" in everything and "noise ceiling" in everything


def test_regret_is_the_other_height(five, tmp_path):
    study, checkpoints, tables = five
    pareto = tables["pareto"]
    keys = ["statistic", "weighting", "kind", "size", "step"]
    regrets = pareto.select(*keys, seed=pl.lit("single"), regret=0.1 * (1 - pl.col("decision_accuracy")))
    regrets = regrets.with_columns(regret_low=pl.lit(0.0), regret_high=pl.lit(0.2), random_regret=pl.lit(0.05))
    results = written(tmp_path, study, checkpoints, tables | {"choices": regrets})
    dataset = pareto_dataset(results)
    (chart,) = blocks_of([frontier_section(results, dataset)], Chart)
    assert [select.name for select in chart.selects] == ["measure"]
    assert "random choice" in drawn(chart, measure="regret") and "random choice" not in drawn(chart)
    frame = dataset.frame.drop_nulls("regret")
    assert frame["regret"].to_list() == pytest.approx((0.1 * (1 - frame["decision_accuracy"])).to_list())


def test_a_large_pareto_table_keeps_its_frontier(five, tmp_path):
    study, checkpoints, tables = five
    rows = pl.concat([tables["pareto"].with_columns(step=pl.lit(step, pl.Int64)) for step in range(2, 2000)])
    rows = rows.with_columns(on_frontier=pl.int_range(pl.len()) % 500 == 7)
    dataset = pareto_dataset(written(tmp_path, study, checkpoints, tables | {"pareto": rows}))
    assert len(dataset.frame) <= MOST_MARKS < len(rows) and f"of {len(rows)} rows" in dataset.rows
    assert dataset.frame["on_frontier"].sum() == rows["on_frontier"].sum()


@pytest.mark.parametrize("count", [1, 2])
def test_few_corpora_without_a_truth(count, tmp_path):
    results = written(tmp_path, *without_truth(FIVE[:count]))
    sections = sections_of(results)
    page_html("t", sections, "")
    notes = " ".join(note.text for note in blocks_of(sections, Note))
    assert "no truth" in notes and ("no pairs" in notes) == (count == 1)
    ids = [section.id for section in sections if section.blocks]
    assert ids == ["ranking"]


def test_four_hundred_corpora(tmp_path):
    corpora = [f"corpus_{n:03}" for n in range(400)]
    results = written(tmp_path, *with_truth(corpora, solutions=1, seeds=(0,)))
    sections = sections_of(results)
    charts = {chart.id: chart for chart in blocks_of(sections, Chart)}
    assert (
        charts["ranking-chart"].spec["height"] <= 24 * MOST_DRAWN
        and f"{MOST_DRAWN} of 400" in charts["ranking-chart"].caption
    )
    assert not [b for b in blocks_of(sections, Html) if b.id.startswith("pairs-")]
    undecided = next(table for table in blocks_of(sections, Table) if table.dataset.name == "pairs").dataset.frame
    assert not undecided["told_apart"].fill_null(False).any()
    assert undecided.group_by("statistic", "weighting", "step").agg(pl.col("better").n_unique())["better"].max() == 1
    html = page_html("t", sections, "")
    assert len(html) < 6e6 and "first 200 of 400 rows" in html


def test_ties_everywhere(tmp_path):
    study, checkpoints, tables = with_truth(FIVE, quality=np.zeros(5))
    tables["ranking"] = tables["ranking"].with_columns(place=pl.lit(3.0), predicted_rank=pl.lit(3.0))
    tables["pairs"] = tables["pairs"].with_columns(told_apart=pl.lit(False))
    sections = sections_of(written(tmp_path, study, checkpoints, tables))
    page_html("t", sections, "")
    block = next(b for b in blocks_of(sections, Html) if b.id.startswith("pairs-"))
    assert "Undecided: 10 of 10" in block.caption


def test_no_table_alone_is_needed(five, tmp_path):
    study, checkpoints, tables = five
    for missing in tables:
        folder = tmp_path / missing
        found = sections_of(written(folder, study, checkpoints, {k: v for k, v in tables.items() if k != missing}))
        assert page_html("t", found, "")
    sections = sections_of(written(tmp_path / "none", study, checkpoints, {}))
    assert [type(block) for section in sections for block in section.blocks] == [Note]
    notes = sections_of(
        written(tmp_path / "no", study, checkpoints, tables | {"predictions": tables["pareto"].clear()})
    )
    assert any("no table of predictions" in note.text for note in blocks_of(notes, Note))


def test_what_judges_say_is_shown(tmp_path):
    study, checkpoints, tables = without_truth(FIVE)
    row = {"judge": "ours", "statistic": "cross_entropy", "weighting": "uniform", "size": "small", "step": 4}
    row |= {"corpus": "base", "place": 1.0, "place_low": 1.0, "place_high": 2.0, "metric": "accuracy"}
    row |= {"predicted": 0.5, "predicted_low": 0.4, "predicted_high": 0.6, "decision_accuracy": 0.8, "low": 0.7}
    judged = pl.DataFrame([row | {"high": 0.9, "evidence": "8 of 10 pairs", "warnings": "another size"}])
    results = written(tmp_path, study, checkpoints, tables | {"judged": judged})
    notes = {note.text: note.is_caution for note in blocks_of([ranking_section(results)], Note)}
    assert notes["Judge ours: 8 of 10 pairs"] is False and notes["Judge ours: another size"] is True
    assert "0.5 [0.4, 0.6]" in page_html("t", [ranking_section(results)], "")


def test_mixtures_and_solution_counts(five, tmp_path):
    study, checkpoints, tables = five
    regression = [
        {"metric": metric, "method": method, "mixtures": 9, "spearman": 0.5, "low": low, "high": low, "rmse": 0.1}
        | {"difference": 0.0, "difference_low": None, "difference_high": None, "note": ""}
        for metric, (method, low) in product(("a/b", "c"), (("log_linear", 0.4), ("mean", None)))
    ]
    proposed = [
        {"metric": "a/b", "run": f"next_{n}", "gain": 0.1 * n, "gain_low": None, "gain_high": None, "caution": None}
        | {"source": source, "ratio": ratio}
        for n, (source, ratio) in product((1, 2), (("web", 0.25), ("code", 0.75)))
    ]
    counts = [
        {"size": "small", "step": 4, "statistic": "cross_entropy", "weighting": "uniform", "reference": "truth"}
        | {"pick": "random", "score": "mean", "number": n, "decision_accuracy": 0.6 + n / 100, "low": 0.5, "high": 0.9}
        | {"enough": 4, "enough_low": 2, "enough_high": 8, "note": "extrapolated" if n > 4 else ""}
        for n in (1, 2, 4, 8)
    ]
    more = {"mixture_regression": pl.DataFrame(regression), "next_mixtures": pl.DataFrame(proposed)}
    results = written(tmp_path, study, checkpoints, tables | more | {"solution_counts": pl.DataFrame(counts)})
    charts = {chart.id: drawn(chart) for chart in blocks_of(sections_of(results), Chart)}
    assert points(charts["solution-counts"]) == len(counts)
    assert points(charts["mixtures-held-out"]) == 2
    (grid,) = (b for b in mixture_blocks(results) if isinstance(b, Html))
    (header, first, _), *_ = Cells(grid.markup).tables.values()
    assert header == ["", "code", "web"] and first == ["next_1 (+0.1)", "75.0", "25.0"]
    assert "interval" not in grid.caption and "No proposal" not in grid.markup


def test_shares_of_many_sources_sum_to_100_and_worse_proposals_are_told(five, tmp_path):
    study, checkpoints, tables = five
    shares = [0.3, *[0.05] * 14]
    proposed = [
        {"metric": "m", "run": run, "gain": -0.1, "gain_low": -0.2, "gain_high": 0.1, "caution": caution}
        | {"source": f"source {n}", "ratio": share}
        for run, caution in (("next_1", "x; y"), ("next_2", "x; not predicted to be better than the best one seen"))
        for n, share in enumerate(shares)
    ]
    regression = [{"metric": "m", "method": "mean", "mixtures": 9, "spearman": 0.0, "low": None, "high": None}]
    regression[0] |= {"rmse": 0.1, "difference": 0.0, "difference_low": None, "difference_high": None, "note": ""}
    more = {"mixture_regression": pl.DataFrame(regression, infer_schema_length=None)}
    results = written(tmp_path, study, checkpoints, tables | more | {"next_mixtures": pl.DataFrame(proposed)})
    (grid,) = (b for b in mixture_blocks(results) if isinstance(b, Html))
    (header, *rows), *_ = Cells(grid.markup).tables.values()
    assert header[-1] == "others" and rows[0][0] == "next_1 (-0.1 [-0.2, +0.1])" and "interval" in grid.caption
    assert [sum(map(float, row[1:])) for row in rows] == pytest.approx([100, 100])
    notes = re.findall(r'caution">(.*?)</p>', grid.markup)
    assert notes == ["No proposal is predicted to be better than the best mixture seen.", "x", "next_1: y"]


def test_rows_of_the_highlighted_order_come_first(results):
    ranking, _, proxies, _ = sections_of(results)
    first = ranking.blocks[0].selects[0]
    assert len(set(first.options.values())) == 4 and all('"step ' in text for text in first.options.values())
    sets = [table.dataset for table in blocks_of([ranking, proxies], Table)]
    datasets = {d.name: d.frame for d in [*sets, *(d for html in blocks_of([ranking], Html) for d in html.datasets)]}
    for name in ("ranking", "pairs", "costs"):
        assert datasets[name].row(0, named=True).items() >= {"statistic": "cross_entropy", "step": 4}.items()
    assert datasets["at_budgets"]["step"][0] == 4
    assert datasets["ranking"]["place"].head(len(FIVE)).is_sorted()


def test_the_least_compute_of_each_threshold(results):
    cells = Cells(page_html("t", sections_of(results), ""))
    header, *rows = cells.tables["compute-reached-rows"]
    reached = results.table("data_selection/compute_to_reach")
    thresholds = sorted(reached["threshold"].unique())
    assert header[1:3] == ["Named in advance", "Best proxy, in hindsight"] and len(rows) == len(thresholds)
    for row, threshold in zip(rows, thresholds):
        proxies = reached.filter(kind="proxy", threshold=threshold)
        for cell, of in ((row[1], proxies.filter(weighting="uniform")), (row[2], proxies)):
            least = of["compute_fraction"].min()
            assert cell == "never" if least is None else cell.startswith(f"{100 * least:.2g} %: ")


def test_names_of_a_scatter_cover_neither_points_nor_names():
    """In pixels of plots from narrow to wide; the first point's name is always there."""
    rng = np.random.default_rng(1)
    x, y = rng.normal(size=(2, 30))
    x[10:15], y[10:15] = x[5:10] - 0.03, y[5:10]  # they touch in narrow plots and part in wide ones
    names = [f"corpus_number_{n}" for n in range(30)]
    found = placed_names(x, y, names)
    assert names[0] in found and 3 < len(found) < 30
    for width in (270, 640, 1000):
        across = 14 + (x - x.min()) / np.ptp(x) * (width - 28)
        down = 366 - (y - y.min()) / np.ptp(y) * 352
        texts = []
        for name, (least, align, dx, dy) in found.items():
            if name != names[0] and least <= width:
                n, length = names.index(name), 6 * len(name)
                left = across[n] + dx - (length if align == "right" else 0)
                texts.append((left, down[n] + dy, left + length))
                inside = (across > left - 3) & (across < left + length + 3) & (abs(down - down[n] - dy) < 9)
                assert not inside.any() and left >= 0 and left + length <= width
        for (a, at, b), (c, other, d) in combinations(texts, 2):
            assert b <= c or d <= a or abs(at - other) >= 12


def test_every_line_has_a_colour_of_its_own():
    """Also where a statistic without a colour takes the one that the next has."""
    lines = [("others_measured_it", "none"), *((name, "none") for name in COMPARED)]
    assert len({colour.lower() for colour in colours_of(lines).values()}) == len(lines)


def test_learning_rates_are_there_if_the_study_has_several(five, tmp_path):
    study, checkpoints, tables = five
    assert rate_blocks(written(tmp_path / "one", study, checkpoints, tables)) == []
    row = dict.fromkeys(RATES_SCHEMA, 0.5) | {"statistic": "margin", "weighting": "uniform", "note": ""}
    row |= {"size": "30k", "factor": 1.0, "slower_size": "30k_third", "slower_factor": 1 / 3, "step": 9}
    row |= {"corpora": 5, "seeds": 2, "seed_difference": -0.11, "difference": 0.25, "difference_low": None}
    rates = pl.DataFrame([row], schema=RATES_SCHEMA)
    results = written(tmp_path / "two", study, checkpoints, tables | {"rates": rates})
    _, *cells = Cells(page_html("t", sections_of(results), "")).tables["rates-rows"]
    assert cells[0][2:8] == ["30k", "1", "0.33", "0.50 [0.50, 0.50]", "-0.11 [+0.50, +0.50]", "0.50 [0.50, 0.50]"]
    assert rate_blocks(written(tmp_path / "none", study, checkpoints, tables | {"rates": rates.clear()})) == []
