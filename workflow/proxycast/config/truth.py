"""The truth: where downstream results come from. And statistics that come from outside as well."""

from pathlib import Path
from typing import Literal, Self

from pydantic import Field, model_validator

from proxycast.config.extraction import SamplingOptions
from proxycast.files import Files
from proxycast.metrics import EXACT_MATCH, SAMPLED_EXACT_MATCH, is_error
from proxycast.options import InputPath, Options, SafeName, ShownName, told_value
from proxycast.proxy_formulas import SIGNS

# Arguments of lm-eval's classes hf and vllm that set how a model computes and how its answers are processed.
MODEL_ARGS = frozenset(
    "add_bos_token block_size cpu_offload_gb data_parallel_size disable_custom_all_reduce dtype enable_chunked_prefill "
    "enable_expert_parallel enable_prefix_caching enable_thinking enforce_eager gpu_memory_utilization kv_cache_dtype "
    "kv_cache_memory_bytes logits_cache max_batch_size max_cpu_memory max_gen_toks max_length max_memory_per_gpu "
    "max_model_len max_num_batched_tokens max_num_seqs mixed_precision_dtype parallelize prefix_token_id seed "
    "softmax_dtype think_end_token truncation truncation_side".split()
)
# Likewise for generation. Others, such as `custom_generate` of transformers, would load code.
GENERATION = frozenset(
    "do_sample early_stopping frequency_penalty ignore_eos length_penalty max_completion_tokens max_gen_toks "
    "max_new_tokens max_tokens min_new_tokens min_p min_tokens no_repeat_ngram_size num_beams presence_penalty "
    "repetition_penalty seed temperature top_k top_p typical_p until".split()
)
TOKEN_COUNTS = ("max_gen_toks", "max_new_tokens", "max_tokens", "max_completion_tokens")
MOST_TOKENS = 10_000_000


class Harness(Options):
    """How the harness runs all models of a study, in addition to each model's own options."""

    backend: Literal["hf", "vllm"] = Field("hf", description="library that runs the models: transformers (hf) or vLLM")
    batch_size: int | Literal["auto"] = Field(
        "auto", description="requests per forward pass; auto: as many as fit into memory"
    )
    limit: int | None = Field(
        None, gt=0, description="number of first problems of each task, for a trial; without it all"
    )
    seed: int = Field(1234, ge=0, description="seed of sampling and of the choice of solved examples")
    generation: dict[str, bool | int | float | str] = Field(
        {},
        description="how answers are generated; overrides the task's settings: {max_gen_toks: 32768, temperature: 0.6}",
    )
    model_args: dict[str, bool | int | float | str] = Field(
        {},
        description="further arguments of the backend's model, as in {think_end_token: '</think>'}; those that choose "
        "a model, tokenizer, code or device are refused",
    )
    include_path: Path | None = Field(None, description="folder with your own tasks in the harness's YAML format")
    run_unsafe_code: bool = Field(
        False,
        description="allow tasks that run programs which models wrote. To allow a task, also name it in the "
        "environment variable PROXYCAST_RUN_PROGRAMS when you start the study",
    )

    @model_validator(mode="after")
    def _harmless_arguments(self) -> Self:
        """Refuse unknown arguments: lm-eval passes every name on to code that loads models or other code."""
        for key, known in (("model_args", MODEL_ARGS), ("generation", GENERATION)):
            if unknown := sorted(getattr(self, key).keys() - known):
                raise ValueError(f"{key}: found {told_value(unknown[0])}; possible are {', '.join(sorted(known))}")
        for key in TOKEN_COUNTS:
            count = self.generation.get(key, 1)
            if type(count) is not int or not 0 < count <= MOST_TOKENS:
                raise ValueError(f"generation.{key}: found {told_value(count)}; it must be a whole number of tokens")
        return self


class Sampling(Options):
    """How texts are drawn from the models for `sampled_exact_match`: from all tokens, without a top-p."""

    samples: int = Field(4, ge=1, description="texts drawn for each problem; the score is the share of right ones")
    temperature: float = Field(
        1.0, gt=0, description="divides the logits before a token is drawn; greedy texts are those of `exact_match`"
    )
    seed: int = Field(0, ge=0, description="base seed; each problem and text has its own seed derived from it")

    def options(self, max_new_tokens: int) -> SamplingOptions:
        """What the engine is told."""
        return SamplingOptions(temperature=self.temperature, top_p=1, max_new_tokens=max_new_tokens)


class Target(Options):
    """The truth that is to be predicted."""

    size: SafeName | None = Field(
        None,
        description="data selection: model size whose ranking of corpora is the truth; without it no data selection",
    )
    metric: SafeName = Field(
        "multiple_choice_accuracy",
        description="downstream metric, averaged over seeds. Shares (accuracy, exact match) lie in 0 to 1",
    )
    higher_is_better: bool = Field(
        True,
        description="whether higher values of the metric are better; required if its name suggests an error or loss",
    )
    other_metrics: list[SafeName] = Field(
        [], description="further truths of the same checkpoints, each with its decision accuracy and noise ceiling"
    )
    lower_is_better: list[SafeName] = Field(
        [], description="metrics other than `metric` that are better when lower: errors, losses"
    )
    table: InputPath | None = Field(
        None,
        description="csv or parquet with checkpoint, task, metric, value, n (empty if unknown); "
        "without it proxycast evaluates the checkpoints",
    )
    evaluations: Files | None = Field(
        None, description="published evaluations (parquet) in the format of allenai/DataDecide-eval-results"
    )
    lm_eval: Harness | None = Field(
        None,
        description="downstream scores by lm-eval for tasks with `lm_eval`; proxycast measures the others",
    )
    sampling: Sampling | None = Field(
        None,
        description="how texts are drawn for the metric sampled_exact_match; exact_match is then measured only if "
        "`metric` or `other_metrics` names it",
    )
    parameters: int | None = Field(
        None,
        gt=0,
        description="N of the target, if no corpus and no ladder has its size; for a mixture of experts the active "
        "parameters",
    )
    tokens: int | None = Field(None, gt=0, description="training tokens of the target (D), in the same case")

    @property
    def measured_here(self) -> bool:
        """Whether this study evaluates the target's checkpoints. If not, their weights are not needed."""
        return self.table is None and self.evaluations is None

    @property
    def metrics(self) -> list[str]:
        """All metrics that the study names."""
        return [self.metric, *self.other_metrics]

    @property
    def is_generated(self) -> bool:
        """Whether models write texts for `metric`. If not, only the target's do, which is costly."""
        return self.metric in (EXACT_MATCH, SAMPLED_EXACT_MATCH)

    @property
    def decodes_greedily(self) -> bool:
        """Whether models that generate write a greedy text for each problem: not if only drawn ones are asked for."""
        return self.sampling is None or EXACT_MATCH in self.metrics

    @property
    def texts_of_problem(self) -> int:
        """How many texts a model that generates writes for each problem."""
        return self.decodes_greedily + (self.sampling.samples if self.sampling else 0)

    @model_validator(mode="after")
    def _one_origin(self) -> "Target":
        given = [key for key in ("table", "evaluations", "lm_eval") if getattr(self, key)]
        if len(given) > 1:
            raise ValueError(f"{' and '.join(given)} are different sources of the truth; give only one of them")
        return self

    @model_validator(mode="after")
    def _sampling_has_a_metric(self) -> "Target":
        if self.sampling and not (SAMPLED_EXACT_MATCH in self.metrics and self.measured_here):
            found = "is not among metric and other_metrics" if self.measured_here else "comes from a table"
            raise ValueError(f"sampling: {SAMPLED_EXACT_MATCH} {found}, so nothing is drawn; leave sampling out")
        return self

    @model_validator(mode="after")
    def _directions(self) -> "Target":
        if is_error(self.metric) and "higher_is_better" not in self.model_fields_set:
            raise ValueError(f"higher_is_better: missing; by its name, {self.metric!r} may be better when lower")
        if self.metric in self.lower_is_better:
            raise ValueError(f"lower_is_better names {self.metric!r}, which is `metric`; give higher_is_better: false")
        for name in self.other_metrics:
            if is_error(name) and name not in (self.metric, *self.lower_is_better):
                raise ValueError(f"other_metrics: {name!r} sounds like an error or a loss; name it in lower_is_better")
        return self

    def sign(self, metric: str) -> int:
        """1 where more of the metric is better, -1 where less is."""
        lower = not self.higher_is_better if metric == self.metric else metric in self.lower_is_better
        return -1 if lower else 1


class OutsideStatistics(Options):
    """Statistics of corpora or models that others measured, beside or in place of models that are run."""

    table: InputPath = Field(
        description="csv or parquet with unit (corpus or model), task (empty: every task), statistic, value and, where "
        "known, n, parameters, tokens, flops, size, step, seed, family. Without `tasks` in the study, no model is run: "
        "tasks and, where the study names none, corpora or models are those of this table. Without `target.table`, the "
        "truth of such a study are the rows whose statistic is the target's metric"
    )
    higher_is_better: dict[ShownName, bool] = Field(
        {},
        description="statistic -> whether more of it is better. Statistics and baselines that proxycast computes too, "
        "and metrics of the target, need no entry; all others do",
    )
    decision_accuracies: InputPath | None = Field(
        None,
        description="data selection: decision accuracies of small models' metric as others published them: csv or "
        "parquet with statistic, size, step, decision_accuracy and corpora, the number of corpora behind it. Needs a "
        "ladder",
    )

    def paths(self) -> list[Path]:
        return [path for path in (self.table, self.decision_accuracies) if path]

    def sign(self, statistic: str) -> int | None:
        """1 where more of a statistic is better, -1 where less is; None where nobody has said."""
        if statistic in self.higher_is_better:
            return 1 if self.higher_is_better[statistic] else -1
        return SIGNS.get(statistic)

    @model_validator(mode="after")
    def _known_signs(self) -> Self:
        for name, higher in self.higher_is_better.items():
            if name in SIGNS and higher != (SIGNS[name] > 0):
                better = "more" if SIGNS[name] > 0 else "less"
                raise ValueError(
                    f"higher_is_better.{name}: found {str(higher).lower()}, but {better} of it is better wherever "
                    "proxycast computes it; if it is another statistic, give it another name"
                )
        return self
