"""Small random models of the kinds that differ in how text becomes tokens and hidden states become logits.

Each builder writes a folder as the Hugging Face hub has it: `AWKWARD[name](folder, seed) -> folder`. All have hidden
states of 64 in two heads of 32 (the least that vLLM's CPU build runs), 2 layers, a context of 128 tokens, and weights
large enough for sharp predictions, so that a forgotten scale or soft cap shows.
"""

import json
from collections.abc import Callable
from pathlib import Path

import torch
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import (
    CohereConfig,
    CohereForCausalLM,
    FalconH1Config,
    FalconH1ForCausalLM,
    Gemma2Config,
    Gemma2ForCausalLM,
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    GraniteConfig,
    GraniteForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedModel,
    PreTrainedTokenizerFast,
    Qwen3Config,
    Qwen3ForCausalLM,
    Qwen3MoeConfig,
    Qwen3MoeForCausalLM,
    Qwen3NextConfig,
    Qwen3NextForCausalLM,
)

CONTEXT = 128
TEXT = """Q: what is 2 plus 3?\nA: 2 plus 3 is five, so the answer is 5.\n\nThe cat sat on the mat; the hat was his.
Let x = 10 - 4. Then 3 * x = 18, which is what had to be shown.\n\tif n > 1:\n        return n - 1\n"""
BYTES = [f"<0x{byte:02X}>" for byte in range(256)]

CHATML = """{%- for message in messages %}
{{- '<|im_start|>' + message['role'] + '\\n' + message['content'] + '<|im_end|>\\n' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|im_start|>assistant\\n' }}{%- endif %}"""
# As Llama 3's, it writes the BOS, which the tokenizer would add once more, and today's date.
LLAMA3 = """{{- bos_token }}
{{- '<|start_header_id|>system<|end_header_id|>\\n\\nToday: ' + strftime_now('%d %b %Y') + '<|eot_id|>' }}
{%- for message in messages %}
{{- '<|start_header_id|>' + message['role'] + '<|end_header_id|>\\n\\n' + message['content'] | trim + '<|eot_id|>' }}
{%- endfor %}
{%- if add_generation_prompt %}{{- '<|start_header_id|>assistant<|end_header_id|>\\n\\n' }}{%- endif %}"""


# Tokenizers


def byte_level(
    special: list[str], bos: str | None = None, eos: str | None = None, add_bos: bool = False, nfc: bool = False
) -> PreTrainedTokenizerFast:
    """GPT-2's kind: BPE over bytes. `add_bos` puts `bos` in front of each text; `nfc` normalises as GPT-NeoX does."""
    tokenizer = Tokenizer(models.BPE())
    if nfc:
        tokenizer.normalizer = normalizers.NFC()
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=340, special_tokens=special, initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator([TEXT] * 2, trainer)
    steps = [processors.ByteLevel(trim_offsets=True)]
    if add_bos:
        steps.append(_bos_in_front(bos, tokenizer))
    tokenizer.post_processor = processors.Sequence(steps)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token=bos, eos_token=eos)


def sentencepiece(prefix: bool = True) -> PreTrainedTokenizerFast:
    """Llama 2's kind: BPE over characters, a mark for spaces, bytes for characters that it does not know, and a BOS.

    `prefix`: a space goes in front of each text, and decoding takes it away again; Gemma's kind does neither.
    """
    special = ["<unk>", "<s>", "</s>"]
    trained = Tokenizer(models.BPE())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    trained.train_from_iterator([TEXT] * 2, trainers.BpeTrainer(vocab_size=90, show_progress=False))
    learned = json.loads(trained.to_str())["model"]
    pieces = [*special, *BYTES, *(piece for piece in learned["vocab"] if piece not in "\n\t")]
    merges = [tuple(merge) for merge in learned["merges"] if not {"\n", "\t"} & set("".join(merge))]
    model = models.BPE(
        {piece: i for i, piece in enumerate(pieces)}, merges, unk_token="<unk>", fuse_unk=True, byte_fallback=True
    )
    tokenizer = Tokenizer(model)
    mark, undo = normalizers.Replace(" ", "▁"), [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse()]
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), mark]) if prefix else mark
    tokenizer.decoder = decoders.Sequence([*undo, decoders.Strip(" ", 1, 0)] if prefix else undo)
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special])
    tokenizer.post_processor = _bos_in_front("<s>", tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def unigram() -> PreTrainedTokenizerFast:
    """SentencePiece's other kind: Unigram with Metaspace for a pre-tokenizer, bytes for unknown characters, a BOS."""
    trained = Tokenizer(models.Unigram())
    trained.pre_tokenizer = pre_tokenizers.Metaspace()
    special = ["<unk>", "<s>", "</s>", *BYTES]
    trainer = trainers.UnigramTrainer(vocab_size=400, special_tokens=special, unk_token="<unk>", show_progress=False)
    trained.train_from_iterator([TEXT.replace("\n", " ").replace("\t", " ")] * 2, trainer)
    pieces = [tuple(piece) for piece in json.loads(trained.to_str())["model"]["vocab"]]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=0, byte_fallback=True))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(split=False)
    tokenizer.decoder = decoders.Sequence([decoders.ByteFallback(), decoders.Metaspace()])
    tokenizer.add_special_tokens([AddedToken(token, normalized=False, special=True) for token in special[:3]])
    tokenizer.post_processor = _bos_in_front("<s>", tokenizer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, bos_token="<s>", eos_token="</s>", unk_token="<unk>")


def _bos_in_front(bos: str, tokenizer: Tokenizer) -> processors.TemplateProcessing:
    return processors.TemplateProcessing(single=f"{bos} $A", special_tokens=[(bos, tokenizer.token_to_id(bos))])


# Models


def llama_bos_sentencepiece(folder: Path, seed: int = 0) -> Path:
    """Llama 2: a SentencePiece tokenizer that puts a BOS in front; the head is not tied."""
    tokenizer = sentencepiece()
    return _save(folder, LlamaForCausalLM, LlamaConfig, tokenizer, seed, "LlamaTokenizer", num_key_value_heads=1)


def llama_no_bos_bytelevel(folder: Path, seed: int = 0) -> Path:
    """OLMo and DataDecide: a byte-level tokenizer without BOS, and more embeddings than the tokenizer has tokens."""
    tokenizer = byte_level(["<|padding|>", "<|endoftext|>"], eos="<|endoftext|>", nfc=True)
    return _save(
        folder,
        LlamaForCausalLM,
        LlamaConfig,
        tokenizer,
        seed,
        "GPTNeoXTokenizer",
        vocab_size=-(-len(tokenizer) // 128) * 128,
    )


def gemma2_softcap(folder: Path, seed: int = 0) -> Path:
    """Gemma 2: logits and attention scores under a soft cap, every other layer with a window of attention, tied."""
    tokenizer = sentencepiece(prefix=False)
    caps = dict(final_logit_softcapping=5.0, attn_logit_softcapping=3.0)
    heads = dict(head_dim=32, num_key_value_heads=1, query_pre_attn_scalar=32, sliding_window=64)
    return _save(
        folder,
        Gemma2ForCausalLM,
        Gemma2Config,
        tokenizer,
        seed,
        "GemmaTokenizer",
        **caps,
        **heads,
        tie_word_embeddings=True,
    )


def cohere_scale(folder: Path, seed: int = 0) -> Path:
    """Command R: logits are multiplied by a scale; tied."""
    special = ["<PAD>", "<BOS_TOKEN>", "<EOS_TOKEN>"]
    tokenizer = byte_level(special, bos="<BOS_TOKEN>", eos="<EOS_TOKEN>", add_bos=True, nfc=True)
    return _save(
        folder,
        CohereForCausalLM,
        CohereConfig,
        tokenizer,
        seed,
        "CohereTokenizer",
        logit_scale=0.25,
        tie_word_embeddings=True,
    )


def granite_scaling(folder: Path, seed: int = 0) -> Path:
    """Granite: logits are divided by a scale, embeddings, residuals and attention scores multiplied by others."""
    tokenizer = byte_level(["<|end_of_text|>"], bos="<|end_of_text|>", eos="<|end_of_text|>")
    scales = dict(logits_scaling=4.0, embedding_multiplier=3.0, residual_multiplier=0.5, attention_multiplier=0.1)
    return _save(
        folder, GraniteForCausalLM, GraniteConfig, tokenizer, seed, "GPT2Tokenizer", **scales, tie_word_embeddings=True
    )


def gpt2_tied(folder: Path, seed: int = 0) -> Path:
    """GPT-2: learned positions, so none beyond the context; tied; BOS and EOS are one token that is never added."""
    tokenizer = byte_level(["<|endoftext|>"], bos="<|endoftext|>", eos="<|endoftext|>")
    shape = dict(n_embd=64, n_layer=2, n_head=2, n_positions=CONTEXT)
    return _save(
        folder, GPT2LMHeadModel, GPT2Config, tokenizer, seed, "GPT2Tokenizer", **shape, tie_word_embeddings=True
    )


def gpt_neox(folder: Path, seed: int = 0) -> Path:
    """Pythia: attention beside the feed-forward block, positions in a quarter of each head; the head is not tied."""
    tokenizer = byte_level(["<|endoftext|>"], bos="<|endoftext|>", eos="<|endoftext|>", nfc=True)
    return _save(folder, GPTNeoXForCausalLM, GPTNeoXConfig, tokenizer, seed, "GPTNeoXTokenizer", vocab_size=384)


def qwen3_chat(folder: Path, seed: int = 0) -> Path:
    """Qwen 3: post-trained, a chat template without BOS (chat_template.jinja); tied."""
    special = ["<|endoftext|>", "<|im_start|>", "<|im_end|>"]
    tokenizer = byte_level(special, eos="<|im_end|>", nfc=True)
    tokenizer.chat_template = CHATML
    shape = dict(head_dim=32, num_key_value_heads=1, vocab_size=384)
    return _save(
        folder, Qwen3ForCausalLM, Qwen3Config, tokenizer, seed, "Qwen2Tokenizer", **shape, tie_word_embeddings=True
    )


def llama3_chat_bos(folder: Path, seed: int = 0) -> Path:
    """Llama 3: post-trained; template (in tokenizer_config.json) and tokenizer both write a BOS; weights in shards."""
    special = ["<|begin_of_text|>", "<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"]
    tokenizer = byte_level(special, bos=special[0], eos="<|eot_id|>", add_bos=True)
    _save(folder, LlamaForCausalLM, LlamaConfig, tokenizer, seed, num_key_value_heads=1, shard="150KB")
    _change_json(folder / "tokenizer_config.json", chat_template=LLAMA3)
    return folder


def qwen3_moe(folder: Path, seed: int = 0) -> Path:
    """Qwen 3 with a mixture of four experts in its second layer, two for each token."""
    tokenizer = byte_level(["<|endoftext|>"], eos="<|endoftext|>", nfc=True)
    experts = dict(num_experts=4, num_experts_per_tok=2, moe_intermediate_size=32, mlp_only_layers=[0])
    shape = dict(head_dim=32, num_key_value_heads=1, vocab_size=384)
    return _save(folder, Qwen3MoeForCausalLM, Qwen3MoeConfig, tokenizer, seed, "Qwen2Tokenizer", **experts, **shape)


def falcon_h1_mamba2(folder: Path, seed: int = 0) -> Path:
    """Falcon H1: Mamba 2 beside attention in every layer."""
    tokenizer = byte_level(["<|endoftext|>"], eos="<|endoftext|>", nfc=True)
    mamba = dict(mamba_n_heads=4, mamba_d_head=32, mamba_d_ssm=128, mamba_d_state=16, mamba_n_groups=1)
    shape = dict(mamba_chunk_size=32, num_key_value_heads=1, vocab_size=384, intermediate_size=32)
    return _save(folder, FalconH1ForCausalLM, FalconH1Config, tokenizer, seed, **mamba, **shape)


def qwen3_next_deltanet(folder: Path, seed: int = 0) -> Path:
    """Qwen 3 Next: a layer of gated DeltaNet and one of gated attention, both with a mixture and a shared expert."""
    tokenizer = byte_level(["<|endoftext|>"], eos="<|endoftext|>", nfc=True)
    experts = dict(num_experts=3, num_experts_per_tok=2, moe_intermediate_size=32, shared_expert_intermediate_size=16)
    delta = dict(linear_num_value_heads=2, linear_num_key_heads=1, linear_key_head_dim=64, linear_value_head_dim=64)
    shape = dict(head_dim=32, num_key_value_heads=1, vocab_size=384, layer_types=["linear_attention", "full_attention"])
    tokens = (tokenizer, seed, "Qwen2Tokenizer")
    return _save(folder, Qwen3NextForCausalLM, Qwen3NextConfig, *tokens, **experts, **delta, **shape)


def _save(
    folder: Path,
    model: type[PreTrainedModel],
    config: type,
    tokenizer: PreTrainedTokenizerFast,
    seed: int,
    tokenizer_class: str = "PreTrainedTokenizerFast",
    shard: str = "5GB",
    **settings,
) -> Path:
    """A random model with its tokenizer in `folder`, under the name that the hub's models of the kind give it."""
    shared = dict(vocab_size=len(tokenizer), initializer_range=0.3, tie_word_embeddings=False)
    tokens = dict(bos_token_id=tokenizer.bos_token_id, eos_token_id=tokenizer.eos_token_id, pad_token_id=None)
    block = dict(hidden_size=64, num_hidden_layers=2, num_attention_heads=2, intermediate_size=128)
    if config is not GPT2Config:
        shared |= block | {"max_position_embeddings": CONTEXT}
    torch.manual_seed(seed)
    random = model(config(**shared | tokens | settings))
    for parameter in random.parameters():
        if parameter.ndim == 1:  # norms and biases, which all start equal and so would hide that one is forgotten
            torch.nn.init.normal_(parameter, mean=float(parameter.detach().mean()), std=0.1)
    random.save_pretrained(folder, max_shard_size=shard)
    tokenizer.save_pretrained(folder)
    _change_json(folder / "tokenizer_config.json", tokenizer_class=tokenizer_class)
    return folder


def _change_json(path: Path, **settings) -> None:
    path.write_text(json.dumps(json.loads(path.read_text()) | settings))


AWKWARD: dict[str, Callable[..., Path]] = {
    build.__name__: build
    for build in (
        llama_bos_sentencepiece,
        llama_no_bos_bytelevel,
        gemma2_softcap,
        cohere_scale,
        granite_scaling,
        gpt2_tied,
        gpt_neox,
        qwen3_chat,
        llama3_chat_bos,
        qwen3_moe,
        falcon_h1_mamba2,
        qwen3_next_deltanet,
    )
}
CHAT = ("qwen3_chat", "llama3_chat_bos")
