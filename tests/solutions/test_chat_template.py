"""Solutions behind a chat template."""

import numpy as np
import pytest
from awkward_models import CHATML, LLAMA3, byte_level, sentencepiece, unigram
from conftest import EOS
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.solutions.tokenisation import prompt_tokens, tokenize
from tokenizers import AddedToken, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from tried_tokenizers import chat, texts, with_added


@pytest.mark.parametrize("add_bos", [False, True])
@pytest.mark.parametrize("template", [CHATML, LLAMA3])
def test_the_template_alone_writes_the_special_tokens(template, add_bos):
    tokenizer = chat(template, add_bos=add_bos)
    (sequence,) = tokenize([("k", "Q: 2?", "The cat sat")], tokenizer, 999, chat_template=True)
    tokens = tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())
    assert tokens.count("<|begin|>") == (template == LLAMA3)
    assert tokenizer.decode(sequence.token_ids[sequence.start :]) == "The cat sat"
    assert sequence.token_bytes.sum() == len("The cat sat")
    (prompt,) = prompt_tokens(["Q: 2?"], tokenizer, chat_template=True)
    assert prompt.tolist() == sequence.token_ids[: sequence.start].tolist()


def test_windows_of_a_chat_repeat_its_bos_and_nothing_else_of_the_template():
    tokenizer = chat(LLAMA3, add_bos=True)
    for template, count in ((LLAMA3, 1), (CHATML, 0)):
        tokenizer.chat_template = template
        text = ("k", "Q", " cat" * 99)
        first, *others = tokenize([text], tokenizer, 80, chat_template=True, leading_space="keep")
        assert others and all(len(window.token_ids) == 80 for window in others)
        special = [np.isin(window.token_ids, tokenizer.all_special_ids + [3, 4, 5]).sum() for window in others[1:]]
        assert special == [count] * len(others[1:])
        assert sum(w.token_bytes.sum() for w in (first, *others)) == 4 * 99


def test_special_tokens_in_the_solution_are_text():
    """A solution may end with the token that ends an answer; it is scored as any other."""
    tokenizer = chat()
    for template in (False, True):
        text = ("k", "Q", " cat<|im_end|>")
        (sequence,) = tokenize([text], tokenizer, 99, chat_template=template, leading_space="keep")
        assert tokenizer.convert_ids_to_tokens(int(sequence.token_ids[-1])) == "<|im_end|>"
        assert sequence.token_bytes.sum() == 4 + len("<|im_end|>")


def test_a_template_reads_the_same_every_day():
    tokenizer = chat("{{ strftime_now('%Y-%m-%d') }} {{ messages[0]['content'] }}:")
    (sequence,) = tokenize([("k", "Q", " cat")], tokenizer, 99, chat_template=True, leading_space="keep")
    assert tokenizer.decode(sequence.token_ids) == "2025-01-01 Q: cat"


@pytest.mark.parametrize(
    "template, words",
    [
        (
            None,
            "this tokenizer has no chat template; give chat_template: false, or a checkpoint with a chat_template in",
        ),
        (
            "{{ raise_exception('system first') }}",
            "refuses a single user message; give chat_template: false.*system first",
        ),
        ("{% if %}", "refuses a single user message"),
    ],
)
def test_a_template_that_does_not_work(template, words):
    for read in (tokenize, prompt_tokens):
        texts = ["Q"] if read is prompt_tokens else [("k", "Q", " cat")]
        with pytest.raises(InputError, match=f"^the model: .*{words}"):
            read(texts, chat(template), **({} if read is prompt_tokens else {"context": 99}), chat_template=True)


def test_a_special_token_of_the_template_never_swallows_the_solution():
    """Phi-3's take the white space behind them, which a model that goes on with the text never does."""
    tokenizer = chat("{{ messages[0]['content'] }}<|assistant|>")
    tokenizer.add_special_tokens(
        {"additional_special_tokens": [AddedToken("<|assistant|>", rstrip=True, normalized=False, special=True)]}
    )
    for solution in ("The cat", "\n\nThe cat"):
        (sequence,) = tokenize([("k", "Q", solution)], tokenizer, 99, chat_template=True)
        assert tokenizer.decode(sequence.token_ids[sequence.start :]) == solution
    with pytest.raises(InputError, match="^k: the tokenizer of the model does not give the solution back"):
        tokenize([("k", "Q<|assistant|>", " The cat")], tokenizer, 99)


def metaspace_first() -> PreTrainedTokenizerFast:
    metaspace = {"type": "Metaspace", "replacement": "\u2581", "prepend_scheme": "first", "split": True}
    return with_added(unigram(), pre_tokenizer={"type": "Sequence", "pretokenizers": [metaspace]})


def space_in_front() -> PreTrainedTokenizerFast:
    tokenizer = byte_level([EOS])
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    return tokenizer


LINES = AddedToken("\n\n", normalized=False, special=False)
WITH_PREFIX = [sentencepiece(), unigram(), metaspace_first(), space_in_front()]
CHATS = [with_added(byte_level([EOS]), LINES), with_added(sentencepiece(prefix=False), LINES), *WITH_PREFIX]
for tokenizer in CHATS:
    tokenizer.chat_template = "Q: {{ messages[0]['content'] + '\nA:\n' }}"


@settings(max_examples=150, deadline=None)
@given(texts.filter(str.strip), st.sampled_from(CHATS))
@example("\nFive.", CHATS[0])
@example("\n\nFive.", CHATS[1])
@example("cat", CHATS[2])
@example(" cat", CHATS[2])
@example("  cat", CHATS[3])
def test_behind_a_template_a_solution_is_tokenised_apart_as_what_goes_on_there(solution, tokenizer):
    solution = solution.replace("\u2581", "_")
    (sequence,) = tokenize([("k", "2?", solution)], tokenizer, 999, chat_template=True, leading_space="keep")
    (prompt,) = prompt_tokens(["2?"], tokenizer, chat_template=True)
    assert sequence.token_ids[: sequence.start].tolist() == prompt.tolist()
    decode = tokenizer.backend_tokenizer.decode
    assert decode(sequence.token_ids.tolist()) == decode(prompt.tolist()) + solution
    assert sequence.token_bytes.sum() == len(solution.encode())


@pytest.mark.parametrize("tokenizer", WITH_PREFIX)
def test_behind_a_template_no_space_is_put_in_front(tokenizer):
    alone = tokenizer("cat")["input_ids"]
    for solution in ("cat", " cat"):
        reading = dict(chat_template=True, leading_space="keep")
        (sequence,) = tokenize([("k", "2?", solution)], tokenizer, 99, **reading)
        tokens = tokenizer.convert_ids_to_tokens(sequence.token_ids[sequence.start :].tolist())
        assert "".join(tokens).replace("\u2581", " ").replace("\u0120", " ") == solution
    assert tokenizer("cat")["input_ids"] == alone  # elsewhere it goes on to do what its file says


LLAMA2 = (
    "{% for m in messages %}{{ '[INST] ' + m['content'] + ' [/INST]' if m['role'] == 'user' "
    "else ' ' + m['content'] + ' </s>' }}{% endfor %}"
)


@pytest.mark.parametrize(
    "solution, stripped",
    [(" cat", "cat"), (" é", "é")]
    + [(text, text) for text in ("cat", "  cat", "\ncat", "\n cat", " \ncat", " \tcat", "\tcat", "\xa0cat")],
)
def test_a_single_leading_space_goes_behind_a_template(solution, stripped):
    for template, leading_space, expected in (
        (CHATML, "strip", stripped),
        (CHATML, "keep", solution),
        (LLAMA2, "strip", solution),
        (None, "strip", solution),
    ):
        tokenizer, reading = chat(template), dict(chat_template=template is not None, leading_space=leading_space)
        (sequence,) = tokenize([("k", "Q:", solution)], tokenizer, 99, **reading)
        assert tokenizer.decode(sequence.token_ids[sequence.start :]) == expected
        assert sequence.token_bytes.sum() == len(expected.encode())


@pytest.mark.parametrize(
    "template, leading_space, solutions, words",
    [
        (CHATML, "keep", [" cat", "hat"], "1 of 2 texts begin with a space behind a chat template that has none"),
        (CHATML, "keep", ["cat", "\n cat"], None),
        (CHATML, "strip", [" cat", "hat"], None),
        (
            LLAMA2,
            "strip",
            ["5", " cat", "hat"],
            "2 of 3 texts begin without the space that the chat template has in front of an answer",
        ),
        (LLAMA2, "keep", [" cat"], None),
        (
            None,
            "strip",
            ["Paris", " cat"],
            "1 of 2 texts begin with a word right behind a prompt that ends without white space",
        ),
        (None, "keep", [" cat", "\ncat", "(b)", "日本"], None),
        (None, None, ["cat"], None),
        (CHATML, None, [" cat"], None),
    ],
)
def test_a_leading_space_too_many_or_too_few_is_told_once(template, leading_space, solutions, words, caplog):
    texts = [(f"t/{i}", "Q:", solution) for i, solution in enumerate(solutions)]
    reading = dict(chat_template=template is not None, leading_space=leading_space)
    tokenize(texts, chat(template), 99, batch_size=1, **reading)
    assert (words is None and not caplog.messages) or (len(caplog.messages) == 1 and words in caplog.text)
    assert words is None or "first t/0" in caplog.text
