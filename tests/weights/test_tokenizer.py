"""A model folder's tokenizer is its tokenizer.json, for whatever reads a text, whatever class the folder names.

The reference is `tokenizers` alone. The folders have the forms of the hub's: each kind of tokenizer with the class, the
settings and the other files that released models have beside it.
"""

import json
import logging
import re
import shutil
from pathlib import Path

import numpy as np
import pytest
from awkward_models import CHATML, LLAMA3, sentencepiece, unigram
from conftest import tiny_model
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.transformers import TransformersEngine
from proxycast.options import InputError
from proxycast.solutions.rows import read_problems
from proxycast.solutions.tokenisation import prompt_tokens, tokenize
from proxycast.study.checks import check_folders
from proxycast.training.text.shards import Tokens, tokenize_source
from proxycast.weights.tokenizer import (
    TokenizerCache,
    end_of_text,
    end_tokens,
    load_tokenizer,
    read_tokenizer,
    tokenizer_fingerprints,
)
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import AutoTokenizer

TEXT = "Q: what is 2 plus 3?\nA: 2 plus 3 is five.\n\nThe cat sat on the mat; 1984 and 2023 and 2024!!\n\n" * 3
# How Llama 3, OLMo 2 and others (up to three digits a token), Qwen 2 (one) and DeepSeek split a text.
TRIPLES = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}| ?[^\s\p{L}\p{N}]+[\r\n]*|"
    r"\s*[\r\n]+|\s+(?!\S)|\s+"
)
SINGLES = TRIPLES.replace("{1,3}", "")
DEEPSEEK = ("[\r\n]", r"\s?\p{L}+", r"\s?\p{P}+")
PROMPT, SOLUTION = "Q: what?\nA:", " In 1984 and 2023!!\n\nThe  cat."
BEGIN = "<｜begin▁of▁sentence｜>"


def split(*patterns, special=("<|end|>",), bos: str | None = None, nfc: bool = False) -> Tokenizer:
    """Byte-level BPE behind a pre-tokenizer of its own; without patterns that of GPT-2. `bos` stands in front."""
    tokenizer = Tokenizer(models.BPE())
    steps = [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    bytes_of_pieces = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=not steps)
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([*steps, bytes_of_pieces])
    tokenizer.decoder = decoders.ByteLevel()
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    trainer = trainers.BpeTrainer(
        vocab_size=380,
        special_tokens=list(special),
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator([TEXT], trainer)
    tokenizer.post_processor = processors.ByteLevel(trim_offsets=True)
    if bos:
        template = processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])
        tokenizer.post_processor = processors.Sequence([tokenizer.post_processor, template])
    return tokenizer


def runs_of_spaces(tokenizer: Tokenizer) -> Tokenizer:
    """With added tokens that are no special ones, as GPT-NeoX and OLMo have them."""
    tokenizer.add_tokens([AddedToken(" " * n, normalized=True, special=False) for n in (2, 4)])
    return tokenizer


def swallowing(tokenizer: Tokenizer) -> Tokenizer:
    """With special tokens that take white space, as Phi-3 has them."""
    tokenizer.add_special_tokens([AddedToken("<|user|>", rstrip=True, normalized=False, special=True)])
    return tokenizer


def without_bos(tokenizer: Tokenizer) -> Tokenizer:
    tokenizer.post_processor = processors.TemplateProcessing(single="$A", special_tokens=[])
    return tokenizer


OWN, LLAMA2_KIND, GEMMA_KIND, UNIGRAM = (
    split(TRIPLES),
    *(t.backend_tokenizer for t in (sentencepiece(), sentencepiece(prefix=False), unigram())),
)
WITH_BOS, DISTILL_KIND = (split(TRIPLES, special=(bos, "<|end|>"), bos=bos) for bos in ("<b>", BEGIN))
LLAMA2 = {"bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>", "add_bos_token": True, "add_eos_token": False}
DISTILL = {"bos_token": BEGIN, "eos_token": "<|end|>", "add_bos_token": True, "add_eos_token": False, "legacy": True}
PHI3 = swallowing(without_bos(sentencepiece().backend_tokenizer))
PYTHON = {"auto_map": {"AutoTokenizer": ["own.OwnTokenizer", None]}}
# name -> model_type, class, tokenizer, tokenizer_config.json
FOLDERS = {
    "llama3": ("llama", "PreTrainedTokenizerFast", WITH_BOS, {"bos_token": "<b>"}),
    "olmo2": ("olmo2", "GPT2Tokenizer", OWN, {"add_prefix_space": False}),
    "gpt2": ("llama", "GPT2TokenizerFast", OWN, {}),
    "distill llama": ("llama", "LlamaTokenizerFast", DISTILL_KIND, DISTILL),
    "distill qwen": ("qwen2", "LlamaTokenizerFast", split(*DEEPSEEK, special=(BEGIN, "<|end|>")), DISTILL),
    "qwen2": ("qwen2", "Qwen2Tokenizer", split(SINGLES, nfc=True), {"bos_token": None, "add_bos_token": False}),
    "qwen2, other split": ("qwen2", "Qwen2TokenizerFast", OWN, {}),
    "qwen3, other split": ("qwen3", "Qwen2Tokenizer", OWN, {}),
    "pythia": ("gpt_neox", "GPTNeoXTokenizer", runs_of_spaces(split(nfc=True)), {"add_prefix_space": False}),
    "pythia, other split": ("gpt_neox", "GPTNeoXTokenizerFast", OWN, {}),
    "pythia with a bos": ("gpt_neox", "GPTNeoXTokenizer", WITH_BOS, {"bos_token": "<b>"}),
    "cohere, other split": ("cohere", "CohereTokenizerFast", OWN, {}),
    "codegen, other split": ("codegen", "CodeGenTokenizer", OWN, {}),
    "bloom": ("bloom", "BloomTokenizerFast", split(SINGLES), {}),
    "llama2": ("llama", "LlamaTokenizer", LLAMA2_KIND, LLAMA2),
    "mistral": ("mistral", "LlamaTokenizerFast", LLAMA2_KIND, LLAMA2 | {"add_prefix_space": False}),
    "phi3": ("phi3", "LlamaTokenizer", PHI3, LLAMA2 | {"add_bos_token": False}),
    "gemma": ("gemma", "GemmaTokenizerFast", GEMMA_KIND, LLAMA2),
    "gemma, byte-level": ("gemma2", "GemmaTokenizer", OWN, {}),
    "unigram": ("llama", "LlamaTokenizer", UNIGRAM, LLAMA2),
    "t5": ("t5gemma", "T5Tokenizer", UNIGRAM, {"eos_token": "</s>", "unk_token": "<unk>"}),
    "xglm": ("xglm", "XGLMTokenizer", UNIGRAM, LLAMA2),
    "no class": ("llama", None, OWN, {}),
    "unknown class": ("llama", "ATokenizerOfTomorrow", OWN, {}),
    "unknown model": ("model_of_tomorrow", "ATokenizerOfTomorrow", OWN, {}),
    "python class": ("llama", "OwnTokenizer", OWN, PYTHON),
    "other backend": ("llama", "LlamaTokenizer", OWN, {"backend": "sentencepiece", "use_fast": False}),
}


def write_folder(folder: Path, model_type: str, name: str | None, tokenizer: Tokenizer, settings: dict) -> Path:
    folder.mkdir()
    tokenizer.save(str(folder / "tokenizer.json"))
    named = {"eos_token": "<|end|>"} | settings | ({"tokenizer_class": name} if name else {})
    (folder / "tokenizer_config.json").write_text(json.dumps(named))
    (folder / "config.json").write_text(json.dumps({"model_type": model_type}))
    return folder


@pytest.fixture
def hub_folder(tmp_path):
    """A function that writes a folder of FOLDERS, its settings changed."""

    def write(kind: str, **changes) -> Path:
        model_type, name, tokenizer, settings = FOLDERS[kind]
        return write_folder(
            tmp_path / kind.replace(" ", "_").replace(",", ""), model_type, name, tokenizer, settings | changes
        )

    return write


def file_of(folder: Path) -> Tokenizer:
    return Tokenizer.from_file(str(folder / "tokenizer.json"))


@pytest.mark.parametrize("kind", FOLDERS)
def test_a_text_has_the_tokens_of_the_file(kind, hub_folder):
    folder = hub_folder(kind)
    tokenizer, file = TokenizerCache().load(folder), file_of(folder)
    for solution in (SOLUTION, " 650841823", " a  b\n\n\n    c's 12 été"):
        expected = file.encode(PROMPT + solution).ids
        (sequence,) = tokenize([("k", PROMPT, solution)], tokenizer, 999)
        assert sequence.token_ids.tolist() == expected
        assert sequence.token_bytes.sum() == len(solution.encode())
        assert tokenizer.decode(expected) == file.decode(expected, skip_special_tokens=False)
        assert tokenizer.decode(expected[4:], skip_special_tokens=True) == file.decode(expected[4:])
    (prompt,) = prompt_tokens([PROMPT], tokenizer)
    assert prompt.tolist() == file.encode(PROMPT).ids
    assert tokenizer.get_vocab() == file.get_vocab() and len(tokenizer) == file.get_vocab_size()
    assert tokenizer.eos_token_id == file.token_to_id(FOLDERS[kind][3].get("eos_token", "<|end|>"))


def test_some_classes_would_read_other_tokens(hub_folder):
    """What all this is for. Where `transformers` no longer does that, `load_tokenizer` may go."""
    for kind in ("gpt2", "distill llama", "distill qwen", "qwen3, other split", "pythia with a bos"):
        folder = hub_folder(kind)
        of_class = AutoTokenizer.from_pretrained(folder)
        assert of_class(PROMPT + SOLUTION)["input_ids"] != file_of(folder).encode(PROMPT + SOLUTION).ids


def test_a_saved_tokenizer_without_settings(tmp_path):
    folder = tmp_path / "bare"
    folder.mkdir()
    split(TRIPLES).save(str(folder / "tokenizer.json"))
    tokenizer = load_tokenizer(folder)
    assert tokenizer(PROMPT)["input_ids"] == file_of(folder).encode(PROMPT).ids
    assert (tokenizer.bos_token, tokenizer.eos_token, tokenizer.chat_template) == (None, None, None)
    with pytest.raises(InputError, match="bare: this tokenizer names no eos_token; name one in tokenizer_config.json"):
        end_of_text(folder)


@pytest.mark.parametrize("place", ["chat_template.jinja", "tokenizer_config.json", "a list in it"])
@pytest.mark.parametrize("kind", ["olmo2", "distill qwen", "unknown class"])
def test_chat_templates_and_names_come_from_the_other_files(kind, place, hub_folder):
    folder = hub_folder(kind)
    if place == "chat_template.jinja":
        (folder / place).write_text(CHATML)
    else:
        path = folder / "tokenizer_config.json"
        template = CHATML if place == path.name else [{"name": "default", "template": CHATML}]
        path.write_text(json.dumps(json.loads(path.read_text()) | {"chat_template": template}))
    file = file_of(folder)
    written = f"<|im_start|>user\n{PROMPT}<|im_end|>\n<|im_start|>assistant\n"
    (tokens,) = prompt_tokens([PROMPT], load_tokenizer(folder), chat_template=True)
    assert tokens.tolist() == file.encode(written, add_special_tokens=False).ids
    assert end_of_text(folder) == file.token_to_id("<|end|>")


def test_a_template_knows_the_special_tokens(hub_folder):
    folder = hub_folder("distill llama", chat_template=LLAMA3, image_token="Q")
    tokenizer, file = load_tokenizer(folder), file_of(folder)
    (tokens,) = prompt_tokens([PROMPT], tokenizer, chat_template=True)
    assert tokens[0] == file.token_to_id(BEGIN) and tokens.tolist().count(tokens[0]) == 1
    assert tokenizer.special_tokens_map["image_token"] == "Q"


def test_special_tokens_map_counts_where_the_settings_name_none(hub_folder):
    folder = hub_folder("gpt2", eos_token=None)
    (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "<|end|>", "lstrip": False}}))
    assert load_tokenizer(folder).eos_token == "<|end|>"


def test_gpt2_names_its_end_nowhere(tmp_path):
    tokenizer = split(special=("<|endoftext|>",))
    folder = write_folder(tmp_path / "gpt2", "gpt2", None, tokenizer, {})
    (folder / "tokenizer_config.json").write_text('{"model_max_length": 1024}')
    loaded = load_tokenizer(folder)
    assert loaded.eos_token_id == loaded.bos_token_id == 0 and end_tokens(folder, loaded) == [0]
    assert loaded.get_vocab() == tokenizer.get_vocab()


def test_names_of_tokens_that_the_file_does_not_have_are_left_out(hub_folder, caplog):
    """`transformers` would add them, with ids that the model has no embedding for."""
    folder = hub_folder("gpt2", eos_token="</s>", pad_token="[PAD]", extra_special_tokens=["<tool>"])
    tokenizer = load_tokenizer(folder)
    assert tokenizer.get_vocab() == file_of(folder).get_vocab()
    assert (tokenizer.eos_token_id, tokenizer.pad_token_id) == (None, None)
    assert f"{folder}: its eos_token '</s>' is no token of tokenizer.json and is left out" in caplog.messages
    assert tokenizer("<tool>")["input_ids"] == file_of(folder).encode("<tool>").ids


@pytest.mark.parametrize(
    "kind, wanted, words",
    [
        ("llama2", False, "has add_bos_token false, but tokenizer.json puts <s> in front of a text; the latter counts"),
        ("distill qwen", True, f"has add_bos_token true, but tokenizer.json puts no {BEGIN} in front of a text"),
        ("llama2", True, ""),
        ("phi3", False, ""),
    ],
)
def test_the_file_says_what_stands_in_front(kind, wanted, words, hub_folder, caplog):
    folder = hub_folder(kind, add_bos_token=wanted)
    tokenizer = load_tokenizer(folder)
    assert tokenizer(PROMPT)["input_ids"] == file_of(folder).encode(PROMPT).ids
    messages = [message for message in caplog.messages if "add_bos_token" in message]
    assert len(messages) == bool(words) and words in "".join(messages)


def test_special_tokens_stay_whole_and_text_is_not_cleaned(hub_folder):
    settings = {"split_special_tokens": True, "clean_up_tokenization_spaces": True}
    tokenizer = load_tokenizer(hub_folder("t5", **settings))
    assert tokenizer("a</s>")["input_ids"][-1] == tokenizer.eos_token_id
    assert tokenizer.decode(tokenizer("on the mat ; ca n't .")["input_ids"][1:]) == "on the mat ; ca n't ."


# Dropout, truncation, padding


@pytest.mark.parametrize("name", [None, "GPT2Tokenizer", "PreTrainedTokenizerFast"])
@pytest.mark.parametrize("dropout", [0.1, 0.5, 1.0])
def test_a_text_has_the_same_tokens_at_each_reading(name, dropout, tmp_path):
    trained = split(TRIPLES)
    expected = trained.encode(PROMPT + SOLUTION * 5).ids
    trained.model.dropout = dropout
    folder = write_folder(tmp_path / "dropout", "llama", name, trained, {})
    assert file_of(folder).encode(PROMPT + SOLUTION * 5).ids != expected
    for _ in range(3):
        (sequence,) = tokenize([("k", PROMPT, SOLUTION * 5)], TokenizerCache().load(folder), 999)
        assert sequence.token_ids.tolist() == expected
    assert prompt_tokens([PROMPT + SOLUTION * 5], load_tokenizer(folder))[0].tolist() == expected
    tokenize_source(iter([[PROMPT + SOLUTION * 5]]), folder / "tokenizer.json", tmp_path / "shards", 9, 0, "x")
    tokens = Tokens(tmp_path / "shards")
    tokens.read(0, out := np.empty(tokens.tokens, np.int64))
    assert out.tolist() == [*expected, 0]


def test_truncation_and_padding_in_the_file_are_off(tmp_path):
    tokenizer = split(TRIPLES)
    expected = tokenizer.encode(PROMPT + SOLUTION).ids
    tokenizer.enable_truncation(5, stride=2)
    tokenizer.enable_padding(length=64, pad_id=0, pad_token="<|end|>")
    folder = write_folder(tmp_path / "cut", "llama", "LlamaTokenizerFast", tokenizer, {})
    for _ in range(2):
        loaded = load_tokenizer(folder)
        assert loaded.backend_tokenizer.encode(PROMPT + SOLUTION).ids == expected
        assert loaded(PROMPT + SOLUTION)["input_ids"] == loaded([PROMPT + SOLUTION])["input_ids"][0] == expected
    assert read_tokenizer(folder / "tokenizer.json").encode(PROMPT + SOLUTION).ids == expected


# What cannot be read


@pytest.mark.parametrize("files", [("vocab.json", "merges.txt"), ("tokenizer.model",), ("tekken.json",), ()])
def test_a_folder_with_a_slow_vocabulary_alone_is_refused(files, hub_folder):
    folder = hub_folder("llama2")
    (folder / "tokenizer.json").unlink()
    for name in files:
        (folder / name).write_text("{}")
    with pytest.raises(InputError, match=r"tokenizer.json missing; found \[.*\]; the save_pretrained of a fast tok"):
        TokenizerCache().load(folder)


@pytest.mark.parametrize(
    "name, text, words",
    [
        ("tokenizer.json", "", "no readable tokenizer"),
        ("tokenizer.json", "{}", "no readable tokenizer"),
        ("tokenizer.json", '{"version": "1.0", "model": {"type": "BPE", "vocab": {"a": 0}', "no readable tokenizer"),
        (
            "tokenizer.json",
            '{"version": "1.0", "model": {"type": "of tomorrow", "vocab": {}}}',
            "no readable tokenizer",
        ),
        ("tokenizer_config.json", "{", "cannot read|broken JSON"),
        ("tokenizer_config.json", "[1]", "cannot read|must be a JSON object"),
        ("tokenizer_config.json", '{"added_tokens_decoder": {"0": 3}}', "cannot read"),
        ("tokenizer_config.json", '{"padding_side": "top"}', "cannot read"),
        ("special_tokens_map.json", "{", "cannot read"),
        ("chat_template.jinja", b"\xff\xfe", "cannot read"),
    ],
)
def test_what_cannot_be_read_is_one_line(name, text, words, hub_folder):
    folder = hub_folder("llama2")
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    with pytest.raises(InputError, match=words) as caught:
        load_tokenizer(folder)
    assert str(caught.value).startswith(str(folder)) and "\n" not in str(caught.value)


@pytest.mark.parametrize(
    "key, value",
    [
        ("normalizer", {"type": "Precompiled", "precompiled_charsmap": "AAAA"}),
        (
            "post_processor",
            {
                "type": "TemplateProcessing",
                "single": [
                    {"SpecialToken": {"id": "<of tomorrow>", "type_id": 0}},
                    {"Sequence": {"id": "A", "type_id": 0}},
                ],
                "pair": [],
                "special_tokens": {},
            },
        ),
    ],
)
def test_what_makes_the_library_in_rust_panic_is_one_line(key, value, hub_folder):
    path = hub_folder("llama2") / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {key: value}))
    with pytest.raises(InputError, match="tokenizer.json: no readable tokenizer.*PanicException") as caught:
        load_tokenizer(path.parent)
    assert "\n" not in str(caught.value)


def test_a_tokenizer_is_loaded_anew_when_its_file_changes(hub_folder):
    folder, cache = hub_folder("olmo2"), TokenizerCache()
    first = cache.load(folder)
    same = Path(shutil.copytree(folder, folder.with_name("same")))
    assert cache.load(same) is first
    split(SINGLES).save(str(same / "tokenizer.json"))
    other = cache.load(same)
    assert other is not first and other(SOLUTION)["input_ids"] == file_of(same).encode(SOLUTION).ids
    (same / "tokenizer.json").write_text("{}")
    with pytest.raises(InputError):
        cache.load(same)
    assert cache.load(folder)(SOLUTION)["input_ids"] == file_of(folder).encode(SOLUTION).ids


# Those who read


@pytest.fixture
def same_model(tmp_path):
    """Folders of one model: with a class that builds its own pre-tokenizer and decoder, and with one that does not."""
    folders = []
    for name in ("LlamaTokenizerFast", "PreTrainedTokenizerFast"):
        folder = write_folder(tmp_path / name, "llama", name, split(TRIPLES), {})
        tiny_model(vocabulary=384).save_pretrained(folder)
        folders.append(folder)
    return folders


def test_an_engine_scores_and_writes_by_the_file(same_model):
    engine, found = TransformersEngine(ExtractionOptions(device="cpu")), []
    for folder in same_model:
        engine.load(folder)
        table = engine.token_stats(tokenize([("k", PROMPT, SOLUTION)], engine.tokenizer, engine.context))
        assert table["token"].to_list() == file_of(folder).encode(PROMPT + SOLUTION).ids[-len(table) :]
        (text,) = engine.generate([PROMPT], 24)
        (stop,) = re.findall(r"(?s)^.{6}(.{2})", text)
        (stopped,) = engine.generate([PROMPT], 24, stop=[stop])
        assert stopped == text[: text.index(stop)]
        found.append((table["logprob"].to_list(), text))
        engine.close()
    assert found[0] == found[1]


def test_a_prompt_that_no_solution_stands_behind_yet_is_checked_too(same_model, tmp_path):
    rows = [{"id": "a", "prompt": "Q: 2?", "answer": "4"}, {"id": "b", "prompt": "Q: 2?<|user|>\n3", "answer": "4"}]
    (tmp_path / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {same_model[0]: ExtractionOptions()}, [tmp_path / "p.jsonl"], read_problems
    assert check_folders(*given) == {str(same_model[0]): 0}
    swallowing(file_of(same_model[0])).save(str(same_model[0] / "tokenizer.json"))
    with pytest.raises(
        InputError, match="prompt 'Q: 2.<|user|>.n3': the tokenizer of .* does not give the prompt back"
    ):
        check_folders(*given)


def test_the_caches_warnings_come_once(hub_folder, caplog):
    cache, folder = TokenizerCache(), hub_folder("distill qwen")
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            cache.load(folder)
    assert len([m for m in caplog.messages if "add_bos_token" in m]) == 1


def test_tokenizers_are_known_if_all_of_them_are_there(model_folder, tmp_path):
    folders = [str(model_folder(name)) for name in ("one", "other")]
    assert len(tokenizer_fingerprints(folders)) == 1 and tokenizer_fingerprints([]) == []
    assert tokenizer_fingerprints([*folders, str(tmp_path / "downloaded_and_removed")]) == []
