"""Drawing texts from a model, and keeping the right ones: against the model's own distribution and by hand."""

import json
import re
from collections import Counter
from dataclasses import replace

import numpy as np
import polars as pl
import pytest
import torch
from awkward_models import sentencepiece
from conftest import tiny_model
from proxycast.config.extraction import ExtractionOptions, SamplingOptions, Writer
from proxycast.extraction import writers
from proxycast.extraction.engines.base import draw_seed
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.writers import is_right, load_writer, settings, write_task
from proxycast.options import InputError
from proxycast.proxy_formulas import rbridge
from proxycast.solutions.rows import Problem, Solution
from proxycast.solutions.tokenisation import tokenize
from proxycast.weights.tokenizer import Written, continuations
from pydantic import ValidationError
from transformers import AutoModelForCausalLM, AutoTokenizer
from writing_model import PATTERN, PROBLEMS, train_writer

OPTIONS = ExtractionOptions(device="cpu", batch_tokens=4096)
CODE = "code"
PROMPTS = ["Q: what is", "The cat", "The hat sat on", "Q: é"]
WARM = SamplingOptions(temperature=1.0, top_p=1.0, max_new_tokens=6)


@pytest.fixture
def engine(model_folder):
    engine = make_engine(OPTIONS)
    engine.load(model_folder())
    return engine


def probabilities(engine, prompt: str, temperature: float, top_p: float) -> dict[str, float]:
    """Of the text of the next token, from the library's logits: the fewest tokens that together have `top_p`."""
    with torch.no_grad():
        logits = engine._model(torch.tensor(engine.tokenizer(prompt)["input_ids"])[None]).logits[0, -1]
    p = torch.softmax(logits.double() / temperature, 0).numpy()
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), top_p) + 1]
    ends = {engine.tokenizer.eos_token_id, json.loads((engine._folder / "config.json").read_text())["eos_token_id"]}
    found = Counter()
    for token in kept:
        text = "" if token in ends else engine.tokenizer.decode([token], skip_special_tokens=True)
        found[text] += p[token] / p[kept].sum()
    return found


@pytest.mark.parametrize("temperature, top_p", [(1.0, 1.0), (2.0, 0.7)])
def test_tokens_are_drawn_from_the_tempered_nucleus(engine, temperature, top_p):
    expected = probabilities(engine, "The cat", temperature, top_p)
    draws, options = 3000, SamplingOptions(temperature=temperature, top_p=top_p, max_new_tokens=1)
    found = Counter(written.text for written in engine.sample(["The cat"] * draws, options, range(draws)))
    assert len(expected) > 5 and set(found) <= set(expected)
    for text, p in expected.items():
        assert abs(found[text] / draws - p) < 5 * np.sqrt(p * (1 - p) / draws) + 1 / draws, text


def test_a_seed_decides_whatever_runs_beside_it(engine):
    together = engine.sample(PROMPTS * 2, WARM, [1, 2, 3, 4, 5, 6, 7, 8])
    assert together == [engine.sample([PROMPTS[i % 4]], WARM, [i + 1])[0] for i in range(8)]
    assert len({text for text, _ in together[::4]}) == 2  # another seed, another text
    greedy = engine.sample(PROMPTS, SamplingOptions(temperature=0, max_new_tokens=6), [0] * 4)
    stop = [text[:3] for text, _ in greedy]
    assert all(full.startswith(cut) for full, cut in zip(engine.generate(PROMPTS, 6), stop))


def test_a_text_ends_at_an_end_token_of_the_model_or_a_stop_string(model_folder):
    model = tiny_model()
    engine = make_engine(OPTIONS)
    folder = model_folder(model=model)
    (folder / "generation_config.json").unlink()
    engine.load(folder)
    greedy = SamplingOptions(temperature=0, max_new_tokens=8)
    ((text, finished),) = engine.sample(["The cat"], greedy, [0])
    assert text == engine.generate(["The cat"], 8)[0] and not finished
    stopped = greedy.model_copy(update={"stop": (text[4:6], "never")})
    assert engine.sample(["The cat"], stopped, [0]) == [Written(text.split(text[4:6])[0], True)]
    third = engine.tokenizer("The cat" + text)["input_ids"][len(engine.tokenizer("The cat")["input_ids"]) + 2]
    for ends in (third, [7, third]):
        (folder / "generation_config.json").write_text(json.dumps({"eos_token_id": ends}))
        ((ended, finished),) = engine.sample(["The cat"], greedy, [0])
        assert text.startswith(ended) and len(ended) < len(text) and finished
    assert engine.generate(["The cat"], 8) == [text]


def test_a_space_after_the_prompt_is_kept():
    tokenizer = sentencepiece()
    prompt, whole = ("2 plus 3 is", "2 plus 3 is five é")
    ids = [np.array(tokenizer(text)["input_ids"]) for text in (prompt, whole)]
    assert ids[1][: len(ids[0])].tolist() == ids[0].tolist()
    rest = ids[1][len(ids[0]) :].tolist()
    assert tokenizer.decode(rest) == "five é"  # what would be lost
    assert continuations(tokenizer, [ids[0]], [rest], []) == [Written(" five é", False)]
    assert continuations(tokenizer, [ids[0]], [[*rest, 2, *rest]], [2]) == [Written(" five é", True)]
    assert continuations(tokenizer, [ids[0]], [rest], [], [" é", "five"]) == [Written(" ", True)]


@pytest.mark.parametrize(
    "text, answer, right",
    [
        ("so x is 3, no: x is 4.", "4", True),
        ("so x is 4, no: x is 3.", "4", False),
        ("x is  4 ", " 4", True),
        ("nothing", "4", False),
        ("", "4", False),
        ("\ufffd x is 4", "4", False),
    ],
)
def test_the_last_match_is_the_answer(text, answer, right):
    problem = Problem(id="p", prompt="", answer=answer)
    assert is_right(text, problem, re.compile(r"x is(\s*\d+\s*)")) == right


def test_the_right_choice_is_the_answer_where_there_is_no_other():
    problem = Solution(id="p", prompt="", solution=" B", choices=[" A", " B"])
    assert is_right("It is B", problem, re.compile("is (.)")) and not is_right("It is A", problem, re.compile("is (.)"))


FIVE = r"is (\w+)"
ASKED = [Problem(id=f"p{i}", prompt=prompt, answer="five") for i, prompt in enumerate(PROMPTS)]


def scripted(engine, monkeypatch, said: dict[str, list[Written]]) -> list[tuple]:
    """Let the engine say, for each prompt, one text after the other; returns what it is asked for."""
    asked, left = [], {prompt: iter(texts) for prompt, texts in said.items()}

    def sample(prompts, options, seeds):
        asked.append((list(prompts), list(seeds)))
        return [next(left[prompt]) for prompt in prompts]

    monkeypatch.setattr(engine, "sample", sample)
    return asked


def loaded(engine, name="strong", **changes):
    writer = Writer(folder="unused", **{"samples": 3} | changes)
    return writers.LoadedWriter(name, writer, engine, OPTIONS, "mark")


RIGHT, WRONG, CUT = Written(" 2 plus 3 is five é", True), Written(" is six", True), Written(" is five", False)
SAID = {
    PROMPTS[0]: [RIGHT],
    PROMPTS[1]: [WRONG, RIGHT],
    PROMPTS[2]: [CUT, WRONG, Written(" it is  five", True)],
    PROMPTS[3]: [WRONG, CUT, Written("x", True)],
}


def test_the_first_right_text_is_kept_with_its_own_probabilities(engine, monkeypatch, tmp_path):
    asked = scripted(engine, monkeypatch, SAID)
    solutions, tokens, summary = write_task(loaded(engine), "sums", ASKED, r"is\s+(\w+)", tmp_path)
    assert [(s.id, s.problem, s.prompt, s.answer, s.writer, s.solution) for s in solutions] == [
        ("p0@strong", "p0", PROMPTS[0], "five", "strong", RIGHT.text),
        ("p1@strong", "p1", PROMPTS[1], "five", "strong", RIGHT.text),
        ("p2@strong", "p2", PROMPTS[2], "five", "strong", " it is  five"),
    ]
    assert summary == {
        "task": "sums",
        "writer": "strong",
        "problems": 4,
        "right": 3,
        "kept_share": 0.75,
        "texts": 1 + 2 + 3 + 3,
        "unfinished": 2,
        "answer_pattern": r"is\s+(\w+)",
    }
    assert [prompts for prompts, _ in asked] == [PROMPTS, PROMPTS[1:], PROMPTS[2:]]
    seeds = [seed for _, seeds in asked for seed in seeds]
    assert len(set(seeds)) == len(seeds)
    texts = [(f"sums/{s.id}", s.prompt, s.solution) for s in solutions]
    stats = engine.token_stats(tokenize(texts, engine.tokenizer, engine.context))
    assert (tokens["task"] + "/" + tokens["solution"]).to_list() == stats["key"].to_list()
    assert tokens.select("position", "bytes").equals(stats.select("position", "bytes"))
    np.testing.assert_allclose(tokens["logprob"].to_numpy(), stats["logprob"].to_numpy(), atol=1e-4)
    covered = dict(tokens.group_by("solution").agg(pl.col("bytes").sum()).iter_rows())
    assert covered == {s.id: len(s.solution.encode()) for s in solutions}
    # The table is what rBridge takes; here the writer is its own candidate.
    own = stats.lazy().select(
        checkpoint=pl.lit("c"),
        task=pl.lit("sums"),
        solution=pl.col("key").str.strip_prefix("sums/"),
        **{name: name for name in ("position", "bytes", "logprob")},
    )
    assert rbridge(own, tokens.lazy()).collect()["solutions"].to_list() == [3]


def test_seeds_are_of_writer_task_problem_and_try_alone(engine, monkeypatch, tmp_path):
    def seeds(problems, task="sums", **changes):
        said = {prompt: [WRONG, RIGHT] for prompt in PROMPTS}
        asked = scripted(engine, monkeypatch, said)
        write_task(loaded(engine, **changes), task, problems, FIVE, tmp_path / str(len(list(tmp_path.iterdir()))))
        return {(prompt, i): seed for i, (prompts, found) in enumerate(asked) for prompt, seed in zip(prompts, found)}

    whole, half = seeds(ASKED), seeds(ASKED[1:3])
    assert half.items() <= whole.items() and len(half) == 4
    for other in (seeds(ASKED, task="other"), seeds(ASKED, seed=1)):
        assert not set(other.values()) & set(whole.values())


def test_a_killed_job_goes_on_where_it_was(engine, monkeypatch, tmp_path):
    monkeypatch.setattr(writers, "CHUNK", 2)
    said = {prompt: [RIGHT] for prompt in PROMPTS}
    asked = scripted(engine, monkeypatch, {**said, PROMPTS[3]: []})  # it dies in the second chunk
    with pytest.raises(StopIteration):
        write_task(loaded(engine), "sums", ASKED, FIVE, tmp_path)
    assert len(asked) == 2
    asked = scripted(engine, monkeypatch, said)
    resumed = write_task(loaded(engine), "sums", ASKED, FIVE, tmp_path)
    assert [prompts for prompts, _ in asked] == [PROMPTS[2:]]
    scripted(engine, monkeypatch, said)
    afresh = write_task(loaded(engine), "sums", ASKED, FIVE, tmp_path / "other")
    assert resumed[0] == afresh[0] and resumed[1].equals(afresh[1]) and resumed[2] == afresh[2]
    changed = [ASKED[0], ASKED[1].model_copy(update={"answer": "six"}), *ASKED[2:]]
    asked = scripted(engine, monkeypatch, {**said, PROMPTS[1]: [WRONG]})
    write_task(loaded(engine), "sums", changed, FIVE, tmp_path)
    assert [prompts for prompts, _ in asked] == [PROMPTS[:2]]
    asked = scripted(engine, monkeypatch, said)
    write_task(loaded(engine), "sums", ASKED, r"is (five)", tmp_path)
    assert len(asked) == 2
    asked = scripted(engine, monkeypatch, said)
    write_task(replace(loaded(engine), fingerprint="another model"), "sums", ASKED, r"is (five)", tmp_path)
    assert len(asked) == 2


def test_a_problem_with_several_solutions_is_asked_once(engine, monkeypatch, tmp_path):
    asked = scripted(engine, monkeypatch, {"The cat": [RIGHT]})
    given = [Solution(id=i, problem="p", prompt="The cat", solution="x", answer="five") for i in "ab"]
    solutions, _, summary = write_task(loaded(engine), "sums", given, FIVE, tmp_path)
    assert [s.id for s in solutions] == ["p@strong"] and summary["problems"] == 1 and len(asked) == 1


def test_a_text_that_its_tokenizer_changes_is_not_kept(model_folder, monkeypatch, tmp_path, caplog):
    from tokenizers import normalizers

    engine = make_engine(OPTIONS)
    engine.load(model_folder())
    engine.tokenizer.backend_tokenizer.normalizer = normalizers.NFC()
    decomposed = Written(" it is five e\u0301", True)
    scripted(engine, monkeypatch, {PROMPTS[0]: [decomposed, RIGHT]})
    solutions, _, summary = write_task(loaded(engine), "sums", ASKED[:1], FIVE, tmp_path)
    assert solutions[0].solution == RIGHT.text and summary["texts"] == 2
    assert "strong: right, but not kept: sums/p0: the tokenizer of" in caplog.text


def test_behind_a_chat_template_the_whole_text_counts_as_it_was_written(engine, monkeypatch, tmp_path, caplog):
    """A candidate may leave out the leading space (leading_space: strip), but not find it without probabilities."""
    engine.tokenizer.chat_template = "{{ messages[0]['content'] }}:"
    scripted(engine, monkeypatch, {PROMPTS[0]: [RIGHT]})
    writer = replace(loaded(engine), options=OPTIONS.model_copy(update={"chat_template": True}))
    (solution,), tokens, _ = write_task(writer, "sums", ASKED[:1], FIVE, tmp_path)
    assert solution.solution == RIGHT.text and tokens["bytes"].sum() == len(RIGHT.text.encode())
    assert not caplog.messages


def test_none_right_says_what_was_written(engine, monkeypatch, tmp_path):
    scripted(engine, monkeypatch, {prompt: [WRONG, CUT] for prompt in PROMPTS})
    with pytest.raises(InputError) as caught:
        write_task(loaded(engine, samples=2), "sums", ASKED, FIVE, tmp_path)
    assert str(caught.value).startswith(
        "task sums: writer strong has none of 4 problems right in 8 texts, 4 of them cut at a limit. Of 'p0', where "
        "'five' is right, its last text ends with ' is five'. See that answer_pattern 'is (\\\\w+)'"
    )


def test_problems_need_answers(engine, tmp_path):
    problems = [*ASKED, Problem(id="odd", prompt="Q"), Solution(id="blank", prompt="Q", solution="x", answer=" ")]
    with pytest.raises(InputError, match="task t: 2 of 6 problems have no answer, first 'odd'; .* judged by it"):
        write_task(loaded(engine), "t", problems, FIVE, tmp_path)


@pytest.mark.slow
def test_a_trained_model_writes_and_is_judged(tmp_path):
    folder = train_writer(tmp_path / "model")
    writer = Writer(folder=folder, temperature=1.0, top_p=1, max_new_tokens=24, samples=3, seed=3)
    loaded = load_writer("tiny", writer, OPTIONS.model_copy(update={"engine": "auto"}), folder, CODE)
    solutions, tokens, summary = write_task(loaded, "sums", PROBLEMS, PATTERN, tmp_path / "a")
    tries, expected, texts = [], {}, 0
    for attempt in range(3):
        seeds = [draw_seed(3, "sums", problem.id, attempt) for problem in PROBLEMS]
        tries.append(loaded.engine.sample([problem.prompt for problem in PROBLEMS], writer, seeds))
    for problem, *said in zip(PROBLEMS, *tries):
        for text, finished in said:
            texts += 1
            found = re.findall(PATTERN, text)
            if finished and found and found[-1] == problem.answer and "\ufffd" not in text:
                expected[problem.id] = text
                break
    assert {s.problem: s.solution for s in solutions} == expected and 5 < len(expected) < 20
    assert (summary["right"], summary["texts"]) == (len(expected), texts)
    assert any("é" in s.solution for s in solutions) and (tokens["bytes"] == 0).any()
    assert_own_probabilities(folder, solutions, tokens)

    again = load_writer("tiny", writer, OPTIONS, folder, CODE)
    assert again.fingerprint == loaded.fingerprint
    some = PROBLEMS[5:]
    assert write_task(again, "sums", some, PATTERN, tmp_path / "b")[0] == [
        s for s in solutions if s.problem in {p.id for p in some}
    ]
    assert settings(loaded)["model"]["engine"] == "transformers"
    assert settings(loaded) | {"model": 0} == {
        **{"writer": "tiny", "temperature": 1.0, "top_p": 1.0, "max_new_tokens": 24, "stop": [], "folder": str(folder)},
        **{"revision": "main", "samples": 3, "seed": 3, "model": 0, "fingerprint": loaded.fingerprint},
    }
    assert load_writer("tiny", writer, OPTIONS, folder, "other code").fingerprint != loaded.fingerprint
    hotter = writer.model_copy(update={"temperature": 2.0})
    assert load_writer("tiny", hotter, OPTIONS, folder, CODE).fingerprint != loaded.fingerprint
    (folder / "generation_config.json").write_text('{"eos_token_id": 5}')
    assert load_writer("tiny", writer, OPTIONS, folder, CODE).fingerprint != loaded.fingerprint


def assert_own_probabilities(folder, solutions, tokens):
    """The kept tokens against the plain library's logits of prompt and solution, at temperature 1."""
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for solution in solutions:
        ids = torch.tensor(tokenizer(solution.prompt + solution.solution)["input_ids"])
        start = len(tokenizer(solution.prompt)["input_ids"])  # no merge crosses this boundary
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), 1)
        expected = [logprobs[t - 1, ids[t]].item() for t in range(start, len(ids))]
        found = tokens.filter(solution=solution.id)
        np.testing.assert_allclose(found["logprob"].to_numpy(), expected, atol=1e-4)
        assert found["bytes"].sum() == len(solution.solution.encode())


@pytest.mark.parametrize(
    "keys, words",
    [
        ({}, r"a folder, hub or checkpoint, exactly one of the three; found \[\]"),
        ({"folder": "x", "hub": "a/b"}, r"exactly one of the three; found \['folder', 'hub'\]"),
        ({"folder": "x", "temperature": 0}, "at temperature 0 every text of a problem is the same; give samples: 1"),
        ({"folder": "x", "samples": 0}, "greater than or equal to 1"),
        ({"folder": "x", "top_p": 0}, "greater than 0"),
        ({"folder": "x", "max_tokens": 5}, "Extra inputs"),
    ],
)
def test_mistakes_in_the_configuration(keys, words):
    with pytest.raises(ValidationError, match=words):
        Writer(**keys)
    assert Writer(hub="a/b", temperature=0, samples=1).model.engine == "transformers"
