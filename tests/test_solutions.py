"""Reading expert solutions: every mistake is named; tokenising them: nothing is lost, nothing is counted twice."""

import json
import unicodedata

import numpy as np
import polars as pl
import pytest
from awkward_models import CHATML, LLAMA3, byte_level, sentencepiece, unigram
from conftest import BOS, EOS, byte_level_tokenizer, metaspace_tokenizer
from hypothesis import example, given, settings
from hypothesis import strategies as st
from proxycast.options import InputError
from proxycast.solutions import (
    Problem,
    Solution,
    once_each,
    prompt_tokens,
    read_problems,
    read_solutions,
    tokenize,
    write_solutions,
)
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast
from transformers.convert_slow_tokenizer import bytes_to_unicode

GOOD = {"id": "a", "prompt": "Q: 2+2?\nA:", "solution": " 4."}
PLAIN, WITH_BOS, WITH_BOTH = byte_level_tokenizer(), byte_level_tokenizer(bos=True), byte_level_tokenizer(True, True)
METASPACE = metaspace_tokenizer()
TOKENIZERS = [PLAIN, WITH_BOS, WITH_BOTH, METASPACE]
NFC = byte_level([EOS], nfc=True)
BYTE_FALLBACK = [sentencepiece(), sentencepiece(prefix=False), unigram()]
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


def test_problems_may_have_no_solution(tmp_path):
    rows = [GOOD, {"id": "b", "prompt": "q", "answer": " 4 "}, {"id": "c", "prompt": "q", "choices": ["x", "y"]}]
    rows[2]["answer"] = "y"
    problems = read_problems(write_lines(tmp_path / "p.jsonl", *rows))
    assert [type(problem) for problem in problems] == [Solution, Problem, Problem]
    assert [problem.right_answer for problem in problems] == [None, "4", "y"] and problems[2].correct_choice == 1
    write_solutions(problems, tmp_path / "q.jsonl")
    assert read_problems(tmp_path / "q.jsonl") == problems
    pl.DataFrame([dict.fromkeys(Solution.model_fields) | p.model_dump() for p in problems]).write_parquet(
        tmp_path / "q.parquet"
    )
    assert read_problems(tmp_path / "q.parquet") == problems
    with pytest.raises(InputError, match="row 2, field solution: missing"):
        read_solutions(tmp_path / "q.jsonl")
    with pytest.raises(InputError, match="row 1, field writer: unknown; the fields are id, prompt, answer, choices"):
        read_problems(write_lines(tmp_path / "w.jsonl", {"id": "b", "prompt": "q", "writer": "x"}))
    with pytest.raises(InputError, match="one of them must be the answer 'z', to the letter"):
        read_problems(write_lines(tmp_path / "w.jsonl", rows[2] | {"answer": "z"}))


def test_the_right_answer_is_the_right_choice_where_none_is_given():
    asked = dict(id="a", prompt="", choices=[" x", " y"])
    assert Solution(**asked, solution=" y").right_answer == "y"
    assert Solution(**asked, solution="so y", answer=" y").right_answer == "y"
    assert Solution(id="a", prompt="", solution=" y").right_answer is None


def test_a_problem_with_several_solutions_counts_once():
    asked = dict(prompt="q", choices=["x", "y"], answer="y")
    rows = [Solution(id=f"p@{w}", problem="p", writer=w, solution=f"{w} says y", **asked) for w in "ab"]
    other = Problem(id="other", **asked)
    assert once_each([*rows, other]) == [rows[0], other]
    assert once_each([Problem(id="p", **asked), *rows]) == [Problem(id="p", **asked)]
    for field, value in {"prompt": "r", "choices": ("y", "z"), "answer": "x"}.items():
        with pytest.raises(InputError, match=f"problem 'p': rows 'p@a' and 'p@b' differ in {field[:5]}|correct choice"):
            once_each([rows[0], rows[1].model_copy(update={field: value})])
    free = [row.model_copy(update={"choices": None}) for row in rows]
    with pytest.raises(InputError, match="differ in right answer: 'y' and 'x'; only the solution may differ"):
        once_each([free[0], free[1].model_copy(update={"answer": "x"})])


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


def with_added(tokenizer: PreTrainedTokenizerFast, *added: AddedToken, **settings) -> PreTrainedTokenizerFast:
    """`tokenizer` with more tokens; `settings`: parts of its file."""
    file = json.loads(tokenizer.backend_tokenizer.to_str()) | settings
    backend = Tokenizer.from_str(json.dumps(file))
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


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


def normalising(normalizer) -> PreTrainedTokenizerFast:
    tokenizer = byte_level([EOS], eos=EOS)
    tokenizer.backend_tokenizer.normalizer = normalizer
    return tokenizer


@pytest.mark.parametrize(
    "tokenizer, solution, decoded, why",
    [
        (METASPACE, " cat z cat", " cat <unk> cat", ""),
        (BYTE_FALLBACK[1], " a▁b", " a b", ""),
        (normalising(normalizers.Strip()), " cat ", " cat", ""),
        (normalising(normalizers.Lowercase()), " The Cat", " the cat", " (it normalises the text)"),
        (normalising(normalizers.StripAccents()), " a e\u0301", " a e", " (it normalises the text)"),
        (NFC, " cafe\u0301", " caf\xe9", " (it normalises the text to Unicode NFC: write the solution so)"),
        (
            normalising(normalizers.NFKC()),
            " x\xb2",
            " x2",
            " (it normalises the text to Unicode NFKC: write the solution so)",
        ),
    ],
)
def test_a_tokenizer_that_changes_the_solution_is_an_error(tokenizer, solution, decoded, why):
    with pytest.raises(InputError) as caught:
        tokenize([("t/6", "3:", " cat"), ("t/7", "3:", solution)], tokenizer, 99)
    assert str(caught.value) == (
        "t/7: the tokenizer of the model does not give the solution back: it has "
        f"{solution!r} where the tokens decode to {decoded!r}{why}; take a checkpoint with another tokenizer, or "
        "remove or replace these characters in the solution"
    )


def swallowing() -> PreTrainedTokenizerFast:
    """As Phi-3's, a special token takes the white space behind it."""
    tokenizer = byte_level([EOS], eos=EOS)
    swallows = AddedToken("<|user|>", rstrip=True, normalized=False, special=True)
    tokenizer.backend_tokenizer.add_special_tokens([swallows])
    return tokenizer


def without_alphabet() -> PreTrainedTokenizerFast:
    """BPE over characters, without a token for those that it does not know: it drops them."""
    tokenizer = Tokenizer(models.BPE({c: i for i, c in enumerate("Qab :13\n")}, []))
    tokenizer.decoder = decoders.Fuse()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer)


def without_spaces() -> PreTrainedTokenizerFast:
    """Splits a text at its spaces, and drops them."""
    tokenizer = byte_level([EOS], eos=EOS)
    words = pre_tokenizers.Split(" ", "removed")
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.Sequence([words, pre_tokenizers.ByteLevel(False)])
    return tokenizer


MANGLED = {
    "unknown": (METASPACE, "3 z 3:", "3 z 3:", "3 <unk> 3:"),
    "unknown at the end": (METASPACE, "3: z", "3: z", "3: <unk>"),
    "dropped": (without_alphabet(), "a: zb 1:", "a: zb 1:", "a: b 1:"),
    "mark of a space": (BYTE_FALLBACK[1], "a▁b:", "a▁b:", "a b:"),
    "NFC": (NFC, "3 cafe\u0301:", "3 cafe\u0301:", "3 caf\xe9:"),
    "NFKC": (normalising(normalizers.NFKC()), "x\xb2:", "x\xb2:", "x2:"),
    "lower case": (normalising(normalizers.Lowercase()), "3 The:", "3 The:", "3 the:"),
    "accents": (normalising(normalizers.StripAccents()), "e\u0301:", "e\u0301:", "e:"),
    "white space": (normalising(normalizers.Replace("  ", " ")), "3  3:", "3  3:", "3 3:"),
    "swallowed": (swallowing(), "3<|user|>\n3:", "ser|>\n3:", "ser|>3:"),
    "spaces": (without_spaces(), "3: 3:", "3: 3:", "3:3:"),
}


@pytest.mark.parametrize("kind", MANGLED)
@pytest.mark.parametrize("read", ["text", "tail", "chat", "generation", "chat generation"])
def test_a_tokenizer_that_changes_the_prompt_is_an_error(kind, read):
    """Wherever it stands: in front of a tail, in a chat template, or to be continued."""
    tokenizer, prompt, written, decoded = MANGLED[kind]
    chat = "chat" in read
    tokenizer.chat_template = "Q:1{{ messages[0]['content'] }}:1"
    with pytest.raises(InputError) as caught:
        if "generation" in read:
            prompt_tokens(["3:", prompt], tokenizer, chat)
        else:
            tail = 1 if read == "tail" else None
            tokenize([("t/7", "3:", "a"), ("t/8", prompt, "3a")], tokenizer, 99, tail, chat_template=chat)
    key = f"prompt {prompt!r}" if "generation" in read else "t/8"
    who = "the tokenizer and the chat template of the model do" if chat else "the tokenizer of the model does"
    message = str(caught.value)
    assert message.startswith(f"{key}: {who} not give the prompt back: it has ")
    assert message.endswith("or remove or replace these characters in the prompt")
    if not chat:
        assert f"it has {written!r} where the tokens decode to {repr(decoded)[:-1]}" in message


def test_white_space_that_a_tokenizer_takes_off_a_prompt_is_an_error():
    for prompt in (" 3:", "\n3:"):
        with pytest.raises(InputError, match="k: .* does not give the prompt back"):
            tokenize([("k", prompt, "the cat")], normalising(normalizers.Strip()), 99)


PROMPTS = {
    "": (*TOKENIZERS, *BYTE_FALLBACK),
    "3:": (*TOKENIZERS, *BYTE_FALLBACK),
    " 3:": (*TOKENIZERS, *BYTE_FALLBACK),
    "  3 : ": (*TOKENIZERS, *BYTE_FALLBACK),
    "\t3:\n\n 3 \x00é€😀\u0301:": (*TOKENIZERS[:3], *BYTE_FALLBACK),
    "3 caf\xe9 \xb2:": (NFC, PLAIN),
    "x2:": (normalising(normalizers.NFKC()),),
    "the:": (normalising(normalizers.Lowercase()),),
    f"3{EOS}3{BOS}:": (PLAIN, WITH_BOS),
    "3<|user|>3:": (swallowing(), PLAIN),
    "<s>3: 3</s> 3</s>\n:": (*BYTE_FALLBACK, PLAIN),  # a space goes in front of what follows a special token, too
}


@pytest.mark.parametrize("chat", [False, True])
@pytest.mark.parametrize("prompt", PROMPTS)
def test_a_prompt_that_comes_back_is_no_error(prompt, chat):
    """What a template itself writes, and white space that it takes off the prompt's ends, are no one's text."""
    for tokenizer in PROMPTS[prompt]:
        tokenizer.chat_template = "ze\u0301 \xb2▁{{ messages[0]['content'] | trim }} <|user|> :"
        (sequence,) = tokenize([("k", prompt, "the cat")], tokenizer, 99, chat_template=chat)
        assert sequence.token_bytes.sum() >= 4
        assert len(prompt_tokens([prompt], tokenizer, chat)[0]) or not prompt


def test_a_space_put_into_the_solution_is_an_error():
    (sequence,) = tokenize([("k", "3</s>", "3</s>")], BYTE_FALLBACK[0], 99)
    assert sequence.token_bytes.tolist() == [1, 4]
    with pytest.raises(
        InputError, match="k: .* does not give the solution back: it has '3</s>4' where .* to '3</s> 4'"
    ):
        tokenize([("k", "3:", "3</s>4")], BYTE_FALLBACK[0], 99)


def test_a_space_put_in_front_is_no_error():
    tokenizer = byte_level([EOS], eos=EOS)
    tokenizer.backend_tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=True)
    for prompt in ("3:", " 3:", ""):
        (sequence,) = tokenize([("k", prompt, "the cat")], tokenizer, 99)
        assert tokenizer.decode(sequence.token_ids.tolist()) == " " + (prompt + "the cat").removeprefix(" ")


def test_a_template_that_changes_the_prompt_is_an_error():
    tokenizer = chat("{{ messages[0]['content'] | lower }}:")
    tokenize([("k", "so what?", "The cat")], tokenizer, 99, chat_template=True)
    with pytest.raises(InputError, match="k: .* not give the prompt back: it has 'so What.' where .* to 'so what.:The"):
        tokenize([("k", "so What?", "The cat")], tokenizer, 99, chat_template=True)


@pytest.mark.parametrize(
    "template",
    [
        "{% for m in messages %}<{{ m.role }}>{% endfor %}so what?:",
        "so what?:{{ messages[0].content[0].text }}",
        "so what?:{{ messages[0].content if 'w' not in messages[0].content }}",
    ],
)
def test_a_template_that_says_by_itself_what_it_leaves_out_is_an_error(template):
    with pytest.raises(InputError, match="its chat template leaves out the user's message 'so what.'"):
        tokenize([("k", "so what?", "The cat")], chat(template), 99, chat_template=True)
    tokenize([("k", "so what?", "The cat")], chat("so what?{{ messages[0].content }}:"), 99, chat_template=True)


@pytest.mark.parametrize(
    "template", ["{{ 1 / 0 }}", "{% macro m() %}{{ m() }}{% endmacro %}{{ m() }}", "{{ messages[0].no.no }}"]
)
def test_a_template_that_fails_in_any_way_is_an_error(template):
    with pytest.raises(InputError, match="its chat template refuses a single user message"):
        tokenize([("k", "so what?", "The cat")], chat(template), 99, chat_template=True)


def test_a_prompt_may_have_no_token_without_an_embedding():
    with pytest.raises(InputError, match="^prompt 'de': found the token 'e' with id 70, but the model has 70 embeddin"):
        prompt_tokens(["d", "de"], PLAIN, vocabulary=70)
    assert prompt_tokens(["d", ""], PLAIN, vocabulary=70)[1].tolist() == []


def test_the_place_of_a_difference_is_found_in_a_long_text():
    with pytest.raises(InputError, match="it has ' cat z cat' where the tokens decode to ' cat <unk> cat cat'"):
        tokenize([("k", "the cat " * 2_000 + "z cat", " cat")], METASPACE, 99)


def test_the_error_shows_the_place_and_the_tokenizers_folder(tmp_path):
    tokenizer = normalising(normalizers.Lowercase())
    tokenizer.name_or_path = str(tmp_path)
    with pytest.raises(InputError) as caught:
        tokenize([("t/7", "3: what", " is the cat that sat on the Hat and what more is there?")], tokenizer, 99)
    assert f"tokenizer of {tmp_path} does" in str(caught.value)
    assert "has ' the Hat and what more is ther' where the tokens decode to ' the hat and what" in str(caught.value)


def test_what_stands_in_front_of_a_tail_must_come_back_too():
    (sequence,) = tokenize([("k", "Q:", " the cat; the cat.")], METASPACE, 99, tail_tokens=2)
    assert sequence.token_bytes.sum() < 15
    with pytest.raises(InputError, match="does not give the solution back: it has ' z z z the cat.'"):
        tokenize([("k", "Q:", " z z z the cat.")], METASPACE, 99, tail_tokens=2)


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


# Chat templates


def chat(template: str = CHATML, **kind) -> PreTrainedTokenizerFast:
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(special, bos="<|begin|>", eos="<|im_end|>", **kind)
    tokenizer.chat_template = template
    return tokenizer


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
