"""How often the intervals of forecasts cover, and how wide they are: published runs, cuts and horizons.

    python tests/benchmarks/intervals.py <folder of the published files>

Protocol. The candidates are compared on rehearsals, never on the ends. What was known of the ends when they were: the
errors of the forecasts and, of four pools of scores, the coverage; the pool was then settled on rehearsals.

- Runs: OLMo-2 7B and OLMo-ladder's 1B-10xC, with the tasks and statistics of config/published_olmo2.yaml; the 16 runs
  of config/published_ladder.yaml. Cuts: 1/18, 1/9, 1/4 and 1/2 of each run. Horizons: 2, 4, 9 and 18 times the cut, as
  far as the run goes; the truth is that of the nearest checkpoint within 10 %.
- Candidates differ in the score of an earlier forecast (its error, or what that exceeds noise by; over ln h or over its
  square root) and in whose scores are put together (of the task, of the run, of the run and what other runs did next).
  They are compared by coverage and interval score on rehearsals: forecasts from earlier cuts of the truths up to a
  quarter of each run. The best by interval score among those that use the run's scores is what is built.
- Leave one run out: the best candidate by the rehearsals of all other runs, measured on the forecasts of this one.
- Beside it, at all cuts and horizons: intervals of noise alone, and a naive one: the last value and as much change to
  either side as there was from half the cut to the cut, for each doubling of compute.
"""

import sys
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import yaml
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.experiments.forecasting import conformal
from proxycast.experiments.forecasting.forecast_errors import interval_summary
from proxycast.experiments.forecasting.forecasts import FORECASTS_SCHEMA, PATHS_SCHEMA, _rows_of_method, at_horizons
from proxycast.experiments.forecasting.methods import fit_methods
from proxycast.experiments.forecasting.observed import observed_series, task_runs
from proxycast.experiments.forecasting.rehearsal import rehearse
from proxycast.truth.training_log import read_wide_curve

CONFIG = Path(__file__).resolve().parents[2] / "config"
CUTS = (18, 9, 4, 2)
COMMON = {"horizons": (2, 4, 9, 18), "at_horizon": "nearest", "horizon_tolerance": 0.1, "bootstrap_replicates": 100}
OF_TRUTH = {"higher_is_better": True, "chance": {}}
SCORES = {  # name -> noise that is taken off, power of ln h
    "error / ln h": (False, 1.0),
    "error / sqrt(ln h)": (False, 0.5),
    "error beyond noise / ln h": (True, 1.0),
    "error beyond noise / sqrt(ln h)": (True, 0.5),
}
POOLS = ("task", "run", "run and other runs")


def published(folder: Path) -> dict[str, dict]:
    """The section `forecasting` of three studies, their files in the folder."""
    found = {}
    for name, config, path, changes in (
        ("OLMo-2 7B", "published_olmo2", "olmo2_7b_training_curve.csv", {}),
        ("1B-10xC alone", "published_olmo2", "olmo_ladder_1B-10xC.csv", {"run": "1B-10xC", "tokens_per_step": 1572864}),
        ("16 runs of the ladder", "published_ladder", "ladder_two_step_input.csv", {}),
    ):
        section = yaml.safe_load((CONFIG / f"{config}.yaml").read_text())["forecasting"] | COMMON
        section["curve"] |= {"path": str(folder / path)} | changes
        found[name] = section
    return found


def at_cut(section: dict, share: int) -> tuple[ForecastingOptions, pl.DataFrame]:
    """Options and observed series with every run cut at one `share`-th, of the runs with enough checkpoints."""
    options = ForecastingOptions(**section)
    tables, tasks = read_wide_curve(options.curve, "accuracy"), list(options.curve.tasks)
    steps = tables["checkpoints"].filter(pl.col("step") > 0).group_by("run", maintain_order=True).agg(pl.col("step"))
    cuts = {run: max(of) // share for run, of in steps.iter_rows() if sum(s <= max(of) // share for s in of) > 3}
    known = section["curve"].get("run")
    of_runs = {run: {"fit_up_to_step": cut} for run, cut in cuts.items()}
    changes = {"fit_up_to_step": cuts[known]} if known else {"curve": section["curve"] | {"runs": of_runs}}
    options = ForecastingOptions(**(section | changes))
    tables["checkpoints"] = tables["checkpoints"].filter(pl.col("run").is_in(list(cuts)))
    return options, observed_series(*tables.values(), "accuracy", tasks, options)


def naive(pairs: list, forecasts: pl.DataFrame) -> pl.DataFrame:
    """The last value, and the change since half the cut for each doubling to come."""
    rows = []
    for data in pairs:
        before = data.truth.value[np.abs(np.log2(data.truth.t) + 1).argmin()]
        now = data.truth.value[-1]
        rows.append((data.run, data.task, now, abs(now - before), data.tokens_at_cut))
    of_pairs = pl.DataFrame(rows, schema=["run", "task", "now", "change", "at_cut"], orient="row")
    table = forecasts.filter(method="last_value").join(of_pairs, on=["run", "task"])
    reach = pl.col("change") * (pl.col("tokens") / pl.col("at_cut")).log(2)
    low, high = (pl.col("now") - reach).clip(0, 1), (pl.col("now") + reach).clip(0, 1)
    return table.with_columns(low=low, high=high).select(forecasts.columns)


def measured(section: dict, study: str, share: int) -> tuple[pl.DataFrame, pl.DataFrame]:
    """Forecasts with each kind of interval, and how the rehearsals went."""
    options, observed = at_cut(section, share)
    pairs, rows, paths = list(task_runs(observed, {}, **OF_TRUTH)), [], pl.DataFrame(schema=PATHS_SCHEMA)
    for data in pairs:
        wanted = [at for at in at_horizons(data, options) if at.truth is not None]
        for (method, kind), fitted in fit_methods(data, options).items() if wanted else ():
            key = {"run": data.run, "task": data.task, "method": method, "kind": kind}
            made = _rows_of_method(fitted, data, wanted, options)
            rows += [dict.fromkeys(FORECASTS_SCHEMA) | key | row | {"caution": ""} for row in made]
    made = pl.DataFrame(rows, schema=FORECASTS_SCHEMA)
    together, _, intervals = conformal.with_conformal_intervals(made, paths, pairs, options)
    runs = {data.run for data in pairs}
    alone = [
        conformal.with_conformal_intervals(
            made.filter(run=run), paths, [data for data in pairs if data.run == run], options
        )[0]
        for run in sorted(runs)
    ]
    kinds = {
        "noise": made,
        "naive": naive(pairs, made),
        "conformal": together,
        "conformal, run alone": pl.concat(alone),
    }
    chosen = rehearse(observed, options).filter("chosen")["method"].to_list()
    tables = [table.with_columns(interval=pl.lit(kind)) for kind, table in kinds.items()]
    table = pl.concat(tables).with_columns(study=pl.lit(study), cut=pl.lit(f"1/{share}"))
    inside = (pl.col("low") <= pl.col("truth")) & (pl.col("truth") <= pl.col("high"))
    table = table.with_columns(covered=inside, is_chosen=pl.col("method").is_in(chosen))
    return table, intervals.with_columns(study=pl.lit(study), cut=pl.lit(f"1/{share}"))


def candidates(rehearsed: pl.DataFrame) -> pl.DataFrame:
    """Every rehearsed forecast with the interval of each candidate. `rehearsed`: of all runs of one study."""
    found = []
    columns = ("place", "cut", "end", "horizon", "noise", "predicted", "truth", "fitted", "task")
    for (name, (off, power)), pool in product(SCORES.items(), POOLS):
        noise = pl.col("noise") * off
        score = ((pl.col("predicted") - pl.col("truth")).abs() - noise).clip(0) / pl.col("horizon").log() ** power
        table = rehearsed.with_columns(score=score)
        by_run = {
            key: {column: rows[column].to_numpy() for column in (*columns, "score")}
            for key, rows in table.partition_by("run", "method", as_dict=True, maintain_order=True).items()
        }
        for (run, method), own in by_run.items():
            others = [of for (other, its), of in by_run.items() if its == method and other != run]
            for place in np.unique(own["place"][own["fitted"]]):
                now = (own["place"] == place) & own["fitted"]
                for task in np.unique(own["task"][now]) if pool == "task" else [None]:
                    these = now & (own["task"] == task) if task else now
                    known = by_run
                    if task:
                        known = {
                            key: {n: v[of["task"] == task] for n, v in of.items()}
                            for key, of in by_run.items()
                            if key[0] == run
                        }
                    scores = [conformal._own_scores(known, run, method, own["cut"][these].min(), place)]
                    if pool == "run and other runs":
                        scores += [of["score"][(of["place"] == place) & of["fitted"]] for of in others]
                    growth = np.nan_to_num(conformal.conformal_quantile(np.concatenate(scores), 0.9))
                    reach = growth * np.log(own["horizon"][these]) ** power + off * own["noise"][these]
                    low, high = (np.clip(own["predicted"][these] + s * reach, 0, 1) for s in (-1, 1))
                    truth = own["truth"][these]
                    part = {"run": run, "method": method, "score": name, "pool": pool, "low": low, "high": high}
                    found.append(pl.DataFrame(part | {"truth": truth, "covered": (low <= truth) & (truth <= high)}))
    return pl.concat(found)


def shown(table: pl.DataFrame, *by: str) -> None:
    """Print a table in markdown."""
    of = [pl.len().alias("forecasts"), pl.col("covered").mean().alias("coverage"), *interval_summary(0.9)]
    rows = table.group_by(*by, maintain_order=True).agg(of)
    print("|", " | ".join(rows.columns), "|")
    print("|" + "---|" * len(rows.columns))
    for row in rows.iter_rows():
        print(
            "|",
            " | ".join(f"{value:.3f}" if isinstance(value, float) and value < 1.5 else str(value) for value in row),
            "|",
        )
    print()


def left_out(rehearsals: pl.DataFrame) -> pl.DataFrame:
    """The rehearsals of each run with the intervals that were best on those of all other runs; `choice` names them."""
    found = []
    for run in rehearsals["run"].unique().sort().to_list():
        of = rehearsals.filter(pl.col("run") != run).group_by("score", "pool").agg(interval_summary(0.9))
        score, pool = of.sort("interval_score").row(0)[:2]
        found.append(rehearsals.filter(run=run, score=score, pool=pool))
    return pl.concat(found).with_columns(choice=pl.format("{}, {}", "score", "pool"))


if __name__ == "__main__":
    folder = Path(sys.argv[1])
    studies, parts, of_rehearsals, compared = published(folder), [], [], []
    for study, section in studies.items():
        for share in CUTS:
            table, intervals = measured(section, study, share)
            parts.append(table)
            of_rehearsals.append(intervals)
            print(study, share, len(table), file=sys.stderr, flush=True)
        options, observed = at_cut(section, 4)
        pairs = task_runs(observed, {}, **OF_TRUTH)
        rows = [row for data in pairs for row in conformal._rehearsed(data, options)]
        rehearsed = pl.DataFrame(rows, schema=conformal.REHEARSED_SCHEMA)
        rehearsed = rehearsed.filter(pl.col("method").is_in(["compute_only", "bits_per_byte", "last_value", "pooled"]))
        compared.append(candidates(rehearsed).with_columns(study=pl.lit(study)))
    rehearsals = pl.concat(compared)
    print("Candidates, on rehearsals up to a quarter of each run\n")
    shown(rehearsals, "score", "pool")
    print("The best of these on the other runs, on the rehearsals of the run that was left out\n")
    shown(left_out(rehearsals), "choice")
    judged = pl.concat(parts).filter(pl.col("error").is_not_null(), pl.col("kind") != "control")
    for title, table in (("every method", judged), ("the method chosen in advance", judged.filter("is_chosen"))):
        print(f"Forecasts beyond the cut: {title}\n")
        shown(table, "interval")
        shown(table.filter(pl.col("interval").is_in(["noise", "conformal"])), "interval", "horizon")
        shown(table.filter(pl.col("interval").is_in(["noise", "conformal"])), "interval", "study")
    print("Every method, conformal, by cut and by method\n")
    shown(judged.filter(interval="conformal"), "cut")
    shown(judged.filter(interval="conformal"), "method")
    print("Every method, conformal, each run alone\n")
    shown(judged.filter(interval="conformal, run alone"), "study", "horizon")
    known = pl.concat(of_rehearsals).drop_nulls("rehearsal_coverage")
    total, held = known["rehearsals"].sum(), (known["rehearsal_coverage"] * known["rehearsals"]).sum()
    print(f"In rehearsals before the cuts {held / total:.3f} of {total} truths were covered.")
