"""Downstream truth against the library's own logits and hand-made engines; tables with every kind of mistake."""

import math

import numpy as np
import polars as pl
import pytest
import torch
from conftest import byte_level_tokenizer
from proxycast.config import Task
from proxycast.engines import ExtractionOptions, make_engine
from proxycast.options import InputError
from proxycast.solutions import Problem, Solution
from proxycast.targets import (
    chance_accuracy,
    evaluate,
    evaluate_checkpoints,
    exact_match,
    multiple_choice,
    read_target_table,
    require_targets,
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
    assert list(evaluate_checkpoints(*job, tmp_path / "parts", code="code")) == ["c"]
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
        evaluate_checkpoints(*job, tmp_path / name, code="code")
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
        ("checkpoint,task,metric,value\n", "column n: missing"),
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
    with pytest.raises(InputError, match=r"missing for 4 of .*, \.\.\.; found metrics \['exact_match'\]"):
        require_targets(table, ["c1", "c2"], ["t1", "t2"], "choice_log_likelihood", path)
