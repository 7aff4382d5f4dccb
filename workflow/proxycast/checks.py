"""What is checked before the first model is trained or scored: recipes, solutions, model folders, a table of truth."""

from collections.abc import Iterable
from pathlib import Path

import polars as pl

from proxycast.config import GENERIC_TEXT, Corpus, Task
from proxycast.engines.model_folder import check_folder, context_of
from proxycast.miniature.recipes import require_documents
from proxycast.options import InputError
from proxycast.solutions import Solution, read_solutions, tokenize
from proxycast.targets import (
    CHOICE_LOG_LIKELIHOOD,
    EXACT_MATCH,
    MULTIPLE_CHOICE_ACCURACY,
    read_target_table,
    require_targets,
)


def check_recipes(pool: pl.DataFrame, corpora: dict[Path, Corpus]) -> dict[str, list[int]]:
    """Corpus -> documents that each component of its recipe keeps. `InputError` names one that keeps none."""
    return {c.name: require_documents(pool, c.recipe, str(file)) for file, c in corpora.items() if c.recipe}


def check_folders(folders: Iterable[Path], solutions: list[Path], tail_tokens: int) -> dict[str, int]:
    """Model folder -> tokens that it will score.

    `InputError` names a folder that is not whole or whose tokenizer does not fit, and a solution that is longer than
    the model's context. The solutions are tokenised once for each distinct tokenizer and context.
    """
    scored: dict[tuple[bytes, int], int] = {}
    found = {}
    for folder in folders:
        check_folder(folder)
        key = (folder / "tokenizer.json").read_bytes(), context_of(folder)
        if key not in scored:
            scored[key] = count_scored_tokens(folder, key[1], solutions, tail_tokens)
        found[str(folder)] = scored[key]
    return found


def count_scored_tokens(tokenizer: Path, context: int, solutions: list[Path], tail_tokens: int) -> int:
    """Tokens that will be scored with the tokenizer in a folder.

    `InputError` names a solution, or a choice, that is empty or, with its prompt, longer than `context` tokens.
    """
    from transformers import AutoTokenizer

    fast = AutoTokenizer.from_pretrained(tokenizer, local_files_only=True, trust_remote_code=False)
    rows = [(f"{path}: {s.id}", s) for path in solutions for s in read_solutions(path)]
    texts = [(where, s.prompt, s.solution) for where, s in rows]
    choices = [(f"{where}, choice {n}", s.prompt, c) for where, s in rows for n, c in enumerate(s.choices or [], 1)]
    tokenize(choices, fast, context)
    return sum(sequence.stop - sequence.start for sequence in tokenize(texts, fast, context, tail_tokens))


def check_measurable(tasks: list[Task], solutions: dict[str, list[Solution]], metrics: Iterable[str]) -> None:
    """`InputError` names the first task and metric that its solutions and settings do not allow to be measured here."""
    for task in tasks:
        found = solutions[task.name]
        possible = {
            MULTIPLE_CHOICE_ACCURACY: any(s.choices for s in found),
            CHOICE_LOG_LIKELIHOOD: any(s.choices for s in found),
            EXACT_MATCH: task.answer_pattern is not None and any(s.answer for s in found),
        }
        for metric in metrics:
            if metric not in possible:
                known = ", ".join(possible)
                raise InputError(
                    f"target: metric {metric!r} is not measured here; give target.table, or one of {known}"
                )
            if not possible[metric]:
                needs = "an answer_pattern and answers" if metric == EXACT_MATCH else "solutions with choices"
                raise InputError(f"task {task.name}: {metric} needs {needs}")


def check_target_table(path: Path, checkpoints: list[dict], solutions: list[Path], metrics: list[str]) -> None:
    """`InputError` names the corpora whose target checkpoints the table of the truth lacks, and then any other gap."""
    table = read_target_table(path)
    targets = [c for c in checkpoints if c["role"] == "target"]
    there = set(table["checkpoint"])
    lacking = sorted({c["corpus"] for c in targets} - {c["corpus"] for c in targets if c["checkpoint"] in there})
    if lacking:
        example = next(c["checkpoint"] for c in targets if c["corpus"] == lacking[0])
        raise InputError(
            f"{path}: no row for corpus {', '.join(lacking)}; the column checkpoint should hold, for one, {example!r}"
        )
    last = {c["run"]: c["checkpoint"] for c in sorted(targets, key=lambda c: c["step"])}
    tasks = [file.stem for file in solutions if file.stem != GENERIC_TEXT]
    for metric in metrics:
        require_targets(table, last.values(), tasks, metric, path)
