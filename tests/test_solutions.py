"""Reading expert solutions: every mistake is named; tokenising them: nothing is lost, nothing is counted twice."""

import json

import numpy as np
import polars as pl
import pytest
from conftest import BOS, EOS, byte_level_tokenizer, metaspace_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.solutions import Solution, prompt_tokens, read_solutions, tokenize, write_solutions
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

GOOD = {"id": "a", "prompt": "Q: 2+2?\nA:", "solution": " 4."}
PLAIN, WITH_BOS, WITH_BOTH = byte_level_tokenizer(), byte_level_tokenizer(bos=True), byte_level_tokenizer(True, True)
METASPACE = metaspace_tokenizer()
TOKENIZERS = [PLAIN, WITH_BOS, WITH_BOTH, METASPACE]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(" \n.cat2é€😀\u0301", max_size=30)


def write_lines(path, *rows):
    path.write_text("\n".join(row if isinstance(row, str) else json.dumps(row) for row in rows) + "\n")
    return path


def test_written_solutions_read_back(tmp_path):
    solutions = [
        Solution(id="a", prompt="", solution=" x\u2028y 😀\n", writer="me"),
        Solution(id="b", prompt="p", solution=" 4", answer="4", choices=[" 3", " 4"]),
    ]
    write_solutions(solutions, tmp_path / "deep" / "s.jsonl")
    assert read_solutions(tmp_path / "deep" / "s.jsonl") == solutions
    pl.DataFrame([s.model_dump() for s in solutions]).write_parquet(tmp_path / "s.parquet")
    assert read_solutions(tmp_path / "s.parquet") == solutions


def test_the_correct_choice_is_the_solution_or_else_the_answer():
    assert Solution(id="a", prompt="", solution="b", answer="a", choices=["a", "b"]).correct_choice == 1
    assert Solution(id="a", prompt="", solution="it is a", answer="a", choices=["a", "b"]).correct_choice == 0
    assert Solution(id="a", prompt="", solution="b", answer="a").correct_choice is None


@pytest.mark.parametrize(
    "row, words",
    [
        ({"id": "b", "prompt": ""}, "row 2, field solution: missing"),
        (GOOD | {"id": "b", "solution": " \n"}, "row 2, field solution: found ' \\n'"),
        (GOOD | {"id": "b", "prompt": 3}, "row 2, field prompt: found 3"),
        (GOOD | {"id": ""}, "row 2, field id: found ''"),
        (GOOD | {"id": "b", "solutoin": "x"}, "row 2, field solutoin: unknown; the fields are id, prompt"),
        (GOOD, "row 2, field id: found 'a', the id of row 1"),
        (GOOD | {"id": "b", "choices": ["5", "6"]}, "row 2, field choices: found ['5', '6']; one of them must be"),
        (GOOD | {"id": "b", "choices": [" 4.", "5", "5"]}, "row 2, field choices: found '5' 2 times"),
        (GOOD | {"id": "b", "choices": [" 4."]}, "row 2, field choices: found 1; give at least two"),
        (GOOD | {"id": "b", "choices": [" 4.", 5]}, "row 2, field choices.1: found 5"),
        ('{"id": "b", "prompt"', "row 2: broken JSON"),
        ('{"id": "b", "prompt": "", "solution": "\\ud800"}', "row 2, field solution: found '\\ud800': half of a"),
        ("[1, 2]", "row 2: found a list; each row must be an object"),
    ],
)
def test_mistakes_name_file_row_and_field(tmp_path, row, words):
    path = write_lines(tmp_path / "s.jsonl", GOOD, row)
    with pytest.raises(InputError) as caught:
        read_solutions(path)
    assert str(caught.value).startswith(f"{path}, {words}")


def test_files_that_are_no_solutions(tmp_path):
    (tmp_path / "empty.jsonl").write_text("\n")
    (tmp_path / "latin.jsonl").write_bytes(b'{"id": "\xe9"}\n')
    (tmp_path / "s.txt").write_text("x")
    pl.DataFrame([GOOD]).write_parquet(tmp_path / "whole.parquet")
    (tmp_path / "cut.parquet").write_bytes((tmp_path / "whole.parquet").read_bytes()[:-20])
    pl.DataFrame([GOOD]).select(pl.lit(None).alias("id"), "prompt", "solution").write_parquet(tmp_path / "null.parquet")
    for name, words in {
        "empty.jsonl": "found no rows",
        "latin.jsonl": "row 1: not UTF-8",
        "s.txt": "found the suffix '.txt'",
        "cut.parquet": "truncated",
        "null.parquet": "row 1, field id: found None",
        "none.jsonl": "no such file",
    }.items():
        with pytest.raises(InputError, match=words):
            read_solutions(tmp_path / name)


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


@settings(max_examples=100, deadline=None)
@given(texts, texts.filter(lambda text: text.strip()))
def test_metaspace_covers_the_continuation_once(prompt, continuation):
    (sequence,) = tokenize([("k", prompt, continuation)], METASPACE, 999)
    assert sequence.token_ids.tolist() == METASPACE(prompt + continuation)["input_ids"]
    assert sequence.token_ids[0] == METASPACE.bos_token_id
    assert sequence.token_bytes.sum() == len(continuation.encode())


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
    (sequence,) = tokenize([("k", "ab?", "\ncd")], tokenizer, 99)
    assert (sequence.token_ids.tolist(), sequence.start, sequence.token_bytes.tolist()) == ([0, 1, 2], 1, [1, 2])


def test_white_space_at_the_end_of_a_token_counts_for_that_token():
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    trainer = trainers.BpeTrainer(initial_alphabet=pre_tokenizers.ByteLevel.alphabet(), show_progress=False)
    tokenizer.train_from_iterator(["a.\n", "b.\n", "c.\n"], trainer)  # as newer tokenizers do, it learns ".\n"
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=tokenizer)
    (sequence,) = tokenize([("k", "So it is.", "\nYes")], tokenizer, 99)
    assert tokenizer.convert_ids_to_tokens(sequence.token_ids.tolist())[sequence.start] == ".Ċ"
    assert sequence.token_bytes.tolist() == [1, 1, 1, 1]


def test_text_that_normalisation_drops_still_counts_its_bytes():
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.WordLevel({"ab": 0, "cd": 1}, "ab")))
    tokenizer.backend_tokenizer.normalizer = normalizers.Strip()
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    (sequence,) = tokenize([("k", "ab", "  cd ")], tokenizer, 99)
    assert sequence.token_bytes.tolist() == [5]


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
    with pytest.raises(InputError, match=r"^t/7: found 1\d tokens of prompt and solution; .* holds 9$"):
        tokenize([("t/7", "xyzxyz", "xyzxyzxyz")], PLAIN, 9)
    with pytest.raises(InputError, match="^t/7: no token is left to score"):
        tokenize([("t/7", "", "x")], PLAIN, 9)
    with pytest.raises(InputError, match="slow tokenizer"):
        tokenize([("t/7", "", "x")], object(), 9)
