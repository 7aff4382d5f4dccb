"""Tiny tokenizers and models that several test modules share: built in milliseconds, saved as any model folder is."""

from pathlib import Path

import pytest
import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerFast,
)

SAMPLE = ["Q: what is 2 plus 3?\nA: 2 plus 3 is five.\n\nThe cat sat on the mat; the hat. é€😀"] * 3
BOS, EOS = "<|bos|>", "<|end|>"
CONTEXT = 256


def byte_level_tokenizer(bos: bool = False, eos: bool = False) -> PreTrainedTokenizerFast:
    """Byte-level BPE, about 330 tokens; `bos` and `eos` put special tokens in front of and behind each text."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=330, special_tokens=[BOS, EOS], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    template = (BOS + " " if bos else "") + "$A" + (" " + EOS if eos else "")
    tokenizer.post_processor = processors.Sequence(
        [
            processors.ByteLevel(trim_offsets=True),
            processors.TemplateProcessing(single=template, special_tokens=[(BOS, 0), (EOS, 1)]),
        ]
    )
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS)


def metaspace_tokenizer() -> PreTrainedTokenizerFast:
    """Unigram with SentencePiece's white-space mark and a BOS in front; unknown characters are one token."""
    tokenizer = Tokenizer(models.Unigram())
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    trainer = trainers.UnigramTrainer(
        vocab_size=120, special_tokens=["<unk>", BOS, EOS], unk_token="<unk>", show_progress=False
    )
    tokenizer.train_from_iterator(SAMPLE, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(single=f"{BOS} $A", special_tokens=[(BOS, 1)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=BOS, eos_token=EOS, unk_token="<unk>")


def tiny_model(architecture: str = "llama", vocabulary: int = 352, seed: int = 0, tied: bool = False):
    """A random model with sharp predictions: hidden 64, 2 layers of 2 heads, float32."""
    shared = dict(vocab_size=vocabulary, tie_word_embeddings=tied, initializer_range=0.3)
    block = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    torch.manual_seed(seed)
    match architecture:
        case "llama":
            return LlamaForCausalLM(LlamaConfig(**shared, **block, max_position_embeddings=CONTEXT)).eval()
        case "gpt2":
            return GPT2LMHeadModel(GPT2Config(**shared, n_embd=64, n_layer=2, n_head=2, n_positions=CONTEXT)).eval()
        case "gpt_neox":
            return GPTNeoXForCausalLM(GPTNeoXConfig(**shared, **block, max_position_embeddings=CONTEXT)).eval()
    raise ValueError(architecture)


@pytest.fixture
def model_folder(tmp_path):
    """A function that saves a tiny model and its tokenizer: model_folder(name, **of tiny_model) -> folder."""

    def build(name: str = "model", model=None, tokenizer=None, **kind) -> Path:
        folder = tmp_path / name
        (model or tiny_model(**kind)).save_pretrained(folder)
        (tokenizer or byte_level_tokenizer()).save_pretrained(folder)
        return folder

    return build
