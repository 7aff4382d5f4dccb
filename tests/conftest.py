"""Tiny tokenizers and models that several test modules share, and how tests of components are left out.

A test that needs a package which proxycast itself does not is marked with the package's name; one that needs the local
Slurm of components/slurm-local.sh with `slurm`. Without the component it is skipped; with `--require-components`, as in
CI, it fails.
"""

import subprocess
from importlib.util import find_spec
from pathlib import Path

import pytest
import torch
from hypothesis import settings
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

settings.register_profile("no deadline", deadline=None)  # a test's time says nothing on a shared machine
settings.load_profile("no deadline")

PACKAGES = ("vllm", "lm_eval", "triton", "olmo")
COMPONENTS = (*PACKAGES, "slurm")
SLURM_CONF = Path("/etc/slurm/slurm.conf")


def pytest_addoption(parser):
    parser.addoption("--require-components", action="store_true", help="fail where a component is not installed")


def pytest_configure(config):
    for name in PACKAGES:
        config.addinivalue_line("markers", f"{name}: needs the package {name}")
    config.addinivalue_line(
        "markers", "slurm: disturbs the Slurm of components/slurm-local.sh; only with --dist loadscope"
    )
    config.addinivalue_line("markers", "gpu: needs a GPU")
    config.addinivalue_line("markers", "slow: takes too long for the suite; only with --require-components")
    config.addinivalue_line("markers", "interpreter: needs Triton's interpreter; test_token_stats.py runs it")


def pytest_collection_modifyitems(items):
    """The longest file first: begun last, it would run alone."""
    items.sort(key=lambda item: item.path.name != "test_workflow.py")


def is_there(component: str) -> bool:
    if component != "slurm":
        return find_spec(component) is not None
    # Never a cluster that others use.
    is_ours = SLURM_CONF.exists() and "written by slurm-local.sh" in SLURM_CONF.read_text()
    return is_ours and subprocess.run(["sinfo"], capture_output=True).returncode == 0


def pytest_runtest_setup(item):
    missing = [name for name in COMPONENTS if item.get_closest_marker(name) and not is_there(name)]
    if missing and item.config.getoption("--require-components"):
        pytest.fail(f"missing: {', '.join(missing)}", pytrace=False)
    if missing:
        pytest.skip(f"missing: {', '.join(missing)} (.ci/run installs it)")
    is_slow = item.get_closest_marker("slow") or item.get_closest_marker("slurm")
    if is_slow and not item.config.getoption("--require-components"):
        pytest.skip("takes too long for the suite (.ci/run runs it)")
    if item.get_closest_marker("gpu") and not torch.cuda.is_available():
        pytest.skip("no GPU")


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
