"""Tokenizers of several kinds, for the tests of tokenisation."""

import json

from awkward_models import CHATML, byte_level, sentencepiece, unigram
from conftest import EOS, byte_level_tokenizer, metaspace_tokenizer
from hypothesis import strategies as st
from tokenizers import AddedToken, Tokenizer
from transformers import PreTrainedTokenizerFast

PLAIN, WITH_BOS, WITH_BOTH = byte_level_tokenizer(), byte_level_tokenizer(bos=True), byte_level_tokenizer(True, True)
METASPACE = metaspace_tokenizer()
TOKENIZERS = [PLAIN, WITH_BOS, WITH_BOTH, METASPACE]
NFC = byte_level([EOS], nfc=True)
BYTE_FALLBACK = [sentencepiece(), sentencepiece(prefix=False), unigram()]
texts = st.text(st.characters(exclude_categories=["Cs"]), max_size=30) | st.text(" \n.cat2é€😀\u0301", max_size=30)


def with_added(tokenizer: PreTrainedTokenizerFast, *added: AddedToken, **settings) -> PreTrainedTokenizerFast:
    """`tokenizer` with more tokens; `settings`: parts of its file."""
    file = json.loads(tokenizer.backend_tokenizer.to_str()) | settings
    backend = Tokenizer.from_str(json.dumps(file))
    backend.add_tokens(list(added))
    return PreTrainedTokenizerFast(tokenizer_object=backend)


def chat(template: str = CHATML, **kind) -> PreTrainedTokenizerFast:
    special = ["<|begin|>", "<|im_start|>", "<|im_end|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(special, bos="<|begin|>", eos="<|im_end|>", **kind)
    tokenizer.chat_template = template
    return tokenizer
