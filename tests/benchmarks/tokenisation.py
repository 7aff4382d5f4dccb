"""How much tokenising a user's text costs over the tokenizer itself, and whether its memory stays bounded.

    python tests/benchmarks/tokenisation.py [--megabytes 16] [--stream-gb 10] [--out table.md]

Speed: MB of text per second of processor time, on one core, of the whole way from compressed files to shards (read,
decompress, parse, filter, tokenise, write), beside the library's `encode_batch_fast` alone on the same batches in
memory. The two take turns, and each number is the best of the rounds, because other work on the machine only slows. The
text is the source of Python's standard library, the tokenizer a byte-level BPE of 50,000 tokens trained on it.

Memory: with --stream-gb that much text is tokenised from one .jsonl.zst (many frames of the same text, so it takes
little disk) under a limit of 2 GiB on the process's data (RLIMIT_DATA: all private writable memory, of threads too;
a limit on the address space would count files that are only mapped). It splits at white space, which is faster than
BPE; a twentieth of the text goes through the BPE as well. The table tells the peak of resident memory on the way.
"""

import argparse
import os
import platform
import resource
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

if __name__ == "__main__" and "--stream" not in sys.argv:  # before the libraries start their threads
    os.environ.update(TOKENIZERS_PARALLELISM="false", POLARS_MAX_THREADS="1")

import polars as pl
import tokenizers
from backports import zstd
from proxycast.config.training import Source
from proxycast.training.text.documents import documents
from proxycast.training.text.shards import tokenize_source
from tokenizers import Tokenizer, models, pre_tokenizers, trainers
from tqdm import tqdm

GIB = 1 << 30
FORMATS = (".jsonl", ".jsonl.gz", ".jsonl.zst", ".parquet")
END = "<|endoftext|>"


def standard_library() -> list[str]:
    paths = sorted(Path(sysconfig.get_path("stdlib")).rglob("*.py"))
    return [path.read_text("utf8", "replace") for path in paths if "site-packages" not in path.parts]


def train_bpe(texts: list[str], path: Path) -> None:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=50_000, special_tokens=[END], initial_alphabet=alphabet, show_progress=False
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.save(str(path))


def save_words(path: Path) -> None:
    """A tokenizer that splits at white space and knows no word: as fast as one can be."""
    tokenizer = Tokenizer(models.WordLevel({END: 0, "?": 1}, unk_token="?"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(path))


def write_texts(texts: list[str], folder: Path, kind: str) -> Path:
    """`texts` as a file, with the columns that files of web text have besides."""
    path = folder / f"texts{kind}"
    table = (
        pl.DataFrame({"text": texts}).with_row_index("id").with_columns(score=pl.col("id") % 5, language=pl.lit("en"))
    )
    if kind == ".parquet":
        table.write_parquet(path, row_group_size=1000)
        return path
    lines = table.write_ndjson().encode()
    if kind.endswith(".gz"):
        import gzip

        lines = gzip.compress(lines, 6)
    path.write_bytes(zstd.compress(lines) if kind.endswith(".zst") else lines)
    return path


def processor_seconds(work, *arguments) -> float:
    start = time.process_time()
    work(*arguments)
    return time.process_time() - start


def only_tokenise(tokenizer: Path, batches: list[list[str]]) -> None:
    library = Tokenizer.from_file(str(tokenizer))
    for batch in batches:
        library.encode_batch_fast(batch, add_special_tokens=False)


def files_to_shards(tokenizer: Path, source: Source, folder: Path) -> None:
    tokenize_source(documents(source.paths(), source), tokenizer, folder, 1 << 60, 0, folder.name)


def speed(tokenizer: Path, texts: list[str], rounds: int, scratch: Path) -> list[str]:
    """Rows of the table: one for each format of file."""
    os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})
    rows = []
    for kind in tqdm(FORMATS):
        source = Source(files=str(write_texts(texts, scratch, kind)), where="score >= 0 and language = 'en'")
        batches = list(documents(source.paths(), source))
        megabytes = sum(len(text.encode()) for batch in batches for text in batch) / 1e6
        alone, whole = [], []
        for turn in range(rounds):
            alone.append(processor_seconds(only_tokenise, tokenizer, batches))
            whole.append(processor_seconds(files_to_shards, tokenizer, source, scratch / f"{kind}-{turn}"))
        limit, reached = megabytes / min(alone), megabytes / min(whole)
        rows.append(f"| {kind} | {megabytes:.1f} | {limit:.2f} | {reached:.2f} | {reached / limit:.0%} |")
    return rows


def peak_mib() -> int:
    """Of this process alone; the one of `getrusage` starts at what the parent had."""
    status = dict(line.split(":", 1) for line in Path("/proc/self/status").read_text().splitlines())
    return int(status["VmHWM"].split()[0]) // 1024


def told(batches: Iterator[list[str]], tokenizer: str) -> Iterator[list[str]]:
    """`batches`; prints a row of the table whenever the text so far has doubled."""
    start, size, next_row = time.monotonic(), 0, GIB // 16

    def row() -> None:
        seconds = time.monotonic() - start
        print(f"| {tokenizer} | {size / 1e9:.2f} | {seconds:.0f} | {peak_mib()} |", flush=True)

    for batch in batches:
        size += sum(len(text.encode()) for text in batch)
        yield batch
        if size >= next_row:
            row()
            next_row *= 2
    row()


def stream(path: Path, tokenizer: Path, name: str, text_bytes: int) -> None:
    """Tokenise all of `path` in this process, which may not take more than 2 GiB."""
    resource.setrlimit(resource.RLIMIT_DATA, (2 * GIB, 2 * GIB))
    with tempfile.TemporaryDirectory() as folder:
        batches = told(documents([path], Source(files=str(path))), name)
        made = tokenize_source(batches, tokenizer, Path(folder), 1 << 60, 0, "benchmark")
    assert made["text_bytes"] == text_bytes, "text was lost"


def memory(bpe: Path, words: Path, texts: list[str], gigabytes: float, scratch: Path) -> Iterator[str]:
    """Rows of the table, as they come."""
    lines = pl.DataFrame({"text": texts}).write_ndjson().encode()
    frame, frame_bytes = zstd.compress(lines, 3), sum(len(text.encode()) for text in texts)
    for name, tokenizer, size in (("BPE", bpe, gigabytes / 20), ("white space", words, gigabytes)):
        path, frames = scratch / "stream.jsonl.zst", max(1, round(size * 1e9 / frame_bytes))
        with path.open("wb") as file:
            for _ in range(frames):
                file.write(frame)
        command = [sys.executable, __file__, "--stream", path, tokenizer, name, str(frames * frame_bytes)]
        environment = os.environ | {"TOKENIZERS_PARALLELISM": "true"}
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, env=environment) as process:
            yield from process.stdout
        if process.returncode:
            raise SystemExit(f"tokenising {size:g} GB ended with status {process.returncode}")
        path.unlink()


def report(options: argparse.Namespace) -> Iterator[str]:
    texts = standard_library()
    with tempfile.TemporaryDirectory(dir=options.scratch) as folder:
        scratch = Path(folder)
        bpe, words = scratch / "bpe.json", scratch / "words.json"
        train_bpe(texts, bpe)
        save_words(words)
        yield f"# Tokenising text\n\n    python tests/benchmarks/tokenisation.py {' '.join(sys.argv[1:])}\n\n"
        yield f"tokenizers {tokenizers.__version__}, polars {pl.__version__}, {platform.machine()}. "
        yield "Standard library of Python as text; columns beside it that `where` reads.\n\n"
        if options.stream_gb:
            yield "Memory, all cores, under a limit of 2 GiB on the process's data (RLIMIT_DATA), one .jsonl.zst:\n\n"
            yield "| tokens by | GB of text so far | s | peak resident memory, MiB |\n|---|---|---|---|\n"
            yield from memory(bpe, words, texts, options.stream_gb, scratch)
            yield "\n"
        some = texts[:: max(1, round(sum(map(len, texts)) / (options.megabytes * 1e6)))]
        yield "Speed on one core, MB of text per second of processor time; BPE of 50,000 tokens; best of "
        yield f"{options.rounds} rounds:\n\n| file | MB of text | encode_batch_fast alone | files to shards | ratio |\n"
        yield "|---|---|---|---|---|\n" + "\n".join(speed(bpe, some, options.rounds, scratch)) + "\n"


def main() -> None:
    if "--stream" in sys.argv:
        path, tokenizer, name, text_bytes = sys.argv[2:]
        return stream(Path(path), Path(tokenizer), name, int(text_bytes))
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=float, default=16, help="of text for the speed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--stream-gb", type=float, default=0, help="of text for the memory; 0: not measured")
    parser.add_argument("--scratch", type=Path, help="folder for the text; without it the system's")
    parser.add_argument("--out", type=Path, help="Markdown file for the tables")
    options = parser.parse_args()
    parts = []
    for part in report(options):
        print(part, end="", flush=True)
        parts.append(part)
    if options.out:
        options.out.write_text("".join(parts))


if __name__ == "__main__":
    main()
