"""Log-probabilities at several temperatures, the fitted one, and the baselines that are made of it."""

import json
import math

import numpy as np
import polars as pl
import pytest
import torch
from conftest import byte_level_tokenizer, finished, tiny_model
from polars.testing import assert_frame_equal
from proxycast import InputError, log_values, proxies, rank, score
from proxycast.config.errors import parse
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.schema import TOKEN_STATS_SCHEMA, temperatures_of, tempered_schema
from proxycast.extraction.sweep import TASKS, extract
from proxycast.extraction.temperature_fit import TEMPERATURES_SCHEMA, fit_temperature, with_tempered
from proxycast.extraction.token_stats import Head, token_stats_at_temperatures, token_stats_from_hidden
from proxycast.extraction.token_stats import tempered_logprobs as found_logprobs
from proxycast.proxy_formulas import TEMPERED, baseline_statistics, solution_ratios
from proxycast.solutions.rows import GENERIC_TEXT, Solution
from proxycast.solutions.tokenisation import tokenize
from proxycast.tables import table_metadata
from scipy.optimize import minimize_scalar
from scipy.special import log_softmax
from scored_models import SOLUTIONS
from transformers import AutoModelForCausalLM

GRID = (0.25, 0.315, 0.4, 0.5, 0.63, 0.8, 1.0, 1.26, 1.6, 2.0, 2.52, 3.2, 4.0)  # of docs/how/statistics.md
OPTIONS = ExtractionOptions(tail_tokens=20, batch_tokens=300, device="cpu", temperatures=GRID)


def exact(logits: torch.Tensor, targets: torch.Tensor, temperatures=GRID) -> torch.Tensor:
    """ln softmax(z / T) at the targets in float64, (K, n)."""
    at = [torch.log_softmax(logits.double() / T, 1).gather(1, targets[:, None]).squeeze(1) for T in temperatures]
    return torch.stack(at)


@pytest.mark.parametrize("temperatures", [GRID, (0.3, 0.7, 1.0, 1.1, 1.7), (0.25, 0.5, 1.0, 2.0, 4.0)])
@pytest.mark.parametrize("rows, vocabulary, spread", [(7, 2, 1.0), (40, 512, 0.1), (40, 512, 3.0), (60, 40_000, 30.0)])
def test_agrees_with_torch_in_float64(temperatures, rows, vocabulary, spread):
    generator = torch.Generator().manual_seed(vocabulary)
    logits = torch.randn(rows, vocabulary, generator=generator) * spread
    targets = torch.randint(0, vocabulary, (rows,), generator=generator)
    found = found_logprobs(logits, targets, temperatures)
    assert found.dtype == torch.float32 and found.shape == (len(temperatures), rows)
    np.testing.assert_allclose(found.double(), exact(logits, targets, temperatures), rtol=2e-6, atol=2e-6)


def test_masked_tokens_have_probability_zero_and_likely_ones_are_not_lost():
    logits = torch.randn(6, 300, generator=torch.Generator().manual_seed(1))
    logits[:, ::3] = -torch.inf
    logits[5, 1] = 60.0  # at T = 0.25 all others underflow
    targets = torch.full((6,), 1)
    np.testing.assert_allclose(found_logprobs(logits, targets, GRID).double(), exact(logits, targets), atol=2e-6)
    assert (found_logprobs(logits.to(torch.bfloat16), targets, GRID) <= 0).all()


def test_a_pass_with_temperatures_has_the_statistics_of_one_without():
    hidden, weight = torch.randn(37, 16), torch.randn(150, 16)
    targets, head = torch.randint(0, 150, (37,)), Head(weight, softcap=5.0)
    both = token_stats_at_temperatures(hidden, head, targets, 150, GRID, chunk_bytes=10 * 150 * 4)
    without = token_stats_from_hidden(hidden, head, targets, 150, chunk_bytes=10 * 150 * 4)
    assert torch.equal(both[:6], torch.stack([column.float() for column in without]))
    np.testing.assert_allclose(both[6:].double(), exact(head(hidden), targets), rtol=2e-6, atol=2e-6)


@pytest.mark.gpu
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_a_gpu(dtype):
    hidden, weight = (torch.randn(rows, 64, dtype=dtype, device="cuda") for rows in (300, 50_304))
    targets, head = torch.randint(0, 50_304, (300,), device="cuda"), Head(weight)
    both = token_stats_at_temperatures(hidden, head, targets, 50_304, GRID).cpu()
    np.testing.assert_allclose(both[6:].double(), exact(head(hidden), targets).cpu(), rtol=1e-5, atol=1e-5)
    without = token_stats_from_hidden(hidden, head, targets, 50_304)
    np.testing.assert_allclose(both[0], without.logprob.cpu(), rtol=1e-4, atol=1e-4)


def drawn(vocabulary: int, spread: float, factor: float, rows: int = 400) -> tuple[np.ndarray, np.ndarray]:
    """Logits (rows, V), and a token drawn from softmax(logits / factor) for each row."""
    rng = np.random.default_rng([vocabulary, int(10 * spread), int(100 * factor)])
    true = rng.normal(size=(rows, vocabulary)) * spread
    chances = np.exp(log_softmax(true, axis=1))
    return true * factor, np.array([rng.choice(vocabulary, p=row / row.sum()) for row in chances])


@pytest.mark.parametrize("vocabulary", [50, 512])
@pytest.mark.parametrize("spread", [0.5, 1.0, 2.0, 4.0, 8.0])
@pytest.mark.parametrize("factor", [0.3, 0.5, 0.9, 2.0, 3.0])
def test_the_loss_between_the_temperatures_is_the_exact_one(vocabulary, spread, factor):
    logits, tokens = drawn(vocabulary, spread, factor)

    def loss(temperature: float, rows: slice = slice(None)) -> float:
        return -np.mean(log_softmax(logits[rows] / temperature, axis=1)[np.arange(len(tokens[rows])), tokens[rows]])

    losses = np.array([loss(T) for T in GRID])
    fit = fit_temperature(GRID, losses)
    least = minimize_scalar(lambda x: loss(math.exp(x)), bounds=np.log([0.25, 4]), method="bounded")
    if fit.at_end:
        assert min(abs(least.x - math.log(T)) for T in (0.25, 4)) < 0.06
        return
    assert fit.weights.sum() == pytest.approx(1)
    assert fit.weights @ losses == pytest.approx(loss(fit.temperature), abs=1e-3)
    assert fit.weights @ losses == pytest.approx(least.fun, abs=1e-3)
    assert fit.temperature == pytest.approx(math.exp(least.x), rel=0.01)


def table_of(
    logits: np.ndarray, tokens: np.ndarray, checkpoint: str = "m", temperatures=GRID, task: str = "sums"
) -> pl.DataFrame:
    """Token statistics of solutions with ten tokens each; every token has three bytes."""
    z, y = torch.from_numpy(logits), torch.from_numpy(tokens)
    columns = dict(zip(tempered_schema(temperatures), exact(z, y, temperatures).numpy()))
    rank_of = (z > z.gather(1, y[:, None])).sum(1).numpy()
    logprob, number = exact(z, y, (1.0,))[0].numpy(), np.arange(len(y))
    rows = pl.DataFrame({"position": number % 10, "token": tokens, "logprob": logprob, "n_greater": rank_of, **columns})
    rows = rows.with_columns(
        *(pl.lit(value).alias(name) for name, value in (("bytes", 3), ("n_equal", 1), ("vocabulary", z.shape[1]))),
        *(pl.lit(-0.1).alias(name) for name in ("max_logprob", "second_logprob")),
        entropy=pl.lit(1.0),
        checkpoint=pl.lit(checkpoint),
        task=pl.lit(task),
        solution=pl.Series([f"s{n // 10:03}" for n in number]),
    )
    kinds = {name: kind for name, kind in TOKEN_STATS_SCHEMA.items() if name != "key"} | tempered_schema(temperatures)
    return rows.select("checkpoint", "task", "solution", *kinds).cast(kinds)


@pytest.mark.parametrize("factor", [0.5, 1.7, 2.5])
def test_the_fit_undoes_a_known_factor(factor):
    logits, tokens = drawn(60, 2.0, 1.0, rows=3000)
    tables = [table_of(logits, tokens, "plain"), table_of(logits * factor, tokens, "sharpened")]
    _, fits = with_tempered(pl.concat(tables).lazy())
    assert fits.schema == pl.Schema(TEMPERATURES_SCHEMA) and not fits["at_end"].any()
    plain, sharpened = fits.to_dicts()
    assert plain["temperature"] == pytest.approx(1, abs=0.05)  # the tokens were drawn from these logits
    assert sharpened["temperature"] == pytest.approx(plain["temperature"] * factor, rel=5e-3)
    assert sharpened["tempered_cross_entropy"] == pytest.approx(plain["tempered_cross_entropy"], abs=1e-3)
    assert sharpened["cross_entropy"] > plain["cross_entropy"] + 0.05 and plain["tokens"] == 3000


def test_the_baselines_are_the_ratios_at_the_fitted_temperature():
    logits, tokens = drawn(60, 2.0, 1.7)
    table = table_of(logits, tokens).with_columns(
        task=pl.when(pl.int_range(pl.len()) < 130).then(pl.lit("sums")).otherwise(pl.lit("words"))
    )
    scored, fits = with_tempered(table.lazy())
    temperature = fits["temperature"][0]
    at_fit = exact(torch.from_numpy(logits), torch.from_numpy(tokens), (temperature,))[0].numpy()
    np.testing.assert_allclose(scored.collect()["tempered_logprob"].mean(), at_fit.mean(), atol=1e-3)
    found = baseline_statistics(scored).collect()
    for task, own in (("sums", at_fit[:130]), ("words", at_fit[130:])):
        loss = found.filter(task=task, statistic="tempered_cross_entropy")
        bits = found.filter(task=task, statistic="tempered_bits_per_byte")
        assert loss["value"][0] == pytest.approx(-own.mean(), abs=1e-3)
        assert bits["value"][0] == pytest.approx(loss["value"][0] / math.log(2) / 3, rel=1e-9)
        sums = solution_ratios(scored).filter(task=task, statistic="tempered_cross_entropy").collect()
        assert sums["value"].sum() / sums["denominator"].sum() == pytest.approx(loss["value"][0], rel=1e-9)
        assert loss["standard_error"][0] > 0 and loss["weighting"][0] == "none"


def test_generic_text_has_no_part_in_the_fit():
    table, other = table_of(*drawn(60, 2.0, 1.7)), table_of(*drawn(60, 2.0, 0.5), task=GENERIC_TEXT)
    alone, both = (with_tempered(found.lazy()) for found in (table, pl.concat([table, other])))
    assert_frame_equal(alone[1], both[1])
    assert set(baseline_statistics(both[0]).collect().filter(statistic="tempered_cross_entropy")["task"]) == {
        "sums",
        GENERIC_TEXT,
    }
    with pytest.raises(InputError, match="checkpoint m: no expert solution, so no temperature can be fitted"):
        with_tempered(other.lazy())


def test_a_minimum_at_an_end_is_taken_there_and_told(caplog):
    scored, fits = with_tempered(table_of(*drawn(60, 2.0, 9.0)).lazy())
    assert fits["at_end"][0] and fits["temperature"][0] == 4
    assert "m: its cross-entropy is least at temperature 4, an end of extraction.temperatures" in caplog.text
    rows = scored.collect()
    np.testing.assert_allclose(rows["tempered_logprob"], rows["logprob_at_4.0"])


def test_a_table_that_lacks_values_is_refused():
    table = table_of(*drawn(60, 2.0, 1.7))
    lacking = table.with_columns(pl.when(pl.col("position") > 3).then("logprob_at_1.26").alias("logprob_at_1.26"))
    with pytest.raises(InputError, match="checkpoint m: logprob_at_1.26: found values that are not finite"):
        with_tempered(lacking.lazy())


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
def test_the_engine_against_the_librarys_logits(model_folder, architecture):
    engine, folder = make_engine(OPTIONS), model_folder(architecture=architecture)
    engine.load(folder)
    texts = [(f"s{i}", "Q: 2 plus 3?\nA:", " The cat sat" * (i % 4 + 1) + str(i)) for i in range(9)]
    sequences = tokenize(texts, engine.tokenizer, engine.context, 20)
    found = engine.token_stats(sequences, GRID)
    assert dict(found.schema) == TOKEN_STATS_SCHEMA | tempered_schema(GRID)
    assert temperatures_of(found.columns) == [*GRID]
    assert_frame_equal(found.select(TOKEN_STATS_SCHEMA.keys()), engine.token_stats(sequences), check_exact=True)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    expected = []
    for sequence in sequences:
        with torch.no_grad():
            logits = model(torch.tensor(sequence.token_ids)[None]).logits[0]
        scored = range(sequence.start, sequence.stop)
        expected.append(exact(logits[[t - 1 for t in scored]], torch.tensor(sequence.token_ids)[scored]))
    np.testing.assert_allclose(found.select(*tempered_schema(GRID)).to_numpy().T, torch.cat(expected, 1), atol=1e-4)
    engine._head = None  # a model whose head is not known
    whole = engine.token_stats(sequences, GRID)
    assert_frame_equal(whole, found, abs_tol=1e-4)
    assert engine.token_stats([], GRID).columns == found.columns


def test_extraction_keeps_them_and_a_new_grid_reads_again(model_folder, tmp_path):
    folders = [("step1", model_folder())]
    tasks = {"sums": [Solution(id="a", prompt="2+3=", solution=" 5."), Solution(id="b", prompt="1+1=", solution=" 2.")]}

    def run(parts: str, **options) -> tuple[bytes, str]:
        chosen = OPTIONS.model_copy(update=options)
        finished(extract(make_engine(chosen), folders, tasks, chosen, tmp_path / parts, code="code"))
        file = tmp_path / parts / "step1.parquet"
        return file.read_bytes(), json.loads(table_metadata(file)[TASKS])["sums"]

    without, plain = run("without", temperatures=())
    names = pl.read_parquet(tmp_path / "without/step1.parquet").columns
    assert names == ["checkpoint", "task", "solution", *list(TOKEN_STATS_SCHEMA)[1:]]
    _, tempered = run("with")
    table = pl.read_parquet(tmp_path / "with/step1.parquet")
    assert table.columns == [*names, *tempered_schema(GRID)]
    np.testing.assert_allclose(table["logprob_at_1.0"], table["logprob"], atol=1e-6)
    assert plain != tempered != run("with", temperatures=GRID[1:])[1] != plain
    assert run("with", temperatures=()) == (without, plain)


def test_without_temperatures_nothing_is_computed_and_no_option_is_told(model_folder, monkeypatch):
    def unwanted(*arguments, **options):
        raise AssertionError("temperatures were asked for")

    monkeypatch.setattr("proxycast.extraction.engines.transformers.token_stats_at_temperatures", unwanted)
    plain = OPTIONS.model_copy(update={"temperatures": ()})
    engine = TransformersEngine(plain)
    engine.load(model_folder())
    assert engine.token_stats(tokenize([("a", "Q", " The cat")], engine.tokenizer, engine.context, 9)).height > 0
    assert "temperatures" not in plain.that_change_token_stats() and "temperatures" not in OPTIONS.that_change_results()
    assert OPTIONS.that_change_token_stats() == plain.that_change_token_stats() | {"temperatures": GRID}


@pytest.mark.parametrize(
    "given, said",
    [
        ({"temperatures": [0.5, 1, 2]}, "found 3 temperatures; give 5 at least"),
        ({"temperatures": [0, 0.5, 1, 2, 4]}, "found the temperature 0.0; give positive numbers"),
        ({"temperatures": [0.5, 1, 2, 4, math.inf]}, "found inf"),
        ({"temperatures": [0.5, 1, 1, 2, 4]}, "found 1.0 before 1.0; give each temperature once"),
        ({"temperatures": [4, 2, 1, 0.5, 0.25]}, "found 4.0 before 2.0"),
        ({"temperatures": GRID, "engine": "vllm"}, "only the engine transformers .* found vllm"),
        ({"temperatures": GRID, "engine": "auto"}, "only the engine transformers .* found auto"),
    ],
)
def test_grids_that_are_refused(given, said):
    with pytest.raises(InputError, match=said):
        parse(ExtractionOptions, given, "extraction")


def test_the_library_scores_ranks_and_logs_them(model_folder):
    arguments = byte_level_tokenizer(), SOLUTIONS
    table = score(tiny_model(), *arguments, tail_tokens=20, temperatures=GRID)
    plain = score(tiny_model(), *arguments, tail_tokens=20)
    assert_frame_equal(table.select(plain.columns), plain, check_exact=True)
    of_folder = score(model_folder(), SOLUTIONS, tail_tokens=20, temperatures=GRID, device="cpu", checkpoint="model")
    assert of_folder.columns == table.columns
    found = proxies(table)
    extra = found.join(proxies(plain), on=["task", "statistic", "weighting"], how="anti")
    assert set(extra["statistic"]) == set(TEMPERED) and len(extra) == 2 * len(SOLUTIONS)
    least = proxies(table).filter(weighting="none").pivot("statistic", index="task", values="value")
    tokens = table.group_by("task").len()
    both = least.join(tokens, on="task")
    means = [(both[name] * both["len"]).sum() for name in ("tempered_cross_entropy", "expert_cross_entropy")]
    assert means[0] <= means[1] + 1e-6
    logged = log_values(table, ["tempered_cross_entropy"])
    assert set(logged.values()) == set(found.filter(statistic="tempered_cross_entropy")["value"])
    other = score(tiny_model(seed=1), *arguments, tail_tokens=20, temperatures=GRID)
    ranking = rank({"a": table, "b": other}, ["tempered_bits_per_byte", "bits_per_byte"]).ranking
    assert set(ranking["statistic"]) == {"tempered_bits_per_byte", "bits_per_byte"} and set(ranking["note"]) == {""}
    for use in (lambda: log_values(plain, ["tempered_cross_entropy"]), lambda: rank({"a": plain}, [*TEMPERED])):
        with pytest.raises(InputError, match="tempered_cross_entropy: needs token statistics at temperatures"):
            use()
