"""Which tokens are scored, and how many bytes of the solution each covers."""

import unicodedata

import numpy as np
import pytest
from conftest import BOS, EOS, byte_level_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.solutions.tokenisation import prompt_tokens, tokenize
from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode
from tried_tokenizers import BYTE_FALLBACK, NFC, PLAIN, TOKENIZERS, WITH_BOS, WITH_BOTH, texts, with_added


def byte_spans(tokenizer: PreTrainedTokenizerFast, text: str) -> list[tuple[int, int]]:
    """Bytes of `text` that each token of a byte-level tokenizer stands for, from the tokens' own spelling."""
    tokens = tokenizer.convert_ids_to_tokens(tokenizer(text, add_special_tokens=False)["input_ids"])
    ends = np.cumsum([len(token) for token in tokens]).tolist()
    assert ends[-1] == len(text.encode())
    return list(zip([0, *ends], ends))


@settings(max_examples=150, deadline=None)
@given(texts, texts.filter(bool), st.sampled_from([PLAIN, WITH_BOS, WITH_BOTH]))
@example("Q: x?\nA:", " é 😀", WITH_BOS)
@example("The cat.\n", "\nThe", WITH_BOS)
def test_byte_level_scores_the_tokens_that_hold_bytes_of_the_continuation(prompt, continuation, tokenizer):
    try:
        (sequence,) = tokenize([("k", prompt, continuation)], tokenizer, 999)
    except InputError:
        assert tokenizer is PLAIN and len(PLAIN(prompt + continuation)["input_ids"]) == 1
        return
    leading = tokenizer is not PLAIN
    whole = tokenizer(prompt + continuation, add_special_tokens=False)["input_ids"]
    assert sequence.token_ids.tolist() == [0] * leading + whole
    # The spans of whole characters: a byte of a character belongs to the scored part when any byte of the character
    # does.
    boundary = len(prompt.encode())
    first = next(i for i, (_, end) in enumerate(byte_spans(tokenizer, prompt + continuation)) if end > boundary)
    assert sequence.start == max(first + leading, 1)
    assert sequence.stop == len(sequence.token_ids)
    if first + leading >= 1:
        assert sequence.token_bytes.sum() == len(continuation.encode())
    assert (sequence.token_bytes >= 0).all() and len(sequence.token_bytes) == sequence.stop - sequence.start


@settings(max_examples=200, deadline=None)
@given(texts, texts.filter(str.strip), st.sampled_from([*BYTE_FALLBACK, NFC]), st.none() | st.integers(1, 9))
@example("", "Hello", BYTE_FALLBACK[0], None)
@example("", " Hello", BYTE_FALLBACK[2], None)
@example("Q", "日本語", BYTE_FALLBACK[0], 4)
@example("Q: e", "\u0301e", BYTE_FALLBACK[0], None)
@example("", "  a  b ", BYTE_FALLBACK[2], 3)
def test_text_that_comes_back_is_no_error_and_is_covered_once(prompt, continuation, tokenizer, tail):
    """Added spaces, bytes in place of characters, and a tail that starts inside a character are no false alarms."""
    prompt, continuation = (text.replace("▁", "_") for text in (prompt, continuation))
    if tokenizer is NFC:
        prompt = "Q" + prompt  # a first token has no context
        continuation = unicodedata.normalize("NFC", prompt + continuation).removeprefix(prompt)
        if unicodedata.normalize("NFC", prompt + continuation) != prompt + continuation or not continuation:
            return
    (sequence,) = tokenize([("k", prompt, continuation)], tokenizer, 999, tail)
    assert sequence.token_ids.tolist() == tokenizer(prompt + continuation)["input_ids"]
    (whole,) = tokenize([("k", prompt, continuation)], tokenizer, 999)
    assert whole.token_bytes.sum() == len(continuation.encode()) and (whole.token_bytes >= 0).all()
    assert whole.token_bytes[-len(sequence.token_bytes) :].tolist() == sequence.token_bytes.tolist()


@pytest.mark.parametrize("tokenizer", TOKENIZERS)
def test_special_tokens_in_front_stay_and_behind_go(tokenizer):
    (sequence,) = tokenize([("k", "Q:", " A")], tokenizer, 99)
    tokens = tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())
    assert (tokens[0] == BOS) == (tokenizer is not PLAIN) and EOS not in tokens
    assert prompt_tokens(["Q:"], tokenizer)[0].tolist() == sequence.token_ids[: sequence.start].tolist()


def test_a_straddling_token_is_scored_with_the_bytes_of_the_continuation_alone():
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=Tokenizer(models.WordLevel({"ab": 0, "?\n": 1, "cd": 2}, "ab"))
    )
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Split("?\n", "isolated")
    tokenizer.backend_tokenizer.decoder = decoders.Fuse()
    (sequence,) = tokenize([("k", "ab?", "\ncd")], tokenizer, 99)
    assert (sequence.token_ids.tolist(), sequence.start, sequence.token_bytes.tolist()) == ([0, 1, 2], 1, [1, 2])


def spelled(tokenizer: PreTrainedTokenizerFast, text: str) -> list[bytes]:
    """The bytes of each token of a byte-level tokenizer, from the tokens' own spelling, without the BOS in front."""
    added = tokenizer.added_tokens_decoder
    of_character = {character: byte for byte, character in bytes_to_unicode().items()}
    return [
        added[i].content.encode() if i in added else bytes(of_character[c] for c in tokenizer.convert_ids_to_tokens(i))
        for i in tokenizer(text, add_special_tokens=False)["input_ids"]
    ]


CONTENTS = ["  ", "    ", "\n", "\n\n", " \n", "<s>", "a b", ". ", "é日", "日本", "\u0301", "a日"]
ADDED = st.builds(
    AddedToken,
    st.sampled_from(CONTENTS),
    **{flag: st.booleans() for flag in ("single_word", "lstrip", "rstrip", "normalized", "special")},
)
# The library panics where a token swallows white space (rstrip) that is the beginning of another one.
VOCABULARIES = st.lists(ADDED, max_size=3).filter(
    lambda added: (
        not any(token.rstrip for token in added) or all(token.content == token.content.strip() for token in added)
    )
)
JOINS = st.text(" \n.ab<s>é日本\u0301", max_size=8) | st.lists(st.sampled_from([*CONTENTS, "a", " "])).map("".join)


@settings(max_examples=200, deadline=None)
@given(JOINS, JOINS.filter(str.strip), VOCABULARIES, st.sampled_from([WITH_BOS, WITH_BOTH]))
@example("def f(n):\n  ", "  return", [AddedToken("    ", normalized=True, special=False)], WITH_BOS)
@example("Q: 2?\n", "\nA: five", [AddedToken("\n\n", normalized=False, special=True)], WITH_BOS)
@example("a日", "本b", [AddedToken("日本", normalized=False, special=False)], WITH_BOTH)
@example("a <", "s> b", [AddedToken("<s>", lstrip=True, special=True)], WITH_BOTH)
@example("a ", "<s>b", [AddedToken("<s>", lstrip=True, special=True)], WITH_BOTH)
@example("a<s>", " b", [AddedToken("<s>", rstrip=True, special=True)], WITH_BOTH)
def test_an_added_token_over_the_join_is_scored_as_a_merge_would_be(prompt, continuation, added, tokenizer):
    tokenizer = with_added(tokenizer, *added)
    pieces = spelled(tokenizer, prompt + continuation)
    try:
        (sequence,) = tokenize([("k", prompt, continuation)], tokenizer, 999)
    except InputError:  # white space that a token swallows is never read
        assert b"".join(pieces) != (prompt + continuation).encode()
        return
    assert sequence.token_bytes.sum() == len(continuation.encode()) and (sequence.token_bytes >= 0).all()
    if any(token.lstrip or token.rstrip for token in added):
        return  # the prompt's white space may be swallowed, or be in two tokens at once
    ends, boundary = np.cumsum([len(piece) for piece in pieces]), len(prompt.encode())
    first = int((ends > boundary).argmax())
    expected = np.zeros(len(pieces), int)
    for i, character in enumerate(continuation):  # counts for the token that has its first byte
        expected[(ends > boundary + len(continuation[:i].encode())).argmax()] += len(character.encode())
    assert sequence.start == 1 + first
    assert sequence.token_bytes.tolist() == expected[first:].tolist()


def test_a_text_at_which_the_tokenizer_fails_is_an_error():
    backend = Tokenizer(models.Unigram([("a", 0.0)]))  # knows no unknown token
    backend.decoder = decoders.Fuse()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=backend)
    assert len(tokenize([("t1", "a", "aa")], tokenizer, 9)) == 1
    with pytest.raises(InputError, match="fails at one of the texts t1 to t2: .*unk_id"):
        tokenize([("t1", "a", "aa"), ("t2", "a", "b")], tokenizer, 9)
    with pytest.raises(InputError, match="fails at one of the prompts: .*unk_id"):
        prompt_tokens(["b"], tokenizer)


def test_white_space_at_the_end_of_a_token_counts_for_that_token():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["a.\n", "b.\n", "c.\n"], trainer)  # as newer tokenizers do, it learns ".\n"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    (sequence,) = tokenize([("k", "So it is.", "\nYes")], tokenizer, 99)
    assert tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())[sequence.start] == ".Ċ"
    assert sequence.token_bytes.tolist() == [1, 1, 1, 1]


def test_a_split_character_counts_for_its_first_token():
    (sequence,) = tokenize([("k", "Q", "\u0e01x")], PLAIN, 99)  # three bytes that the tokenizer never saw together
    assert sequence.token_bytes.tolist() == [3, 0, 0, 1]


def test_the_first_token_of_all_is_not_scored_and_the_tail_is_kept():
    continuation = "2 plus 3 is five."
    (whole,) = tokenize([("k", "", continuation)], PLAIN, 99)
    assert whole.start == 1 and whole.stop == len(whole.token_ids)
    assert whole.token_bytes.sum() == len(continuation) - len(PLAIN.decode(whole.token_ids[:1]))
    (tail,) = tokenize([("k", "Q: ", continuation)], WITH_BOS, 99, tail_tokens=3)
    (full,) = tokenize([("k", "Q: ", continuation)], WITH_BOS, 99)
    assert tail.token_ids.tolist() == full.token_ids.tolist() and tail.stop - tail.start == 3
    assert tail.token_bytes.tolist() == full.token_bytes[-3:].tolist()


def test_a_batch_is_its_texts_one_by_one():
    items = [(str(i), "Q: " * i, " The cat é" * (i + 1)) for i in range(7)]
    together = tokenize(items, WITH_BOS, 999, 5, batch_size=3)
    for item, sequence in zip(items, together, strict=True):
        (alone,) = tokenize([item], WITH_BOS, 999, 5)
        assert sequence.key == item[0] and sequence.start == alone.start
        assert sequence.token_ids.tolist() == alone.token_ids.tolist()
        assert sequence.token_bytes.tolist() == alone.token_bytes.tolist()


def test_truncation_and_padding_in_the_tokenizers_file_do_not_count():
    tokenizer = byte_level_tokenizer()
    tokenizer.backend_tokenizer.enable_truncation(3)
    tokenizer.backend_tokenizer.enable_padding(length=50)
    (sequence,) = tokenize([("k", "Q: what is", " five cats.")], tokenizer, 99)
    assert sequence.token_ids.tolist() == PLAIN("Q: what is five cats.")["input_ids"]


def test_errors_name_the_solution():
    with pytest.raises(InputError, match=r"^t/7: found 1\d tokens of prompt and solution; .* holds 9; set extraction"):
        tokenize([("t/7", "xyzxyz", "xyzxyzxyz")], PLAIN, 9, windowing=False)
    with pytest.raises(InputError, match="^t/7: found the token 'e' with id 70, but the model has 70 embeddings"):
        tokenize([("t/6", "Q", "d"), ("t/7", "Q", "e")], PLAIN, 9, vocabulary=70)
    with pytest.raises(InputError, match="^t/7: no token is left to score"):
        tokenize([("t/7", "", "x")], PLAIN, 9)
    with pytest.raises(InputError, match="slow tokenizer"):
        tokenize([("t/7", "", "x")], object(), 9)
