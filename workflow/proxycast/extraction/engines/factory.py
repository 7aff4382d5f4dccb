"""Which engine runs a model. Importing this imports no torch."""

import logging
from collections.abc import Sequence
from pathlib import Path

from proxycast.config.extraction import ExtractionOptions
from proxycast.extraction.engines.base import Engine

log = logging.getLogger(__name__)


def make_engine(options: ExtractionOptions) -> Engine:
    """The engine that `options.engine` names, which is no longer auto; only now are its heavy packages imported."""
    if options.data_parallel_size > 1:
        from proxycast.extraction.engines.data_parallel import DataParallelEngine

        return DataParallelEngine(options, make_engine(options.model_copy(update={"data_parallel_size": 1})))
    match options.engine:
        case "transformers":
            from proxycast.extraction.engines.transformers import TransformersEngine

            return TransformersEngine(options)
        case "vllm":
            from proxycast.extraction.engines.vllm import VllmEngine

            return VllmEngine(options)
    raise ValueError(f"engine {options.engine!r}: choose_engine decides it for a folder")


def choose_engine(options: ExtractionOptions, folder: Path) -> ExtractionOptions:
    """`options` with auto replaced by the engine for the model in `folder`; the log says which one and why."""
    if options.engine != "auto":
        return options
    import torch

    reason = "no GPU is there"
    if torch.cuda.is_available() and options.device != "cpu":
        from proxycast.extraction.engines.vllm_support import unsupported

        reason = unsupported(folder, options)
    engine = "transformers" if reason else "vllm"
    log.info("%s: engine %s, because %s", folder, engine, reason or "vLLM supports the model on this GPU")
    return options.model_copy(update={"engine": engine})


def engines_for(
    checkpoints: Sequence[tuple[str, Path]], options: Sequence[ExtractionOptions]
) -> list[tuple[Engine, ExtractionOptions, list[tuple[str, Path]]]]:
    """(engine, its options, the checkpoints that it runs): one for all (name, folder) whose options are the same.

    Raises InputError for a folder that is not whole or that its engine cannot run; no model is loaded before.
    """
    groups: dict[ExtractionOptions, list[tuple[str, Path]]] = {}
    for (name, folder), wanted in zip(checkpoints, options):
        groups.setdefault(choose_engine(wanted, folder), []).append((name, folder))
    found = [(make_engine(chosen), chosen, group) for chosen, group in groups.items()]
    for engine, chosen, group in found:
        set_here = {key: value for key, value in chosen if value != ExtractionOptions.model_fields[key].default}
        log.info("%d checkpoints with %s, %s", len(group), type(engine).__name__, set_here or "all options at default")
        for _, folder in group:
            engine.check(folder)
    return found
