"""What all recipes of one base share, and the fingerprints of what they make of it."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from proxycast.config.post_training_options import PostTraining
from proxycast.tables import fingerprint, read_table
from proxycast.training.miniature.post_training.worked_solutions import Document, benchmark_texts
from proxycast.weights.model_folder import model_fingerprint


@dataclass(frozen=True)
class Course:
    """What the recipes of one base share.

    `run`, `folder`: of the base; `families`: of the training questions; `questions`: the benchmark's, and its
    solutions, which no text may hold; `seed`: the suite's; `taught`: the teacher's right solutions, if they are needed.
    """

    run: str
    folder: Path
    options: PostTraining
    families: tuple[str, ...]
    questions: tuple[str, ...]
    seed: int
    code: str  # fingerprint of the code that trains
    taught: tuple[Document, ...] = ()

    def made_from(self, recipe: str, start: Path) -> str:
        """A fingerprint of all that decides what a recipe makes."""
        options = getattr(self.options, recipe), self.options.batch
        documents = self.families, self.questions, self.seed, self.taught if recipe == "distillation" else ()
        return fingerprint(self.code, self.run, recipe, model_fingerprint(start), options, documents)

    def seed_of(self, recipe: str) -> int:
        return int(fingerprint(self.seed, self.run, recipe)[:12], 16)


def read_course(values: Mapping, options: PostTraining, problems: Iterable[str], teacher: str | None = None) -> Course:
    """A course from the other fields' `values`, the files of the benchmark's `problems` and a teacher's table."""
    return Course(
        **{key: tuple(value) if isinstance(value, list) else value for key, value in values.items() if key != "folder"},
        folder=Path(values["folder"]),
        options=options,
        questions=tuple(benchmark_texts(map(Path, problems))),
        taught=taught_documents(read_table(teacher)) if teacher else (),
    )


def taught_documents(table: pl.DataFrame) -> tuple[Document, ...]:
    """The distinct right solutions of a teacher's table, in the order in which they were written."""
    kept = table.filter("verified").select("prompt", "solution").unique(maintain_order=True)
    return tuple(Document(*row) for row in kept.iter_rows())
