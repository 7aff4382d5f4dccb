"""docs/reference/tables.md against the tables themselves: the smoke study's, and those of the other two experiments."""

import re
from itertools import product
from pathlib import Path

import numpy as np
import polars as pl
import pytest
from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.config.experiments.selection_options import ModelSelectionOptions, SelectionOptions
from proxycast.config.truth import Target
from proxycast.experiments.choosing.model_choices import model_choice_tables
from proxycast.experiments.data_selection.law_predictions import GAINS_SCHEMA, LAWS_SCHEMA, POINTS_SCHEMA
from proxycast.experiments.data_selection.ranking import DECISION_ACCURACY_COLUMNS
from proxycast.experiments.data_selection.rate_check import RATES_SCHEMA
from proxycast.experiments.data_selection.rate_check import SCHEMA as CHECK_SCHEMA
from proxycast.experiments.forecasting.protocol import forecast
from proxycast.experiments.judges.judge_application import CORPORA_SCHEMA
from proxycast.experiments.judges.judged_models import MODELS_SCHEMA
from proxycast.experiments.model_selection.model_counts import MODEL_COUNT_COLUMNS
from proxycast.experiments.model_selection.model_tables import model_selection_tables
from proxycast.experiments.model_selection.writer_comparison import WRITERS_SCHEMA
from proxycast.experiments.post_trained.claim_verdicts import CLAIMS_SCHEMA
from proxycast.experiments.post_trained.post_training_tables import OF_POST_TRAINING
from proxycast.extraction.temperature_fit import TEMPERATURES_SCHEMA
from proxycast.extraction.writers import EXPERTS_SCHEMA
from proxycast.truth.outside_statistics import STATISTICS_SCHEMA

PAGE = Path(__file__).parents[1] / "docs" / "reference" / "tables.md"
SECTION = re.compile(r"^### `(?P<path>[^`]+)`\n(?P<text>.*?)(?=^##|\Z)", re.MULTILINE | re.DOTALL)
ROW = re.compile(r"^\| `(?P<name>\w+)` \| (?P<type>[\w()]+) \| (?P<meaning>.+) \|$", re.MULTILINE)
TABLES = {
    section["path"]: {row["name"]: row["type"] for row in ROW.finditer(section["text"])}
    for section in SECTION.finditer(PAGE.read_text())
}
# With `judges`, with several learning rates, with `selection.scaling_laws`.
OF_OTHER_STUDIES = {"data_selection/judged.parquet": CORPORA_SCHEMA, "data_selection/rate_check.parquet": CHECK_SCHEMA}
OF_OTHER_STUDIES |= {"data_selection/rates.parquet": RATES_SCHEMA}
OF_OTHER_STUDIES |= {
    "data_selection/scaling_laws.parquet": LAWS_SCHEMA,
    "data_selection/law_gains.parquet": GAINS_SCHEMA,
}
OF_OTHER_STUDIES |= {"data_selection/law_points.parquet": POINTS_SCHEMA}
WIDE = ("ratios", "metrics", "next_mixtures")  # whose csv has a column for each source, as mixture optimisers read it
TASKS, STEPS = ("algebra", "words", "dates"), range(10, 110, 10)


def pattern(path: str) -> re.Pattern:
    """The files that a heading stands for: `<name>` is one part of a path."""
    return re.compile("".join("[^/]+" if part[:1] == "<" else re.escape(part) for part in re.split(r"(<\w+>)", path)))


def told(schema) -> dict[str, str]:
    return {name: str(kind) for name, kind in schema.items()}


def columns_of(section: str, table: pl.DataFrame) -> None:
    assert told(table.schema) == TABLES[section], section
    assert table.columns == list(TABLES[section]), section


def test_every_table_of_a_study_is_on_the_page(smoke):
    results, met = smoke / "results/smoke", set()
    for path in results.rglob("*.parquet"):
        name = path.relative_to(results).as_posix()
        found = [section for section in TABLES if pattern(section).fullmatch(name)]
        assert len(found) == 1, f"{name}: sections {found}"
        schema = pl.read_parquet_schema(path)
        assert told(schema) == TABLES[found[0]], name
        assert list(schema) == list(TABLES[found[0]]), name
        if (csv := path.with_suffix(".csv")).exists() and path.stem not in WIDE:
            assert csv.read_text().splitlines()[0].split(",") == list(schema), csv
        met.add(found[0])
    assert {section for section in TABLES if section.startswith("data_selection/")} <= met | OF_OTHER_STUDIES.keys()
    assert {"checkpoints.parquet", "proxies.parquet", "targets.parquet"} <= met


@pytest.fixture(scope="module")
def models():
    """Checkpoints, targets and proxies of two families of four models."""
    rng, names = np.random.default_rng(0), [f"{family}-{n}" for family, n in product("ab", range(4))]
    checkpoints = [
        {"checkpoint": name, "run": name, "corpus": name, "step": 1, "family": name[0], "role": "candidate"}
        | {"parameters": 1000 + n, "flops": 1e9 + n}
        for n, name in enumerate(names)
    ]
    targets, proxies = [], []
    for (n, name), task in product(enumerate(names), TASKS):
        score = 0.2 + n / 20 + 0.02 * rng.normal()
        targets.append({"checkpoint": name, "task": task, "metric": "accuracy", "value": score, "n": 50})
        key = {"checkpoint": name, "task": task, "tail": "tokens"}
        for statistic, weighting in (("cross_entropy", "uniform"), ("margin", "uniform"), ("bits_per_byte", "none")):
            value = 3 - n / 5 + 0.1 * rng.normal()
            proxies.append(key | {"statistic": statistic, "weighting": weighting, "value": value})
    return pl.DataFrame(checkpoints), pl.DataFrame(proxies), pl.DataFrame(targets)


def test_tables_of_the_model_selection(models):
    checkpoints, proxies, targets = models
    target, selection = Target(metric="accuracy", table="truth.csv"), SelectionOptions(bootstrap_replicates=100)
    options = ModelSelectionOptions(scorers=["univariate"])
    of_solutions = proxies.with_columns(solution=pl.lit("s"), tokens=pl.lit(9), denominator=pl.lit(1.0)).lazy()
    given = checkpoints, targets, proxies, list(TASKS), target, selection, options
    made = model_selection_tables(*given, of_solutions, [])
    made |= model_choice_tables(made["predictions"], made["ranking"], made["pairs"], 1, selection)
    made |= {"writers": pl.DataFrame(schema=WRITERS_SCHEMA), "judged": pl.DataFrame(schema=MODELS_SCHEMA)}
    made["solution_counts"] = pl.DataFrame(schema=MODEL_COUNT_COLUMNS)
    made |= {name: pl.DataFrame(schema=schema) for name, schema in OF_POST_TRAINING.items()}
    made["claims"] = pl.DataFrame(schema=CLAIMS_SCHEMA)
    for name, table in made.items():
        columns_of(f"model_selection/{name}.parquet", table)
    assert {f"model_selection/{name}.parquet" for name in made} == {
        t for t in TABLES if t.startswith("model_selection")
    }


def test_tables_of_forecasts():
    runs = [(f"r-step{step}", "r", step, 1000 * step) for step in STEPS]
    checkpoints = pl.DataFrame(runs, ["checkpoint", "run", "step", "tokens"], orient="row")
    loss = 1 + (checkpoints["step"] / 10) ** -0.5
    targets = checkpoints.select("checkpoint", task=pl.lit("sums"), metric=pl.lit("accuracy"), value=1 - loss / 3, n=90)
    key = {"task": "sums", "tail": "tokens", "statistic": "cross_entropy", "weighting": "uniform"}
    proxies = checkpoints.select("checkpoint", **{name: pl.lit(text) for name, text in key.items()})
    proxies = proxies.with_columns(value=loss, standard_error=pl.lit(0.01))
    options = ForecastingOptions(
        fit_up_to_step=50, horizons=(2,), proxies=("cross_entropy/uniform",), bootstrap_replicates=100
    )
    made = forecast(checkpoints, targets, proxies, "accuracy", ["sums"], options)
    for name, table in made.items():
        columns_of(f"forecasting/{name}.parquet", table)
    assert {f"forecasting/{name}.parquet" for name in made} == {t for t in TABLES if t.startswith("forecasting")}


def test_tables_that_few_studies_have():
    for section, schema in OF_OTHER_STUDIES.items():
        columns_of(section, pl.DataFrame(schema=schema))
    assert told(EXPERTS_SCHEMA) == TABLES["written/<writer>/experts.parquet"]
    assert TABLES["harness/<job>.parquet"] == TABLES["targets.parquet"]
    assert list(TABLES["published_curve.parquet"]) == DECISION_ACCURACY_COLUMNS
    assert told(STATISTICS_SCHEMA) == TABLES["statistics.parquet"]
    subset = TABLES["proxies.parquet"] | {"writer": "String", "number": "Int64", "draw": "Int64"}
    assert TABLES["subsets/<corpus>.parquet"] == subset
    for section in ("temperatures.parquet", "temperatures/<corpus>.parquet"):
        columns_of(section, pl.DataFrame(schema=TEMPERATURES_SCHEMA))
