"""Options of the miniature suite: recipes, model sizes, training. Light to import: the workflow plans with it."""

import math
from itertools import combinations
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from proxycast.config.post_training_options import PostTraining
from proxycast.files import Files
from proxycast.options import Options, SafeName

HEAD_DIMENSION = 32  # vLLM's CPU build runs 32, 64, 96 and 128
CONTEXT = 128  # tokens
FAMILY_NAMES = (
    *("days_after", "days_before", "months_after", "letters_after", "numbers_after"),
    *("products", "opposites", "homes", "trades", "beasts"),
)
STEP_FAMILY_NAMES = ("rooms", "dial", "days", "notes", "lift", "board", "swaps")
Reference = Literal["math", "code", "qa", "wiki", "books"]
Architecture = Literal["llama", "gpt2", "gpt_neox"]


class Component(Options):
    """One part of a mixture: a source, its share of the tokens, and the filters its documents must pass."""

    source: Literal["web", "crawl", "math", "code", "forum", "qa", "wiki", "books", "steps"] = Field(
        description="where the documents come from; `steps` has documents only with `miniature.step_documents`"
    )
    weight: float = Field(gt=0, description="share of the corpus's tokens, relative to the other components")
    deduplicate: bool = Field(False, description="keep only the first of identical documents")
    heuristics: bool = Field(False, description="drop boilerplate and text without sentences by heuristics like C4's")
    classifier: Reference | None = Field(
        None, description="rank documents by a classifier that is trained to distinguish this source from the web"
    )
    keep: float = Field(1.0, gt=0, le=1, description="share of the documents to keep, best first")

    @model_validator(mode="after")
    def _keep_needs_an_order(self) -> "Component":
        if self.keep < 1 and self.classifier is None:
            raise ValueError("keep below 1 needs a classifier, which ranks the documents")
        return self


class Recipe(Options):
    """How a miniature corpus is mixed from the sources."""

    mixture: Annotated[list[Component], Field(min_length=1, description="the components; weights need not sum to 1")]


class Training(Options):
    """How the miniature models are trained: the same for every size, corpus and seed."""

    batch_sequences: int = Field(16, gt=0, description="sequences per batch")
    sequence_length: int = Field(64, gt=1, le=CONTEXT, description="tokens per sequence")
    learning_rate: float = Field(6e-3, gt=0, description="peak learning rate of AdamW, for the embedding and the norms")
    muon_learning_rate: float = Field(0.03, gt=0, description="peak learning rate of Muon, for the matrices")
    warmup: float = Field(0.03, ge=0, lt=1, description="share of the steps in which the learning rate rises")
    decay: float = Field(0.8, gt=0, le=1, description="share of the steps in which the learning rate falls to 5 %")
    compile: bool = Field(
        True,
        description="compile the loss: takes 20 s per size, once per machine, and saves a tenth of each step",
    )

    @property
    def batch_tokens(self) -> int:
        return self.batch_sequences * self.sequence_length


class Size(Options):
    """One kind of model: its shape, training steps, checkpoints and seeds."""

    hidden_size: int = Field(multiple_of=HEAD_DIMENSION, gt=0, description="width of the residual stream")
    layers: int = Field(gt=0, description="number of blocks")
    intermediate_size: int = Field(gt=0, description="width of the feed-forward layer (SwiGLU in a Llama, else GELU)")
    steps: int = Field(gt=0, description="training steps (a step is batch_sequences x sequence_length tokens)")
    checkpoints: tuple[int, ...] = Field((), description="steps at which a checkpoint is kept, in addition to the last")
    seeds: tuple[int, ...] = Field(
        (0,), min_length=1, description="training seeds: initialisation and order of the documents"
    )
    architecture: Architecture = Field(
        "llama", description="model family; Llama and GPT-2 have tied embeddings, GPT-NeoX untied ones"
    )
    tokenizer: SafeName | None = Field(None, description="name of one of `tokenizers`; without it the suite's own")
    learning_rate_factor: float = Field(
        1.0,
        gt=0,
        allow_inf_nan=False,
        description="factor of both peak learning rates of `training`. Sizes that differ in it alone are compared: how "
        "far the order of corpora moves with the rate",
    )

    @model_validator(mode="after")
    def _checkpoints_within_training(self) -> "Size":
        wrong = [step for step in self.checkpoints if not 0 < step <= self.steps]
        if wrong:
            raise ValueError(f"checkpoints {wrong} lie outside of the {self.steps} training steps")
        if len(set(self.seeds)) < len(self.seeds):
            raise ValueError(f"seeds {self.seeds} name one seed twice")
        return self

    @property
    def all_checkpoints(self) -> list[int]:
        """Steps of every checkpoint, the last step included, in order."""
        return sorted({*self.checkpoints, self.steps})

    def parameters(self, vocabulary: int) -> int:
        """N: all parameters but the input embedding. A tied matrix counts once, as the output head."""
        width, inner = self.hidden_size, self.intermediate_size
        if self.architecture == "llama":  # no biases, three matrices in the feed-forward layer, norms without shift
            block, rest = 4 * width**2 + 3 * width * inner + 2 * width, width
        else:
            block, rest = 4 * width**2 + 2 * width * inner + 9 * width + inner, 2 * width
        positions = CONTEXT * width if self.architecture == "gpt2" else 0
        return self.layers * block + rest + positions + vocabulary * width


Vocabulary = Annotated[int, Field(ge=300, le=65_536)]


class Suite(Options):
    """The miniature suite: its documents, tokenizers, models and problems."""

    seed: int = Field(0, description="seed of the documents and problems (training has its own seeds)")
    scale: float = Field(1.0, gt=0, le=10, description="size of every source; 1 is the full suite of 90,000 documents")
    vocabulary: Vocabulary = Field(512, description="vocabulary size of the suite's own tokenizer")
    tokenizers: dict[SafeName, Vocabulary] = Field(
        {}, description="further tokenizers, trained on the same documents: name -> vocabulary size"
    )
    problems: int = Field(70, gt=1, description="held-out problems of each family")
    step_documents: int = Field(
        0, ge=0, description="documents of the source `steps`: problems of three steps, solved in two styles"
    )
    generic_documents: int = Field(
        240, ge=3, description="held-out documents of real text, for the generic cross-entropy"
    )
    training: Training = Field(Training(), description="optimiser and schedule")
    sizes: dict[SafeName, Size] = Field(min_length=1, description="model sizes by name")
    post_training: PostTraining | None = Field(
        None, description="model selection: recipes that make further models of each run's last checkpoint"
    )

    @model_validator(mode="after")
    def _known_tokenizers(self) -> "Suite":
        for name, size in self.sizes.items():
            if size.tokenizer not in (None, *self.tokenizers):
                known = ", ".join(self.tokenizers) or "none"
                raise ValueError(f"sizes.{name}.tokenizer: {size.tokenizer!r} is not in `tokenizers`; known: {known}")
        return self

    def vocabulary_of(self, size: str) -> int:
        """Tokens of the tokenizer that models of this size read with."""
        name = self.sizes[size].tokenizer
        return self.vocabulary if name is None else self.tokenizers[name]

    def parameters(self, size: str) -> int:
        """N of models of this size."""
        return self.sizes[size].parameters(self.vocabulary_of(size))

    def pairs_of_rates(self) -> list[tuple[str, str]]:
        """Names of every two sizes that differ in the learning rate alone, that of the higher rate first."""
        shapes = {name: size.model_dump(exclude={"learning_rate_factor"}) for name, size in self.sizes.items()}
        falling = sorted(self.sizes, key=lambda name: -self.sizes[name].learning_rate_factor)
        rates = {name: self.sizes[name].learning_rate_factor for name in falling}
        return [(a, b) for a, b in combinations(falling, 2) if shapes[a] == shapes[b] and rates[a] > rates[b]]

    def settings_of_pool(self) -> dict[str, object]:
        """What the documents, the tokenizers and the problems depend on; the models depend on the rest."""
        keys = {"seed", "scale", "vocabulary", "tokenizers", "problems", "generic_documents"}
        # A suite without these documents keeps the fingerprint that it had before there were any.
        return self.model_dump(include=keys | ({"step_documents"} if self.step_documents else set()))


class Source(Files):
    """Files of text that share a weight: .jsonl or .txt (each also .gz or .zst) and .parquet."""

    weight: float = Field(1.0, gt=0, description="share of this source in the training tokens, independent of its size")
    column: str = Field("text", min_length=1, description="column or JSON key of the document; for .txt it is `text`")
    where: str | None = Field(
        None, description="SQL condition on a row's columns, as in \"score >= 3 and language = 'en'\"; without it all"
    )

    @field_validator("where")
    @classmethod
    def _one_condition(cls, where: str | None) -> str | None:
        from proxycast.tables import sql_condition

        if where is None:
            return None
        condition = sql_condition(where)
        if condition.meta.has_multiple_outputs():
            raise ValueError(f"{where!r} gives several columns; it must be one condition")
        return where


class Text(Options):
    """The text that a corpus is made of."""

    mixture: tuple[Source, ...] = Field(min_length=1, description="sources of text; their weights sum to 1")
    max_epochs: float = Field(
        4.0, gt=0, description="largest number of times a source may be repeated to fill its share; more is an error"
    )

    @model_validator(mode="after")
    def _weights_sum_to_one(self) -> "Text":
        total = math.fsum(source.weight for source in self.mixture)
        if abs(total - 1) > 1e-6:
            raise ValueError(f"the weights of the mixture sum to {total:g}; they must sum to 1")
        return self
