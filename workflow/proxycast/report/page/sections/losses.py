"""Where the proxies lose: every plain baseline that is as good as what was fixed in advance, or better."""

from collections.abc import Iterable, Iterator, Mapping

import polars as pl

from proxycast.experiments.forecasting.methods import CHOSEN
from proxycast.proxy_formulas import proxy_name
from proxycast.report.page.blocks import Block, Column, Dataset, Note, Section, Table
from proxycast.report.page.formats import shown, with_interval
from proxycast.report.page.study_results import StudyResults
from proxycast.truth.outside_statistics import OWN_BASELINES

# Over the expert solutions: the hardest to beat.
PLAIN_FIRST = ("bits_per_byte", "expert_cross_entropy", "tempered_bits_per_byte", "tempered_cross_entropy")
PLAIN, TRIVIAL = "plain", "trivial"  # kinds of baselines; a trivial one has read neither solutions nor tasks
GUESS = 0.5  # decision accuracy of a coin
IDENTICAL, WORSE, BETTER, UNSURE = "identical", "worse", "better", "not told apart"
BEHIND, AHEAD, LEVEL = "behind, no interval", "ahead, no interval", "level, no interval"
COMPARISONS = {
    **dict.fromkeys(("claim", "at", "method", "rival", "kind", "measure"), pl.String),
    **dict.fromkeys(("value", "rival_value", "difference", "low", "high"), pl.Float64),
    **dict.fromkeys(("verdict", "table"), pl.String),
    "is_won": pl.Boolean,
}
MORE, LESS = "more is better", "less is better"
OF_PAIRS = f"decision accuracy, single seed, {MORE}"
OF_MEAN = f"decision accuracy, mean of seeds, {MORE}"


def loss_section(results: StudyResults) -> Section:
    comparisons = compared(results)
    if comparisons.is_empty():
        return Section("losses", "Where the proxies lose", [Note(_why_none(results), is_caution=True)])
    dataset = Dataset(
        "losses", comparisons, "where_the_proxies_lose", "", comparisons["table"].unique().sort().to_list()
    )
    columns = [
        Column("claim", "Claim"),
        Column("verdict", "Verdict"),
        Column("method", "Proxy"),
        Column("rival", "Baseline"),
        Column("difference", "Difference", ".2g", "low", "high"),
        Column("kind", "Kind"),
        Column("value", "Proxy's", ".3g"),
        Column("rival_value", "Baseline's", ".3g"),
        Column("at", "At"),
        Column("measure", "Measured by"),
    ]
    caption = (
        "Difference: the proxy's value less the baseline's, with its paired interval. Worse or better: the interval "
        "excludes 0. Not told apart: it holds 0. Identical: the two give the same order in every sample. Without an "
        "interval the tables have only the difference. Trivial baselines are chance, the size of a model, its training "
        "compute, and its loss on generic text; all others are plain. Single seed: the mean of the figures of single "
        "seeds, as in the grid of proxies. Mean of seeds: predictions are averaged first, as in the page's answer."
    )
    tables = [
        Table(f"losses-{id}", title, dataset, columns, caption, is_open=not won, where={"is_won": won})
        for id, title, won in (("table", "Not won", False), ("won", "Won", True))
        if won in comparisons["is_won"]
    ]
    told = [Note(line) for line in _told(comparisons)]
    return Section("losses", "Where the proxies lose", [*told, *tables, *_by_task(results), *_inverted(results)])


def compared(results: StudyResults) -> pl.DataFrame:
    """Every comparison that the study's tables hold of what was fixed in advance: COMPARISONS, bits per byte first."""
    parts = [_corpora, _regrets, _laws, _task_choices, _repeats, _mixtures, _models, _forecasts]
    rows = [_with_verdict(row) for part in parts for row in part(results) if row["method"] != row["rival"]]
    return pl.DataFrame(rows, COMPARISONS, orient="row")


def verdict_of(difference: float | None, low: float | None, high: float | None, more_is_better: bool) -> str:
    """What a difference, a method's value less its rival's, says of the method."""
    if difference is None:
        return "not known"
    sign = 1 if more_is_better else -1
    if low is None or high is None:
        return LEVEL if difference == 0 else AHEAD if sign * difference > 0 else BEHIND
    if low == difference == high == 0:
        return IDENTICAL
    if low > 0 or high < 0:
        return BETTER if sign * low > 0 else WORSE
    return UNSURE


def _with_verdict(row: Mapping[str, object]) -> dict[str, object]:
    verdict = verdict_of(row["difference"], row["low"], row["high"], str(row["measure"]).endswith(MORE))
    name = _without_tail(str(row["rival"]))
    kind = TRIVIAL if name in OWN_BASELINES or name.startswith("generic_") else PLAIN
    made = {"verdict": verdict, "kind": kind, "is_won": verdict in (BETTER, AHEAD)}
    return dict.fromkeys(COMPARISONS) | dict(row) | made


def _without_tail(rival: str) -> str:
    """A baseline's name without the tail that `_label` adds."""
    return rival.partition(" (")[0]


def _told(comparisons: pl.DataFrame) -> Iterator[str]:
    """The first comparison with bits per byte in words, and how many are won."""
    of_bytes = [row for row in comparisons.iter_rows(named=True) if _without_tail(row["rival"]) == PLAIN_FIRST[0]]
    for row in of_bytes[:1]:
        difference = with_interval(row, "difference", ".2g", "low", "high")
        verdict = {UNSURE: "they cannot be told apart", IDENTICAL: "they decide alike"}.get(
            row["verdict"], row["verdict"]
        )
        yield (
            f"Against bits per byte on expert solutions ({row['at']}; {row['measure']}): {row['method']} "
            f"{shown(row['value'], '.3g')}, bits per byte {shown(row['rival_value'], '.3g')}, difference {difference}: "
            f"{verdict}."
        )
    if not of_bytes:
        yield "Bits per byte on the expert solutions is no baseline here: no table compares it with a proxy."
    yield " ".join(_counted(claim, rows) for (claim,), rows in comparisons.group_by("claim", maintain_order=True))


def _counted(claim: str, rows: pl.DataFrame) -> str:
    """How the comparisons of a claim ended, those with trivial baselines apart."""
    parts = []
    for kind, found in ((kind, rows.filter(kind=kind)) for kind in (PLAIN, TRIVIAL)):
        if len(found):
            things = f" with {kind} baselines" if TRIVIAL in rows["kind"] else ""
            counts = ", ".join(f"{n} {verdict}" for verdict, n in _by_number(found["verdict"]))
            parts.append(f"{len(found)} comparison{'' if len(found) == 1 else 's'}{things} ({counts})")
    return f"{claim}: {', '.join(parts)}."


def _by_number(verdicts: pl.Series) -> list[tuple[str, int]]:
    """Each verdict and how often it is found, the most frequent first."""
    return verdicts.value_counts().sort("count", "verdict", descending=[True, False]).rows()


def _why_none(results: StudyResults) -> str:
    if results.study.target is None:
        return "Nothing can be compared with a baseline: the study has no truth (`target`)."
    return "Nothing can be compared: the study has no baseline, or its tables of comparisons are missing."


def _fixed(results: StudyResults, table: pl.DataFrame) -> pl.DataFrame:
    """The rows of what was fixed in advance, in its order; a baseline may be among it."""
    named = results.study.highlighted
    order = pl.DataFrame([{**p.model_dump(), "_place": place} for place, p in enumerate(named)])
    found = table.join(order, on=["statistic", "weighting"], how="inner", maintain_order="left")
    return found.sort("_place", maintain_order=True).drop("_place")


def _at_budgets(results: StudyResults, table: pl.DataFrame) -> Iterator[tuple[str, pl.DataFrame]]:
    """Where, in words, and the rows there; the last budget first, as the answer rests on it."""
    for budget in reversed(results.budgets):
        yield f"budget {budget.name!r}", table.filter(size=budget.size, step=budget.step)


def _row(claim: str, at: str, method: str, rival: str, measure: str, table: str, **values: object) -> dict[str, object]:
    return {"claim": claim, "at": at, "method": method, "rival": rival, "measure": measure, "table": table, **values}


def _plain_first(rows: Iterable[dict]) -> list[dict]:
    """Bits per byte first, then the rivals from the best to the worst."""
    sign = {True: -1, False: 1}

    def place(row: dict) -> tuple:
        rival, value = _without_tail(row["rival"]), row["rival_value"]
        plain = PLAIN_FIRST.index(rival) if rival in PLAIN_FIRST else len(PLAIN_FIRST)
        return plain, value is None, sign[row["measure"].endswith(MORE)] * (value or 0)

    return sorted(rows, key=place)


def _corpora(results: StudyResults) -> list[dict]:
    table = results.table("data_selection/against_baselines")
    claim, name = "Order of the corpora", "data_selection/against_baselines"
    if table is None:
        return _best_of_summary(results)
    found = []
    for at, rows in _at_budgets(results, _fixed(results, table.filter(task="all"))):
        found += [
            _row(claim, at, proxy_name(r["statistic"], r["weighting"]), r["baseline"], OF_PAIRS, name)
            | {"value": r["decision_accuracy"], "rival_value": r["baseline_decision_accuracy"]}
            | {"difference": r["difference"], "low": r["difference_low"], "high": r["difference_high"]}
            for r in rows.iter_rows(named=True)
        ]
    return _plain_first(found)


def _best_of_summary(results: StudyResults) -> list[dict]:
    """Without the table `against_baselines`: the best baseline alone."""
    summary, name = results.table("data_selection/summary"), "data_selection/summary"
    if summary is None:
        return []
    values = dict(
        summary.filter(kind="baseline")
        .select(pl.struct("size", "step", "statistic").struct.json_encode(), "decision_accuracy")
        .rows()
    )
    found = []
    for at, rows in _at_budgets(results, _fixed(results, summary.drop_nulls("best_baseline"))):
        keys = rows.select(pl.struct("size", "step", statistic="best_baseline").struct.json_encode()).to_series()
        found += [
            _row(
                "Order of the corpora",
                at,
                proxy_name(r["statistic"], r["weighting"]),
                r["best_baseline"],
                OF_PAIRS,
                name,
            )
            | {"value": r["decision_accuracy"], "rival_value": values.get(key), "difference": r["difference"]}
            | {"low": r["difference_low"], "high": r["difference_high"]}
            for key, r in zip(keys, rows.iter_rows(named=True))
        ]
    return _plain_first(found)


def _regrets(results: StudyResults) -> list[dict]:
    found, name = [], "data_selection/choices"
    choices = results.table(name)
    if choices is None or results.study.target is None:
        return found
    choices = choices.filter(seed="mean")
    baselines = choices.filter(kind="baseline")
    measure = f"regret in {results.study.target.metric}, mean of seeds, {LESS}"
    for at, rows in _at_budgets(results, _fixed(results, choices.drop_nulls("best_baseline"))):
        for r in rows.iter_rows(named=True):
            rival = baselines.filter(statistic=r["best_baseline"], size=r["size"], step=r["step"])["regret"].to_list()
            found.append(
                _row(
                    "Pick of a corpus",
                    at,
                    proxy_name(r["statistic"], r["weighting"]),
                    r["best_baseline"],
                    measure,
                    name,
                )
                | {"value": r["regret"], "rival_value": next(iter(rival), None), "difference": r["difference"]}
                | {"low": r["difference_low"], "high": r["difference_high"]}
            )
    return found


def _laws(results: StudyResults) -> list[dict]:
    gains, name = results.table("data_selection/law_gains"), "data_selection/law_gains"
    if gains is None:
        return []
    return [
        _row(
            "Scaling laws",
            f"sizes {r['sizes']}",
            f"{r['law']} of {proxy_name(r['statistic'], r['weighting'])}",
            "",
            OF_PAIRS,
            name,
        )
        | {
            "rival": f"{r['single_size']} alone",
            "value": r["decision_accuracy"],
        }
        | {"rival_value": r["single_decision_accuracy"], "difference": r["difference"]}
        | {"low": r["difference_low"], "high": r["difference_high"]}
        for r in gains.filter(seed="single").iter_rows(named=True)
    ]


def _task_choices(results: StudyResults) -> list[dict]:
    table, name = results.table("data_selection/task_choice"), "data_selection/task_choice"
    if table is None:
        return []
    return [
        _row(
            "Leaving out noisy tasks",
            f"{at}, rule {r['rule']}",
            proxy_name(r["statistic"], r["weighting"]),
            "all tasks",
            OF_MEAN,
            name,
        )
        | {"value": r["decision_accuracy_without"], "rival_value": r["decision_accuracy"]}
        | {"difference": r["gain"], "low": r["gain_low"], "high": r["gain_high"]}
        for at, rows in _at_budgets(results, _fixed(results, table))
        for r in rows.iter_rows(named=True)
    ]


def _repeats(results: StudyResults) -> list[dict]:
    table, name = results.table("data_selection/repeats"), "data_selection/repeats"
    if table is None:
        return []
    return [
        _row(
            "Repeats",
            f"{at}, {r['seeds']} seeds, {r['checkpoints']} checkpoints",
            proxy_name(r["statistic"], r["weighting"]),
            "",
            f"decision accuracy, {MORE}",
            name,
        )
        | {"rival": f"one run of {r['rival_size']} at step {r['rival_step']}", "value": r["decision_accuracy"]}
        | {"rival_value": r["rival_decision_accuracy"], "difference": r["over_rival"]}
        | {"low": r["over_rival_low"], "high": r["over_rival_high"]}
        for at, rows in _at_budgets(results, _fixed(results, table.drop_nulls("rival_size")))
        for r in rows.iter_rows(named=True)
    ]


def _mixtures(results: StudyResults) -> list[dict]:
    table, name = results.table("data_selection/mixture_regression"), "data_selection/mixture_regression"
    if table is None:
        return []
    nearest = dict(table.filter(method="nearest").select("metric", "spearman").rows())
    return [
        _row("Mixtures held out", str(r["metric"]), r["method"], "nearest", f"Spearman's rho, {MORE}", name)
        | {"value": r["spearman"], "rival_value": nearest.get(r["metric"]), "difference": r["difference"]}
        | {"low": r["difference_low"], "high": r["difference_high"]}
        for r in table.filter(method="log_linear").iter_rows(named=True)
    ]


def _models(results: StudyResults) -> list[dict]:
    """Scorers beside every baseline; the tables have the interval of the difference to the best one alone."""
    table, name = results.table("model_selection/summary"), "model_selection/summary"
    found: list[dict] = []
    if table is None:
        return found
    table = table.with_columns(label=_label("method"))
    for (split,), rows in table.drop_nulls("spearman").group_by("split", maintain_order=True):
        for r in rows.filter(kind="scorer").iter_rows(named=True):
            for baseline, rho in rows.filter(kind="baseline").select("label", "spearman").iter_rows():
                is_best = baseline == r["best_baseline"]
                ends = (r["difference_low"], r["difference_high"]) if is_best else (None, None)
                found.append(
                    _row(
                        "Order of the models",
                        f"held out: {split}",
                        r["label"],
                        baseline,
                        f"Spearman's rho, {MORE}",
                        name,
                    )
                    | {"value": r["spearman"], "rival_value": rho, "low": ends[0], "high": ends[1]}
                    | {"difference": r["difference"] if is_best else r["spearman"] - rho}
                )
    return found


def _label(name: str) -> pl.Expr:
    """A method as `best_baseline` names it."""
    return pl.when(pl.col("tail") != "").then(pl.format("{} ({})", name, "tail")).otherwise(name)


def _forecasts(results: StudyResults) -> list[dict]:
    table, name = results.table("forecasting/errors"), "forecasting/errors"
    if table is None or results.study.target is None:
        return []
    table = table.filter(task="all")
    # What the rehearsal chose, which may be a baseline. Without a choice, each proxy.
    fixed = pl.col("method") == CHOSEN if CHOSEN in table["method"] else pl.col("kind") == "proxy"
    values = dict(table.select(pl.format("{} {}", "horizon", "method"), "rmse").rows())
    measure = f"RMSE of {results.study.target.metric}, {LESS}"
    return [
        _row("Forecasts", f"{r['horizon']:g} x the compute at the cut", r["method"], r["best_baseline"], measure, name)
        | {"value": r["rmse"], "rival_value": values.get(f"{r['horizon']} {r['best_baseline']}")}
        | {"difference": r["difference"], "low": r["difference_low"], "high": r["difference_high"]}
        for r in table.filter(fixed).drop_nulls("best_baseline").iter_rows(named=True)
    ]


def _by_task(results: StudyResults) -> list[Block]:
    """The fixed proxies in each task beside bits per byte and the best baseline there, at the last budget."""
    table = results.table("data_selection/against_baselines")
    if table is None or not results.budgets:
        return []
    last = results.budgets[-1]
    rows = _fixed(results, table.filter(pl.col("task") != "all", size=last.size, step=last.step))
    cell = ["task", "statistic", "weighting"]
    best = pl.col("baseline_decision_accuracy").rank("ordinal", descending=True).over(cell) == 1
    rows = rows.filter(best | (pl.col("baseline") == PLAIN_FIRST[0])).sort("task", maintain_order=True)
    if rows.is_empty():
        return []
    found = [
        verdict_of(*ends, more_is_better=True)
        for ends in rows.select("difference", "difference_low", "difference_high").iter_rows()
    ]
    rows = rows.with_columns(verdict=pl.Series(found, dtype=pl.String))
    dataset = Dataset("losses_by_task", rows, "data_selection/against_baselines", "each task, last budget, two rivals")
    columns = [
        Column("task", "Task"),
        Column("verdict", "Verdict"),
        *(Column(name, name.capitalize()) for name in ("statistic", "weighting", "baseline")),
        Column("difference", "Difference", ".2g", "difference_low", "difference_high"),
        Column("decision_accuracy", "Proxy's", ".2f"),
        Column("baseline_decision_accuracy", "Baseline's", ".2f"),
    ]
    caption = (
        f"Decision accuracy of a single seed at the budget {last.name!r}. Baselines are bits per byte on the expert "
        "solutions, and the best one of the task in hindsight."
    )
    return [Table("losses-by-task", "The same in each task", dataset, columns, caption, is_open=False)]


def _inverted(results: StudyResults) -> list[Block]:
    """Methods that order candidates the wrong way round, surely or perhaps."""
    blocks: list[Block] = []
    accuracy = results.table("data_selection/decision_accuracy")
    if accuracy is not None and results.study.target is not None:
        rows = accuracy.filter(task="all", seed="single", truth=results.study.target.metric)
        rows = pl.concat([rows.clear(), *(found for _, found in _at_budgets(results, rows))])
        told = "Decision accuracy of a single seed; 0.5 is the coin's."
        where = ("data_selection/decision_accuracy", "at the budgets, below 0.5")
        blocks += _wrong_way(rows, ("decision_accuracy", "Decision accuracy", GUESS), "corpora", told, where)
    alone = results.table("model_selection/proxies")
    if alone is not None:
        rows, told = alone.filter(task="all"), "Spearman's rho with the truth; 0 is chance."
        where = ("model_selection/proxies", "over all tasks, below 0")
        blocks += _wrong_way(rows, ("spearman", "Spearman's rho", 0.0), "models", told, where)
    return blocks


def _wrong_way(
    rows: pl.DataFrame, value: tuple[str, str, float], of: str, told: str, where: tuple[str, str]
) -> list[Block]:
    """`value`: the column that tells the order, its title, and what chance has."""
    name, title, chance = value
    is_sure = pl.col("high").is_not_null() & (pl.col("high") < chance)
    verdict = pl.when(is_sure).then(pl.lit("inverts")).otherwise(pl.lit("may invert")).alias("verdict")
    rows = rows.filter(pl.col("kind").is_in(["proxy", "baseline"])).with_columns(verdict)
    below, depends = pl.col(name) < chance, pl.col("depends_on_candidate")
    found = rows.filter(below & (depends | is_sure)).sort(name, maintain_order=True)
    heading = f"Methods that invert the order of the {of}"
    by_kind = [rows.filter(depends), rows.filter(~depends)]
    sure = [len(part.filter(below & is_sure)) for part in by_kind]
    if rows.is_empty():
        return []
    caption = (
        f"{told} A method inverts the order if its whole interval is below chance; it may invert it if only the value "
        f"is. Of {len(by_kind[0])} rows of proxies whose weighting depends on the candidate {sure[0]} invert it and "
        f"{len(found) - sum(sure)} may; of {len(by_kind[1])} other rows {sure[1]} invert it (those that may are not "
        "listed)."
    )
    if found.is_empty():
        return [Note(f"{heading}: none. {caption}")]
    places = [at for at in ("size", "step", "tail") if at in rows.columns]
    columns = [
        Column("statistic", "Statistic"),
        Column("verdict", "Verdict"),
        Column(name, title, ".2f", "low", "high"),
        Column("weighting", "Weighting"),
        Column("depends_on_candidate", "Depends on the candidate"),
        *(Column(at, at.capitalize()) for at in places),
    ]
    return [Table(f"inverted-{of}", heading, Dataset(f"inverted_{of}", found, *where), columns, caption, is_open=False)]
