"""Solutions written by the real vLLM on a CPU: seeds, ends, and probabilities against the plain library's logits."""

import re
from collections import Counter

import numpy as np
import pytest
import torch
from proxycast.config.extraction import ExtractionOptions, SamplingOptions, Writer
from proxycast.extraction import writers
from proxycast.extraction.engines.factory import make_engine
from proxycast.extraction.writers import load_writer, write_task
from proxycast.options import InputError
from transformers import AutoModelForCausalLM, AutoTokenizer
from writing_model import PATTERN, PROBLEMS, train_writer

pytestmark = [pytest.mark.vllm, pytest.mark.usefixtures("vllm_imported")]

OPTIONS = ExtractionOptions(engine="vllm")
WARM = SamplingOptions(temperature=1.0, top_p=1.0, max_new_tokens=24)
PROMPTS = [problem.prompt for problem in PROBLEMS]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return train_writer(tmp_path_factory.mktemp("writer"))


@pytest.fixture(scope="module")
def loaded(folder):
    writer = Writer(folder=folder, temperature=1.0, top_p=1.0, max_new_tokens=24, samples=3, seed=3)
    loaded = load_writer("tiny", writer, OPTIONS, folder, "code")
    yield loaded
    loaded.engine.close()


def test_a_seed_decides_whatever_runs_beside_it(loaded):
    together = loaded.engine.sample(PROMPTS, WARM, range(len(PROMPTS)))
    assert together == loaded.engine.sample(PROMPTS, WARM, range(len(PROMPTS)))
    assert [together[5]] == loaded.engine.sample(PROMPTS[5:6], WARM, [5])
    assert together != loaded.engine.sample(PROMPTS, WARM, range(50, 50 + len(PROMPTS)))


def test_one_token_is_drawn_from_the_tempered_nucleus(loaded, folder):
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    prompt = PROMPTS[7] + " é → "  # a digit follows, which one is not sure
    with torch.no_grad():
        logits = model(torch.tensor(tokenizer(prompt)["input_ids"])[None]).logits[0, -1].double()
    p = torch.softmax(logits / 1.7, 0).numpy()
    order = np.argsort(-p)
    kept = order[: np.searchsorted(np.cumsum(p[order]), 0.9) + 1]
    draws, options = 1000, SamplingOptions(temperature=1.7, top_p=0.9, max_new_tokens=1)
    said = [text for text, _ in loaded.engine.sample([prompt] * draws, options, range(draws))]
    expected = Counter()  # several tokens are broken characters alone
    for token in kept:
        expected[tokenizer.decode([token], skip_special_tokens=True)] += p[token] / p[kept].sum()
    assert len(expected) > 2 and set(said) <= set(expected)
    for text, share in expected.items():
        assert abs(said.count(text) / draws - share) < 5 * np.sqrt(share * (1 - share) / draws), text


def test_greedy_texts_are_those_of_the_other_engine(loaded, folder):
    other = make_engine(ExtractionOptions())
    other.load(folder)
    greedy = SamplingOptions(temperature=0, max_new_tokens=24, stop=("is",))
    texts = [engine.sample(PROMPTS, greedy, range(len(PROMPTS))) for engine in (loaded.engine, other)]
    assert texts[0] == texts[1] and all(finished and "is" not in text for text, finished in texts[0])
    assert not any(
        finished
        for _, finished in loaded.engine.sample(PROMPTS, greedy.model_copy(update={"max_new_tokens": 3}), [0] * 20)
    )


def test_right_solutions_are_kept_with_probabilities_and_a_killed_job_goes_on(loaded, folder, tmp_path, monkeypatch):
    monkeypatch.setattr(writers, "CHUNK", 8)
    whole = write_task(loaded, "sums", PROBLEMS, PATTERN, tmp_path / "whole")
    solutions, tokens, summary = whole
    assert 5 < summary["right"] == len(solutions) < 20 and summary["texts"] > 20
    right = {problem.id: problem.answer for problem in PROBLEMS}
    assert all(re.findall(PATTERN, s.solution)[-1] == right[s.problem] for s in solutions)
    assert any("é" in s.solution for s in solutions)
    model, tokenizer = AutoModelForCausalLM.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    for solution in solutions:
        ids = torch.tensor(tokenizer(solution.prompt + solution.solution)["input_ids"])
        start = len(tokenizer(solution.prompt)["input_ids"])
        with torch.no_grad():
            logprobs = torch.log_softmax(model(ids[None]).logits[0].double(), 1)
        found = tokens.filter(solution=solution.id)
        expected = [logprobs[t - 1, ids[t]].item() for t in range(start, len(ids))]
        np.testing.assert_allclose(found["logprob"].to_numpy(), expected, atol=1e-3)
        assert found["bytes"].sum() == len(solution.solution.encode())

    sample, calls = loaded.engine.sample, []

    def dies_in_the_second_chunk(prompts, *args):
        calls.append(prompts)
        if prompts[0] == PROMPTS[8]:
            raise KeyboardInterrupt
        return sample(prompts, *args)

    monkeypatch.setattr(loaded.engine, "sample", dies_in_the_second_chunk)
    with pytest.raises(KeyboardInterrupt):
        write_task(loaded, "sums", PROBLEMS, PATTERN, tmp_path / "killed")
    monkeypatch.setattr(loaded.engine, "sample", lambda prompts, *args: calls.append(prompts) or sample(prompts, *args))
    calls.clear()
    resumed = write_task(loaded, "sums", PROBLEMS, PATTERN, tmp_path / "killed")
    assert calls[0] == PROMPTS[8:16] and PROMPTS[0] not in sum(calls, [])
    assert resumed[0] == solutions and resumed[2] == summary
    np.testing.assert_allclose(resumed[1]["logprob"].to_numpy(), tokens["logprob"].to_numpy(), atol=1e-4)


def test_what_the_writer_said_when_it_drew_is_what_it_reads(loaded):
    """vLLM's own log-probs of the drawn tokens, at temperature 1, against those of the text read once more."""
    from proxycast.solutions.tokenisation import tokenize
    from vllm import SamplingParams

    engine = loaded.engine
    ids = [engine.tokenizer(prompt)["input_ids"] for prompt in PROMPTS]
    shared = dict(max_tokens=24, logprobs=0, detokenize=False, stop_token_ids=[engine.tokenizer.eos_token_id])
    settings = [SamplingParams(temperature=1.2, seed=i, **shared) for i in range(len(ids))]
    outputs = engine._llm.generate([{"prompt_token_ids": i} for i in ids], settings, use_tqdm=False)
    compared = 0
    for prompt, prompt_ids, output in zip(PROMPTS, ids, outputs):
        drawn = [token for token in output.outputs[0].token_ids if token != engine.tokenizer.eos_token_id]
        text = engine.tokenizer.decode(drawn)
        if not text or "\ufffd" in text or engine.tokenizer(prompt + text)["input_ids"] != prompt_ids + drawn:
            continue  # other tokens than it would read
        read = engine.token_stats(tokenize([("x", prompt, text)], engine.tokenizer, engine.context))["logprob"]
        said = [entry[token].logprob for entry, token in zip(output.outputs[0].logprobs, drawn)]
        np.testing.assert_allclose(read.to_numpy(), said, atol=1e-3)
        compared += len(said)
    assert compared > 50


def test_a_prompt_that_a_cpu_would_split_is_refused(loaded, monkeypatch):
    longest = max(len(loaded.engine.tokenizer(prompt)["input_ids"]) for prompt in PROMPTS)
    said = loaded.engine.sample(PROMPTS, WARM, range(len(PROMPTS)))
    monkeypatch.setattr(loaded.engine, "_batch_tokens", longest)
    assert loaded.engine.sample(PROMPTS, WARM, range(len(PROMPTS))) == said
    monkeypatch.setattr(loaded.engine, "_batch_tokens", longest - 1)
    with pytest.raises(InputError, match=f"found a prompt of {longest} tokens; on a CPU vLLM draws texts only after"):
        loaded.engine.sample(PROMPTS, WARM, range(len(PROMPTS)))
    assert len(loaded.engine.generate(PROMPTS, 3)) == len(PROMPTS)
