"""How well methods order the models: on tasks that were held out, method by method, and each proxy alone."""

import altair as alt
import polars as pl

from proxycast.experiments.model_selection.task_truth import about_noisy_task
from proxycast.experiments.reliability import NOISE
from proxycast.report.model_selection_figures import KIND_LOOKS, MOST_CHOSEN, SPLITS, TAILS, method_name
from proxycast.report.page.blocks import Block, Chart, Column, Dataset, Note, Select, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.of_models.proxy_grids import proxies_alone
from proxycast.report.page.of_models.solution_numbers import enough_solutions, writers_compared
from proxycast.report.page.study_results import StudyResults
from proxycast.report.page.task_lists import task_select, tasks_of
from proxycast.report.style import COLOURS, readable

KIND_COLOURS = {"scorer": "#2A93D1", "baseline": "#8f8f8f", "oracle": "#CC79A7"}
KIND_SHAPES = {"scorer": "circle", "baseline": "square", "oracle": "diamond"}
SPLIT, METHOD, TASK, SCORER = "models_split", "models_method", "models_rank_task", "models_scorer"
MOST_FOLDS = 2500  # points of single folds; more would hide each other
MOST_RANKS = 3500
CLOSE, WIDE = 24, 34  # pixels of a row, with one line of text and with two
TWO_LINES = "split(replace(datum.label, ' weighting', ''), ', ')"


def evidence_blocks(results: StudyResults) -> list[Block]:
    """What a truth tells of the methods; without one, what the solutions tell by themselves."""
    truth, summary = results.table("model_selection/truth"), results.table("model_selection/summary")
    tail = leading_tail(results)
    noise = [] if truth is None else list(truth.filter(task="all", verdict=NOISE).iter_rows(named=True))
    blocks: list[Block] = [Note(about_noisy_task(row), is_caution=True) for row in noise]
    if summary is not None:
        blocks += _methods(summary, results.table("model_selection/folds"), truth, tail)
    predictions, stability = (results.table(f"model_selection/{name}") for name in ("predictions", "stability"))
    ranking = results.table("model_selection/ranking")
    leading = None if ranking is None else ranking["method"][0]
    blocks += _ranks(predictions, leading, tail) if predictions is not None else []
    blocks += _chosen(stability, results.table("model_selection/chosen"), tail) if stability is not None else []
    blocks += proxies_alone(results.table("model_selection/proxies"), tail)
    blocks += writers_compared(results.table("model_selection/writers"))
    blocks += enough_solutions(results.table("model_selection/solution_counts"))
    return blocks + (_truth(truth) if truth is not None else [])


def leading_tail(results: StudyResults) -> str:
    """The tail of the order that answers the study, which the charts show where there are two."""
    for name in ("ranking", "summary"):
        table = results.table(f"model_selection/{name}")
        tails = (
            [] if table is None else [tail for tail in [*table["tail"].head(1), *TAILS] if tail in set(table["tail"])]
        )
        for tail in filter(None, tails):
            return tail
    return TAILS[0]


def of_tail(rows: pl.DataFrame, tail: str) -> pl.DataFrame:
    """The rows of that tail, and of what reads no text."""
    return rows.filter(pl.col("tail").is_in([tail, ""]))


def with_names(rows: pl.DataFrame) -> pl.DataFrame:
    names = [method_name(method) for method in rows["method"]]
    return rows.with_columns(pl.Series("name", names, pl.String))


def kind_encodings() -> tuple[alt.Color, alt.Shape]:
    kinds = list(KIND_COLOURS)
    legend = alt.Legend(title=None, orient="top", columns=1, symbolOpacity=1, labelExpr=_kind_words())
    return (
        alt.Color("kind:N", scale=alt.Scale(domain=kinds, range=list(KIND_COLOURS.values())), legend=legend),
        alt.Shape("kind:N", scale=alt.Scale(domain=kinds, range=list(KIND_SHAPES.values())), legend=legend),
    )


def _kind_words() -> str:
    words = {"oracle": "Oracle (hindsight)"}
    pairs = [f"'{kind}': '{words.get(kind, label)}'" for kind, (label, _) in KIND_LOOKS.items()]
    return f"({{{', '.join(pairs)}}})[datum.label]"


def method_axis(names: list[str]) -> alt.Y:
    axis = alt.Axis(labelLimit=200, labelPadding=6, grid=False, ticks=False, domain=False, labelExpr=TWO_LINES)
    return alt.Y("name:N", sort=names, title=None, axis=axis)


def rows_height(names: list[str]) -> int:
    """Pixels of a chart with these names beside its rows."""
    return len(names) * (WIDE if any(", " in name for name in names) else CLOSE)


def _methods(summary: pl.DataFrame, folds: pl.DataFrame | None, truth: pl.DataFrame | None, tail: str) -> list[Block]:
    known = summary.filter(pl.col("spearman").is_not_null(), pl.col("method") != "chance")
    if known.is_empty():
        return [Note("No method could be judged: " + _reasons(summary), is_caution=True)]
    rows = with_names(of_tail(known, tail))
    splits = [split for split in SPLITS if split in set(rows["split"])]
    names = rows.sort("spearman", descending=True, maintain_order=True)["name"].unique(maintain_order=True).to_list()
    used = [Dataset("models_methods", rows, "model_selection/summary", f"tail in {tail}, without chance")]
    y, (kind_colour, kind_shape) = method_axis(names), kind_encodings()
    here = f"datum.split === {SPLIT}"
    base = alt.Chart(alt.NamedData("models_methods"), height=rows_height(names)).transform_filter(here)
    title = "Spearman's ρ on held-out tasks"
    x = alt.X("spearman:Q", title=title, axis=alt.Axis(tickCount=6))
    tooltip = [alt.Tooltip("name:N", title="method"), *(alt.Tooltip(f"{name}:N") for name in ("kind", "best_baseline"))]
    tooltip[2:2] = [alt.Tooltip(f"{name}:Q", format=".3f") for name in ("spearman", "low", "high", "fold_sd")]
    best = base.transform_filter("datum.kind === 'baseline'").transform_aggregate(spearman="max(spearman)")
    layers = [
        best.mark_rule(strokeDash=[6, 3], color=KIND_COLOURS["baseline"]).encode(x=x),
        base.transform_filter("isValid(datum.low)")
        .mark_rule(strokeWidth=3, opacity=0.5)
        .encode(x=alt.X("low:Q", title=title), x2="high:Q", y=y, color=kind_colour),
        base.mark_point(filled=True, size=80, opacity=1).encode(
            x=x, y=y, color=kind_colour, shape=kind_shape, tooltip=tooltip
        ),
    ]
    lines = ["Bars: intervals over the models. Dashed: the best baseline, known in hindsight."]
    single = None if folds is None else with_names(of_tail(folds, tail)).drop_nulls("spearman")
    single = None if single is None else single.filter(pl.col("name").is_in(names))
    if single is not None and 0 < len(single) <= MOST_FOLDS:
        used.append(Dataset("models_folds", single, "model_selection/folds", f"tail in {tail}"))
        dots = alt.Chart(alt.NamedData("models_folds")).transform_filter(here).mark_tick(thickness=1, opacity=0.35)
        about = ["held_out:N", "task:N", alt.Tooltip("spearman:Q", format=".3f")]
        layers.insert(0, dots.encode(x=x, y=y, color=kind_colour, tooltip=about))
        lines.append("Ticks: each held-out task of each fold.")
    ceilings = None if truth is None else truth.filter(pl.col("task") != "all")
    if ceilings is not None and len(ceilings) and not ceilings["ceiling"].null_count():
        used.append(Dataset("models_ceilings", ceilings, "model_selection/truth", "single tasks"))
        ceiling = alt.Chart(alt.NamedData("models_ceilings")).transform_filter(f"{SPLIT} === 'two_tasks'")
        ceiling = ceiling.transform_aggregate(ceiling="mean(ceiling)").mark_rule(strokeDash=[2, 3], color="#8f8f8f")
        layers.append(ceiling.encode(x=alt.X("ceiling:Q", title=title)))
        lines.append("Dotted: what the noise of the truth allows, mean over tasks.")
    chart = alt.layer(*layers).add_params(alt.param(name=SPLIT, value=splits[0]))
    select = [Select(SPLIT, "Held out", {split: SPLITS[split] for split in splits})] if len(splits) > 1 else []
    return [
        Chart(
            "models-methods",
            "Scorers and baselines where tasks are held out",
            specification(chart.properties(width="container")),
            used,
            caption=" ".join(lines),
            alt="Mean Spearman correlation of every method with its interval",
            selects=select,
        ),
        _methods_table(summary),
    ]


def _reasons(summary: pl.DataFrame) -> str:
    return "; ".join(note for note in summary["note"].unique(maintain_order=True) if note) or "no fold counts."


def _methods_table(summary: pl.DataFrame) -> Table:
    split = pl.col("split").cast(pl.Enum([*SPLITS]))
    rows = with_names(summary).sort(split, "spearman", descending=[False, True], nulls_last=True, maintain_order=True)
    columns = [
        Column("name", "Method"),
        Column("kind", "Kind"),
        *([Column("tail", "Tail")] if rows["tail"].n_unique() > 1 else []),
        *([Column("split", "Held out")] if rows["split"].n_unique() > 1 else []),
        Column("spearman", "ρ", ".3f", "low", "high"),
        Column("fold_sd", "SD over folds", ".2f"),
        Column("folds", "Folds"),
        Column("difference", "Less best baseline", "+.3f", "difference_low", "difference_high"),
        Column("best_baseline", "Best baseline"),
        Column("note", "Note"),
    ]
    data = Dataset("models_summary", rows, "model_selection/summary")
    return Table("models-summary", "All methods as a table", data, columns, is_open=False)


def _ranks(predictions: pl.DataFrame, leading: str | None, tail: str) -> list[Block]:
    """Predicted over true rank of every model in a held-out task, for one method; the `leading` one comes first."""
    rows = of_tail(predictions.filter(split="two_tasks"), tail).filter(pl.col("method") != "chance")
    if rows.is_empty():
        return []
    rank = pl.col("predicted_rank")
    key = ["task", "method", "kind", "model", "family", "true_rank", "truth"]
    means = rows.group_by(key, maintain_order=True).agg(
        mean_rank=rank.mean(), least=rank.min(), greatest=rank.max(), folds=pl.len()
    )
    kinds = {"scorer": 0, "oracle": 2}
    order = pl.col("kind").replace_strict(kinds, default=1, return_dtype=pl.Int64)
    order = pl.when(pl.col("method") == pl.lit(leading)).then(-1).otherwise(order)
    methods = means.sort(order, maintain_order=True)["method"].unique(maintain_order=True).to_list()
    every = len(methods)
    methods = methods[: max(1, MOST_RANKS * every // max(len(means), MOST_RANKS))]
    means = means.filter(pl.col("method").is_in(methods))
    tasks = tasks_of(means)
    data = Dataset("models_ranks", means, "model_selection/predictions", "two tasks held out, means over folds")
    base = alt.Chart(alt.NamedData("models_ranks"), height=360).transform_filter(
        f"datum.task === {TASK} && datum.method === {METHOD}"
    )
    families = means["family"].unique(maintain_order=True).drop_nulls().to_list()
    few = 1 < len(families) <= len(COLOURS)
    legend = alt.Legend(title="Family", orient="top", columns=3)
    look = {"color": alt.Color("family:N", legend=legend), "shape": alt.Shape("family:N", legend=legend)} if few else {}
    axis = {
        "scale": alt.Scale(zero=False, padding=10, nice=False),
        "axis": alt.Axis(tickMinStep=1, format=".1~f", tickCount=10),
    }
    x, vertical = alt.X("true_rank:Q", title="True rank, 1 is best", **axis), {"title": "Predicted rank", **axis}
    tooltip = ["model:N", "family:N", "true_rank:Q", alt.Tooltip("mean_rank:Q", format=".2f")]
    tooltip += [alt.Tooltip("least:Q"), alt.Tooltip("greatest:Q"), alt.Tooltip("truth:Q", format=".4~g"), "folds:Q"]
    chart = alt.layer(
        base.mark_line(color="#8f8f8f", strokeDash=[4, 3]).encode(x=x, y=alt.Y("true_rank:Q", **vertical)),
        base.mark_rule(opacity=0.5, strokeWidth=2, color="#8f8f8f").encode(
            x=x, y=alt.Y("least:Q", **vertical), y2="greatest:Q"
        ),
        base.mark_point(filled=True, size=70, opacity=0.9).encode(
            x=x, y=alt.Y("mean_rank:Q", **vertical), tooltip=tooltip, **look
        ),
    ).add_params(alt.param(name=TASK, value=tasks[0]), alt.param(name=METHOD, value=methods[0]))
    names = {method: method_name(method) for method in methods}
    return [
        Chart(
            "models-ranks",
            "Predicted and true rank in a task that was held out",
            specification(chart.properties(width="container")),
            [data],
            caption="Marks: mean over the folds that hold the task out; bars: least and greatest. On the dashed line "
            "the prediction is right."
            + (f" Here are {len(methods)} of {every} methods; the table has all." if len(methods) < every else ""),
            alt="Predicted against true rank of every model",
            selects=[*task_select(TASK, tasks), *([Select(METHOD, "Method", names)] if len(names) > 1 else [])],
        )
    ]


def _chosen(stability: pl.DataFrame, chosen: pl.DataFrame | None, tail: str) -> list[Block]:
    """The proxies that most folds chose, and what each fold chose."""
    rows = of_tail(stability, tail).filter(split="two_tasks")
    if rows.is_empty():
        return []
    names = [readable(statistic, weighting) for statistic, weighting in rows.select("statistic", "weighting").rows()]
    rows = rows.with_columns(pl.Series("name", names, pl.String)).sort("share", descending=True, maintain_order=True)
    rows = rows.filter(pl.int_range(pl.len()).over("scorer") < MOST_CHOSEN)
    scorers = stability["scorer"].unique(maintain_order=True).to_list()
    scorers = [scorer for scorer in scorers if scorer in set(rows["scorer"])]
    sort = alt.EncodingSortField("share", op="max", order="descending")
    axis = alt.Axis(labelLimit=200, labelPadding=6, grid=False, ticks=False, domain=False, labelExpr=TWO_LINES)
    tooltip = [
        alt.Tooltip("name:N", title="proxy"),
        *(alt.Tooltip(f"{name}:Q", format=".0%") for name in ("share", "same_sign")),
    ]
    share = alt.X(
        "share:Q", title="Share of folds that chose it", axis=alt.Axis(format="%"), scale=alt.Scale(domain=[0, 1])
    )
    chart = (
        alt.Chart(alt.NamedData("models_stability"), height=rows_height(names[:MOST_CHOSEN]))
        .transform_filter(f"datum.scorer === {SCORER}")
        .mark_bar(color=KIND_COLOURS["scorer"], size=16)
        .encode(
            y=alt.Y("name:N", sort=sort, title=None, axis=axis),
            x=share,
            tooltip=[*tooltip, alt.Tooltip("jaccard:Q", format=".2f", title="overlap of two folds")],
        )
        .add_params(alt.param(name=SCORER, value=scorers[0]))
    )
    of_scorer = dict(rows.unique("scorer", maintain_order=True).select("scorer", "jaccard").rows())
    overlap = [f"{method_name(s)} {of_scorer[s]:.2f}" for s in scorers if of_scorer[s] is not None]
    agreement = f" Overlap of the choices of two folds (Jaccard), mean: {', '.join(overlap)}." if overlap else ""
    several = [Select(SCORER, "Scorer", {s: method_name(s) for s in scorers})] if len(scorers) > 1 else []
    blocks: list[Block] = [
        Chart(
            "models-stability",
            "Which proxies the folds chose",
            specification(chart.properties(width="container")),
            [
                Dataset(
                    "models_stability", rows, "model_selection/stability", f"two tasks held out, {MOST_CHOSEN} a scorer"
                )
            ],
            caption=f"Two tasks held out; at most {MOST_CHOSEN} proxies of a scorer.{agreement}",
            alt="Share of folds that chose each proxy",
            selects=several,
        )
    ]
    return blocks + (_chosen_table(chosen, tail) if chosen is not None else [])


def _chosen_table(chosen: pl.DataFrame, tail: str) -> list[Block]:
    rows = of_tail(chosen, tail)
    names = ("split", "held_out", "scorer", "statistic", "weighting")
    titles = ("Split", "Held out", "Scorer", "Statistic", "Weighting")
    columns = [*(Column(*pair) for pair in zip(names, titles)), Column("coefficient", "Coefficient", "+.3g")]
    kept = "" if len(rows) <= MOST_FOLDS else f", first {MOST_FOLDS} of {len(rows)} rows"
    data = Dataset("models_chosen", rows.head(MOST_FOLDS), "model_selection/chosen", f"tail in {tail}{kept}")
    return [Table("models-chosen", "What each fold chose", data, columns, is_open=False)]


def _truth(truth: pl.DataFrame) -> list[Block]:
    columns = [
        Column("task", "Task"),
        Column("models", "Models"),
        Column("lowest", "Lowest", ".3g"),
        Column("highest", "Highest", ".3g"),
        Column("chance", "Chance", ".3g"),
        Column("at_chance", "Models at chance"),
        Column("at_ceiling", "Models all right"),
        Column("reliability", "Reliability", ".2f", "reliability_low", "reliability_high"),
        Column("ceiling", "Noise ceiling of ρ", ".2f", "ceiling_low", "ceiling_high"),
        Column("verdict", "Verdict"),
        Column("note", "Note"),
    ]
    if truth["split_half"].count():
        columns.insert(-3, Column("split_half", "Split-half reliability", ".2f", "split_half_low", "split_half_high"))
    data = Dataset("models_truth", truth, "model_selection/truth")
    return [Table("models-truth", "How far the truth can be trusted", data, columns, is_open=False)]
