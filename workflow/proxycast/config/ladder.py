"""A ladder of model sizes: shapes, batches, learning rates and checkpoints, shared by all corpora that are compared.

For existing models it says which checkpoints there are and what they cost. For a corpus of text it says how models are
trained. Keep this module light to import: the workflow plans with it.
"""

from typing import Annotated

from pydantic import Field, model_validator

from proxycast.files import HubId, Revision
from proxycast.options import InputError, InputPath, Options, SafeName

MOST_CHECKPOINTS = 300_000  # of a study; a plan of all of DataDecide has 30 thousand
Seed = Annotated[int, Field(ge=0)]


class Optimisation(Options):
    """How models of the ladder are trained, besides each size's batch, steps and learning rate: AdamW and a cosine."""

    beta1: float = Field(0.9, ge=0, lt=1, description="AdamW: decay of the mean of gradients")
    beta2: float = Field(0.95, ge=0, lt=1, description="AdamW: decay of the mean of squared gradients")
    epsilon: float = Field(1e-8, gt=0, description="AdamW: added to the root of the mean square")
    weight_decay: float = Field(0.1, ge=0, description="AdamW: decoupled weight decay, of every parameter")
    gradient_clip: float = Field(1.0, gt=0, description="largest norm of the gradient over all parameters")
    warmup_tokens_per_parameter: float = Field(
        1.0, ge=0, description="tokens over which the learning rate rises to its peak. Unit: multiples of N"
    )
    final_learning_rate: float = Field(
        0.1, ge=0, le=1, description="learning rate at the last step, as a share of the peak; a cosine falls to it"
    )
    initialisation: float = Field(0.02, gt=0, description="standard deviation of all matrices at the start")


class Tokenizer(Options):
    """The tokenizer of all models of the ladder."""

    hub: HubId | None = Field(None, description="model repository on the hub that holds tokenizer.json")
    revision: Revision = Field("main", description="hub: branch, tag or commit")
    folder: InputPath | None = Field(None, description="folder with tokenizer.json and tokenizer_config.json")

    @model_validator(mode="after")
    def _one_origin(self) -> "Tokenizer":
        if (self.hub is None) == (self.folder is None):
            raise ValueError("a tokenizer lies in a hub repository or in a folder, exactly one of the two")
        return self


class LadderSize(Options):
    """One size of the ladder: a Llama with an untied output head, and how long it is trained."""

    hidden_size: int = Field(gt=0, description="width of the residual stream (d)")
    layers: int = Field(gt=0, description="number of blocks (L)")
    heads: int = Field(gt=0, description="number of attention heads; hidden_size / heads must be even")
    intermediate_size: int | None = Field(None, gt=0, description="width of the SwiGLU layer; without it 4 hidden_size")
    batch_sequences: int = Field(gt=0, description="sequences per batch")
    steps: int = Field(gt=0, description="training steps")
    learning_rate: float = Field(gt=0, description="peak learning rate")
    checkpoint_every: int | None = Field(None, gt=0, description="steps between checkpoints; without it the ladder's")
    seeds: dict[Seed, SafeName] | None = Field(None, description="seed -> its name; without it the ladder's")
    stopped: dict[Seed, int] = Field({}, description="seed -> last step, for runs that ended before `steps`")

    @model_validator(mode="after")
    def _even_heads(self) -> "LadderSize":
        if self.hidden_size % (2 * self.heads):
            raise ValueError(f"hidden_size {self.hidden_size} cannot be split into {self.heads} heads of even width")
        return self

    @property
    def inner(self) -> int:
        return self.intermediate_size or 4 * self.hidden_size

    def parameters(self, vocabulary: int) -> int:
        """N: all parameters but the input embedding, including the output head.

        With intermediate_size = 4 d it is L (16 d^2 + 2 d) + d + V d (DataDecide, arXiv 2504.11393, table of sizes).
        """
        d = self.hidden_size
        return self.layers * (4 * d * d + 3 * d * self.inner + 2 * d) + d + vocabulary * d


class RateCheck(Options):
    """A second training of one size at a lower learning rate, to see how far the order of corpora depends on it."""

    size: SafeName = Field(description="size that is trained twice on every corpus of text")
    factor: float = Field(
        0.25, gt=0, lt=1, description="learning rate of the second training, as a share of that of the first"
    )

    @property
    def name(self) -> str:
        """The size of the models of the second training."""
        return f"{self.size}-rate{self.factor:g}"


class RatePair(Options):
    """Two sizes of a study that differ in the learning rate alone, at their last step. No option: a plan finds them."""

    size: SafeName = Field(description="the size of the higher rate")
    factor: float = Field(description="its learning rate, as a multiple of the usual one")
    slower_size: SafeName = Field(description="the size of the lower rate")
    slower_factor: float = Field(description="its learning rate, as a multiple of the usual one")
    step: int = Field(description="the last training step of both")


class Ladder(Options):
    """Model sizes that every corpus of a study is trained on, and the checkpoints that are kept."""

    name: SafeName = Field(description="name of the ladder, the same as that of its file")
    description: str = Field("", description="what these models are, in a sentence")
    tokenizer: Tokenizer = Field(description="the tokenizer of all models")
    vocabulary: int = Field(gt=1, description="rows of the embedding, padding included")
    sequence_length: int = Field(gt=1, description="tokens per training sequence, which is the context of the models")
    norm_epsilon: float = Field(1e-6, gt=0, description="epsilon of the RMS norms")
    rope_theta: float = Field(10_000.0, gt=0, description="base of the rotary position embeddings")
    checkpoint_every: int = Field(gt=0, description="steps between checkpoints; the last step is always one")
    seeds: dict[Seed, SafeName] = Field(min_length=1, description="seed -> its name in revisions ({seed_name})")
    optimisation: Optimisation = Field(Optimisation(), description="how models are trained on corpora of text")
    sizes: dict[SafeName, LadderSize] = Field(min_length=1, description="sizes by name, smallest first")

    @model_validator(mode="after")
    def _countable(self) -> "Ladder":
        for name, size in self.sizes.items():
            last, every = max(size.steps, *size.stopped.values(), 0), size.checkpoint_every or self.checkpoint_every
            require_countable(len(self.seeds_of(name)) * (last // every + 2), f"sizes.{name}")
        return self

    def batch_tokens(self, size: str) -> int:
        return self.sizes[size].batch_sequences * self.sequence_length

    def seeds_of(self, size: str) -> dict[int, str]:
        """Seed -> its name, of the runs of this size."""
        return self.sizes[size].seeds or self.seeds

    def last_step(self, size: str, seed: int) -> int:
        """Where a run ended."""
        return self.sizes[size].stopped.get(seed, self.sizes[size].steps)

    def steps_of(self, size: str, seed: int, last: int | None = None) -> list[int]:
        """Steps of a run's checkpoints by the rule: multiples of `checkpoint_every` from 0 on, and the last step.

        `last`: where this run ended, if not where the ladder says.
        """
        last, every = last or self.last_step(size, seed), self.sizes[size].checkpoint_every or self.checkpoint_every
        require_countable(last // every, size)
        return sorted({*range(0, last, every), last})

    def with_rates(self, factor: float, check: RateCheck | None = None) -> "Ladder":
        """The ladder with all peak learning rates times `factor`, and with the size of the `check` among its sizes."""
        sizes = {}
        for name, size in self.sizes.items():
            peak = factor * size.learning_rate
            sizes[name] = size.model_copy(update={"learning_rate": peak})
            if check and name == check.size:
                sizes[check.name] = size.model_copy(update={"learning_rate": check.factor * peak})
        return self.model_copy(update={"sizes": sizes})

    def only(self, size: str) -> "Ladder":
        """The ladder with this size only: everything that the training of its models depends on."""
        return self.model_copy(update={"sizes": {size: self.sizes[size]}, "description": ""})


def require_countable(checkpoints: int, where: str) -> None:
    """Raise `InputError` for more checkpoints than a plan can hold."""
    if checkpoints > MOST_CHECKPOINTS:
        raise InputError(f"{where}: found {checkpoints:.3g} checkpoints; a study has at most {MOST_CHECKPOINTS:,}")
