"""Long and awkward input on models of every kind: statistics equal those of the library's own logits, token by token.

The reference shares no code with the package: it runs the plain model on whole texts or on windows that are found token
by token, with the attention that is written out in full (`eager`).
"""

import itertools
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import polars as pl
import pytest
import torch
from awkward_models import AWKWARD, CHAT, CONTEXT, byte_level, sentencepiece, unigram
from hypothesis import given, settings
from hypothesis import strategies as st
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.extraction.sweep import TokenizedTexts
from proxycast.options import InputError
from proxycast.solutions.rows import Solution
from proxycast.solutions.tokenisation import tokenize
from proxycast.truth.measurement import multiple_choice
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

LONG = " Then 3 * x is 18, and the cat sat on the mat. é😀" * 20
# No merge of any of the tokenizers crosses the end of a prompt.
TEXTS = [
    ("plain", "Q: what is 2 plus 3?\nA:", " 2 plus 3 is five."),
    ("unicode", "Q: what is 2 plus 3?\nA:", " 日本語 é😀👩‍👩‍👧 \u202f½\n\n\tif n > 1:  "),
    ("no prompt", "", "The cat sat on the mat."),
    ("long", "Q: what is 2 plus 3?\nA:", LONG),
    ("long prompt", "The cat sat on the mat. " * 30 + "\nA:", " the hat."),
]
BOS_IN_FRONT = {"llama_bos_sentencepiece", "gemma2_softcap", "cohere_scale", "llama3_chat_bos"}
CHAT_FORMS = {
    "qwen3_chat": "<|im_start|>user\n{}<|im_end|>\n<|im_start|>assistant\n",
    "llama3_chat_bos": (
        "<|begin_of_text|><|start_header_id|>system<|end_header_id|>\n\nToday: 01 Jan 2025<|eot_id|>"
        "<|start_header_id|>user<|end_header_id|>\n\n{}<|eot_id|><|start_header_id|>assistant<|end_header_id|>\n\n"
    ),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory) -> dict[str, Path]:
    return {name: build(tmp_path_factory.mktemp("awkward") / name) for name, build in AWKWARD.items()}


def read_alone(tokenizer, prompt: str, solution: str, special_tokens: bool = True) -> tuple[list[int], int]:
    """Token ids of the whole text and how many of them are the prompt's, without any offsets."""
    ids = tokenizer(prompt + solution, add_special_tokens=special_tokens)["input_ids"]
    before = tokenizer(prompt, add_special_tokens=special_tokens)["input_ids"] if prompt else []
    assert ids[: len(before)] == before
    return ids, max(len(before), 1)


def windows_token_by_token(
    length: int, start: int, leading: int, context: int, share: float = 0.5
) -> list[tuple[range, range]]:
    """(tokens of the text read behind the leading ones, those of them that are scored) of each window, in order.

    Of the tokens behind the first context as few windows as leave each at least `share` of the context.
    """
    beginning = range(start, min(context, length))
    windows, rest = [(range(0, beginning.stop), beginning)] if beginning else [], range(max(start, context), length)
    for count in range(1, len(rest) + 1):
        sizes = [len(range(i, len(rest), count)) for i in range(count)]  # as dealing the tokens out one by one
        if context - max(sizes) >= share * context:
            break
    else:
        return windows
    for end, size in zip(rest.start + np.cumsum(sizes), sizes):
        windows.append((range(end - (context - leading), end), range(end - size, end)))
    return windows


def reference(model, ids: list[int], start: int, leading: int) -> list[dict]:
    rows = []
    for read, scored in windows_token_by_token(len(ids), start, leading, CONTEXT):
        tokens = (ids[:leading] if read.start > 0 else []) + [ids[t] for t in read]
        assert len(tokens) <= CONTEXT
        with torch.no_grad():
            logits = model(torch.tensor([tokens])).logits[0].double()
        for t in scored:
            row = logits[len(tokens) - (read.stop - t) - 1]
            log_probability = torch.log_softmax(row, 0)
            rows.append(
                {
                    "position": t,
                    "token": ids[t],
                    "logprob": log_probability[ids[t]].item(),
                    "max_logprob": log_probability.max().item(),
                    "entropy": -(log_probability.exp() * log_probability).sum().item(),
                    "n_greater": int((row > row[ids[t]]).sum()),
                    "near": int(((row - row[ids[t]]).abs() < 1e-4).sum()),
                    "vocabulary": len(row),
                }
            )
    return rows


def compare(table: pl.DataFrame, expected: list[dict], solution: str):
    rows = pl.DataFrame(expected)
    assert table["bytes"].sum() == len(solution.encode())
    for name in ("position", "token", "vocabulary"):
        assert table[name].to_list() == rows[name].to_list()
    for name in ("logprob", "max_logprob", "entropy"):
        np.testing.assert_allclose(table[name], rows[name], rtol=0, atol=1e-4, err_msg=name)
    assert ((table["n_greater"] - rows["n_greater"]).abs() < rows["near"]).all()


def loaded(folder: Path) -> tuple[TransformersEngine, torch.nn.Module]:
    engine = TransformersEngine(ExtractionOptions(device="cpu", batch_tokens=1000))
    engine.load(folder)
    return engine, AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager")


@pytest.mark.parametrize("kind", AWKWARD)
def test_statistics_are_those_of_the_librarys_logits(folders, kind):
    engine, model = loaded(folders[kind])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])  # the file, whatever its class
    leading = len(tokenizer("")["input_ids"])
    assert engine.context == CONTEXT and leading == (kind in BOS_IN_FRONT)
    table = engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context, vocabulary=engine.vocabulary))
    for key, prompt, solution in TEXTS:
        ids, start = read_alone(tokenizer, prompt, solution)
        # Without a BOS, the first token has no context: its bytes are not scored.
        unscored = 0 if prompt or leading else len(tokenizer.decode(ids[:1]))
        expected = reference(model, ids, start, leading)
        compare(table.filter(key=key), expected, solution[unscored:])
    assert table.filter(key="long")["position"].max() > 3 * CONTEXT


@pytest.mark.parametrize("kind", CHAT)
def test_chat_prompts_go_through_the_template_and_solutions_stay_raw(folders, kind):
    engine, model = loaded(folders[kind])
    tokenizer = PreTrainedTokenizerFast.from_pretrained(folders[kind])  # the file, whatever its class
    reading = dict(chat_template=True, leading_space="keep")
    table = engine.token_stats(tokenize(TEXTS, engine.tokenizer, engine.context, **reading))
    for key, prompt, solution in TEXTS:
        written = CHAT_FORMS[kind].format(prompt.strip() if kind == "llama3_chat_bos" else prompt)
        ids, start = read_alone(tokenizer, written, solution, special_tokens=False)
        assert ids.count(tokenizer.bos_token_id) == (kind == "llama3_chat_bos")
        assert tokenizer.decode(ids[start:]) == solution
        compare(table.filter(key=key), reference(model, ids, start, int(kind == "llama3_chat_bos")), solution)


def test_the_kinds_are_what_they_say(folders):
    """A soft cap or scale that is left out, or heads that are tied or not, would change the statistics: they matter."""
    ids = torch.tensor([[5, 9, 60, 70, 80, 90] * 4])

    def change(kind: str, **settings) -> float:
        with torch.no_grad():
            plain, other = (
                torch.log_softmax(
                    AutoModelForCausalLM.from_pretrained(
                        folders[kind], dtype=torch.float32, attn_implementation="eager", **given
                    )(ids).logits,
                    -1,
                )
                for given in ({}, settings)
            )
        return (plain - other).abs().max().item()

    assert change("gemma2_softcap", final_logit_softcapping=None) > 0.5
    assert change("gemma2_softcap", attn_logit_softcapping=None) > 0.5
    assert change("cohere_scale", logit_scale=1.0) > 0.5
    assert change("granite_scaling", logits_scaling=1.0) > 0.5
    sizes = {name: sum(path.stat().st_size for path in folder.iterdir()) for name, folder in folders.items()}
    assert max(sizes.values()) < 600_000


def test_a_choice_longer_than_the_context_is_scored_whole(folders):
    engine, model = loaded(folders["llama3_chat_bos"])
    problem = Solution(id="p", prompt="Q:", solution=" 5", choices=[" 5", LONG, " the cat"])
    sums = []
    for choice in problem.choices:
        ids, start = read_alone(engine.tokenizer, problem.prompt, choice)
        sums.append(sum(row["logprob"] for row in reference(model, ids, start, 1)))
    expected = torch.log_softmax(torch.tensor(sums), 0)[0].item()
    result = multiple_choice(engine, "t", [problem])
    assert result["choice_log_likelihood"] == pytest.approx(expected, abs=1e-3)


# Windows


TOKENIZERS = [byte_level(["<s>"]), byte_level(["<s>"], bos="<s>", add_bos=True), sentencepiece(), unigram()]


def sequences_of(words: int, prompt: str, tokenizer, context: int, tail: int | None, stride: float):
    """The windows of a text, and the same text read at once."""
    text = ("k", prompt, " The cat é sat 12" * words)
    (whole,) = tokenize([text], tokenizer, 10**6, tail)
    return tokenize([text], tokenizer, context, tail, window_stride=stride), whole


@settings(max_examples=300, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(["", "Q: x?\nA:", "Let x be 3. " * 6]),
    st.sampled_from(TOKENIZERS),
    st.integers(4, 70),
    st.none() | st.integers(1, 80),
    st.sampled_from([1e-9, 0.1, 0.25, 0.5, 0.7]),
)
def test_windows_score_each_token_once_with_all_in_front_of_it_or_its_share(
    words, prompt, tokenizer, context, tail, stride
):
    windows, whole = sequences_of(words, prompt, tokenizer, context, tail, stride)
    leading = len(tokenizer("")["input_ids"])
    positions = [t + w.offset for w in windows for t in range(w.start, w.stop)]
    assert positions == list(range(whole.start, whole.stop))
    assert np.concatenate([w.token_bytes for w in windows]).tolist() == whole.token_bytes.tolist()
    for window in windows:
        assert window.key == "k" and window.stop == len(window.token_ids) <= context
        front = leading if window.offset else 0
        assert window.token_ids[:front].tolist() == whole.token_ids[:front].tolist()
        behind = whole.token_ids[window.offset + front : window.offset + window.stop]
        assert window.token_ids[front:].tolist() == behind.tolist()
        for t in range(window.start, window.stop):  # t tokens are in front of this one, its position + t in the text
            position = t + window.offset
            assert t >= min(position, context - max(stride * context, 1))
            assert t == position or position >= context
    if stride == 1e-9:
        seen = [t for w in windows for t in range(w.start, w.stop)]
        assert seen == [min(position, context - 1) for position in positions]


@settings(max_examples=150, deadline=None)
@given(
    st.integers(1, 12),
    st.sampled_from(TOKENIZERS),
    st.integers(4, 70),
    st.none() | st.integers(1, 80),
    st.sampled_from([0.25, 0.5]),
)
def test_windows_are_those_found_token_by_token(words, tokenizer, context, tail, stride):
    windows, whole = sequences_of(words, "Q:", tokenizer, context, tail, stride)
    if len(whole.token_ids) <= context:
        assert [w.offset for w in windows] == [0]
        return
    leading = len(tokenizer("")["input_ids"])
    expected = windows_token_by_token(whole.stop, whole.start, leading, context, 1 - stride)
    assert [(w.start + w.offset, w.stop + w.offset) for w in windows] == [(s.start, s.stop) for _, s in expected]
    for window, (read, _) in zip(windows, expected):
        assert len(window.token_ids) == len(read) + (leading if read.start else 0)


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_a_tail_that_fits_takes_the_last_context_of_tokens(tokenizer):
    leading = len(tokenizer("")["input_ids"])
    for tail, stride, count in ((10, 0.5, 1), (20, 0.5, 1), (21, 0.5, 2), (10, 0.25, 1), (11, 0.25, 2), (1, 1e-9, 1)):
        windows, whole = sequences_of(30, "Q:", tokenizer, 40, tail, stride)
        assert len(windows) == count
        assert windows[-1].token_ids[leading:].tolist() == whole.token_ids[leading - 40 :].tolist()
        assert windows[-1].stop - windows[-1].start == tail // count
    # A text that just fits is read as it is, whatever of it is scored; one token more makes it two windows.
    length = len(whole.token_ids)
    (fits,) = tokenize([("k", "Q:", " The cat é sat 12" * 30)], tokenizer, length)
    assert fits.offset == 0 and len(fits.token_ids) == length
    first, second = tokenize([("k", "Q:", " The cat é sat 12" * 30)], tokenizer, length - 1)
    assert first.offset == 0 and (second.start, second.stop) == (length - 2, length - 1)


def test_tokens_of_the_first_context_are_read_as_in_one_pass(folders):
    """The beginning of a long text is not read with less in front of it than there is."""
    engine, model = loaded(folders["llama_no_bos_bytelevel"])
    (text,) = [text for text in TEXTS if text[0] == "long"]
    (whole,) = tokenize([text], engine.tokenizer, 10**6)
    assert len(whole.token_ids) > 3 * CONTEXT
    with torch.no_grad():
        logits = model(torch.from_numpy(whole.token_ids[None, :CONTEXT])).logits[0].double()
    expected = torch.log_softmax(logits[whole.start - 1 : -1], 1)
    expected = expected.gather(1, torch.from_numpy(whole.token_ids[whole.start : CONTEXT, None]))[:, 0]
    for stride in (0.2, 0.5, 0.8):
        table = engine.token_stats(tokenize([text], engine.tokenizer, engine.context, window_stride=stride))
        found = table.filter(pl.col("position") < CONTEXT)["logprob"]
        np.testing.assert_allclose(found, expected, rtol=0, atol=1e-4)


def test_the_cost_of_windows_in_the_docs_is_that_of_the_code():
    root = Path(__file__).parents[2]
    printed = subprocess.run([sys.executable, root / "tests" / "benchmarks" / "windows.py"], stdout=subprocess.PIPE)
    assert printed.stdout.decode() in (root / "docs/how/texts.md").read_text()


def test_long_texts_are_told_once_and_windows_keep_the_order(caplog):
    texts = [(f"t/{i}", "Q:", " cat" * n) for i, n in enumerate([1, 50, 2, 60])]
    sequences = tokenize(texts, TOKENIZERS[1], 20, batch_size=2)
    keys = [key for key, _ in itertools.groupby(sequences, lambda s: s.key)]
    assert keys == ["t/0", "t/1", "t/2", "t/3"]
    assert caplog.messages == [
        "2 of 4 texts are longer than the model's context of 20 tokens and are read in windows, first t/1"
    ]
    caplog.clear()
    tokenize(texts[:1], TOKENIZERS[1], 20)
    assert not caplog.messages


def test_texts_are_tokenised_anew_for_another_tokenizer_context_or_vocabulary():
    def engine(tokenizer=TOKENIZERS[0], context=20, vocabulary=999):
        return SimpleNamespace(tokenizer=tokenizer, context=context, vocabulary=vocabulary)

    tokenized = TokenizedTexts({"t": [("t/a", "Q:", " cat" * 30)]}, tail_tokens=5)
    first = tokenized.for_engine(engine(), ["t"])["t"]
    assert tokenized.for_engine(engine(), ["t"])["t"] is first and len(first[0].token_ids) == 20
    assert len(tokenized.for_engine(engine(context=10), ["t"])["t"][0].token_ids) == 10
    assert tokenized.for_engine(engine(TOKENIZERS[1]), ["t"])["t"][0].token_ids[0] == TOKENIZERS[1].bos_token_id
    for _ in range(2):  # what was found before is not given out for an engine that cannot read it
        with pytest.raises(InputError, match="t/a: found the token .* has 50 embeddings"):
            tokenized.for_engine(engine(vocabulary=50), ["t"])
    whole = TokenizedTexts({"t": [("t/a", "Q:", " cat" * 30)]}, windowing=False)
    with pytest.raises(InputError, match="context holds 20"):
        whole.for_engine(engine(), ["t"])
    with pytest.raises(InputError, match="no chat template"):
        TokenizedTexts({"t": [("t/a", "Q:", " cat")]}, chat_template=True).for_engine(engine(), ["t"])


def test_without_windowing_a_long_text_is_an_error_that_says_what_works():
    words = (
        r"^t/1: found \d+ tokens of prompt and solution; the model's context holds 20; set extraction.windowing: true"
    )
    with pytest.raises(InputError, match=words):
        tokenize([("t/0", "Q:", " cat"), ("t/1", "Q:", " cat" * 99)], TOKENIZERS[0], 20, windowing=False)
    with pytest.raises(
        InputError, match="t/1: a context of 1 tokens is too short to be read in windows that move by 1"
    ):
        tokenize([("t/1", "Q:", " cat" * 99)], TOKENIZERS[1], 1)
