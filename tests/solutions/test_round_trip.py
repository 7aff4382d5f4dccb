"""Tokens that do not decode to what was written are an error, others are none."""

import pytest
from awkward_models import byte_level
from conftest import BOS, EOS
from proxycast.options import InputError
from proxycast.solutions.tokenisation import prompt_tokens, tokenize
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast
from tried_tokenizers import BYTE_FALLBACK, METASPACE, NFC, PLAIN, TOKENIZERS, WITH_BOS, chat


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
