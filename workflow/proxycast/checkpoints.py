"""Corpus, training run, checkpoint: which models a study looks at, their size and training, where their weights lie."""

import json
import math
import shutil
from dataclasses import dataclass
from pathlib import Path

import polars as pl

from proxycast.compute import training_flops
from proxycast.config import Corpus, FolderCheckpoint, Plan
from proxycast.engines import ExtractionOptions, ModelOptions
from proxycast.engines.model_folder import safetensors_header, weight_files
from proxycast.options import InputError
from proxycast.tables import is_whole_parquet

INPUT_EMBEDDINGS = ("embed_tokens.weight", "wte.weight", "embed_in.weight", "word_embeddings.weight")
OUTPUT_HEADS = ("lm_head.weight", "embed_out.weight")


@dataclass(frozen=True)
class Checkpoint:
    """A model at one step of one training run. A run is one corpus, one size and one seed."""

    checkpoint: str  # "<run>-step<step>"
    run: str  # "<corpus>-<size>-seed<seed>"
    corpus: str
    family: str
    size: str
    parameters: int  # N, without the input embedding
    step: int
    tokens: int  # D
    flops: int  # 6 N D
    seed: int
    role: str  # "proxy" or "target"
    source: str  # folder of the weights
    revision: str  # commit of a hub; empty for a folder


def plan_checkpoints(plan: Plan) -> list[Checkpoint]:
    """Every checkpoint of the study, corpus by corpus. `InputError` names a corpus that lacks one or has one twice."""
    checkpoints = [checkpoint for corpus in plan.corpora for checkpoint in _of_corpus(plan, corpus)]
    _require_distinct_names(plan, checkpoints)
    _require_same_models(plan, checkpoints)
    return checkpoints


def checkpoints_table(checkpoints: list[Checkpoint]) -> pl.DataFrame:
    """One row a checkpoint; the columns are the fields of `Checkpoint`."""
    return pl.DataFrame([vars(checkpoint) for checkpoint in checkpoints])


def scoring_jobs(plan: Plan, checkpoints: list[Checkpoint]) -> dict[str, list[Checkpoint]]:
    """Job -> its checkpoints: a job is a run, or with `jobs: corpus` all runs of a corpus."""
    jobs: dict[str, list[Checkpoint]] = {}
    for checkpoint in checkpoints:
        jobs.setdefault(checkpoint.run if plan.study.jobs == "run" else checkpoint.corpus, []).append(checkpoint)
    return jobs


def extraction_options(plan: Plan, checkpoints: list[Checkpoint]) -> list[ExtractionOptions]:
    """How each checkpoint is run: the study's options, then what its corpus and what its own entry set over them."""
    corpora = {name: plan.corpus(name) for name in {c.corpus for c in checkpoints}}
    own = {(name, str(e.folder)): e.model for name, corpus in corpora.items() for e in corpus.checkpoints or []}
    return [
        plan.study.extraction.over(corpora[c.corpus].model, own.get((c.corpus, c.source), ModelOptions()))
        for c in checkpoints
    ]


def weight_inputs(plan: Plan, checkpoints: list[Checkpoint]) -> list[str]:
    """The files that a scoring job waits for: manifests of corpora that the suite trains, weights of given folders."""
    inputs = {}  # an ordered set
    for checkpoint in checkpoints:
        if plan.corpus(checkpoint.corpus).recipe:
            inputs[str(plan.results / "suite" / "trained" / f"{checkpoint.corpus}.json")] = None
        else:
            inputs |= dict.fromkeys(map(str, weight_files(Path(checkpoint.source))))
    return list(inputs)


def _of_corpus(plan: Plan, corpus: Corpus) -> list[Checkpoint]:
    if corpus.checkpoints:
        return [_from_folder(plan, corpus, entry) for entry in corpus.checkpoints]
    suite = plan.study.miniature
    return [
        _checkpoint(
            plan,
            corpus,
            size=name,
            parameters=size.parameters(suite.vocabulary),
            step=step,
            tokens=step * suite.training.batch_tokens,
            seed=seed,
        )
        for name, size in suite.sizes.items()
        for seed in size.seeds
        for step in size.all_checkpoints
    ]


def _from_folder(plan: Plan, corpus: Corpus, entry: FolderCheckpoint) -> Checkpoint:
    if not entry.folder.is_dir():
        raise InputError(f"{plan.corpus_files[corpus.name]}: checkpoints: {entry.folder}: no such folder")
    parameters = entry.parameters or count_parameters(entry.folder)
    keys = {"size": entry.size, "step": entry.step, "tokens": entry.tokens, "seed": entry.seed}
    return _checkpoint(plan, corpus, parameters=parameters, folder=entry.folder, **keys)


def _checkpoint(
    plan: Plan,
    corpus: Corpus,
    size: str,
    parameters: int,
    step: int,
    tokens: int,
    seed: int,
    folder: Path | None = None,
) -> Checkpoint:
    run = f"{corpus.name}-{size}-seed{seed}"
    return Checkpoint(
        checkpoint=f"{run}-step{step}",
        run=run,
        corpus=corpus.name,
        family=corpus.family or "llama",
        size=size,
        parameters=parameters,
        step=step,
        tokens=tokens,
        flops=training_flops(parameters, tokens),
        seed=seed,
        role="target" if size == plan.study.target.size else "proxy",
        source=str(folder or plan.results / "suite" / "models" / run / f"step{step}"),
        revision="",
    )


def _require_distinct_names(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Two entries of a corpus can be of one model; hyphens can make the names of two corpora meet ('a-b' + 'c')."""
    owners: dict[str, str] = {}
    for entry in checkpoints:
        if entry.checkpoint in owners:
            files = plan.corpus_files[entry.corpus], plan.corpus_files[owners[entry.checkpoint]]
            raise InputError(
                f"{files[0]}: checkpoint {entry.checkpoint} stands in {files[1]} already; "
                "corpus, size, seed and step together must name one model"
            )
        owners[entry.checkpoint] = entry.corpus


def _require_same_models(plan: Plan, checkpoints: list[Checkpoint]) -> None:
    """Corpora are compared model by model: each needs the same proxies, and targets of the same seeds."""
    models: dict[str, set[str]] = {corpus.name: set() for corpus in plan.corpora}
    for entry in checkpoints:
        step = f" at step {entry.step}" if entry.role == "proxy" else ""
        models[entry.corpus].add(f"{entry.size} of seed {entry.seed}{step}")
    for corpus, found in models.items():
        if missing := sorted(set().union(*models.values()) - found):
            raise InputError(
                f"{plan.corpus_files[corpus]}: checkpoints: found no {missing[0]}, which another corpus has; "
                f"all corpora need the same models ({len(missing)} missing)"
            )


def count_parameters(folder: Path) -> int:
    """N of the model in `folder`, read from the headers of its weights: all parameters but the input embedding.

    A tied embedding is the output head as well and so counts once.
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


def remove_broken(results: Path) -> list[Path]:
    """Remove every truncated table and checkpoint below `results`, so that they are made again and not read.

    A training job whose checkpoint is broken loses its manifest with it; when it runs again it keeps the whole ones.
    A hidden file is one that a running job is writing just now.
    """
    tables = (path for path in results.rglob("*.parquet") if not path.name.startswith("."))
    broken = [path for path in tables if not is_whole_parquet(path)]
    for path in broken:
        path.unlink()
    for manifest in (results / "suite" / "trained").glob("*.json"):
        folders = [results / "suite" / "models" / folder for folder in json.loads(manifest.read_text())]
        damaged = [folder for folder in folders if not _has_whole_weights(folder)]
        for folder in damaged:
            shutil.rmtree(folder, ignore_errors=True)
        if damaged:
            manifest.unlink()
        broken += damaged
    return broken


def _has_whole_weights(folder: Path) -> bool:
    try:
        return all(safetensors_header(file) is not None for file in weight_files(folder))
    except (InputError, OSError):
        return False
