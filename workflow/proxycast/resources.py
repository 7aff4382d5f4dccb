"""What a job that runs models asks of a cluster: GPUs, memory and time, by what its models are and how much they read.

The constants and formulas are for asking, so they err on the side of too much; a comment says where each is from. What
earlier jobs of the study took (Snakemake's benchmark files) then corrects memory and time, and a retry gets twice as
much of both. The number of GPUs is neither corrected nor grown: the main process and a job, which counts again, must
come to the same one, and not every number of GPUs divides a model's heads. No result depends on anything here.
"""

import fcntl
import logging
import math
import os
import socket
import statistics
import sys
import tempfile
import time
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Annotated, Literal, Self

from pydantic import Field, ValidationError, model_validator

from proxycast.checkpoints import Checkpoint, count_parameters, extraction_options, runs, scoring_jobs
from proxycast.compute import scoring_flops, training_flops
from proxycast.config import Plan, closest, read_yaml
from proxycast.engines import BATCH_TOKENS, FLOAT32_ON_GPU, ExtractionOptions
from proxycast.engines.model_folder import shape_in_file, shape_of
from proxycast.experts import inactive_parameters
from proxycast.jobs import open_private
from proxycast.miniature.suite import CONTEXT
from proxycast.options import InputError, Options, one_line, require_regular
from proxycast.slurm_plugin import SLURM_RESOURCES, unfit_for_shell
from proxycast.solutions import GENERIC_TEXT
from proxycast.targets import EXACT_MATCH
from proxycast.writers import Writer

log = logging.getLogger(__name__)

PROFILE = "slurm/config.yaml"
GB, MB = 1e9, 1e6

# What is not known before a model or a text is there.
ASSUMED_VOCABULARY = 160_000  # the largest of the usual ones: Qwen has 152 thousand, Llama 3 128
ASSUMED_CONTEXT = 32_768
ASSUMED_KV_SHARE = 0.25  # key and value heads to heads: 1/4 in Llama 3 8B and Qwen3 8B, 1/8 in Llama 3 70B
ASSUMED_TEXTS = 1000  # of a task whose solutions nobody has counted
WIDTH_TO_DEPTH = 128  # d / L, as of Llama 2 7B and GPT-3; with N = 12 L d^2 (Kaplan et al., section 2.1) it gives d
BYTES_PER_TOKEN = 3  # of a solutions file; English has about 4 in a large vocabulary, JSON takes its part

# Memory.
BYTES = {"float32": 4, "bfloat16": 2}
ACTIVATION_BYTES = 34  # a token and unit of width: one block, 16 bits (Korthikanti et al., arXiv 2205.05198, 4.1)
LOGIT_COPIES = 2  # float32 logits of a batch, and their log-softmax: vLLM holds both
HEAD_GB = 2  # engine transformers: the head works in pieces (token_stats.HEAD_BYTES_GPU and SCRATCH_BYTES_GPU)
CONTEXT_GB = 1  # what CUDA and its libraries take on each GPU
TRAINING_BYTES = 16  # a parameter: weight, gradient, two moments (Rajbhandari et al., arXiv 1910.02054, section 3.1)
TRAINING_GB = 4  # activations of a micro-batch (pretraining.CPU_BUDGET) and the logits of its head, with room
# Of the engine itself; no correction goes below. 0.3 are for Snakemake, which runs twice in a Slurm job, unmeasured.
HOST_GB = {"cpu": {"transformers": 2, "vllm": 4}, "cuda": {"transformers": 4, "vllm": 8}}
HOST_GB_OF_FURTHER_GPU = 4  # a process of vLLM for each

# Time.
CPU_FLOPS = 10e9  # a second and thread: 13 to 33 measured with tests/benchmarks/extraction.py
UTILISATION = 0.3  # of a GPU's peak
FLOAT32_SLOWER = 16  # A100: 19.5 against 312 TFLOPS, H100: 67 against 989 (NVIDIA's data sheets)
DEFAULT_TERAFLOPS = 300
BYTES_PER_SECOND = 0.3e9  # weights from a shared file system, read twice: fingerprint and loading
START_SECONDS = {"cpu": {"transformers": 20, "vllm": 40}, "cuda": {"transformers": 40, "vllm": 180}}
CHOICES = 4  # continuations of a multiple-choice problem, each read
TOKENS_OF_GENERATION = 3  # a generated token takes the time of so many that are read, in large batches

# From an estimate to what is asked for.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 2.0
LEAST_MINUTES = 30
FEWEST_BENCHMARKS = 3

GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # there where a GPU of NVIDIA, or of AMD, is
# What tells one allocation of Slurm, LSF or PBS from another. SLURM_STEP_GPUS are numbers of the node, the same in all.
ALLOCATION = ("SLURM_JOB_ID", "SLURM_STEP_GPUS", "LSB_JOBID", "PBS_JOBID")
TELL_SECONDS = 60.0  # between two lines in the log of a job that waits for GPUs

Device = Literal["cpu", "cuda"]
MODEL_RULES = ("score", "evaluate_harness", "write_solutions", "train_run")


class Site(Options):
    """What is true of one cluster: the section `config: site:` of the Slurm profile. Without it no GPU is asked for."""

    gpu_request: Literal["gres", "gpus"] | None = Field(
        None, description="how the cluster wants GPUs: --gres=gpu:<model>:<n> or --gpus=<model>:<n>; without it none"
    )
    gpu_memory_gb: float | None = Field(None, gt=0, description="memory of one GPU. Unit: GB")
    gpu_model: str | None = Field(None, pattern=r"^[A-Za-z0-9_.]+$", description="name of the GPU as Slurm knows it")
    gpus_per_node: int = Field(8, ge=1, description="most GPUs that one job may have")
    gpu_teraflops: float = Field(
        DEFAULT_TERAFLOPS, gt=0, description="peak of one GPU in bfloat16, dense, by its data sheet. Unit: TFLOPS"
    )
    # Snakemake hands the numbers of a profile on as text.
    gpu_jobs: dict[str, Annotated[int | str, Field(union_mode="left_to_right")]] = Field(
        {}, description="further resources of jobs with GPUs: slurm_partition, qos, constraint"
    )
    most_memory_gb: float | None = Field(
        None, gt=0, description="memory of the largest node; no job that runs models asks for more"
    )
    longest_hours: float = Field(
        24, gt=0, description="time limit of the partition where models run; no job that runs them asks for more"
    )
    stall_minutes: float | None = Field(
        None, gt=0, description="a job whose log has not grown for so long ends itself, and is tried again"
    )

    @model_validator(mode="after")
    def _memory_of_gpus(self) -> Self:
        if self.gpu_request and self.gpu_memory_gb is None:
            raise ValueError("gpu_memory_gb: missing; how many GPUs a job needs depends on it; as in gpu_memory_gb: 80")
        return self

    @model_validator(mode="after")
    def _mistyped_resources(self) -> Self:
        """Other executors have resources of their own; Snakemake takes any, and the executor ignores what it lacks."""
        for name in self.gpu_jobs.keys() - SLURM_RESOURCES:
            if meant := closest(name, SLURM_RESOURCES):
                raise ValueError(f"gpu_jobs.{name}: unknown{meant}")
        return self

    @model_validator(mode="after")
    def _words_for_a_shell(self) -> Self:
        """The plugins of clusters write some of them into a shell's command as they are."""
        for name, value in self.gpu_jobs.items():
            if why := unfit_for_shell(name, value):
                raise ValueError(f"gpu_jobs.{name}: {why}")
        return self


def site_of_profile(config: dict, given: Mapping, where: str) -> object:
    """Take the site block out of a configuration, and return it as Snakemake was `given` it, by a profile.

    `InputError` where a file of the study has one: it comes from other people, and what a cluster is asked for is no
    part of it.
    """
    if config.pop("site", None) != given.get("site"):
        raise InputError(
            f"{where}: site: found in a study; it is read from the profile alone ({PROFILE}: config.site); move it"
        )
    return given.get("site")


def read_site(values: object) -> Site | None:
    """The site block of the profile, if there is one; `InputError` names the profile and the key."""
    if values is None:
        return None
    try:
        return Site.model_validate(values)
    except ValidationError as error:
        problem = error.errors()[0]
    key = ".".join(map(str, ("config", "site", *problem["loc"])))
    if problem["type"] == "extra_forbidden":
        known = list(Site.model_fields)
        message = f"unknown key{closest(str(problem['loc'][-1]), known)}; known are {', '.join(known)}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
    found = "" if problem["type"] in ("value_error", "extra_forbidden") else f", found {problem['input']!r}"
    raise InputError(f"{PROFILE}: {key}: {message}{found}")


def require_site_kept(arguments: Sequence[str]) -> None:
    """`InputError` where --config on Snakemake's command line has taken the place of the profile's `config: site:`."""
    parser = ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument("--profile")
    parser.add_argument("--config", "-C", nargs="*")
    given = parser.parse_known_args(arguments)[0]
    profile = Path(given.profile or "", "config.yaml")
    if not (given.profile and given.config is not None and profile.is_file()):
        return
    if "site" in (read_yaml(profile).get("config") or {}):
        raise InputError(
            f"{profile}: config.site: --config on the command line takes its place; put what it changes into a file "
            "of its own, behind the study: --configfile config/<study>.yaml <changes>.yaml"
        )


@dataclass(frozen=True, slots=True)
class Model:
    """What memory and time depend on."""

    parameters: int  # all of them, without the input embedding: what memory holds
    active_parameters: int  # N: of them those that a token meets, which time depends on
    hidden_size: int  # d
    layers: int  # L
    kv_share: float  # heads of keys and values to heads
    vocabulary: int  # V
    context: int

    def weight_bytes(self, dtype: str) -> float:
        """All weights: the parameters and the input embedding, V d, which may count twice where it is tied."""
        return BYTES[dtype] * (self.parameters + self.vocabulary * self.hidden_size)

    def cache_bytes(self, dtype: str, tokens: int) -> float:
        """Keys and values of `tokens` tokens: two vectors for each block."""
        return 2 * BYTES[dtype] * self.layers * self.hidden_size * self.kv_share * tokens

    def activation_bytes(self, dtype: str, tokens: int) -> float:
        """What one block holds of a forward pass; the blocks follow each other."""
        return ACTIVATION_BYTES * BYTES[dtype] / 2 * self.hidden_size * tokens

    def logit_bytes(self, tokens: int) -> float:
        return 4 * LOGIT_COPIES * self.vocabulary * tokens


def assumed_model(
    parameters: int,
    active_parameters: int | None = None,
    vocabulary: int = ASSUMED_VOCABULARY,
    context: int = ASSUMED_CONTEXT,
) -> Model:
    """The shape of a model of which only N is known: N = 12 L d^2 with L = d / 128.

    Without `active_parameters` a token meets all parameters.
    """
    active = active_parameters or parameters
    width = (active * WIDTH_TO_DEPTH / 12) ** (1 / 3)
    layers = max(1, round(width / WIDTH_TO_DEPTH))
    return Model(parameters, active, max(1, round(width)), layers, ASSUMED_KV_SHARE, vocabulary, context)


def model_in(folder: Path, parameters: int, active_parameters: int) -> Model:
    """The shape that config.json tells, with the defaults of its architecture; what neither does is assumed."""
    shape = shape_in_file(folder)
    if None in shape or shape.context == sys.maxsize:
        shape = shape_of(folder)
    vocabulary, context = shape.vocabulary or ASSUMED_VOCABULARY, min(shape.context, 1 << 20)
    guess = assumed_model(parameters, active_parameters, vocabulary, context)
    return Model(
        parameters,
        active_parameters,
        shape.hidden_size or guess.hidden_size,
        shape.layers or guess.layers,
        shape.cache_share,
        guess.vocabulary,
        guess.context,
    )


@dataclass(frozen=True, slots=True)
class Needs:
    """What a job takes by the formulas, before margins, attempts and corrections."""

    gpus: int
    memory_mb: float
    seconds: float
    gpu_memory_gb: float = 0  # on each GPU
    least_mb: float = 0
    is_given: bool = False  # whether the study says how much memory, so that nothing is to be corrected

    @property
    def threads(self) -> int:
        """A GPU wants a few processes beside it; without one, as many as results were compared with."""
        return min(16, 4 * self.gpus) or 1


def engine_on(device: Device, options: ExtractionOptions) -> str:
    """The engine that `auto` becomes, as far as it is known before a model is there."""
    if options.engine != "auto":
        return options.engine
    return "vllm" if device == "cuda" and options.dtype != "float32" else "transformers"


def gpu_memory_bytes(model: Model, options: ExtractionOptions, gpus: int) -> float:
    """Memory on each of `gpus` GPUs that share the layers: weights and cache are split, what a batch makes is not."""
    engine, dtype = engine_on("cuda", options), options.dtype
    tokens = options.batch_tokens or BATCH_TOKENS["cuda"]
    split = model.weight_bytes(dtype)
    whole = CONTEXT_GB * GB + model.activation_bytes(dtype, tokens)
    if engine == "transformers":
        return split + whole + HEAD_GB * GB
    context = min(model.context, options.max_model_len or model.context)
    return (split + model.cache_bytes(dtype, context)) / gpus + whole + model.logit_bytes(tokens)


def gpus_for(model: Model, options: ExtractionOptions, site: Site, where: str) -> int:
    """The study's own number of GPUs, or the smallest power of two whose memory is enough; one for transformers."""
    stages = options.pipeline_parallel_size
    if engine_on("cuda", options) == "transformers":
        return 1
    if "tensor_parallel_size" in options.model_fields_set or site.gpu_memory_gb is None:
        return options.tensor_parallel_size * stages
    room = site.gpu_memory_gb * GB * options.gpu_memory_fraction
    gpus = 1
    while gpu_memory_bytes(model, options, gpus * stages) > room:
        gpus *= 2
        if gpus * stages > site.gpus_per_node:
            raise InputError(
                f"{where}: needs more than {site.gpus_per_node} GPUs of {site.gpu_memory_gb:g} GB "
                f"({PROFILE}: config.site.gpus_per_node, gpu_memory_gb) by our estimate; give tensor_parallel_size and "
                "pipeline_parallel_size to say how many it takes, or a smaller max_model_len or batch_tokens"
            )
    return gpus * stages


def host_memory_bytes(model: Model, options: ExtractionOptions, device: Device, gpus: int) -> float:
    """The engine's own, the weights (on the way to a GPU, a copy of them), and without a GPU what a batch makes."""
    engine = engine_on(device, options)
    memory = HOST_GB[device][engine] * GB + model.weight_bytes(options.dtype)
    if device == "cuda":
        return memory + HOST_GB_OF_FURTHER_GPU * GB * (gpus - 1)
    tokens = options.batch_tokens or BATCH_TOKENS["cpu"]
    logits = model.logit_bytes(tokens) if engine == "vllm" else 0
    return memory + model.activation_bytes(options.dtype, tokens) + logits


def flops_per_second(site: Site, dtype: str, gpus: int, threads: int) -> float:
    if gpus == 0:
        return CPU_FLOPS * threads
    return gpus * site.gpu_teraflops * 1e12 * UTILISATION / (FLOAT32_SLOWER if dtype == "float32" else 1)


@dataclass(frozen=True, slots=True)
class Texts:
    """How much a checkpoint reads of one file of solutions. `known`: it is there and was counted."""

    number: int
    tokens: int
    known: bool


def count_texts(plan: Plan, name: str) -> Texts:
    """A task's solutions, or the generic text: counted where they are, else assumed, each as long as its tail."""
    path = plan.results / "solutions" / f"{name}.jsonl"
    source = plan.solutions_source(name)
    path = path if path.exists() else source
    if path.is_file() and path.suffix == ".jsonl":  # of a pipe nobody writes to there is no end
        content = path.read_bytes()
        return Texts(content.count(b"\n"), len(content) // BYTES_PER_TOKEN, known=True)
    suite, rows, tail = plan.study.miniature, plan.rows(name), plan.study.extraction.tail_tokens
    if suite and path == source and plan.results in source.parents and not rows:
        number, tail = suite.generic_documents if name == GENERIC_TEXT else suite.problems, CONTEXT
    else:
        number = rows.sample if rows and rows.sample else ASSUMED_TEXTS
    return Texts(number, number * tail, known=False)


class ModelJobs:
    """What the jobs of MODEL_RULES need, one after the other as they are asked for: thousands cost a second.

    `correct`: whether benchmark files are looked at; a job's own Snakemake has no use for it.
    """

    def __init__(self, plan: Plan, checkpoints: list[Checkpoint], site: Site | None = None, correct: bool = True):
        self.plan, self.site, self.correct = plan, site or Site(), correct
        self.checkpoints = checkpoints
        self.jobs, self.runs = scoring_jobs(plan, checkpoints), runs(checkpoints)
        self.by_name = {checkpoint.checkpoint: checkpoint for checkpoint in checkpoints}
        self.local_gpus = 0 if site else len(visible_gpus())
        self._models: dict[tuple, Model] = {}
        self._needs: dict[tuple[str, str], Needs] = {}
        self._factors: dict[str, tuple[float, float]] = {}

    def check(self) -> None:
        """`InputError` for a model that no job is large enough for; Snakemake would not print it from a resource."""
        for rule, names in (("score", self.jobs), ("write_solutions", self.plan.study.writers)):
            if self.device(rule) == "cuda":
                for name in names:
                    self.needs(rule, name)

    def threads(self, rule: str) -> Callable:
        return lambda wildcards: self.needs(rule, wildcards[0]).threads

    def resources(self, rule: str) -> dict[str, Callable | str | int]:
        """The keys of a rule's `resources`, for jobs that are named by their only wildcard."""
        found: dict[str, Callable | str | int] = {
            "mem_mb": lambda wildcards, attempt: self.memory_mb(rule, wildcards[0], attempt),
            "runtime": lambda wildcards, attempt: self.minutes(rule, wildcards[0], attempt),
        }
        if self.device(rule) == "cpu":
            return found
        if self.site.gpu_request == "gres":
            name = ":".join(filter(None, ("gpu", self.site.gpu_model)))
            found["gres"] = lambda wildcards: f"{name}:{self.needs(rule, wildcards[0]).gpus}"
        else:  # Snakemake's name of it, which other executors know too
            found["gpu"] = lambda wildcards: self.needs(rule, wildcards[0]).gpus
            found |= {"gpu_model": self.site.gpu_model} if self.site.gpu_model else {}
            found["nodes"] = 1  # --gpus alone may be met by several
        return found | self.site.gpu_jobs

    def device(self, rule: str) -> Device:
        """Whether jobs of this rule get GPUs: where there are any, unless the study says cpu."""
        wanted = "auto" if rule == "train_run" else self.plan.study.extraction.device
        if rule == "score" and self.plan.study.replay:
            return "cpu"
        return "cuda" if wanted != "cpu" and (self.site.gpu_request or self.local_gpus) else "cpu"

    def memory_mb(self, rule: str, name: str, attempt: int = 1) -> int:
        needs = self.needs(rule, name)
        factor = 1 if needs.is_given else self.factors(rule)[0]
        most = self.site.most_memory_gb * GB / MB if self.site.most_memory_gb else math.inf
        return math.ceil(min(most, max(needs.least_mb, needs.memory_mb * factor) * 2 ** (attempt - 1)))

    def minutes(self, rule: str, name: str, attempt: int = 1) -> int:
        asked = max(LEAST_MINUTES, self.needs(rule, name).seconds / 60 * TIME_MARGIN * self.factors(rule)[1])
        return math.ceil(min(60 * self.site.longest_hours, asked * 2 ** (attempt - 1)))

    def hours(self, rule: str, name: str) -> float:
        """How long a job is expected to run."""
        return self.needs(rule, name).seconds / 3600 * self.factors(rule)[1]

    def hours_of_others(self, rule: str) -> float | None:
        """The median of the jobs of a rule that runs no model; None as long as there is none."""
        folder = self.plan.results / "benchmarks"
        found = [read_benchmark(path) for path in [folder / f"{rule}.tsv", *(folder / rule).glob("*.tsv")]]
        seconds = [measured["s"] for measured in found if measured]
        return statistics.median(seconds) / 3600 if seconds else None

    def scored_tokens(self, job: str) -> int:
        """Rows of a scoring job's token statistics: the end of each text, of every checkpoint that reads."""
        tail = self.plan.study.extraction.tail_tokens
        rows = sum(min(texts.tokens, texts.number * tail) for texts in self.texts.values())
        return rows * sum(checkpoint.role != "target" for checkpoint in self.jobs[job])

    def trained_bytes(self, name: str) -> float:
        """Weights that a training job, named by a run or a corpus, leaves."""
        trained = (c for c in self.checkpoints if name in (c.run, c.corpus))
        return sum(self.model(checkpoint).weight_bytes("float32") for checkpoint in trained)

    def factors(self, rule: str) -> tuple[float, float]:
        """What earlier jobs of the rule took of memory and time, as a multiple of what the formulas say."""
        if not self.correct:
            return 1.0, 1.0
        if rule not in self._factors:
            self._factors[rule] = self._measured_factors(rule)
        return self._factors[rule]

    def _measured_factors(self, rule: str) -> tuple[float, float]:
        named = {"train_run": self.runs, "write_solutions": self.plan.study.writers}.get(rule, self.jobs)
        memory, seconds = [], []
        for path in (self.plan.results / "benchmarks" / rule).glob("*.tsv"):
            measured = read_benchmark(path) if path.stem in named else None
            if measured:
                needs = self.needs(rule, path.stem)
                memory.append(measured["max_rss"] / needs.memory_mb)
                seconds.append(measured["s"] / needs.seconds)
        if len(memory) < FEWEST_BENCHMARKS:
            return 1.0, 1.0
        return MEMORY_MARGIN * statistics.median(memory), statistics.median(seconds)

    def needs(self, rule: str, name: str) -> Needs:
        if (rule, name) not in self._needs:
            of = {
                "score": self._score,
                "evaluate_harness": self._evaluate_harness,
                "write_solutions": self._write_solutions,
                "train_run": self._train_run,
            }
            self._needs[rule, name] = of[rule](name)
        return self._needs[rule, name]

    def _score(self, job: str) -> Needs:
        if self.plan.study.replay:  # no model runs
            return Needs(0, HOST_GB["cpu"]["transformers"] * GB / MB, START_SECONDS["cpu"]["transformers"])
        target = self.plan.study.target
        measured = [self.texts[task.name] for task in self.plan.measured_tasks]
        judged = CHOICES * sum(texts.tokens for texts in measured)
        generated = TOKENS_OF_GENERATION * sum(
            texts.number * task.max_new_tokens for texts, task in zip(measured, self.plan.measured_tasks)
        )

        def tokens(checkpoint: Checkpoint) -> int:
            is_target = checkpoint.role == "target"
            read = 0 if is_target else self.tokens_read
            return read + judged + (generated if is_target or target.metric == EXACT_MATCH else 0)

        return self._of_checkpoints("score", job, tokens)

    def _evaluate_harness(self, job: str) -> Needs:
        harness = self.plan.study.target.lm_eval
        problems = (harness.limit or ASSUMED_TEXTS) * len(self.plan.harness_tasks)
        longest = int(harness.generation.get("max_gen_toks", 256))
        reading = self.plan.study.extraction.tail_tokens
        return self._of_checkpoints(
            "evaluate_harness", job, lambda checkpoint: problems * (reading + TOKENS_OF_GENERATION * longest)
        )

    def _of_checkpoints(self, rule: str, job: str, tokens: Callable[[Checkpoint], int]) -> Needs:
        """A job is as large as its largest model, and as long as all of them."""
        device, site, checkpoints = self.device(rule), self.site, self.jobs[job]
        gpus, memory, least, on_gpu, start, work = 0, 0.0, 0.0, 0.0, 0.0, 0.0
        pairs = list(zip(checkpoints, extraction_options(self.plan, checkpoints)))
        for checkpoint, options in pairs:
            model = self.model(checkpoint)
            own = self._gpus(model, options, f"{self.plan.where}: {checkpoint.checkpoint}") if device == "cuda" else 0
            gpus, engine = max(gpus, own), engine_on(device, options)
            memory = max(memory, host_memory_bytes(model, options, device, own))
            if own:
                on_gpu = max(on_gpu, gpu_memory_bytes(model, options, own))
            least = max(least, HOST_GB[device][engine])
            start = max(start, START_SECONDS[device][engine])
            rate = flops_per_second(site, options.dtype, own, 1)
            work += 2 * model.weight_bytes(options.dtype) / BYTES_PER_SECOND
            work += scoring_flops(model.active_parameters, tokens(checkpoint)) / rate
        given = self._given_gb(checkpoints[0].corpus)
        if given:
            return Needs(gpus, given * GB / MB, start + work, on_gpu / GB, is_given=True)
        return Needs(gpus, memory / MB, start + work, on_gpu / GB, least * GB / MB)

    def _gpus(self, model: Model, options: ExtractionOptions, where: str) -> int:
        if options.engine == "vllm" and options.dtype == "float32":
            raise InputError(f"{where}: {FLOAT32_ON_GPU}; set extraction.engine to transformers or auto")
        gpus = gpus_for(model, options, self.site, where)
        return min(gpus, self.local_gpus) if self.local_gpus else gpus

    def _given_gb(self, corpus: str) -> float | None:
        """The host memory that a model's file gives."""
        found = next((model for model in self.plan.models if model.name == corpus), None)
        return found.memory_gb if found and "memory_gb" in found.model_fields_set else None

    def _write_solutions(self, name: str) -> Needs:
        """The largest number of texts, all as long as they may be; of a model of the hub only its memory tells N."""
        writer, device = self.plan.study.writers[name], self.device("write_solutions")
        options = self.plan.study.extraction.over(writer.model)
        model = self._model_of_writer(writer, options)
        gpus = self._gpus(model, options, f"{self.plan.where}: writers.{name}") if device == "cuda" else 0
        problems = sum(self.texts[task].number for task in self.plan.task_names)
        tokens = problems * writer.samples * writer.max_new_tokens * TOKENS_OF_GENERATION
        is_given = "memory_gb" in writer.model_fields_set
        memory = writer.memory_gb * GB if is_given else host_memory_bytes(model, options, device, gpus)
        seconds = START_SECONDS[device][engine_on(device, options)]
        rate = flops_per_second(self.site, options.dtype, gpus, 1)
        seconds += scoring_flops(model.active_parameters, tokens) / rate
        return Needs(gpus, memory / MB, seconds, is_given=is_given)

    def _model_of_writer(self, writer: Writer, options: ExtractionOptions) -> Model:
        if writer.checkpoint in self.by_name:
            return self.model(self.by_name[writer.checkpoint])
        if writer.folder:
            parameters = count_parameters(writer.folder)
            return model_in(writer.folder, parameters, parameters - inactive_parameters(writer.folder))
        return assumed_model(int(writer.memory_gb * GB / BYTES[options.dtype]))

    def _train_run(self, run: str) -> Needs:
        checkpoints, device = self.runs[run], self.device("train_run")
        model, last = self.model(checkpoints[0]), max(checkpoint.tokens for checkpoint in checkpoints)
        gpus = int(device == "cuda")
        weights = TRAINING_BYTES * model.weight_bytes("float32") / BYTES["float32"]
        memory = HOST_GB[device]["transformers"] * GB + TRAINING_GB * GB + weights
        rate = flops_per_second(self.site, "bfloat16", gpus, 1)
        seconds = START_SECONDS[device]["transformers"] + training_flops(model.active_parameters, last) / rate
        return Needs(gpus, memory / MB, seconds, least_mb=HOST_GB[device]["transformers"] * GB / MB)

    def model(self, checkpoint: Checkpoint) -> Model:
        """The shape of a checkpoint's model: the ladder's, the suite's, that of its folder, or assumed from N."""
        key = checkpoint.corpus, checkpoint.size, checkpoint.parameters, checkpoint.active_parameters
        if key not in self._models:
            self._models[key] = self._model(checkpoint)
        return self._models[key]

    def _model(self, checkpoint: Checkpoint) -> Model:
        ladder, suite = self.plan.ladder, self.plan.study.miniature
        counts = checkpoint.parameters, checkpoint.active_parameters
        if ladder and checkpoint.size in ladder.sizes:
            size, vocabulary, context = ladder.sizes[checkpoint.size], ladder.vocabulary, ladder.sequence_length
            return Model(*counts, size.hidden_size, size.layers, 1, vocabulary, context)
        if suite and checkpoint.size in suite.sizes:
            size, vocabulary = suite.sizes[checkpoint.size], suite.vocabulary_of(checkpoint.size)
            return Model(*counts, size.hidden_size, size.layers, 1, vocabulary, CONTEXT)
        folder = Path(checkpoint.folder)
        if not checkpoint.revision and not checkpoint.convert_from and (folder / "config.json").is_file():
            return model_in(folder, *counts)
        return assumed_model(*counts)

    @cached_property
    def texts(self) -> Mapping[str, Texts]:
        return {name: count_texts(self.plan, name) for name in self.plan.solution_names}

    @cached_property
    def tokens_read(self) -> int:
        return sum(texts.tokens for texts in self.texts.values())


LARGEST_MEASURED = 1e9  # seconds, or MB: with more, which somebody else's results may say, there is nothing to compute


def read_benchmark(path: Path) -> dict[str, float] | None:
    """Seconds `s` and peak memory `max_rss` (MB) of a finished job; None where they were not measured."""
    try:
        require_regular(path)
        header, values, *_ = path.read_text().splitlines()
        found = dict(zip(header.split("\t"), values.split("\t")))
        measured = {key: float(found[key]) for key in ("s", "max_rss")}
    except (OSError, ValueError, KeyError):
        return None
    return measured if all(0 < v < LARGEST_MEASURED for v in measured.values()) else None


def grown(mem_mb: int) -> Callable:
    """`mem_mb` of a rule that runs no model: twice as much with every retry."""
    return lambda wildcards, attempt: mem_mb * 2 ** (attempt - 1)


def with_gpus(options: ExtractionOptions, resources: Mapping) -> ExtractionOptions:
    """`options` spread over the GPUs that a job asked for, unless they say by themselves over how many."""
    gpus = asked_gpus(resources) // options.pipeline_parallel_size
    if "tensor_parallel_size" in options.model_fields_set or gpus <= 1:
        return options
    return options.model_copy(update={"tensor_parallel_size": gpus})


def asked_gpus(resources: Mapping) -> int:
    """GPUs in a job's resources, in either dialect."""
    return int(resources.get("gpu") or str(resources.get("gres") or "gpu:0").rpartition(":")[2])


def visible_gpus() -> tuple[str, ...]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them, found without torch."""
    if (chosen := os.environ.get("CUDA_VISIBLE_DEVICES")) is not None:
        return tuple(name.strip() for name in chosen.split(",") if name.strip() and name.strip() != "-1")
    # CUDA counts what a process sees from 0: in a container the only one may be /dev/nvidia3.
    return tuple(str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*")))


@contextmanager
def own_gpus(count: int) -> Iterator[None]:
    """Take `count` of the visible GPUs, or all where there are fewer, and show this process no others.

    Each is locked, so that jobs of all studies on this machine have different ones; the log tells of a wait. Where a
    cluster gave the job its GPUs, it waits only for other jobs with the same ones.
    """
    visible, before = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    with ExitStack() as locks:
        taken = _lock_gpus(min(count, len(visible)), locks)
        if 0 < len(taken) < len(visible):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        try:
            _require_usable_gpus(count)
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _require_usable_gpus(count: int) -> None:
    """`InputError` where PyTorch cannot use the GPUs that there are, and models would run for days on the CPU."""
    if not count or not any(map(os.path.exists, GPU_DRIVERS)):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"this job was given {count} GPUs, and PyTorch {torch.__version__} cannot use them: install its CUDA (or "
            "ROCm) build in the environment that Snakemake is started from, or set device: cpu in the study's section "
            "extraction"
        )


def _lock_gpus(count: int, locks: ExitStack) -> list[str]:
    """`count` of the visible GPUs, as soon as so many are free; they are held until `locks` is closed."""
    told = -math.inf
    while len(taken := _free_gpus(count, locks)) < count:
        locks.close()  # two jobs that each hold a part would wait for each other
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            held = ", ".join(f"{name} ({_lock_file(name)})" for name in visible_gpus() if name not in taken)
            log.info("waiting for %d of %d GPUs; other jobs hold (lock file): %s", count, len(visible_gpus()), held)
        time.sleep(1)
    return taken


def _free_gpus(count: int, locks: ExitStack) -> list[str]:
    """Up to `count` GPUs whose lock file nobody holds; they are held until `locks` is closed or the process dies."""
    taken: list[str] = []
    for name in visible_gpus():
        if len(taken) == count:
            break
        file = locks.enter_context(os.fdopen(_open_lock(_lock_file(name)), "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as error:
            log.warning("%s: not locked, as its file system knows no locks: %s", file.name, error)
        taken.append(name)
    return taken


def _open_lock(path: Path) -> int:
    """A lock that nobody else can hold. `InputError` where another user has put something in its place."""
    try:
        return open_private(path)
    except OSError as error:
        raise InputError(f"{path}: the lock of a GPU cannot be opened: {one_line(error)}; see who made it") from None


def _lock_file(gpu: str) -> Path:
    """The lock of a GPU of this host, of this user's jobs.

    Two allocations of a scheduler never have the same GPU, but each may call its own 0: they have different locks. So
    have two steps of one Slurm job, unless they share their GPUs.
    """
    allocation = [f"{name}-{os.environ[name]}" for name in ALLOCATION if name in os.environ]
    name = "-".join(["proxycast", str(os.getuid()), socket.gethostname(), *allocation, "gpu", gpu])
    return Path(tempfile.gettempdir(), name.replace("/", "_") + ".lock")
