"""A candidate corpus: a recipe of the miniature suite, checkpoints of models trained on it, or its text.

One entry under `checkpoints` can stand for a whole sweep: placeholders in its patterns take the values of the study's
ladder, or those found in the names of folders.
"""

import math
import re
from collections.abc import Iterable, Iterator
from itertools import product
from pathlib import Path
from typing import Annotated, Literal, NamedTuple

from pydantic import BeforeValidator, Field, field_validator, model_validator

from proxycast.config.extraction import ModelOptions
from proxycast.config.ladder import Ladder, require_countable
from proxycast.config.training import Recipe, Text
from proxycast.files import HUB_ID, PATTERN_RULES, REVISION
from proxycast.options import Options, SafeName, ShownName, without_unseen

Names = SafeName | list[SafeName] | None
Number = Annotated[int, Field(ge=0, lt=2**31)]
Numbers = Number | list[Number] | None

PLACEHOLDERS = ("size", "seed", "step", "seed_name")
_PLACEHOLDER = re.compile(r"{(\w*)}")
# What a placeholder of a folder may match on the disk.
_FOUND = {
    "size": r"(?P<size>[A-Za-z0-9][A-Za-z0-9_.-]*?)",
    "seed": r"(?P<seed>\d{1,18})",
    "step": r"(?P<step>\d{1,18})",
}


def _many(value: object) -> object:
    return value if value is None or isinstance(value, (list, tuple)) else [value]


def _valid_pattern(pattern: str | None, known: Iterable[str], rule: str = "") -> str | None:
    """The pattern itself. ValueError for an unknown placeholder, or if the filled pattern would break `rule`."""
    if pattern is None:
        return None
    for name in _PLACEHOLDER.findall(pattern):
        if name not in known:
            raise ValueError(f"{pattern!r} has the unknown placeholder {{{name}}}; known are {', '.join(known)}")
    filled = _PLACEHOLDER.sub("0", pattern)
    if "{" in filled or "}" in filled:
        raise ValueError(f"{pattern!r} has a brace that belongs to no placeholder; known are {', '.join(known)}")
    if rule and not re.fullmatch(rule, filled):
        raise ValueError(f"{PATTERN_RULES[rule]}, found {pattern!r}")
    return pattern


class RunException(Options):
    """A training run whose checkpoints do not follow the ladder's rule."""

    size: SafeName = Field(description="size of the run")
    seed: int = Field(ge=0, description="seed of the run")
    last: int | None = Field(None, gt=0, description="its last step")
    also: tuple[int, ...] = Field((), description="steps it has in addition to the rule's")
    without: tuple[int, ...] = Field((), description="steps of the rule that are missing")


class CheckpointSpec(NamedTuple):
    """One checkpoint, all placeholders filled in. `folder` or `hub` is None."""

    folder: Path | None
    hub: str | None
    revision: str
    size: str
    seed: int
    step: int


class CheckpointEntry(Options):
    """Existing checkpoints: a local folder or a hub revision; with placeholders, many of them."""

    folder: str | None = Field(
        None,
        description="folder with config.json, *.safetensors and a tokenizer; it may hold {size}, {seed} and {step}; "
        "values that the entry does not give are searched for on the disk",
    )
    hub: str | None = Field(None, description="model repository on the hub; it may hold {size}, {seed}, {seed_name}")
    revision: str = Field("main", description="branch, tag or commit; it may hold {step}, {seed}, {seed_name}, {size}")
    size: Annotated[tuple[SafeName, ...] | None, BeforeValidator(_many, json_schema_input_type=Names)] = Field(
        None,
        min_length=1,
        description="size or sizes, of the target or of the small models; without it those of the ladder",
    )
    seed: Annotated[tuple[Number, ...] | None, BeforeValidator(_many, json_schema_input_type=Numbers)] = Field(
        None, min_length=1, description="training seed or seeds; without it those of the ladder, or 0"
    )
    step: Annotated[tuple[Number, ...] | None, BeforeValidator(_many, json_schema_input_type=Numbers)] = Field(
        None, min_length=1, description="training step or steps; without it those of the ladder"
    )
    tokens: int | None = Field(None, ge=0, description="tokens seen in training (D); only for a single checkpoint")
    tokens_per_step: int | None = Field(None, gt=0, description="tokens per batch; without it the ladder's")
    parameters: int | None = Field(
        None,
        gt=0,
        description="parameters without the input embedding; without it the ladder's, or counted from the weights",
    )
    active_parameters: int | None = Field(
        None,
        gt=0,
        description="active parameters, those that process a token: N of 6 N D. Without it counted from the weights in "
        "`folder`; on the hub all parameters, so give it for a mixture of experts there",
    )
    convert_from: Literal["hf_olmo"] | None = Field(
        None, description="format to convert the weights from before they are read"
    )
    exceptions: list[RunException] = Field([], description="runs that do not follow the ladder's rule")
    model: ModelOptions = Field(
        ModelOptions(),
        description="how these checkpoints are run; keys set here override those of the corpus and the study",
    )

    @field_validator("folder")
    @classmethod
    def _folder_pattern(cls, pattern: str | None) -> str | None:
        return _valid_pattern(None if pattern is None else without_unseen(pattern), _FOUND)

    @field_validator("hub")
    @classmethod
    def _hub_pattern(cls, pattern: str | None) -> str | None:
        return _valid_pattern(pattern, PLACEHOLDERS, HUB_ID)

    @field_validator("revision")
    @classmethod
    def _revision_pattern(cls, pattern: str) -> str:
        return _valid_pattern(pattern, PLACEHOLDERS, REVISION)

    @model_validator(mode="after")
    def _one_origin(self) -> "CheckpointEntry":
        if (self.folder is None) == (self.hub is None):
            raise ValueError("a checkpoint lies in a folder or in a hub repository, exactly one of the two")
        if self.tokens is not None and (self.tokens_per_step or self.step is None or len(self.step) > 1):
            raise ValueError("tokens is for an entry of one step; give tokens_per_step for several")
        return self

    def expand(self, ladder: Ladder | None, sizes: list[str], seeds: list[int] | None) -> Iterator[CheckpointSpec]:
        """Every checkpoint that the entry stands for.

        `sizes` and `seeds`: the part of the ladder that the study uses (seeds None: all of each size).
        Raises ValueError that names the missing key, or if nothing was found on the disk.
        """
        lists = self.size or sizes, self.seed or seeds or (), self.step or ()
        require_countable(math.prod(max(1, len(values)) for values in lists), "size, seed, step")
        if self.folder is not None and self._open_placeholders():
            yield from self._on_disk(ladder, sizes, seeds)
            return
        if self.size is None and ladder is None:
            raise ValueError("size: missing; only a study with a ladder knows which sizes there are")
        for size in self.size or sizes:
            in_ladder = ladder is not None and size in ladder.sizes
            if self.step is None and not in_ladder:
                raise ValueError(f"step: missing; only a ladder knows the steps, and it has no size {size!r}")
            names = ladder.seeds_of(size) if in_ladder else {}
            chosen = self.seed or ([s for s in names if seeds is None or s in seeds] if in_ladder else (0,))
            for seed in chosen:
                for step in self.step or self._steps_by_rule(ladder, size, seed):
                    yield self._filled(size, seed, step, names.get(seed, str(seed)))

    def _steps_by_rule(self, ladder: Ladder, size: str, seed: int) -> list[int]:
        own = next((e for e in self.exceptions if (e.size, e.seed) == (size, seed)), None)
        if own is None:
            return ladder.steps_of(size, seed)
        return sorted({*ladder.steps_of(size, seed, own.last), *own.also} - {*own.without})

    def _open_placeholders(self) -> set[str]:
        """Placeholders of the folder whose key is not given."""
        return {name for name in _PLACEHOLDER.findall(self.folder) if getattr(self, name, ()) is None}

    def _on_disk(self, ladder: Ladder | None, sizes: list[str], seeds: list[int] | None) -> Iterator[CheckpointSpec]:
        for name in ("size", "step"):
            if getattr(self, name) is None and f"{{{name}}}" not in self.folder:
                raise ValueError(f"{name}: missing; give it, or put {{{name}}} into the folder to find all of them")
        found = []
        for size, seed, step in product(self.size or [None], self.seed or [None], self.step or [None]):
            given = {"size": size, "seed": seed, "step": step}
            there = {name: str(value) for name, value in given.items() if value is not None}
            for path, values in _matching_folders(self.folder, there):
                of_run = values["size"], int(values.get("seed", 0)), int(values["step"])
                found.append(CheckpointSpec(path, None, "", *of_run))
        if not found:
            raise ValueError(f"folder: {self.folder!r} finds no folder (paths start where snakemake is run)")
        for name in ("size", "seed", "step"):
            for value in getattr(self, name) or ():
                if value not in {getattr(spec, name) for spec in found}:
                    raise ValueError(f"{name}: {value} has no folder that fits {self.folder!r}")
        for spec in sorted(found, key=lambda spec: (spec.size, spec.seed, spec.step)):
            in_ladder = self.size is not None or ladder is None or spec.size in sizes
            if in_ladder and (self.seed is not None or seeds is None or spec.seed in seeds):
                yield spec

    def _filled(self, size: str, seed: int, step: int, seed_name: str) -> CheckpointSpec:
        values = {"size": size, "seed": seed, "step": step, "seed_name": seed_name}
        if self.folder is not None:
            return CheckpointSpec(Path(self.folder.format(**values)), None, "", size, seed, step)
        hub, revision = self.hub.format(**values), self.revision.format(**values)
        for rule, name in ((HUB_ID, hub), (REVISION, revision)):
            if not re.fullmatch(rule, name):
                raise ValueError(f"{PATTERN_RULES[rule]}, found {name!r}")
        return CheckpointSpec(None, hub, revision, size, seed, step)


def _matching_folders(pattern: str, given: dict[str, str]) -> Iterator[tuple[Path, dict[str, str]]]:
    """Local folders that match the pattern, with the value of each placeholder."""
    from glob import escape, glob

    for name, value in given.items():
        pattern = pattern.replace(f"{{{name}}}", value)
    pieces = _PLACEHOLDER.split(pattern)  # text, name, text, name, ..., text
    wild = "".join(escape(piece) if n % 2 == 0 else "*" for n, piece in enumerate(pieces))
    seen: set[str] = set()
    expression = ""
    for n, piece in enumerate(pieces):
        if n % 2 == 0:
            expression += re.escape(piece)
        else:
            expression += f"(?P={piece})" if piece in seen else _FOUND[piece]
            seen.add(piece)
    for path in sorted(glob(wild)):
        match = re.fullmatch(expression, path)
        if match and Path(path).is_dir():
            yield Path(path), given | match.groupdict()


class Corpus(Options):
    """A candidate corpus: a recipe of the miniature suite, checkpoints of models trained on it, or its text."""

    name: SafeName = Field(description="name of the corpus, used in file names")
    display_name: ShownName | None = Field(None, description="name in external tables, such as published evaluations")
    description: str = Field("", description="what the corpus is, in a sentence")
    mirrors: ShownName | None = Field(None, description="the DataDecide corpus whose recipe this one mirrors")
    family: ShownName | None = Field(
        None, description="model family of the checkpoints; without it the architecture in the suite, or llama"
    )
    post_training: SafeName | None = Field(
        None, description="kind of post-training of the checkpoints; `none` for base models"
    )
    recipe: Recipe | None = Field(None, description="miniature suite: sources, filters and weights")
    checkpoints: list[CheckpointEntry] | None = Field(None, min_length=1, description="models trained elsewhere")
    text: Text | None = Field(None, description="text that models are trained on here")
    sizes: list[SafeName] | None = Field(
        None,
        min_length=1,
        description="text: sizes of the ladder or suite to train on it; without it all but the target's",
    )
    seeds: list[Number] | None = Field(None, min_length=1, description="text: training seeds; without it the study's")
    model: ModelOptions = Field(
        ModelOptions(), description="how its checkpoints are run; keys set here override the study's `extraction`"
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Corpus":
        if (self.sizes or self.seeds) and self.text is None:
            raise ValueError("sizes and seeds are for a corpus of text; entries under checkpoints name their own")
        if [self.recipe, self.checkpoints, self.text].count(None) != 2:
            raise ValueError("a corpus has a recipe, checkpoints or text, exactly one of the three")
        return self
