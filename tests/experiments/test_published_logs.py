"""Published training logs: OLMo-2 7B and the runs of OLMo's ladder, against other people's figures and other code."""

import numpy as np
import polars as pl
import pytest
from conftest import PUBLISHED
from proxycast.config.experiments.forecasting_options import FitOptions, ForecastingOptions, WideCurve
from proxycast.experiments.forecasting.forecasts import forecasts_from_other_runs
from proxycast.experiments.forecasting.observed import observed_series
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.truth.training_log import read_wide_curve
from scipy.optimize import curve_fit
from test_training_log import OLMES

pytestmark = pytest.mark.published

LOGS = {  # run -> file, tokens a step
    "OLMo-2-7B": ("olmo2_7b_training_curve.csv", 4_194_304),
    "1B-10xC": ("olmo_ladder_1B-10xC.csv", 1_572_864),
}
# The shares of MMLU's questions in its four groups of subjects, as OLMo-ladder weighs them.
MMLU = {"stem": 0.215, "humanities": 0.335, "social_sciences": 0.219, "other": 0.231}


def mean_of_groups(pattern: str) -> dict[str, float]:
    return {pattern.format(group): weight for group, weight in MMLU.items()}


OF_MMLU = {
    "truth": mean_of_groups("eval/downstream/mmlu_{}_test_rc_5shot_len_norm"),
    "statistics": {"bits_per_byte": mean_of_groups("eval/downstream_bpb/mmlu_{}_test_rc_5shot_bpb")},
}


def log_of(name: str, **changes) -> WideCurve:
    file, tokens = LOGS[name]
    keys = {
        "path": PUBLISHED / file,
        "run": name,
        "step": "_step",
        "tokens_per_step": tokens,
        "tasks": {"mmlu": OF_MMLU},
    }
    return WideCurve(**(keys | changes))


def ladder(**changes) -> WideCurve:
    """All runs of the ladder in one file, which has tokens and no steps."""
    keys = {"path": PUBLISHED / "ladder_two_step_input.csv", "run_column": "run", "step": "tokens", "tokens": "tokens"}
    task = {"truth": "mmlu_avg_test_accuracy", "statistics": {"bits_per_byte": "mmlu_avg_test_bpb"}}
    return WideCurve(**(keys | {"parameters": "parameters", "tasks": {"mmlu": task}} | changes))


def test_one_run_is_the_same_in_a_log_of_its_own_and_among_sixteen():
    """Its steps and tokens, and MMLU: weighted here from four columns, and there by those who published it."""
    alone = read_wide_curve(log_of("1B-10xC"), "accuracy")
    counted = read_wide_curve(log_of("1B-10xC", tokens="throughput/total_tokens", tokens_per_step=None), "accuracy")
    assert all(found.equals(counted[name]) for name, found in alone.items())
    among = read_wide_curve(ladder(runs={"1B-10xC": {}}), "accuracy")
    assert alone["checkpoints"]["tokens"].equals(among["checkpoints"]["tokens"]) and len(alone["checkpoints"]) == 163
    for name in ("targets", "proxies"):
        assert alone[name]["value"].to_numpy() == pytest.approx(among[name]["value"].to_numpy(), abs=2e-9)
    assert among["checkpoints"]["flops"][-1] == 6 * 1_279_395_840 * 255_895_535_616


def test_the_runs_of_a_ladder_learn_from_each_other():
    """Each is forecast from half of it; `other_runs` is a regression over the other fifteen, made here by numpy."""
    log = pl.read_csv(PUBLISHED / "ladder_two_step_input.csv").filter(role="train").sort("run", "tokens")
    cuts = {run: int(rows["tokens"].max()) // 2 for (run,), rows in log.group_by("run")}
    curve = ladder(runs={run: {"fit_up_to_step": cut} for run, cut in cuts.items()})
    choices = ForecastingOptions(
        **{"curve": curve, "fit_up_to_step": 10**9, "horizons": (2,), "rehearsal": None, "bootstrap_replicates": 100},
    )
    tables = read_wide_curve(curve, "accuracy")
    assert tables["checkpoints"]["run"].n_unique() == 16 and tables["checkpoints"]["flops"].null_count() == 0
    observed = observed_series(*tables.values(), "accuracy", ["mmlu"], choices)
    found = forecasts_from_other_runs(observed, choices, {"higher_is_better": True, "chance": {}})
    learnt, truth = (dict(found.select("run", name).rows()) for name in ("predicted", "truth"))
    now, end = {}, {}
    for (run,), rows in log.group_by("run", maintain_order=True):
        tokens, scores = rows["tokens"].to_numpy(), rows["mmlu_avg_test_accuracy"].to_numpy()
        cut = np.flatnonzero(tokens <= cuts[run])[-1]
        now[run], end[run] = scores[cut], scores[np.abs(tokens - 2 * tokens[cut]).argmin()]
    for run in now:
        others = [name for name in now if name != run]
        slope, intercept = np.polyfit([now[name] for name in others], [end[name] for name in others], 1)
        assert learnt[run] == pytest.approx(intercept + slope * now[run], abs=1e-9)
    assert truth == pytest.approx(end)


def test_mmlu_of_a_run_that_goes_on():
    """As if OLMo-2 7B stood at step 50,000: its end in FLOPs, and a power law that scipy has fitted as well."""
    end = 6 * 6_887_575_552 * 900_000 * 4_194_304
    log = pl.read_csv(PUBLISHED / LOGS["OLMo-2-7B"][0]).filter(pl.col("_step").is_between(1, 50_000))
    curve = log_of("OLMo-2-7B", run=None, runs={"OLMo-2-7B": {"parameters": 6_887_575_552}})
    choices = ForecastingOptions(
        **{"curve": curve, "fit_up_to_step": 50_000, "end": {"flops": end}, "horizons": (2,), "rehearsal": None},
        **{"fit": FitOptions(loss="least_squares", without_trend="fit"), "bootstrap_replicates": 100},
    )
    found = forecast(*read_wide_curve(curve, "accuracy").values(), "accuracy", ["mmlu"], choices)
    values = sum(log[column].to_numpy() * weight for column, weight in OF_MMLU["truth"].items())
    t = log["_step"].to_numpy() / 50_000
    fitted, _ = curve_fit(lambda t, a, b, c: a - b * t**-c, t, values, p0=(values[-1] + 0.05, 0.05, 0.5), maxfev=20_000)
    row = found["forecasts"].filter(method="compute_only", horizon=18).row(0, named=True)
    assert row["predicted"] == pytest.approx(fitted[0] - fitted[1] * 18 ** -fitted[2], abs=1e-4)
    assert (row["step"], row["tokens"]) == (900_000, 900_000 * 4_194_304)
    ends = found["summary"].filter("is_end").row(0, named=True)
    assert ends["last_value"] == pytest.approx(values[-1]) and ends["flops"] == pytest.approx(end)


METHODS = {  # of the published errors -> here
    "power law of accuracy (scipy LS)": "compute_only",
    "last value": "last_value",
    "bpb LS power + linear": "bits_per_byte",
    "c4 LS power + linear": "generic_cross_entropy",
    "cprob LS power + linear": "correct_probability",
}


@pytest.mark.parametrize("run, first, cut", [("1B-10xC", 1, 9000), ("1B-10xC", 4000, 18000), ("OLMo-2-7B", 1, 50000)])
def test_errors_are_those_that_scipy_finds(run, first, cut):
    """Power laws and lines by least squares over eight tasks; the table has them rounded to five digits."""
    known = pl.read_csv(PUBLISHED / "forecast_errors_scipy.csv").filter(
        pl.col("method").is_in(list(METHODS)), run=run, fit_from_step=first, fit_up_to_step=cut
    )
    tasks = {
        name: {
            "truth": f"eval/downstream/{name}_{split}_rc_5shot_len_norm",
            "statistics": {
                "bits_per_byte": f"eval/downstream_bpb/{name}_{split}_rc_5shot_bpb",
                "correct_probability": f"eval/downstream_soft/{name}_{split}_rc_5shot_soft",
            },
        }
        for name, (split, _) in OLMES.items()
    }
    curve = log_of(run, tasks=tasks, shared={"generic_cross_entropy": "eval/c4_en-validation/CrossEntropyLoss"})
    choices = ForecastingOptions(
        **{"curve": curve, "fit_from_step": first, "fit_up_to_step": cut, "rehearsal": None},
        **{"horizons": sorted(set(known["horizon"])), "at_horizon": "mean", "horizon_tolerance": 0.045},
        **{"fit": FitOptions(loss="least_squares", without_trend="fit"), "bootstrap_replicates": 100},
    )
    found = forecast(*read_wide_curve(curve, "accuracy").values(), "accuracy", list(OLMES), choices)
    errors = found["errors"].filter(task="all").select("method", "horizon", "rmse")
    both = known.with_columns(pl.col("method").replace(METHODS), pl.col("horizon").cast(pl.Float64)).join(
        errors, on=["method", "horizon"], suffix="_here"
    )
    assert len(both) == len(METHODS) * known["horizon"].n_unique()
    assert both["rmse_here"].to_numpy() == pytest.approx(both["rmse"].to_numpy(), abs=1e-4)
