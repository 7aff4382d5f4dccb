"""Token statistics of a model over expert solutions: of a module in memory, of a folder, or of a model on the hub."""

import logging
import os
import re
from collections.abc import Collection, Iterator, Sequence
from contextlib import contextmanager
from functools import singledispatch
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING

import polars as pl

from proxycast.config.errors import parse
from proxycast.config.extraction import ExtractionOptions
from proxycast.config.study import HubOptions
from proxycast.extraction.engines.base import Engine
from proxycast.extraction.engines.factory import engines_for
from proxycast.extraction.sweep import TokenizedTexts, read_tasks, tokenized_solutions
from proxycast.files import HUB_ID
from proxycast.library.solution_files import Tasks, require_tasks
from proxycast.options import InputError
from proxycast.weights.hub import place_files
from proxycast.weights.hub_requests import resolve
from proxycast.weights.hub_snapshots import HubSource, choose, needed_model_files
from proxycast.weights.tokenizer import load_tokenizer

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedTokenizerFast

log = logging.getLogger(__name__)

# A module in memory has its device and its type already, and nothing is loaded.
OF_MODULES = (
    "tail_bytes chat_template leading_space windowing window_stride batch_tokens max_model_len temperatures".split()
)


@singledispatch
def score(
    model: "torch.nn.Module",
    tokenizer: "PreTrainedTokenizerFast",
    solutions: Tasks,
    tail_tokens: int = 1000,
    *,
    checkpoint: str = "model",
    sharded: bool = False,
    **options: object,
) -> pl.DataFrame:
    """Token statistics of a model in memory: a row for each scored token of each solution.

    `model`: a causal language model of `transformers`, also in the middle of its training, or within
    DistributedDataParallel or torch.compile; or another module that maps token ids (b, T) to logits (b, T, V), or to
    an object with such `logits` (then give `max_model_len`; its texts are read one by one). The training mode, the
    gradients, the random state and all other states stay as they are. `tokenizer`: a fast one. `solutions`: as
    `load_solutions` returns them. `tail_tokens`: how many tokens at the end of each solution are scored. `checkpoint`:
    the name of the model in the table. `options`: tail_bytes, chat_template, leading_space, windowing, window_stride,
    batch_tokens, max_model_len and temperatures, as in a study's `extraction`.

    In distributed training call it on one process, or with `sharded` on all of them: then they divide the solutions,
    and each returns the whole table. Models whose parameters are sharded are refused.

    Columns: checkpoint, task, solution, position, token, bytes, logprob, max_logprob, second_logprob, entropy (nats),
    n_greater, n_equal, vocabulary. The values are those of the saved checkpoint, to the last bit, if it is run in the
    same type on the same device with as many threads.

    Raises InputError for a model that predicts no next token, for a solution that leaves no token, and for a logit that
    is not finite.
    """
    return ModelScoring(tokenizer, solutions, tail_tokens, **options)(model, checkpoint, sharded=sharded)


@score.register(str)
@score.register(Path)
def score_checkpoint(
    model: str | Path,
    solutions: Tasks,
    tail_tokens: int = 1000,
    *,
    checkpoint: str | None = None,
    revision: str = "main",
    **options: object,
) -> pl.DataFrame:
    """Token statistics of a model folder, or of a model on the hub at a `revision`: `score(folder_or_hub_id, ...)`.

    `options`: those of a study's `extraction` (config/README.md), as `engine="vllm"`, `dtype="bfloat16"` or
    `device="cpu"`. Code of a model is not run: a study can allow it (docs/how/foreign-code.md). In the column
    `checkpoint` stands the name of the folder, or `repository@commit`. Files of the hub are kept in ~/.cache/proxycast,
    or where XDG_CACHE_HOME says. Columns and errors as in `score`.
    """
    require_tasks(solutions)
    chosen = _options(ExtractionOptions.model_fields.keys() - {"trust_remote_code"}, tail_tokens, options)
    folder, name = Path(model), Path(model).resolve().name
    if not folder.is_dir():
        folder, name = _from_hub(str(model), revision)
    name = checkpoint or name
    [(engine, _, _)] = engines_for([(name, folder)], [chosen])
    try:
        texts = tokenized_solutions(solutions, chosen)
        texts.begin(engine, folder, texts.texts)
        engine.load(folder)
        return _read(engine, texts, name, chosen.temperatures)
    finally:
        engine.close()


class ModelScoring:
    """Scores models in memory, one after the other or the same one as its training goes on.

    The solutions are tokenised once, and a model proves once how it reads a text. Arguments as in `score`.
    """

    def __init__(
        self, tokenizer: "PreTrainedTokenizerFast", solutions: Tasks, tail_tokens: int = 1000, **options: object
    ):
        from proxycast.extraction.engines.in_memory import InMemoryEngine

        chosen = _options(OF_MODULES, tail_tokens, options)
        self._texts = tokenized_solutions(require_tasks(solutions), chosen)
        self._engine = InMemoryEngine(_as_saved(tokenizer), chosen)

    def __call__(self, model: "torch.nn.Module", checkpoint: str = "model", *, sharded: bool = False) -> pl.DataFrame:
        """The table of `score`."""
        import torch

        distributed = sharded and torch.distributed.is_available() and torch.distributed.is_initialized()
        ranks = (torch.distributed.get_rank(), torch.distributed.get_world_size()) if distributed else (0, 1)
        self._engine.divide(*ranks)
        with self._loaded(model):
            return _read(self._engine, self._texts, checkpoint, self._engine.options.temperatures)

    def check(self, model: "torch.nn.Module") -> None:
        """Raise InputError where `model` or a solution cannot be read, before any work."""
        with self._loaded(model):
            self._texts.for_engine(self._engine, self._texts.texts)

    @contextmanager
    def _loaded(self, model: "torch.nn.Module") -> Iterator[None]:
        import torch

        from proxycast.extraction.engines.in_memory import undisturbed, unwrapped

        if not isinstance(model, torch.nn.Module):
            raise InputError(
                f"score: found a {type(model).__name__}; give a module, a model folder or the id of a model on the hub"
            )
        module = unwrapped(model)
        with undisturbed(module):
            self._engine.load(module)
            yield


def _options(known: Collection[str], tail_tokens: int, options: dict[str, object]) -> ExtractionOptions:
    if unknown := [key for key in options if key not in known]:
        raise InputError(f"score: {unknown[0]}: no option here; options are {', '.join(sorted(known))}")
    return parse(ExtractionOptions, {"tail_tokens": tail_tokens, **options}, "score")


def _read(engine: Engine, texts: TokenizedTexts, checkpoint: str, temperatures: Sequence[float]) -> pl.DataFrame:
    return pl.concat(read_tasks(engine, texts, checkpoint, texts.texts, temperatures))


def _as_saved(tokenizer: "PreTrainedTokenizerFast") -> "PreTrainedTokenizerFast":
    """The tokenizer as it is read from a checkpoint that was saved with it. The given one stays as it is."""
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(
            f"tokenizer: found {type(tokenizer).__name__}; give a fast one of transformers (AutoTokenizer), which "
            "knows the characters of each token"
        )
    with TemporaryDirectory(prefix="proxycast_") as folder:
        tokenizer.save_pretrained(folder)
        saved = load_tokenizer(Path(folder))
    saved.name_or_path = tokenizer.name_or_path
    return saved


def _from_hub(model: str, revision: str) -> tuple[Path, str]:
    """The folder of a model on the hub, downloaded once, and its name with the commit that `revision` is now."""
    if not re.fullmatch(HUB_ID, model):
        raise InputError(f"{model}: no such folder, and no id of a model on the hub, which is 'owner/name'")
    options = HubOptions()
    try:
        snapshot = choose(resolve(HubSource(model, revision), options), needed_model_files)
    except InputError as error:
        raise InputError(f"{model}: no such folder, and not to be had from the hub: {error}") from None
    log.info("%s, revision %s: commit %s", model, revision, snapshot.commit)
    cache = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "proxycast"
    folder = cache / "models" / model.replace("/", "--") / snapshot.commit
    place_files({folder: snapshot}, options)
    return folder, f"{model}@{snapshot.commit}"
