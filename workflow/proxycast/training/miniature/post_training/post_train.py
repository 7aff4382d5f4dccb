"""All recipes of one base, each an ordinary Hugging Face folder beside it, with a record of how it went."""

import json
import logging
import shutil
import sys
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from random import Random
from typing import TYPE_CHECKING

import polars as pl
import torch
from tqdm import tqdm

from proxycast.config.post_training_options import STARTS
from proxycast.jobs import PROGRESS_SECONDS
from proxycast.options import InputError
from proxycast.tables import read_json
from proxycast.training.miniature.leaks import count_leaked_questions
from proxycast.training.miniature.post_training.course import Course
from proxycast.training.miniature.post_training.fine_tuning import Descent, fine_tune
from proxycast.training.miniature.post_training.policy_gradient import follow_rewards
from proxycast.training.miniature.post_training.preferences import prefer, sample_pairs
from proxycast.training.miniature.post_training.worked_solutions import (
    STYLES,
    Document,
    SolutionTokens,
    documents_of,
    training_problems,
)
from proxycast.weights.model_folder import is_finished, new_checkpoint

if TYPE_CHECKING:
    from transformers import PreTrainedModel

log = logging.getLogger(__name__)

RECORD = "post_training.json"  # beside the weights
COPIED = ("config.json", "generation_config.json")  # a sweep loads models of one config.json into one module
RECIPES_SCHEMA = {
    **dict.fromkeys(("run", "base", "recipe", "starting_point"), pl.String),
    **dict.fromkeys(("documents", "steps"), pl.Int64),
    **dict.fromkeys(("loss_first", "loss_last", "reward_first", "reward_last", "differing_share"), pl.Float64),
    **dict.fromkeys(("dropped", "benchmark_texts", "leaked_questions"), pl.Int64),
    "seconds": pl.Float64,
    "note": pl.String,
}
ALWAYS_WRONG, ALL_ALIKE = "every sample is wrong", "all samples of each question are equally right"


@dataclass(frozen=True)
class Outcome:
    """How the training of a recipe went: a row of the table, but for its names; None for what a recipe has not.

    `texts`: all that was read or written on the way.
    """

    texts: Sequence[str]
    documents: int
    steps: int = 0
    loss_first: float | None = None
    loss_last: float | None = None
    reward_first: float | None = None
    reward_last: float | None = None
    differing_share: float | None = None
    dropped: int = 0
    note: str = ""


def post_train(course: Course, folders: Mapping[str, Path]) -> dict[str, str]:
    """Make every recipe of `folders` (recipe -> checkpoint) -> <run>/<step> of each -> fingerprint.

    A checkpoint that is whole and made from the same is kept, so a killed job loses one recipe at most. Raises
    InputError for a recipe that diverges and for a text with a question of the benchmark.
    """
    written: dict[str, str] = {}
    total = sum(getattr(course.options, recipe).steps for recipe in folders)
    with tqdm(total=total, unit="step", mininterval=PROGRESS_SECONDS, file=sys.stderr) as bar:
        for recipe, folder in folders.items():
            bar.set_description(f"{course.run} {recipe}", refresh=False)
            start = folders[STARTS[recipe]] if recipe in STARTS else course.folder
            made_from = course.made_from(recipe, start)
            before = bar.n
            if not (is_finished(folder, made_from) and read_json(folder / RECORD)):
                _make(course, recipe, start, folder, made_from, lambda: bar.update())
            bar.update(before + getattr(course.options, recipe).steps - bar.n)
            written[f"{folder.parent.name}/{folder.name}"] = made_from
    return written


def _make(course: Course, recipe: str, start: Path, folder: Path, made_from: str, tick: Callable[[], object]) -> None:
    began = time.monotonic()
    model = load_model(start)
    outcome = TRAINERS[recipe](course, recipe, model, tick)
    leaked = count_leaked_questions(outcome.texts, course.questions)
    if leaked:
        raise InputError(
            f"{course.run}: {leaked} of {len(course.questions)} benchmark questions and solutions stand verbatim in "
            f"what the recipe {recipe} read or wrote; none may"
        )
    if outcome.note:
        log.warning(
            "%s: the recipe %s has nothing to learn (%s): its model is a copy of where it starts",
            *(course.run, recipe, outcome.note),
        )
    row = {name: value for name, value in asdict(outcome).items() if name not in ("texts", "note")}
    record = {"run": folder.parent.name, "base": course.run, "recipe": recipe, "starting_point": start.parent.name}
    record |= row | {"seconds": round(time.monotonic() - began, 2)}
    record |= {"benchmark_texts": len(course.questions), "leaked_questions": leaked, "note": outcome.note}
    log.info("%s %s: %s", course.run, recipe, row | {"seconds": record["seconds"]})
    with new_checkpoint(folder, course.folder, made_from) as temporary:
        save_model(model, start, temporary)
        (temporary / RECORD).write_text(json.dumps(record, indent=2) + "\n")


def load_model(folder: Path) -> "PreTrainedModel":
    """The module of transformers for a folder, without dropout."""
    from transformers import AutoModelForCausalLM
    from transformers.utils import logging as transformers_logging

    transformers_logging.disable_progress_bar()
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32, local_files_only=True).eval()


def save_model(model: "PreTrainedModel", start: Path, folder: Path) -> None:
    """Write the weights as transformers does, beside the configuration of the folder `start` that they came from."""
    model.save_pretrained(folder)
    for name in COPIED:
        if (start / name).is_file():
            shutil.copyfile(start / name, folder / name)


def _fine_tuned(course: Course, recipe: str, model: "PreTrainedModel", tick: Callable[[], object]) -> Outcome:
    """On the generator's solutions. Both fine-tunings have the same questions."""
    options = getattr(course.options, recipe)
    drawn_for = recipe if recipe.startswith("overtrained") else "fine-tuning"
    problems = training_problems(course.families, options.documents, f"{course.seed} {drawn_for}")
    return _on_documents(
        course, recipe, model, documents_of(problems, STYLES if recipe == "sft_styles" else ["short"]), tick
    )


def _distilled(course: Course, recipe: str, model: "PreTrainedModel", tick: Callable[[], object]) -> Outcome:
    if not course.taught:
        return Outcome((), documents=0, note="the teacher has no solution right")
    return _on_documents(course, recipe, model, course.taught, tick)


def _on_documents(
    course: Course, recipe: str, model: "PreTrainedModel", documents: Sequence[Document], tick: Callable[[], object]
) -> Outcome:
    options, tokens = getattr(course.options, recipe), SolutionTokens(course.folder)
    descent = Descent(model, options.steps, options.learning_rate, f"{course.run} {recipe}")
    examples = tokens.examples(documents)
    losses = fine_tune(descent, examples, course.options.batch, tokens.end, Random(course.seed_of(recipe)), tick)
    return Outcome([prompt + solution for prompt, solution in documents], len(documents), options.steps, *losses)


def _reinforced(course: Course, recipe: str, model: "PreTrainedModel", tick: Callable[[], object]) -> Outcome:
    options, tokens = course.options.rl, SolutionTokens(course.folder)
    count = options.steps * options.questions
    problems = training_problems(course.families, count, f"{course.seed} {recipe}")
    descent = Descent(model, options.steps, options.learning_rate, f"{course.run} {recipe}")
    found = follow_rewards(descent, problems, tokens, options, course.questions, course.seed_of(recipe), tick)
    note = "" if found.differing_share else ALL_ALIKE if found.reward_first or found.reward_last else ALWAYS_WRONG
    losses = (None, None) if note else (found.loss_first, found.loss_last)
    rewards = found.reward_first, found.reward_last, found.differing_share
    return Outcome(found.texts, len(found.texts), options.steps, *losses, *rewards, found.dropped, note)


def _preferred(course: Course, recipe: str, model: "PreTrainedModel", tick: Callable[[], object]) -> Outcome:
    options, tokens, seed = course.options.dpo, SolutionTokens(course.folder), course.seed_of(recipe)
    problems = training_problems(course.families, options.questions, f"{course.seed} {recipe}")
    sampled = sample_pairs(model, problems, tokens, options, course.questions, seed)
    found = dict(reward_first=sampled.right_share, differing_share=sampled.differing_share, dropped=sampled.dropped)
    if not sampled.pairs:
        return Outcome(sampled.texts, documents=0, note="no sample is wrong", **found)
    descent = Descent(model, options.steps, options.learning_rate, f"{course.run} {recipe}")
    first, last = prefer(descent, sampled.pairs, options, course.options.batch, tokens.end, Random(seed), tick)
    texts = [*sampled.texts, *(prompt + solution for prompt, solution in documents_of(problems))]
    return Outcome(texts, len(sampled.pairs), options.steps, first, last, **found)


TRAINERS: dict[str, Callable[[Course, str, "PreTrainedModel", Callable[[], object]], Outcome]] = {
    "sft": _fine_tuned,
    "sft_styles": _fine_tuned,
    "distillation": _distilled,
    "rl": _reinforced,
    "dpo": _preferred,
    "overtrained_mild": _fine_tuned,
    "overtrained_strong": _fine_tuned,
}


def table_of_recipes(manifests: Iterable[Path]) -> pl.DataFrame:
    """A row (RECIPES_SCHEMA) for each model that `post_train` made, from the records beside the weights.

    `manifests`: what it returned, as JSON files of a folder beside that of the models.
    """
    models = [manifest.parent.with_name("models") / name for manifest in manifests for name in read_json(manifest)]
    return pl.DataFrame([read_json(folder / RECORD) for folder in models], schema=RECIPES_SCHEMA)
