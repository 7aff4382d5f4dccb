"""The checkpoints of a study: their size, their training, their runs and jobs, and where their weights lie."""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from proxycast.config.extraction import NO_TEMPERATURES, ExtractionOptions, ModelOptions
from proxycast.config.ladder import RatePair
from proxycast.config.study import Budget
from proxycast.options import InputError
from proxycast.study.study_plan import Plan
from proxycast.tables import input_states
from proxycast.weights.model_files import safetensors_header, weight_files

INPUT_EMBEDDINGS = (
    *("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight"),
    "backbone.embeddings.weight",  # Mamba and its kin
)
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """A model at one step of one training run. A run is one corpus, one size and one seed."""

    checkpoint: str  # "<run>-step<step>"
    run: str  # "<corpus>-<size>-seed<seed>"
    corpus: str
    family: str
    recipe: str  # kind of post-training, "none" of a base model; empty where nobody tells it
    size: str
    parameters: int  # all of them, without the input embedding
    active_parameters: int  # N: of them those that a token meets; fewer in a mixture of experts
    step: int
    tokens: int  # D
    flops: int  # 6 N D
    seed: int
    role: str  # "proxy" or "target" of a data selection; else "candidate"
    source: str  # folder of the weights, or repository of the hub; empty where the study does not read them
    revision: str  # branch, tag or commit of the hub; empty for a folder
    # Not in the table of checkpoints:
    folder: str  # where the weights lie when they are scored
    convert_from: str  # format of the weights at their source, if they must be converted; else empty
    model: ModelOptions  # how it is run, where that differs from its corpus and the study

    def row(self) -> dict[str, str | int]:
        """The checkpoint as a row of the table."""
        return {name: getattr(self, name) for name in self.__slots__[:-3]}


def checkpoints_table(checkpoints: list[Checkpoint], commits: Mapping[str, str]) -> pl.DataFrame:
    """One row a checkpoint: the first fields of `Checkpoint`, and the commit of its revision. `commits`: by its name.

    FLOPs are floating-point numbers: those of a model of 1B exceed 64 bits.
    """
    rows = [_table_row(checkpoint, commits.get(checkpoint.checkpoint, "")) for checkpoint in checkpoints]
    return pl.DataFrame(rows, infer_schema_length=None)


def _table_row(checkpoint: Checkpoint, commit: str) -> dict[str, object]:
    return checkpoint.row() | {"flops": float(checkpoint.flops), "commit": commit}


def checkpoints_fingerprint(checkpoints: list[Checkpoint]) -> str:
    """16 hexadecimal digits that change with any row; one row at a time, as there can be tens of thousands."""
    digest = hashlib.sha256()
    for checkpoint in checkpoints:
        digest.update(repr(_table_row(checkpoint, "")).encode())
    return digest.hexdigest()[:16]


def scored_checkpoints(plan: Plan, checkpoints: list[Checkpoint]) -> list[Checkpoint]:
    """The checkpoints that an engine runs: all but the targets whose truth is given."""
    if not plan.runs_models:
        return []
    return [c for c in checkpoints if c.role != "target" or plan.study.target.measured_here]


def short_names(checkpoints: list[Checkpoint]) -> dict[str, list[str]]:
    """Names by which a table of the truth may call a checkpoint: those of corpus (or model) and run -> its checkpoints.

    What is meant is a checkpoint of which the truth is asked: not a small model that stands for its corpus.
    """
    found: dict[str, list[str]] = {}
    for c in checkpoints:
        if c.role != "proxy":
            for name in dict.fromkeys((c.corpus, c.run)):  # in one order: jobs have it among their parameters
                found.setdefault(name, []).append(c.checkpoint)
    return found


def budgets_of(plan: Plan, checkpoints: list[Checkpoint]) -> list[Budget]:
    """The budgets of a data selection. Without any: the largest proxies at the last step that all corpora have.

    Of several learning rates it is the usual one. `checkpoints`: all of the study. Empty if there is no such step, and
    for another experiment, whatever it names.
    """
    if plan.study.budgets or not plan.selects_data:
        return plan.study.budgets if plan.selects_data else []
    suite = plan.study.miniature
    usual = {name for name, size in suite.sizes.items() if size.learning_rate_factor == 1} if suite else set()
    corpora: dict[tuple[int, int, bool, str], set[str]] = {}
    for c in checkpoints:
        if c.role == "proxy" and plan.size_in_choices(c.size) == c.size:
            corpora.setdefault((c.parameters, c.step, c.size in usual, c.size), set()).add(c.corpus)
    common = [key for key, found in corpora.items() if len(found) == len(plan.corpus_names)]
    return [Budget(name=size, size=size, step=step) for _, step, _, size in sorted(common)[-1:]]


def compared_rates(plan: Plan, checkpoints: list[Checkpoint]) -> list[RatePair]:
    """Small models that a data selection trains at several rates, every two; empty where all have one rate.

    Sizes of the suite that differ in the rate alone, or the size of a ladder's check with its second training.
    """
    if not plan.selects_data:
        return []
    if plan.study.miniature:
        sizes = plan.study.miniature.sizes
        return [
            RatePair(
                size=one,
                factor=sizes[one].learning_rate_factor,
                slower_size=other,
                slower_factor=sizes[other].learning_rate_factor,
                step=sizes[one].steps,
            )
            for one, other in plan.study.miniature.pairs_of_rates()
            if plan.target_size not in (one, other)
        ]
    check = plan.study.ladder.rate_check if plan.study.ladder else None
    steps = [c.step for c in checkpoints if check and c.size == check.name]
    if not steps:
        return []
    factor = plan.study.ladder.learning_rate_factor
    slower = {"slower_size": check.name, "slower_factor": factor * check.factor}
    return [RatePair(size=check.size, factor=factor, **slower, step=max(steps))]


def budgets_of_rates(pairs: Sequence[RatePair]) -> list[Budget]:
    """The sizes of the `pairs` at their step, each once."""
    at = {name: pair.step for pair in pairs for name in (pair.size, pair.slower_size)}
    return [Budget(name=size, size=size, step=step) for size, step in at.items()]


def up_to(checkpoints: list[Checkpoint], budgets: list[Budget], number: int) -> list[Checkpoint]:
    """Of every run the checkpoints at the `budgets`, and the `number` - 1 before each of them."""
    at = {(budget.size, budget.step) for budget in budgets}
    kept: set[str] = set()
    for found in runs(checkpoints).values():
        ordered = sorted(found, key=lambda c: c.step)
        for n, c in enumerate(ordered, 1):
            if (c.size, c.step) in at:
                kept.update(before.checkpoint for before in ordered[max(0, n - number) : n])
    return [c for c in checkpoints if c.checkpoint in kept]


def scoring_jobs(plan: Plan, checkpoints: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Job -> its checkpoints: a job is a run, or with `jobs: corpus` all runs of a corpus."""
    jobs: dict[str, list[Checkpoint]] = {}
    for checkpoint in scored_checkpoints(plan, checkpoints):
        jobs.setdefault(checkpoint.run if plan.study.jobs == "run" else checkpoint.corpus, []).append(checkpoint)
    return jobs


def job_with_a_proxy(jobs: Mapping[str, list[Checkpoint]]) -> list[str]:
    """The first job with a proxy among its checkpoints, in a list; an empty list if there is none."""
    return [job for job, checkpoints in jobs.items() if any(c.role == "proxy" for c in checkpoints)][:1]


def base_run(checkpoint: Checkpoint) -> str:
    """The training run that a checkpoint was post-trained from, or its own."""
    return f"{checkpoint.corpus}-{checkpoint.size}-seed{checkpoint.seed}"


def runs(checkpoints: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Training run -> its checkpoints."""
    found: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        found.setdefault(checkpoint.run, []).append(checkpoint)
    return found


def extraction_options(plan: Plan, checkpoints: list[Checkpoint]) -> list[ExtractionOptions]:
    """How each checkpoint is run: the study's options, overridden by those of its corpus and of its own entry.

    `InputError` for an engine that has no temperatures where the study asks for them.
    """
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    found: dict[tuple[str, int], ExtractionOptions] = {}  # by identity: models share one object, and hashing it is slow
    for c in checkpoints:
        if (c.corpus, id(c.model)) not in found:
            options = plan.study.extraction.with_overrides(corpora[c.corpus].model, c.model)
            if options.temperatures and options.engine != "transformers":
                raise InputError(f"{plan.where}: {c.corpus}: {NO_TEMPERATURES}, found {options.engine}")
            found[c.corpus, id(c.model)] = options
    return [found[c.corpus, id(c.model)] for c in checkpoints]


def distinct_options(plan: Plan, checkpoints: list[Checkpoint]) -> tuple[list[ExtractionOptions], list[int]]:
    """The different `extraction_options` of checkpoints, and for each checkpoint the place of its own among them."""
    options = extraction_options(plan, checkpoints)
    objects = {id(chosen): chosen for chosen in options}
    distinct = list(dict.fromkeys(objects.values()))
    places = {key: distinct.index(chosen) for key, chosen in objects.items()}
    return distinct, [places[id(chosen)] for chosen in options]


def weight_inputs(plan: Plan, checkpoints: list[Checkpoint]) -> list[str]:
    """What a scoring job waits for: manifests of models trained here, converted or downloaded runs, given weights."""
    if plan.study.replay:
        return []
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    inputs = {}  # an ordered set
    for checkpoint in checkpoints:
        if corpora[checkpoint.corpus].checkpoints is None:
            inputs[str(trained_manifest(plan, checkpoint))] = None
        elif checkpoint.convert_from or checkpoint.revision:
            inputs[checkpoint.folder.rpartition("/")[0]] = None
        else:
            inputs |= dict.fromkeys(map(str, weight_files(Path(checkpoint.source))))
    return list(inputs)


def weight_states(plan: Plan, checkpoints: list[Checkpoint]) -> str:
    """A fingerprint that changes when a file in a given model folder does, by `stat`, as weights are large.

    The job that then runs reads the weights, and scores only those with another content.
    """
    corpora = {corpus.name: corpus for corpus in plan.corpora}
    given = [c for c in checkpoints if corpora[c.corpus].checkpoints and not c.revision and c.source]
    folders = dict.fromkeys(Path(c.source) for c in given)
    return input_states([file for folder in folders for file in folder.iterdir() if file.is_file()], most_bytes=-1)


def trained_manifest(plan: Plan, checkpoint: Checkpoint) -> Path:
    """What a training job writes last. The suite trains all runs of a corpus in one job, a ladder each in its own.

    Another job of the suite post-trains a run.
    """
    if checkpoint.run != base_run(checkpoint):
        return plan.results / "suite" / "post_trained" / f"{base_run(checkpoint)}.json"
    if plan.study.miniature:
        return plan.results / "suite" / "trained" / f"{checkpoint.corpus}.json"
    return plan.results / "text" / "trained" / f"{checkpoint.run}.json"


def count_parameters(folder: Path) -> int:
    """All parameters of the model in `folder` but the input embedding, read from the headers of its weights.

    A tied embedding is the output head as well and so counts once. Of a mixture of experts a token meets fewer
    (`experts.inactive_parameters`).
    """
    shapes = {name: shape for file in weight_files(folder) for name, shape in safetensors_header(file).items()}
    untied = any(name.endswith(OUTPUT_HEADS) for name in shapes)
    counted = {name: math.prod(s) for name, s in shapes.items() if not (untied and name.endswith(INPUT_EMBEDDINGS))}
    if untied and len(counted) == len(shapes):
        raise InputError(
            f"{folder}: found no input embedding (a name that ends with {', '.join(INPUT_EMBEDDINGS)}); "
            "give `parameters` in the corpus file"
        )
    return sum(counted.values())
