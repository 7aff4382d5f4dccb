"""Downstream truth against the library's own logits and hand-made engines; tables with every kind of mistake."""

import math

import numpy as np
import polars as pl
import pyarrow
import pyarrow.parquet
import pytest
import torch
from conftest import byte_level_tokenizer, finished
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.tasks import Task
from proxycast.extraction.engines.factory import make_engine
from proxycast.metrics import is_error, is_share
from proxycast.options import InputError
from proxycast.solutions.rows import Problem, Solution
from proxycast.truth.measurement import evaluate, evaluate_checkpoints, exact_match, multiple_choice
from proxycast.truth.targets import (
    TARGETS_SCHEMA,
    chance_accuracy,
    log_unknown,
    read_target_table,
    read_target_tables,
    require_targets,
    with_full_names,
)
from transformers import AutoModelForCausalLM

CHOICES = [" five.", " the cat sat.", " 7", " é"]
SOLUTIONS = [
    Solution(id=f"p{i}", prompt="Q: what is it?\nA:" * (i + 1), solution=CHOICES[i % 4], choices=CHOICES[: 4 - i % 2])
    for i in (0, 1, 2, 4, 5)
]


@pytest.fixture
def engine():
    return make_engine(ExtractionOptions(device="cpu", batch_tokens=200))


def test_multiple_choice_agrees_with_the_librarys_logits(engine, model_folder):
    folder = model_folder()
    rows = evaluate(engine, "c", folder, "t", SOLUTIONS)
    model = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    hits, log_likelihoods = [], []
    for solution in SOLUTIONS:
        sums = []
        for choice in solution.choices:
            ids = torch.tensor(engine.tokenizer(solution.prompt + choice)["input_ids"])
            start = len(engine.tokenizer(solution.prompt)["input_ids"])  # no merge crosses this boundary
            with torch.no_grad():
                log_probabilities = torch.log_softmax(model(ids[None]).logits[0].double(), 1)
            sums.append(sum(log_probabilities[t - 1, ids[t]].item() for t in range(start, len(ids))))
        hits.append(np.argmax(sums) == solution.correct_choice)
        log_likelihoods.append(torch.log_softmax(torch.tensor(sums), 0)[solution.correct_choice].item())
    assert rows.select("checkpoint", "task", "metric", "n").rows() == [
        ("c", "t", "multiple_choice_accuracy", 5),
        ("c", "t", "choice_log_likelihood", 5),
    ]
    assert rows["value"].to_list() == pytest.approx([np.mean(hits), np.mean(log_likelihoods)], abs=1e-3)


class FixedEngine:
    """Gives each token of a choice the log-probability that `logprob` says, each prompt the text in `texts`."""

    context = 999

    def __init__(self, tokenizer, logprob=None, texts=None):
        self.tokenizer, self.logprob, self.texts = tokenizer, logprob, texts

    def token_stats(self, sequences):
        rows = [(s.key, self.logprob(s)) for s in sequences for _ in range(s.start, s.stop)]
        return pl.DataFrame(rows, schema={"key": pl.String, "logprob": pl.Float32}, orient="row")

    def generate(self, prompts, max_new_tokens, stop=()):
        return [self.texts[prompt] for prompt in prompts]


def test_shared_first_places_count_a_share(engine, model_folder):
    engine.load(model_folder())
    problem = Solution(id="p", prompt="Q:", solution="x", choices=["x", "y", "z", "q"])
    scores = {"x": -1.0, "y": -1.0, "z": -1.0, "q": -9.0}

    def logprob(sequence):
        return scores[engine.tokenizer.decode(sequence.token_ids)[-1]]

    result = multiple_choice(FixedEngine(engine.tokenizer, logprob), "t", [problem])
    assert result["multiple_choice_accuracy"] == pytest.approx(1 / 3)
    assert result["choice_log_likelihood"] == pytest.approx(-1 - math.log(3 * math.exp(-1) + math.exp(-9)), rel=1e-6)
    scores["q"] = 0.0
    assert multiple_choice(FixedEngine(engine.tokenizer, logprob), "t", [problem])["multiple_choice_accuracy"] == 0


def test_exact_match_takes_the_first_match():
    texts = {"a": "the answer is 4 .", "b": "answer is 5, or answer is 4", "c": "no idea", "d": "the answer is 4"}
    solutions = [Solution(id=prompt, prompt=prompt, solution="x", answer=" 4 ") for prompt in texts]
    assert exact_match(FixedEngine(None, texts=texts), "t", solutions, r"answer is( ?\d+ ?)", 9) == 0.5


def test_exact_match_runs_on_a_model(engine, model_folder):
    folder = model_folder()
    engine.load(folder)
    prompts = ["The cat", "Q: what is"]
    said = engine.generate(prompts, 4)
    solutions = [
        Solution(id="right", prompt=prompts[0], solution="x", answer=said[0].strip()),
        Solution(id="wrong", prompt=prompts[1], solution="x", answer="nothing of the kind"),
        Solution(id="none", prompt="p", solution="x"),
    ]
    rows = evaluate(engine, "c", folder, "t", solutions, r"(?s)(.*)", max_new_tokens=4)
    assert rows.rows() == [("c", "t", "exact_match", 0.5, 2)]


def test_a_problem_counts_once_whatever_solutions_it_has(engine, model_folder, tmp_path):
    folder = model_folder()
    problems = [
        Problem(id=f"p{i}", prompt=s.prompt, answer=s.solution, choices=s.choices) for i, s in enumerate(SOLUTIONS)
    ]
    written = [
        Solution(**problem.model_dump(exclude={"id"}), id=f"{problem.id}@{writer}", problem=problem.id, solution="so.")
        for problem in problems
        for writer in "abc"[: 1 + int(problem.id[1]) % 3]
    ]
    once, several = (evaluate(engine, "c", folder, "t", rows, r"(.*)", 2) for rows in (problems, written))
    assert once.equals(several) and once["n"].to_list() == [5, 5, 5] and len(written) > 5
    task = Task(name="t", solutions="unused", answer_pattern="(.*)", max_new_tokens=2)
    job = [engine, [("c", folder)], [task], {"t": written}, engine.options, ["c"]]
    assert list(finished(evaluate_checkpoints(*job, tmp_path / "parts", code="code"))) == ["c"]
    assert pl.read_parquet(tmp_path / "parts" / "c.parquet").equals(several)
    assert chance_accuracy({"t": written}) == pytest.approx((1 / 4 + 1 / 3 + 1 / 4 + 1 / 4 + 1 / 3) / 5)


def test_choices_are_read_as_the_options_say(engine, model_folder, tmp_path):
    """Behind a chat template a choice that was written for base models loses its space, as a solution does."""
    tokenizer = byte_level_tokenizer()
    tokenizer.chat_template = "{{ messages[0]['content'] }}\n"
    folder = model_folder(tokenizer=tokenizer)
    rows = SOLUTIONS[:2]
    bare = [s.model_copy(update={"choices": tuple(choice[1:] for choice in s.choices)}) for s in rows]
    bare = [s.model_copy(update={"solution": s.solution[1:]}) for s in bare]
    texts = (" five." * 130, " 7" * 260)  # longer than the context
    long = [Solution(id="p", prompt="Q:", solution=texts[1], choices=texts)]
    task, found = Task(name="t", solutions="unused"), {}
    for name, problems, changes in (
        ("strip", rows, {}),
        ("keep", rows, {"leading_space": "keep"}),
        ("bare", bare, {"leading_space": "keep"}),
        ("long", long, {"chat_template": False, "window_stride": 0.9}),
        ("long with more context", long, {"chat_template": False, "window_stride": 0.1}),
    ):
        options = ExtractionOptions(device="cpu", batch_tokens=200, **{"chat_template": True} | changes)
        job = [engine, [("c", folder)], [task], {"t": problems}, options, []]
        finished(evaluate_checkpoints(*job, tmp_path / name, code="code"))
        table = pl.read_parquet(tmp_path / name / "c.parquet").filter(metric="choice_log_likelihood")
        found[name] = table["value"].item()
    assert found["strip"] == pytest.approx(found["bare"], abs=1e-5)
    assert abs(found["strip"] - found["keep"]) > 0.01
    assert abs(found["long"] - found["long with more context"]) > 1e-4


def test_a_task_that_measures_nothing(engine, tmp_path):
    with pytest.raises(InputError, match="task t: nothing can be measured"):
        evaluate(engine, "c", tmp_path, "t", [Solution(id="a", prompt="", solution="x", answer="4")])


GOOD = "checkpoint,task,metric,value,n\nc1,t1,exact_match,0.5,100\n"


def test_a_table_reads_from_csv_and_parquet(tmp_path):
    (tmp_path / "t.csv").write_text(GOOD.replace("n\n", "n,note\n").replace("100\n", "100,x\n"))
    table = read_target_table(tmp_path / "t.csv")
    assert table.rows() == [("c1", "t1", "exact_match", 0.5, 100)]
    table.write_parquet(tmp_path / "t.parquet")
    assert read_target_table(tmp_path / "t.parquet").equals(table)
    table.with_columns(n=pl.lit(1.5)).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match="row 1, column n: found 1.5; it must be a count"):
        read_target_table(tmp_path / "t.parquet")


@pytest.mark.parametrize(
    "text, words",
    [
        ("checkpoint,task,metric,n\n", "column value: missing"),
        (GOOD + "c2,t1,exact_match,high,100\n", "row 3, column value: found 'high'"),
        (GOOD + "c2,t1,exact_match,nan,100\n", "row 3, column value: found 'nan'"),
        (GOOD + "c2,t1,exact_match,,100\n", "row 3, column value: found None"),
        (GOOD + "c2,t1,exact_match,0.5,0\n", "row 3, column n: found '0'"),
        (GOOD + "c2,t1,exact_match,0.5,1.5\n", "row 3, column n: found '1.5'"),
        (GOOD + ",t1,exact_match,0.5,5\n", "row 3, column checkpoint: found None"),
        (GOOD + "c1,t1,exact_match,0.6,100\n", "row 3, columns ['checkpoint', 'task', 'metric']: ('c1', 't1', "),
        ("", "cannot be read"),
    ],
)
def test_mistakes_in_a_table_name_row_and_column(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_text(text)
    with pytest.raises(InputError) as caught:
        read_target_table(path)
    assert str(caught.value).startswith(str(path)) and words in str(caught.value)


SHARES = (
    "multiple_choice_accuracy",
    "accuracy",
    "acc_norm,none",
    "exact_match",
    "primary_metric",
    "pass@1",
    "error_rate",
)
OTHERS = ("choice_log_likelihood", "log_accuracy", "loss", "neg_accuracy", "score", "accuracy_percent", "embedding")


@pytest.mark.parametrize("metric", SHARES)
@pytest.mark.parametrize("value", [40.0, 1.01, -0.3, 100.0])
def test_a_share_lies_in_0_to_1(tmp_path, metric, value):
    path = tmp_path / "t.csv"
    rows = [("c1", 0.4), ("c2", 0), ("c3", 1), ("c4", value)]
    path.write_text("checkpoint,task,metric,value\n" + "".join(f'{c},t1,"{metric}",{v}\n' for c, v in rows))
    with pytest.raises(
        InputError, match=r"row 5, column value: found .*; .* is a share .* must lie in 0 to 1"
    ) as caught:
        read_target_table(path)
    assert ("40 % is 0.4" in str(caught.value)) == (value == 40)


@pytest.mark.parametrize("metric", OTHERS)
def test_what_is_no_share_may_lie_anywhere(tmp_path, metric):
    path = tmp_path / "t.csv"
    values = [-7.0, -0.3, 0.0, 1.5, 43.1, 120.0]
    path.write_text(GOOD + "".join(f"c{i},t1,{metric},{v},100\n" for i, v in enumerate(values, 2)))
    assert read_target_table(path).filter(metric=metric)["value"].to_list() == values


@pytest.mark.parametrize(
    "rows, where",
    [
        ([("a", 0.42), ("a", 43.1), ("b", 0.3)], "task a"),
        ([("a", 0.42), ("a", 0.0), ("b", 55.0), ("b", 61.2)], "all tasks"),  # a mean over tasks would be that of b
        ([("a", 5.5), ("a", 0.25), ("b", 90.0), ("a", 7.0)], "task a"),  # 90 is no neighbour of 0.25 over all tasks
    ],
)
def test_percent_beside_fractions_of_any_metric_are_refused(tmp_path, rows, where):
    path = tmp_path / "t.csv"
    text = "".join(f"c{i},{task},score,{value},\n" for i, (task, value) in enumerate(rows))
    path.write_text("checkpoint,task,metric,value,n\n" + text)
    with pytest.raises(InputError, match=rf"found .* of score, {where}: percent beside fractions; give .* 0 to 1"):
        read_target_table(path)
    path.write_text(path.read_text().replace("score", "brier_score"))
    with pytest.raises(InputError, match="of brier_score, .*: percent beside fractions"):
        read_target_table(path)
    for metric in ("loss", "perplexity"):  # these may differ by any factor
        path.write_text("checkpoint,task,metric,value,n\n" + text.replace("score", metric))
        assert len(read_target_table(path)) == len(rows)


def test_values_in_one_unit_pass_whatever_it_is(tmp_path):
    path = tmp_path / "t.csv"
    for values in ([0.7, 1.4, 2.9, 11.0], [3.0, 43.1, 88.0], [0.001, 0.9], [0.0, 43.0], [0.9, 1.2, 300.0]):
        path.write_text(GOOD + "".join(f"c{i},t2,score,{v},\n" for i, v in enumerate(values)))
        assert read_target_table(path).filter(metric="score")["value"].to_list() == values


@pytest.mark.parametrize(
    "text, words",
    [
        (GOOD.replace("0.5", "43.1%"), "row 2, column value: found '43.1%'; it must be a finite number such as 0.431"),
        (GOOD.replace("0.5", '"0,5"'), "row 2, column value: found '0,5'; it must be a finite number such as 0.431"),
        (GOOD.replace("0.5", "0,5"), "row 2: found 6 fields, but 5 columns; decimals must have a point"),
        (GOOD.replace(",", ";"), "row 1: found columns separated by ';'; they must be separated by commas"),
        (GOOD.replace(",", "\t"), r"row 1: found columns separated by '\t'; they must be separated by commas"),
        (GOOD.splitlines()[0], "found a header without any row; there must be one for each checkpoint and task"),
        (GOOD.replace("task", "Task"), "column task: found 'Task'; it must be spelled 'task'"),
        (GOOD.replace("n\n", "n,value\n"), "column value: stands there 2 times, as ['value', 'value']; give it once"),
        (GOOD.replace("n\n", "n, N\n"), "column n: stands there 2 times, as ['n', ' N']; give it once"),
        (GOOD.replace("100", "many"), "row 2, column n: found 'many'; it must be a count of at least 1, or empty"),
        (GOOD.replace("100", "-1"), "row 2, column n: found '-1'; it must be a count of at least 1, or empty"),
        (GOOD.replace("100", "1e30"), "row 2, column n: found '1e30'; it must be a count of at least 1, or empty"),
        (
            GOOD + "c1,t1\u200b,exact_match,0.4,\n",
            "stands in row 2 already as ('c1', 't1', 'exact_match'); give it once",
        ),
        (GOOD.replace("t1", " t1"), "row 2, column task: found ' t1'; it must be a name, without white space"),
        (GOOD.replace("t1", " "), "row 2, column task: found ' '; it must be a name, without white space"),
        (GOOD.replace("t1", '"t1'), "row 2: cannot be read (unexpected end of data); quotes must come in pairs"),
        (GOOD + "\n" + GOOD.splitlines()[1], "row 4, columns ['checkpoint', 'task', 'metric']: ('c1', 't1', "),
        (GOOD + "C1,T1,Exact_Match,0.4,\n", "stands in row 2 already as ('c1', 't1', 'exact_match'); give it once"),
        (GOOD.encode("utf-16"), "cannot be read (byte 1 is not UTF-8); save it as UTF-8"),
    ],
)
def test_each_mistake_in_a_csv_is_one_line_that_says_what_is_right(tmp_path, text, words):
    path = tmp_path / "t.csv"
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError) as caught:
        read_target_table(path)
    message = str(caught.value)
    assert message.startswith(str(path)) and words in message and "\n" not in message


def test_the_number_of_problems_may_be_unknown(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(GOOD.replace(",n", "").replace(",100", ""))
    assert read_target_table(path)["n"].to_list() == [None]
    path.write_text(GOOD + "c2,t1,exact_match,0.5,\nc3,t1,exact_match,0.5\n\nc4,t1,exact_match,0.5,nan\n")
    table = read_target_table(path)
    assert table["n"].to_list() == [100, None, None, None] and table.schema == pl.Schema(TARGETS_SCHEMA)
    unknown = table.with_columns(n=pl.lit(None), row=1), table.with_columns(n=pl.lit(float("nan"))), table.drop("n")
    for other in unknown:
        other.write_parquet(tmp_path / "t.parquet")
        assert read_target_table(tmp_path / "t.parquet")["n"].to_list() == [None] * 4


def test_spreadsheets_write_a_byte_order_mark_and_quotes(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(GOOD.replace("t1", '"t,1"'), encoding="utf-8-sig", newline="\r\n")
    assert read_target_table(path).rows() == [("c1", "t,1", "exact_match", 0.5, 100)]


TABLE = pl.DataFrame([("a", "t", "accuracy", 0.5, 8), ("b", "t", "accuracy", 0.25, 4)], TARGETS_SCHEMA, orient="row")


@pytest.mark.parametrize(
    "column",
    [
        pl.col("value").cast(pl.Decimal(10, 4)),
        pl.col("value").cast(pl.Float32),
        pl.col("value").cast(pl.String),
        pl.col("value").cast(pl.String).cast(pl.Categorical),
        pl.col("task").cast(pl.Categorical),
        pl.col("checkpoint").cast(pl.Enum(["b", "a"])),
        pl.col("metric").cast(pl.Binary),
        pl.col("n").cast(pl.UInt8),
        (pl.lit(" ") + pl.col("value").cast(pl.String) + " ").alias("value"),
        pl.col("n").cast(pl.Float64),
        pl.col("n").cast(pl.Decimal(6, 2)),
        pl.struct("value").alias("extra"),
    ],
    ids=str,
)
def test_parquet_of_other_types_is_read_as_what_it_says(tmp_path, column):
    TABLE.with_columns(column).write_parquet(tmp_path / "t.parquet")
    assert read_target_table(tmp_path / "t.parquet").equals(TABLE)


@pytest.mark.parametrize(
    "column, words",
    [
        (pl.concat_list("value").alias("value"), r"column value: found the type List\(Float64\); it must hold numbers"),
        (pl.struct("value").alias("value"), r"column value: found the type Struct.*; it must hold numbers"),
        (pl.col("value") > 0.3, "column value: found the type Boolean; it must hold numbers"),
        (pl.col("n") > 5, "column n: found the type Boolean; it must hold numbers"),
        (pl.col("n").cast(pl.Date), "column n: found the type Date; it must hold numbers"),
        (pl.lit(1.5).alias("task"), "column task: found the type Float64; it must hold text"),
        (pl.lit(None).alias("value"), "row 1, column value: found None; it must be a finite number"),
        (pl.lit("many").alias("n"), "row 1, column n: found 'many'; it must be a count"),
        (pl.lit(2**64 - 1, pl.UInt64).alias("n"), "row 1, column n: found 18446744073709551615; it must be a count"),
        (pl.lit(b"\xff").alias("task"), "columns of text: found bytes that are not UTF-8"),
        (pl.col("value") * 100, "row 1, column value: found 50.0; accuracy is a share"),
        (pl.lit("a").alias("checkpoint"), r"row 2, columns .*: \('a', 't', 'accuracy'\) stands in row 1 already; give"),
        (pl.col("value").alias("Value"), r"column value: stands there 2 times, as \['value', 'Value'\]; give it once"),
    ],
    ids=str,
)
def test_parquet_that_holds_something_else_is_refused(tmp_path, column, words):
    TABLE.with_columns(column).write_parquet(tmp_path / "t.parquet")
    with pytest.raises(InputError, match=f"t.parquet, {words}") as caught:
        read_target_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


def test_an_empty_text_is_an_unknown_count(tmp_path):
    TABLE.with_columns(n=pl.lit("")).write_parquet(tmp_path / "t.parquet")
    assert read_target_table(tmp_path / "t.parquet")["n"].to_list() == [None] * len(TABLE)


def test_a_share_in_32_bits_may_be_a_little_above_1(tmp_path):
    value = np.nextafter(np.float32(1), np.float32(2))
    TABLE.with_columns(value=pl.lit(value, pl.Float32)).write_parquet(tmp_path / "t.parquet")
    assert len(read_target_table(tmp_path / "t.parquet")) == len(TABLE)


def test_parquet_by_others(tmp_path):
    """Large and dictionary-encoded strings; a header that stands twice, which polars does not write."""
    table = TABLE.to_arrow()
    encoded = table.set_column(1, "task", table["task"].cast(pyarrow.string()).dictionary_encode())
    pyarrow.parquet.write_table(encoded, tmp_path / "t.parquet")
    assert read_target_table(tmp_path / "t.parquet").equals(TABLE)
    pyarrow.parquet.write_table(table.append_column("value", table["value"]), tmp_path / "t.parquet")
    with pytest.raises(InputError, match=r"t.parquet(, column value: stands there 2 times|: cannot be read)") as caught:
        read_target_table(tmp_path / "t.parquet")
    assert "\n" not in str(caught.value)


def test_a_key_stands_once_in_all_files_together(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.parquet"
    one.write_text(GOOD)
    TABLE.write_parquet(two)
    assert len(read_target_tables([one, two])) == 3
    for again in (("c1", "t1", "exact_match", 0.5, 100), ("c1", "T1", "exact_match", 0.4, 100)):
        pl.concat([TABLE, pl.DataFrame([again], TABLE.schema, orient="row")]).write_parquet(two)
        with pytest.raises(InputError, match=r"two.parquet, row 3, columns .* stands in row 2 of .*one.csv already"):
            read_target_tables([one, two])


def test_rows_of_what_the_study_does_not_know_are_told(caplog):
    rows = [("c4-1B", "arc"), ("C4-1b", "arc"), ("c4-1B", "ark"), ("x", "arc"), ("y", "arc"), ("z", "arc")]
    table = pl.DataFrame(rows, ["checkpoint", "task"], orient="row")
    log_unknown(table.head(1), ["c4-1B"], ["arc"])
    assert caplog.messages == []
    log_unknown(table, ["c4-1B"], ["arc"])
    told = "rows of the truth count for nothing, as their"
    assert caplog.messages == [
        f"4 {told} checkpoint is none of the study's: 'C4-1b', 'x', 'y' and 1 more; did you mean 'c4-1B'?",
        f"1 {told} task is none of the study's: 'ark'; did you mean 'arc'?",
    ]


def test_files_that_are_no_table(tmp_path):
    (tmp_path / "t.parquet").write_bytes(b"PAR1")
    (tmp_path / "t.txt").write_text("")
    for name, words in {"t.parquet": "truncated", "t.txt": "suffix '.txt'", "t.csv": "no such file"}.items():
        with pytest.raises(InputError, match=words):
            read_target_table(tmp_path / name)


def test_missing_targets_are_named_and_counted(tmp_path):
    path = tmp_path / "t.csv"
    path.write_text(GOOD)
    table = read_target_table(path)
    require_targets(table, ["c1"], ["t1"], "exact_match", path)
    with pytest.raises(InputError, match=r"exact_match missing for 3 of checkpoint/task: c1/t2, c2/t1, c2/t2; found"):
        require_targets(table, ["c1", "c2"], ["t1", "t2"], "exact_match", path)
    with pytest.raises(InputError, match=r"missing for 1 of .*: C1/t1; found .*; did you mean 'c1'\?"):
        require_targets(table, ["C1"], ["t1"], "exact_match", path)
    with pytest.raises(InputError, match=r"missing for 1 of .*: c1/t_1; found .*; did you mean 't1'\?"):
        require_targets(table, ["c1"], ["t_1"], "exact_match", path)
    with pytest.raises(InputError, match=r"missing for 4 of .*, \.\.\.; found metrics \['exact_match'\]"):
        require_targets(table, ["c1", "c2"], ["t1", "t2"], "choice_log_likelihood", path)


@pytest.mark.parametrize(
    "metric, share, error",
    [
        ("accuracy", True, False),
        ("mean_f1", True, False),
        ("exact_match_rate", True, False),
        ("error_rate", True, True),
        ("missRate", True, True),
        ("false_positive_rate", True, True),
        ("log_loss", False, True),
        ("valLoss", False, True),
        ("negative_log_likelihood", False, True),
        ("bits_per_character", False, True),
        ("kl_divergence", False, True),
        ("ECE", False, True),
        ("loss_difference", False, False),
        ("log_accuracy", False, False),
        ("score", False, False),
        ("glossary", False, False),
    ],
)
def test_what_a_metrics_name_tells(metric, share, error):
    assert (is_share(metric), is_error(metric)) == (share, error)


def test_two_tables_are_in_one_unit(tmp_path):
    one, two = tmp_path / "one.csv", tmp_path / "two.csv"
    for path, values in ((one, (0.4, 0.45)), (two, (43, 47))):
        rows = "".join(f"{path.stem}{i},t1,score,{value},\n" for i, value in enumerate(values))
        path.write_text("checkpoint,task,metric,value,n\n" + rows)
        assert len(read_target_tables([path])) == 2
    with pytest.raises(InputError, match=f"^{two}, row 2, column value: found 43.0, but at most 0.45 in other rows"):
        read_target_tables([one, two])


def test_short_names_of_checkpoints():
    rows = [("web", "t", "m", 0.5, 1), ("wiki-1B-seed0", "t", "m", 0.4, 1), ("code-1B-seed0-step9", "t", "m", 0.3, 1)]
    table = pl.DataFrame([*rows, ("elsewhere", "t", "m", 0.1, 1)], TARGETS_SCHEMA, orient="row")
    names = {name: [f"{name}-1B-seed0-step9"] for name in ("web", "wiki", "code")}
    names |= {f"{name}-1B-seed0": found for name, found in names.items()}
    full = with_full_names(table, names, "t.csv")
    assert full["checkpoint"].to_list() == [*(names[name][0] for name in ("web", "wiki", "code")), "elsewhere"]
    assert full.drop("checkpoint").equals(table.drop("checkpoint"))
    with pytest.raises(
        InputError, match="^t.csv, column checkpoint: found 'web', which has 2 checkpoints; name one of"
    ):
        with_full_names(table, {"web": ["web-1B-seed0-step9", "web-1B-seed1-step9"]}, "t.csv")
    twice = pl.concat([table, table.head(1).with_columns(checkpoint=pl.lit("web-1B-seed0-step9"))])
    with pytest.raises(InputError, match="m of web-1B-seed0-step9, task t, stands there by a short name too; give it"):
        with_full_names(twice, names, "t.csv")
    own = pl.DataFrame([("a-1B-seed0-step9", "t", "m", 0.5, 1)], TARGETS_SCHEMA, orient="row")
    meant = {"a-1B-seed0-step9": ["other"], "a": ["a-1B-seed0-step9"]}  # a corpus that is named like a checkpoint
    assert with_full_names(own, meant, "t.csv").equals(own)
