"""Figures from synthetic studies: files are whole, no two texts overlap, every corpus is named, colours agree, poor
data still draw.
"""

import itertools
import pathlib
from functools import partial
from types import SimpleNamespace
from xml.etree import ElementTree

import docutils.core
import jinja2
import matplotlib
import numpy as np
import polars as pl
import pytest
from drawn_texts import overlapping, texts
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.colors import to_hex
from matplotlib.figure import Figure
from proxycast import proxy_formulas as proxies
from proxycast.options import InputError
from proxycast.report import data_selection_figures as plots
from proxycast.report import style
from proxycast.report.label_placement import segments_hit_boxes, spread

REPORT = pathlib.Path(__file__).parents[2] / "workflow" / "report"
STATISTICS = list(style.STATISTIC_LOOKS)
WEIGHTINGS = list(style.WEIGHTING_LOOKS)
BASELINES = list(style.BASELINE_LOOKS)
CANDIDATE_DEPENDENT = {"expert_probability", "expert_disagreement", "entropy", "inverse_entropy", "gaussian_nll"}
MINIATURE = """
base base_no_code base_no_math base_no_math_no_code base_no_web base_no_reference web web_qc_qa_10p web_qc_qa_20p
web_qc_code_10p web_qc_reference_10p web_dedup web_dedup_qc_10p dclm dclm_25_base_75 dclm_50_base_50 dclm_75_base_25
dclm_qc_7p dclm_qc_3p code math math_code reference literature literature_and_web
""".split()
TARGET_FLOPS, CEILING = 7.062e20, 0.933
HIGHLIGHTED = [
    ("top5_accuracy", "token_frequency"),
    ("cross_entropy", "uniform"),
    ("reciprocal_rank", "inverse_entropy"),
]


def ranks(values):
    """1 for the highest. All values are equal, or no two are."""
    if np.ptp(values) == 0:
        return np.full(len(values), (len(values) + 1) / 2)
    return np.argsort(np.argsort(-values)) + 1.0


class Study:
    """Tables of a study whose corpora have a known quality; a method sees it through noise that falls with compute."""

    def __init__(
        self,
        corpora=MINIATURE,
        sizes=(("4M", 3.7e6), ("20M", 1.9e7)),
        steps=(500, 1250, 2500, 5725),
        constant=(),
        seed=0,
    ):
        self.random = np.random.default_rng(seed)
        self.corpora = list(corpora)
        self.quality = self.random.normal(size=len(self.corpora))
        self.truth = 0.46 + 0.035 * self.quality
        rows, rankings = [], []
        names = [(s, w, "proxy") for s in STATISTICS for w in WEIGHTINGS] + [(b, "none", "baseline") for b in BASELINES]
        for (statistic, weighting, kind), (size, parameters), step in itertools.product(names, sizes, steps):
            tokens = step * 65536.0 * (parameters / 3.7e6) ** 0.4
            flops = 6 * parameters * tokens
            scores = self._scores(statistic, weighting, kind, flops, (statistic, weighting) in constant)
            common = {"statistic": statistic, "weighting": weighting, "size": size, "step": step}
            cost = {"tokens": tokens, "flops": flops, "compute_fraction": flops / TARGET_FLOPS, "kind": kind}
            dependent = weighting in CANDIDATE_DEPENDENT
            row = {"task": "all", "truth": "multiple_choice_accuracy", "depends_on_candidate": dependent}
            row |= common | cost | self._agreement(scores)
            rows += [row | {"seed": seed_name} for seed_name in ("0", "1", "2", "mean", "single")]
            rankings.append(
                {key: np.repeat(value, len(scores)) for key, value in common.items()} | self._ranked(scores)
            )
        self.decision_accuracy = pl.DataFrame(rows, infer_schema_length=None)
        self.ranking = pl.DataFrame({key: np.concatenate([r[key] for r in rankings]) for key in rankings[0]})
        self.pareto = self._frontiers(self.decision_accuracy.filter(seed="single").drop("seed", "task"))

    def _scores(self, statistic, weighting, kind, flops, constant):
        if constant or statistic in ("parameters", "training_compute", "chance"):
            return np.full(len(self.corpora), 0.37)
        strength = (
            1.1
            if kind == "proxy"
            else {"multiple_choice_accuracy": 0.3, "expert_cross_entropy": 0.8}.get(statistic, 0.5)
        )
        strength *= -0.5 if weighting == "expert_probability" else 1.0
        noise = 2.2 * (flops / 1e15) ** -0.22
        signal = strength * self.quality + noise * self.random.normal(size=len(self.corpora))
        return 0.35 + 0.03 * signal if statistic != "cross_entropy" else -3.1 + 0.05 * signal

    def _agreement(self, scores):
        def shares(index):
            """For each row of corpora."""
            a, b = np.triu_indices(index.shape[1], 1)
            true, predicted = (np.sign(v[index[:, a]] - v[index[:, b]]) for v in (self.truth, scores))
            return np.where(predicted == 0, 0.5, predicted == true).mean(1)

        everyone = np.arange(len(scores))
        some = [self.random.permutation(everyone)[: max(2, len(everyone) * 2 // 3)] for _ in range(10)]
        low, high = np.quantile(shares(np.array(some)), [0.03, 0.97])
        (share,) = shares(everyone[None])
        if np.ptp(scores) == 0:
            rho, tau = None, None
        else:  # no two scores are equal
            rho, tau = float(np.corrcoef(ranks(scores), ranks(self.truth))[0, 1]), float(2 * share - 1)
        spearman = {
            "spearman": rho,
            "spearman_low": rho and max(-1.0, rho - 0.2),
            "spearman_high": rho and min(1.0, rho + 0.12),
        }
        return {
            "decision_accuracy": float(share),
            "low": low,
            "high": high,
            "kendall": tau,
            "corpora": len(scores),
        } | spearman

    def _ranked(self, scores):
        columns = {"corpus": np.array(self.corpora), "predicted": scores, "truth": self.truth}
        for name, rank, values, error in (
            ("predicted", "predicted_rank", scores, 0.012),
            ("truth", "true_rank", self.truth, 0.006),
        ):
            error = error if np.ptp(values) else 0.0
            own = ranks(values)
            columns |= {f"{name}_low": values - error, f"{name}_high": values + error, rank: own}
            columns[f"{rank}_low"] = np.clip(own - 250 * error, 1, None)
            columns[f"{rank}_high"] = np.clip(own + 250 * error, None, len(own))
        return columns

    @staticmethod
    def _frontiers(table):
        best_before = pl.col("decision_accuracy").cum_max().shift(1).fill_null(-1.0)
        return table.sort("compute_fraction", -pl.col("decision_accuracy")).with_columns(
            on_frontier=pl.col("decision_accuracy") > best_before,
            on_own_frontier=(pl.col("decision_accuracy") > best_before).over("statistic", "weighting"),
            scoring_flops=pl.lit(1e12),
        )

    def figures(self, highlighted=HIGHLIGHTED):
        size, step = self.decision_accuracy["size"][0], int(self.decision_accuracy["step"].max())
        proxy = (*highlighted[0], size, step)
        return {
            "decision_accuracy_over_compute": plots.decision_accuracy_over_compute(
                self.pareto, CEILING, [0.8, 0.85], highlighted
            ),
            "decision_accuracy_over_training": plots.decision_accuracy_over_training(
                self.decision_accuracy, CEILING, highlighted, plots.LINED_BASELINES
            ),
            "decision_accuracy_heatmap": plots.decision_accuracy_heatmap(self.decision_accuracy, size, step, CEILING),
            "proxy_against_truth": plots.proxy_against_truth(self.ranking, self.decision_accuracy, proxy, CEILING),
            "ranking_with_intervals": plots.ranking_with_intervals(
                self.ranking, self.decision_accuracy, proxy, CEILING
            ),
        }


def test_overlapping_finds_overlaps_also_of_slanted_texts():
    figure = style.canvas(4, 2)
    for place in (0.1, 0.12, 0.4, 0.8):
        figure.text(place, 0.2, "slanted words", rotation=35, rotation_mode="anchor")
    figure.text(0.9, 0.9, "cut by the edge")
    assert overlapping(figure) == [("slanted words", "slanted words"), "slanted words", "cut by the edge"]


@pytest.fixture(scope="module")
def study():
    return Study()


@pytest.fixture(scope="module")
def figures(study):
    return study.figures()


def test_save_writes_svg_with_text_and_png_of_200_dpi(figures, tmp_path):
    for name, figure in figures.items():
        style.save(figure, tmp_path / "new" / name)
    assert {path.name for path in (tmp_path / "new").iterdir()} == {f"{n}.{s}" for n in figures for s in ("svg", "png")}
    svg = (tmp_path / "new" / "proxy_against_truth.svg").read_text()
    assert "<text" in svg and "dclm_25_base_75" in svg
    width = figures["proxy_against_truth"].get_figwidth() * 200
    assert int.from_bytes((tmp_path / "new" / "proxy_against_truth.png").read_bytes()[16:20], "big") == round(width)


@pytest.fixture(scope="module")
def over_compute(study):
    """A figure to be saved; nothing of it changes by that."""
    return plots.decision_accuracy_over_compute(study.pareto, CEILING, [0.8], HIGHLIGHTED)


def test_each_file_is_drawn_once(over_compute, tmp_path, monkeypatch):
    drawn, draw = [], Figure.draw
    monkeypatch.setattr(Figure, "draw", lambda self, renderer: drawn.append(draw(self, renderer)))
    style.save(over_compute, tmp_path / "figure")
    assert len(drawn) == len(list(tmp_path.iterdir())) == 2


@pytest.mark.parametrize("setting", ["figure.autolayout", "figure.constrained_layout.use"])
def test_a_layout_that_the_user_prefers_moves_nothing(over_compute, tmp_path, setting):
    before = [axes.get_position().bounds for axes in over_compute.axes]
    with matplotlib.rc_context({setting: True}):
        style.save(over_compute, tmp_path / "figure")
    assert [axes.get_position().bounds for axes in over_compute.axes] == before


def test_the_same_tables_give_the_same_svg(study, tmp_path):
    for folder in "ab":
        style.save(plots.decision_accuracy_over_compute(study.pareto, CEILING, [0.8], HIGHLIGHTED), tmp_path / folder)
    assert (tmp_path / "a.svg").read_bytes() == (tmp_path / "b.svg").read_bytes()


@pytest.mark.parametrize("seed", range(3))
def test_no_text_overlaps_another_and_none_is_cut(seed, figures):
    for name, figure in (Study(seed=seed).figures() if seed else figures).items():
        assert overlapping(figure) == [], name


def test_every_corpus_is_named(study, figures):
    for name in ("proxy_against_truth", "ranking_with_intervals"):
        assert set(MINIATURE) <= {text.get_text() for text in texts(figures[name])[0]}


def test_lines_of_one_method_have_one_colour_in_every_figure(figures):
    colours = {}
    for name in ("decision_accuracy_over_compute", "decision_accuracy_over_training"):
        for text in texts(figures[name])[0]:
            colours.setdefault(text.get_text(), set()).add(to_hex(text.get_color()))
    for statistic, weighting in [*HIGHLIGHTED, *((name, "none") for name in plots.LINED_BASELINES)]:
        label = style.readable(statistic, weighting).replace(", ", ",\n")
        assert colours[label] == {to_hex(style.look(statistic).colour)}
    (axes,) = figures["proxy_against_truth"].axes
    assert style.look(HIGHLIGHTED[0][0]).colour in {line.get_color() for line in axes.lines}


# What the metrics of small models are called, where this study, DataDecide's evaluations or its tables have them.
MEASURED = [
    ("multiple_choice_accuracy", "choice_log_likelihood"),
    ("primary_metric", "correct_prob_per_char"),
    ("accuracy",),
    ("accuracy_of_25_corpora",),
]


@pytest.mark.parametrize("measured", MEASURED, ids=" ".join)
def test_looks_of_one_study_are_distinct(measured):
    others = set().union(*MEASURED) - set(measured)
    baselines = [name for name in plots.LINED_BASELINES if name not in others]
    assert set(baselines) == {*measured, "generic_cross_entropy", "expert_cross_entropy"}
    looks = [*style.STATISTIC_LOOKS.values(), *(style.BASELINE_LOOKS[name] for name in baselines)]
    assert len({look.colour for look in looks}) == len(looks)


def test_looks_cover_all_statistics():
    assert set(style.STATISTIC_LOOKS) == set(proxies.STATISTICS) and set(style.WEIGHTING_LOOKS) == set(
        proxies.WEIGHTINGS
    )
    assert set(proxies.BASELINES) <= set(style.BASELINE_LOOKS)


def test_heat_map_prints_every_value_and_marks_weightings_that_depend_on_the_candidate(study, figures):
    shown = [text.get_text() for text in texts(figures["decision_accuracy_heatmap"])[0]]
    table = study.decision_accuracy.filter(size="4M", step=5725, seed="mean")
    expected = sorted(f"{value:.2f}" for value in table["decision_accuracy"])
    assert sorted(text for text in shown if text.replace(".", "").isdigit()) == expected
    assert {text for text in shown if text.endswith("*")} == {
        *("Expert-probability*", "Expert-disagreement*", "Entropy*", "Inverse-entropy*", "Gaussian-NLL*")
    }


def test_ranking_shows_true_and_predicted_rank_of_each_corpus_in_true_order(study, figures):
    (axes,) = figures["ranking_with_intervals"].axes
    rows = study.ranking.filter(statistic="top5_accuracy", weighting="token_frequency", size="4M", step=5725)
    rows = rows.sort("true_rank")
    assert [label.get_text() for label in axes.get_yticklabels()] == rows["corpus"].to_list()
    drawn = {(line.get_xdata()[0], round(line.get_ydata()[0])) for line in axes.lines if len(line.get_xdata()) == 1}
    both = enumerate(zip(rows["true_rank"], rows["predicted_rank"]))
    assert drawn == {(rank, place) for place, ranks in both for rank in ranks}


def test_corpora_without_a_truth_stand_apart_and_hide_nothing(study):
    """Two of them: below all others in the ranking, on the x axis of the scatter plot."""
    unknown, proxy = ["web", "code"], (*HIGHLIGHTED[0], "4M", 5725)
    true = [name for name in study.ranking.columns if name.startswith(("truth", "true_rank"))]
    without = study.ranking.with_columns(
        pl.when(~pl.col("corpus").is_in(unknown)).then(pl.col(name)).alias(name) for name in true
    )
    ranking = plots.ranking_with_intervals(without, study.decision_accuracy, proxy, CEILING)
    assert {label.get_text() for label in ranking.axes[0].get_yticklabels()[-2:]} == set(unknown)
    scatter = plots.proxy_against_truth(without, study.decision_accuracy, proxy, CEILING)
    (triangles,) = [line for line in scatter.axes[0].lines if line.get_marker() == "^"]
    rows = without.filter(
        pl.col("corpus").is_in(unknown), statistic=proxy[0], weighting=proxy[1], size=proxy[2], step=proxy[3]
    )
    assert sorted(triangles.get_xdata()) == sorted(rows["predicted"])
    assert max(triangles.get_ydata()) < without["truth_low"].min()
    for figure in (ranking, scatter):
        assert overlapping(figure) == []
        assert any("without a truth" in text.get_text() for text in texts(figure)[0])


def test_negated_scores_are_called_negative(study):
    proxy = ("cross_entropy", "uniform", "4M", 5725)
    figure = plots.proxy_against_truth(study.ranking, study.decision_accuracy, proxy, ceiling=None)
    assert figure.axes[0].get_xlabel() == "Negative cross-entropy, uniform weighting (nats per token; higher is better)"
    assert any("Noise ceiling  unknown" in text.get_text() for text in texts(figure)[0])


@pytest.mark.parametrize(
    "poor",
    [
        {"corpora": MINIATURE[:5], "sizes": (("4M", 3.7e6),), "steps": (5725,), "constant": [HIGHLIGHTED[0]]},
        {"corpora": MINIATURE[:2], "sizes": (("4M", 3.7e6),), "steps": (500, 501)},
        {"sizes": tuple((f"{n}M", n * 1e6) for n in (4, 8, 14)), "steps": (250, 500, 900, 1300, 1900)},
    ],
    ids=["five corpora, one step, constant proxy", "two corpora", "many sizes and steps"],
)
def test_poor_and_rich_data_are_drawn_without_overlaps(poor):
    for name, figure in Study(**poor).figures().items():
        assert overlapping(figure) == [], name


NOISE = (
    "The truth may be noise: accuracy has a reliability of -0.34 [-1.00, 0.41] over 3 seeds; nothing can be concluded."
)


def test_a_truth_that_is_noise_and_missing_intervals_are_told(figures, monkeypatch):
    """In every figure, without overlaps; what has no interval has no bar, and is no point less."""
    study = Study(corpora=MINIATURE[:4], sizes=(("4M", 3.7e6),), steps=(500, 5725))
    missing = [pl.lit(None, pl.Float64).alias(name) for name in ("low", "high", "spearman_low", "spearman_high")]
    study.decision_accuracy, study.pareto = (
        table.with_columns(own for own in missing if own.meta.output_name() in table.columns)
        for table in (study.decision_accuracy, study.pareto)
    )
    ends = [
        f"{name}_{end}" for name in ("predicted", "predicted_rank", "truth", "true_rank") for end in ("low", "high")
    ]
    study.ranking = study.ranking.with_columns(pl.lit(None, pl.Float64).alias(name) for name in ends)
    for name in figures:
        monkeypatch.setattr(plots, name, partial(getattr(plots, name), warning=NOISE))
    for name, figure in study.figures().items():
        assert overlapping(figure) == [], name
        words = " ".join(text.get_text() for text in texts(figure)[0]).replace("\n", " ")
        assert NOISE in words, name
        assert "Without an interval: too few corpora, or every sample of them gives the same extreme value." in words
        if name in ("proxy_against_truth", "ranking_with_intervals"):
            assert "[n/a]" in words and "The truth has one seed" in words and "One seed and one score a task" in words
    shown = " ".join(text.get_text() for figure in figures.values() for text in texts(figure)[0])
    assert "Without an interval" not in shown and "one seed" not in shown and "noise:" not in shown


def test_the_axis_of_a_loss_says_so(study):
    proxy = (*HIGHLIGHTED[0], "4M", 5725)
    losses = study.decision_accuracy.with_columns(truth=pl.lit("loss"))
    figure = plots.proxy_against_truth(study.ranking, losses, proxy, CEILING, higher_is_better=False)
    assert figure.axes[0].get_ylabel() == "Loss of the target models (lower is better)"
    figure = plots.proxy_against_truth(study.ranking, study.decision_accuracy, proxy, CEILING)
    assert figure.axes[0].get_ylabel().endswith("of the target models (fraction of questions)")


def test_what_is_above_the_ceiling_is_called_luck(study):
    for ceiling, told in ((0.6, True), (1.0, False)):
        shown = " ".join(
            text.get_text()
            for text in texts(plots.decision_accuracy_over_compute(study.pareto, ceiling, [], HIGHLIGHTED))[0]
        )
        assert ("luck, or too low a ceiling" in shown) == told


def test_untrained_models_are_left_out_of_logarithmic_axes(study):
    """Step 0 costs nothing; the figures are those without it."""

    def with_step_0(table):
        first = table.filter(pl.col("step") == pl.col("step").min()).with_columns(step=pl.lit(0, table.schema["step"]))
        free = [pl.lit(0).cast(table.schema[c]).alias(c) for c in ("tokens", "flops", "compute_fraction")]
        return pl.concat([table, first.with_columns(free)])

    for draw, table, others in (
        (plots.decision_accuracy_over_compute, study.pareto, (CEILING, [0.85], HIGHLIGHTED)),
        (plots.decision_accuracy_over_training, study.decision_accuracy, (CEILING, HIGHLIGHTED, BASELINES[:2])),
    ):
        bare, full = (draw(t, *others).axes[0] for t in (table, with_step_0(table)))
        assert full.get_xlim() == bare.get_xlim() and full.get_xlim()[0] > 0


@pytest.mark.parametrize("ceiling", [0.5, 0.504, 0.759, 0.8])
def test_no_level_runs_through_the_name_of_another(study, ceiling):
    figure = plots.decision_accuracy_over_compute(study.pareto, ceiling, [0.75, 0.8], HIGHLIGHTED)
    (axes,), (visible, boxes) = figure.axes, texts(figure)
    for text, (_, bottom, _, top) in zip(visible, boxes):
        if text.get_text().startswith(("noise ceiling", "threshold", "chance")):
            for level in (0.5, 0.75, ceiling, 0.8):
                assert not bottom < axes.transData.transform((1, level))[1] < top, text.get_text()
    assert overlapping(figure) == []


@pytest.mark.parametrize("ceiling", [None, float("nan")])
def test_unknown_ceiling_and_missing_baselines_are_left_out(study, ceiling):
    rows = study.pareto.filter(pl.col("statistic") != "generic_cross_entropy")
    shown = [text.get_text() for text in texts(plots.decision_accuracy_over_compute(rows, ceiling, [], HIGHLIGHTED))[0]]
    assert not [text for text in shown if "noise ceiling" in text or "Generic" in text]


def test_a_highlighted_proxy_that_is_not_in_the_table_is_an_input_error(study):
    with pytest.raises(InputError, match="top5_accuracy, nonsense"):
        plots.decision_accuracy_over_compute(study.pareto, CEILING, [], [("top5_accuracy", "nonsense")])
    with pytest.raises(InputError, match="size=1B"):
        proxy = ("top5_accuracy", "uniform", "1B", 5725)
        plots.ranking_with_intervals(study.ranking, study.decision_accuracy, proxy, CEILING)


def test_readable_names():
    assert style.readable("top5_accuracy", "token_frequency") == "Top-5 accuracy, token-frequency weighting"
    assert style.readable("generic_cross_entropy") == "Generic-text cross-entropy"
    assert style.readable("my_own_metric") == "My own metric"


@pytest.mark.parametrize("caption", sorted(REPORT.glob("*.rst")), ids=lambda path: path.stem)
def test_captions_are_valid_templates_and_valid_rst(caption):
    job = SimpleNamespace(params=SimpleNamespace(left_out=["no baseline chance (`generic_text` adds it)"]))
    rendered = jinja2.Template(caption.read_text(), undefined=jinja2.StrictUndefined).render(snakemake=job)
    assert ("**Left out:**" in rendered) == ("params.left_out" in caption.read_text())
    docutils.core.publish_string(rendered, settings_overrides={"halt_level": 2, "report_level": 5})


@given(
    st.lists(st.tuples(st.floats(-50, 150), st.floats(0.1, 12)), min_size=1, max_size=12),
)
def test_spread_moves_as_little_as_possible_without_overlaps(intervals):
    centres, heights = np.array(intervals).T
    placed = spread(centres, heights, 0.0, 100.0)
    order = np.argsort(centres, kind="stable")
    low, high = (placed - heights / 2)[order], (placed + heights / 2)[order]
    assert (low[1:] >= high[:-1] - 1e-9).all() and low[0] >= -1e-9
    assert heights.sum() > 100 or high[-1] <= 100 + 1e-9
    free = (low[0] > 1e-6) & (high[-1] < 100 - 1e-6)
    if free and (np.diff(placed[order]) > (heights[order][1:] + heights[order][:-1]) / 2 + 1e-6).all():
        np.testing.assert_allclose(placed, centres)  # nobody touches anybody: nobody has been moved


@given(st.integers(0, 1000))
def test_segments_hit_the_boxes_that_their_points_enter(seed):
    random = np.random.default_rng(seed)
    segments = random.uniform(0, 10, (6, 4))
    corners = random.uniform(0, 8, (5, 2))
    boxes = np.hstack([corners, corners + random.uniform(0.5, 4, (5, 2))])
    along = np.linspace(0, 1, 2001)[:, None]
    for i, (x0, y0, x1, y1) in enumerate(segments):
        points = np.array([x0, y0]) + along * np.array([x1 - x0, y1 - y0])
        inside = ((points[:, None] > boxes[:, :2]) & (points[:, None] < boxes[:, 2:])).all(-1).any(0)
        hit = segments_hit_boxes(segments[i : i + 1], boxes)[0]
        assert (hit | ~inside).all()  # a sampled point inside is always a hit; a hit may graze between two samples
        shrunk = boxes + np.array([0.02, 0.02, -0.02, -0.02])
        assert (inside | ~segments_hit_boxes(segments[i : i + 1], shrunk)[0]).all()


NAMES = ["$x$", r"$\frac{1}{2}$", r"$\notacommand{", "a_b^c", r"\alpha", "$", "$$", r"\$x\$"]


def test_names_are_written_as_they_are_and_never_as_mathematics(tmp_path):
    """As mathematics `$x$` is an italic x, and a mistake in it ends the job."""
    study = Study(corpora=NAMES)
    for name, figure in study.figures().items():
        style.save(figure, tmp_path / name)
        assert not any(text.get_parse_math() or text.get_usetex() for text in texts(figure)[0]), name
    ranked = ElementTree.parse(tmp_path / "ranking_with_intervals.svg")
    shown = {node.text for node in ranked.iter("{http://www.w3.org/2000/svg}text")}
    assert shown >= set(NAMES)


def test_a_logarithmic_axis_has_powers_in_unicode():
    powers = style.Powers()
    powers.create_dummy_axis()
    powers.axis.set_view_interval(1e-6, 1e3)
    assert [powers(value) for value in (1e-5, 0.01, 1, 100)] == ["10⁻⁵", "10⁻²", "10⁰", "10²"]
    powers.axis.set_view_interval(0.01, 0.09)
    powers.set_locs([0.01, 0.02, 0.05])
    assert powers(0.02) == "2×10⁻²"
