"""How fast a ladder's model is trained, beside the loop that one would write first.

    python tests/benchmarks/text_training.py [--steps 2] [--sequences 4] [--out table.md]

One side is `pretrain` on tokens that lie on disk. The other is a bare loop over random tokens: the same shape, the loss
of transformers (all logits at once), AdamW as it comes, two sequences at a time, which is what 8 GB hold. Both train
the 4M shape of DataDecide in this process, in turn, one step each. The number is tokens a second, the best of the
steps after the first, because other work on the machine only slows; processor time tells more there than wall time.
"""

import argparse
import platform
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch
from proxycast.config.ladder import Ladder
from proxycast.training.text.shards import TokenStream, tokenize_source
from proxycast.training.text.train_run import pretrain
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY, LENGTH, END = 50_304, 2048, "<|endoftext|>"
SHAPE = {"hidden_size": 64, "layers": 8, "heads": 8, "learning_rate": 0.014413}
AT_ONCE = 2  # sequences of the bare loop


def save_tokenizer(folder: Path) -> None:
    """One token a byte."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE({token: i for i, token in enumerate([*alphabet, END])}, []))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END).save_pretrained(folder)


def standard_library() -> Iterator[list[str]]:
    for path in sorted(Path(sysconfig.get_path("stdlib")).glob("*.py")):
        yield [path.read_text("utf8", "replace")]


def bare_step(sequences: int) -> Callable[[], None]:
    """One step of the bare loop on a new random batch."""
    config = LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=SHAPE["hidden_size"],
        intermediate_size=4 * SHAPE["hidden_size"],
        num_hidden_layers=SHAPE["layers"],
        num_attention_heads=SHAPE["heads"],
        max_position_embeddings=LENGTH,
    )
    model = LlamaForCausalLM(config).train()
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3, betas=(0.9, 0.95), weight_decay=0.1)

    def step() -> None:
        batch = torch.randint(VOCABULARY, (sequences, LENGTH))
        for part in batch.split(AT_ONCE):
            (model(input_ids=part, labels=part, use_cache=False).loss * len(part) / sequences).backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()

    return step


def clocks() -> np.ndarray:
    return np.array([time.process_time(), time.perf_counter()])


def measure(ladder: Ladder, folder: Path) -> tuple[np.ndarray, np.ndarray]:
    """Seconds (steps, 2) of processor and wall time: of a step of `pretrain`, and of one of the bare loop."""
    sequences, steps = ladder.sizes["4M"].batch_sequences, ladder.sizes["4M"].steps
    tokenize_source(
        standard_library(),
        folder / "tokenizer/tokenizer.json",
        folder / "tokens",
        sequences * LENGTH * steps,
        256,
        "text",
    )
    stream = TokenStream([folder / "tokens"], [1.0], steps, sequences, LENGTH, seed=0)
    bare, ours, theirs = bare_step(sequences), [], []
    start = None

    def batches(step: int) -> np.ndarray:
        """`pretrain` asks for its next batch when a step is done; the bare loop has its turn then."""
        nonlocal start
        if start is not None:
            ours.append(clocks() - start)
        start = clocks()
        bare()
        theirs.append(clocks() - start)
        start = clocks()
        return stream.batch(step)

    pretrain(
        ladder, "4M", 0, batches, folder / "models", (0, steps), folder / "tokenizer", folder / "state", "text", "cpu"
    )
    return np.array(ours), np.array(theirs)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=2, help="that are measured, after one that is not")
    parser.add_argument("--sequences", type=int, default=4, help="in a batch; DataDecide has 32")
    parser.add_argument("--out", type=Path, help="also write the table to this Markdown file")
    options = parser.parse_args()
    torch.set_num_threads(1)
    # The last step of `pretrain` ends with a checkpoint and is not measured either.
    size = SHAPE | {"batch_sequences": options.sequences, "steps": options.steps + 2}
    ladder = Ladder(
        name="benchmark",
        tokenizer={"folder": "tokenizer"},
        vocabulary=VOCABULARY,
        sequence_length=LENGTH,
        checkpoint_every=size["steps"],
        seeds={0: "default"},
        sizes={"4M": size},
    )
    with tempfile.TemporaryDirectory() as scratch:
        save_tokenizer(Path(scratch) / "tokenizer")
        sides = measure(ladder, Path(scratch))
    ours, bare = (options.sequences * LENGTH / times[1:].min(0) for times in sides)
    lines = [
        "# Training on a corpus of text",
        "",
        f"    python tests/benchmarks/text_training.py --steps {options.steps} --sequences {options.sequences}",
        "",
        f"One core, {platform.machine()}; torch {torch.__version__}. DataDecide's 4M shape (L = 8, d = 64, "
        f"V = {VOCABULARY}), {options.sequences} sequences of {LENGTH} tokens a batch;",
        f"best of {options.steps} steps. The bare loop uses the loss of transformers and AdamW on random tokens.",
        "",
        "| time | `pretrain`, tokens/s | bare loop, tokens/s | ratio |",
        "|---|---|---|---|",
        *(
            f"| {kind} | {ours[i]:.0f} | {bare[i]:.0f} | {ours[i] / bare[i]:.2f} |"
            for i, kind in enumerate(["processor", "wall"])
        ),
    ]
    print("\n" + "\n".join(lines))
    if options.out:
        options.out.write_text("\n".join(lines) + "\n")


if __name__ == "__main__":
    main()
