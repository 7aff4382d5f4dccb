"""How models are run, read expert solutions and write text."""

from itertools import pairwise
from typing import Literal, Self

from pydantic import Field, field_validator, model_validator

from proxycast.files import HubId, Revision
from proxycast.options import InputPath, Options, SafeName

FEWEST_TEMPERATURES = 5  # a polynomial through five of them gives the cross-entropy between them
NO_TEMPERATURES = "temperatures: only the engine transformers scores at several temperatures; set engine: transformers"


class ModelOptions(Options):
    """How one model is run. A study sets these keys for all models; a corpus or checkpoint may override them."""

    engine: Literal["auto", "transformers", "vllm"] = Field(
        "transformers",
        description="what runs the model; auto: vLLM on a GPU if it supports the model and dtype, else transformers",
    )
    dtype: Literal["float32", "bfloat16"] = Field(
        "float32", description="type of the weights and hidden states; logits are always float32"
    )
    chat_template: bool = Field(
        False, description="for post-trained models: format the prompt with the tokenizer's chat template"
    )
    leading_space: Literal["strip", "keep"] = Field(
        "strip",
        description="with chat_template: whether to strip the single space at the start of solutions and choices that "
        "are written for base models. strip: remove it, unless the template itself puts a space before an answer. "
        "Other white space always stays",
    )
    trust_remote_code: bool = Field(
        False,
        description="run Python code from the model's folder. To allow it, also name the model in the environment "
        "variable PROXYCAST_TRUST_CODE when you start the study",
    )
    architecture: str | None = Field(
        None,
        description="class of transformers that runs the weights, if config.json names an unknown one; not needed for "
        "Olmo2RetrofitForCausalLM, now Olmo3ForCausalLM",
    )
    ignored_weights: tuple[str, ...] = Field(
        (),
        description="transformers: patterns (mtp.*) of weights in the files to leave out; other weights that the "
        "architecture lacks are an error",
    )
    max_model_len: int | None = Field(
        None, ge=2, description="largest context in tokens, if less than the model's own (saves memory)"
    )
    quantization: SafeName | None = Field(
        None, description="vLLM: quantisation method of the weights; without it that of config.json"
    )
    tensor_parallel_size: int = Field(1, ge=1, description="vLLM: number of GPUs that share each layer")
    pipeline_parallel_size: int = Field(
        1, ge=1, description="vLLM: number of groups of GPUs that the layers are divided among"
    )
    data_parallel_size: int = Field(
        1,
        ge=1,
        description="copies of the engine that divide each checkpoint's texts, each on GPUs of its own; a job asks for "
        "as many GPUs as all of them take",
    )
    gpu_memory_fraction: float = Field(0.9, gt=0, le=1, description="vLLM: share of each GPU's memory it may use")


class ExtractionOptions(ModelOptions):
    """How checkpoints read the expert solutions."""

    tail_tokens: int = Field(
        1000, ge=1, description="tokens scored at the end of each solution, counted in the candidate's own tokens"
    )
    tail_bytes: int | None = Field(
        None,
        ge=1,
        description="score also the tokens that reach into this many last UTF-8 bytes of each solution, the same text "
        "for every tokenizer; tables then have both tails",
    )
    windowing: bool = Field(
        True, description="read texts longer than the model's context in overlapping windows; false: they are an error"
    )
    window_stride: float = Field(
        0.5,
        gt=0,
        lt=1,
        description="share of the context by which a window moves. A scored token sees all tokens before it or "
        "at least 1 - window_stride of the context. Smaller strides show more and cost more; 1e-9 shows all that fits",
    )
    batch_tokens: int | None = Field(
        None,
        ge=1,
        description="tokens per forward pass, padding included; "
        "without it 16384 on a GPU and 2048, which fit its cache, on a CPU",
    )
    device: Literal["auto", "cpu", "cuda"] = Field("auto", description="auto: a GPU if there is one")
    compile: Literal["auto", "always", "never"] = Field(
        "auto",
        description="transformers: whether the layers of a model are compiled, once for each architecture; it changes "
        "rounding only. auto: on a GPU, if the checkpoints have enough left to read to make up for half a minute. A "
        "model that cannot be compiled, or reads otherwise when it is, runs as it is",
    )
    temperatures: tuple[float, ...] = Field(
        (),
        description="temperatures T, ascending, five at least: each scored token's log-probability under "
        "softmax(logits / T) is kept too, and one temperature is fitted to each checkpoint, which gives the baselines "
        "tempered_cross_entropy and tempered_bits_per_byte. Give [0.25, 0.315, 0.4, 0.5, 0.63, 0.8, 1, 1.26, 1.6, 2, "
        "2.52, 3.2, 4]. Needs the engine transformers. Without: none, and no cost",
    )

    @field_validator("temperatures")
    @classmethod
    def _is_a_grid(cls, given: tuple[float, ...]) -> tuple[float, ...]:
        if given and len(given) < FEWEST_TEMPERATURES:
            raise ValueError(f"found {len(given)} temperatures; give {FEWEST_TEMPERATURES} at least, or none")
        if given and given[0] <= 0:
            raise ValueError(f"found the temperature {given[0]}; give positive numbers")
        for low, high in pairwise(given):
            if not low < high:
                raise ValueError(f"found {low} before {high}; give each temperature once, in ascending order")
        return given

    @model_validator(mode="after")
    def _can_be_tempered(self) -> Self:
        if self.temperatures and self.engine != "transformers":
            raise ValueError(f"{NO_TEMPERATURES}, found {self.engine}")
        return self

    def reading(self) -> dict:
        """How `solutions.tokenize` reads a text, apart from its tail: the arguments of these names."""
        return self.model_dump(include={"chat_template", "leading_space", "windowing", "window_stride"})

    def that_change_results(self) -> dict:
        """All options but those that only change rounding: a rerun with less memory keeps its finished parts.

        Nor `temperatures`, which only add columns to token statistics: see `that_change_token_stats`.
        """
        sizes = {"tensor_parallel_size", "pipeline_parallel_size", "data_parallel_size"}
        rounding = {"batch_tokens", "device", "compile", "gpu_memory_fraction"} | sizes
        return self.model_dump(exclude=rounding | {"temperatures"})

    def that_change_token_stats(self) -> dict:
        """`that_change_results`, and the temperatures where there are any."""
        return self.that_change_results() | ({"temperatures": self.temperatures} if self.temperatures else {})

    def with_overrides(self, *models: ModelOptions) -> "ExtractionOptions":
        """These options, overridden by the keys that `models` set; later models win."""
        return self.model_copy(update={key: getattr(model, key) for model in models for key in model.model_fields_set})


class SamplingOptions(Options):
    """How text is sampled from a model."""

    temperature: float = Field(
        0.6, ge=0, description="divides the logits before a token is drawn; 0: the most probable token"
    )
    top_p: float = Field(
        0.95, gt=0, le=1, description="tokens are drawn from the smallest set with this total probability"
    )
    max_new_tokens: int = Field(8192, gt=0, description="largest number of tokens of one text")
    stop: tuple[str, ...] = Field(
        (), description="strings that end a text; the first one found is cut off with all that follows"
    )


class Writer(SamplingOptions):
    """A strong model that writes expert solutions: a folder, a model on the hub, or a checkpoint of the study."""

    folder: InputPath | None = Field(None, description="folder with the writer's weights and tokenizer")
    hub: HubId | None = Field(None, description="model on the hub, as in 'Qwen/Qwen3-Next-80B-A3B-Instruct'")
    revision: Revision = Field("main", description="hub: branch, tag or commit; results record the commit")
    checkpoint: SafeName | None = Field(None, description="name of a checkpoint of this study, for trying things out")
    model: ModelOptions = Field(
        ModelOptions(), description="how the writer is run; keys set here override extraction's"
    )
    samples: int = Field(4, ge=1, description="texts written for each problem; the first correct one is kept")
    seed: int = Field(0, ge=0, description="base seed; each problem and text has its own seed derived from it")
    memory_gb: float = Field(4, gt=0, description="host memory of the job that runs it. Unit: GB")

    @model_validator(mode="after")
    def _one_model(self) -> Self:
        given = [key for key in ("folder", "hub", "checkpoint") if getattr(self, key) is not None]
        if len(given) != 1:
            raise ValueError(f"a writer has a folder, hub or checkpoint, exactly one of the three; found {given}")
        if self.temperature == 0 and self.samples > 1:
            raise ValueError("samples: at temperature 0 every text of a problem is the same; give samples: 1")
        return self

    def sampling(self) -> dict:
        """The options that determine the sampled texts, besides the model."""
        return self.model_dump(mode="json", include={*SamplingOptions.model_fields, "samples", "seed"})
