"""What a job that runs models asks of a cluster: GPUs, memory and time, by its models and by how much they read.

The formulas are those of `cost_model`. What earlier jobs of the study took (Snakemake's benchmark files) corrects
memory and time, and a retry gets twice as much of both. The number of GPUs is neither corrected nor grown: the main
process and a job, which counts again, must get the same one, and not every number divides a model's heads. No result
depends on anything here.
"""

import math
import statistics
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from proxycast.cluster.cost_model import (
    BYTES,
    GB,
    HOST_GB,
    MB,
    Device,
    ModelShape,
    Needs,
    assumed_model,
    engine_on,
    flops_per_second,
    gpu_memory_bytes,
    gpus_for,
    host_memory_bytes,
    model_in,
)
from proxycast.cluster.site import Site
from proxycast.compute import scoring_flops, training_flops
from proxycast.config.extraction import ExtractionOptions, Writer
from proxycast.config.training import CONTEXT
from proxycast.extraction.engines.base import FLOAT32_ON_GPU
from proxycast.jobs.benchmarks import read_benchmark
from proxycast.options import InputError
from proxycast.processes import visible_gpus
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.study.checkpoints import (
    Checkpoint,
    count_parameters,
    extraction_options,
    runs,
    scoring_jobs,
    trained_manifest,
)
from proxycast.study.study_plan import Plan
from proxycast.weights.experts import inactive_parameters

ASSUMED_TEXTS = 1000  # of a task whose solutions nobody has counted
BYTES_PER_TOKEN = 3  # of a solutions file; English has about 4 in a large vocabulary, JSON takes its part

TRAINING_BYTES = 16  # a parameter: weight, gradient, two moments (Rajbhandari et al., arXiv 1910.02054, section 3.1)
TRAINING_GB = 4  # activations of a micro-batch (pretraining.CPU_BUDGET) and the logits of its head, with room

BYTES_PER_SECOND = 0.3e9  # weights from a shared file system, read twice: fingerprint and loading
START_SECONDS = {"cpu": {"transformers": 20, "vllm": 40}, "cuda": {"transformers": 40, "vllm": 180}}
CHOICES = 4  # continuations of a multiple-choice problem, each read
TOKENS_OF_GENERATION = 3  # a generated token takes the time of so many that are read, in large batches

# From an estimate to what is asked for.
MEMORY_MARGIN, TIME_MARGIN = 1.5, 2.0
LEAST_MINUTES = 30
FEWEST_BENCHMARKS = 3

MODEL_RULES = ("score", "evaluate_harness", "write_solutions", "train_run")


@dataclass(frozen=True, slots=True)
class Texts:
    """How much a checkpoint reads of one file of solutions. `known`: counted, not assumed."""

    number: int
    tokens: int
    known: bool


def count_texts(plan: Plan, name: str) -> Texts:
    """A task's solutions, or the generic text: counted if the file exists, else assumed, each as long as its tail."""
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
    """What the jobs of MODEL_RULES need, computed when asked for: thousands of jobs take a second.

    `correct`: whether to read benchmark files; the Snakemake of a job has no use for them.
    """

    def __init__(self, plan: Plan, checkpoints: list[Checkpoint], site: Site | None = None, correct: bool = True):
        self.plan, self.site, self.correct = plan, site or Site(), correct
        self.checkpoints = checkpoints
        self.jobs, self.runs = scoring_jobs(plan, checkpoints), runs(checkpoints)
        self.by_name = {checkpoint.checkpoint: checkpoint for checkpoint in checkpoints}
        self.local_gpus = 0 if site else len(visible_gpus())
        self._models: dict[tuple, ModelShape] = {}
        self._needs: dict[tuple[str, str], Needs] = {}
        self._factors: dict[str, tuple[float, float]] = {}

    def check(self) -> None:
        """`InputError` for a model that fits into no job; raised in a resource, Snakemake would not print it."""
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
        """Whether jobs of this rule get GPUs: if there are any, and the study does not say cpu."""
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
        """The median of the finished jobs of a rule that runs no model, or None."""
        folder = self.plan.results / "benchmarks"
        found = [read_benchmark(path) for path in [folder / f"{rule}.tsv", *(folder / rule).glob("*.tsv")]]
        seconds = [measured["s"] for measured in found if measured]
        return statistics.median(seconds) / 3600 if seconds else None

    def scored_tokens(self, job: str) -> int:
        """Rows of a scoring job's token statistics: the tail of each text, for every checkpoint that reads it."""
        tail = self.plan.study.extraction.tail_tokens
        rows = sum(min(texts.tokens, texts.number * tail) for texts in self.texts.values())
        return rows * sum(checkpoint.role != "target" for checkpoint in self.jobs[job])

    def trained_bytes(self, name: str) -> float:
        """Bytes of the weights that a training job leaves, named by a run or a corpus.

        Corpora whose checkpoints are given have no such job.
        """
        trained = (c for c in self.checkpoints if trained_manifest(self.plan, c).stem == name)
        return sum(self.model(checkpoint).weight_bytes("float32") for checkpoint in trained)

    def factors(self, rule: str) -> tuple[float, float]:
        """Memory and time of earlier jobs of the rule, as multiples of what the formulas say."""
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
            self._needs[rule, name] = getattr(self, f"_{rule}")(name)  # a method for each of MODEL_RULES
        return self._needs[rule, name]

    def _score(self, job: str) -> Needs:
        if self.plan.study.replay:  # no model runs
            return Needs(0, HOST_GB["cpu"]["transformers"] * GB / MB, START_SECONDS["cpu"]["transformers"])
        target = self.plan.study.target
        measured = [self.texts[task.name] for task in self.plan.measured_tasks]
        judged = CHOICES * sum(texts.tokens for texts in measured)
        tokens_of_one = sum(
            texts.number * task.max_new_tokens for texts, task in zip(measured, self.plan.measured_tasks)
        )
        generated = TOKENS_OF_GENERATION * tokens_of_one * (target.texts_of_problem if target else 0)

        def tokens(checkpoint: Checkpoint) -> int:
            is_target = checkpoint.role == "target"
            read = 0 if is_target else self.tokens_read
            return read + judged + (generated if is_target or (target and target.is_generated) else 0)

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
            if rule == "evaluate_harness":  # lm-eval has one
                options = options.model_copy(update={"data_parallel_size": 1})
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

    def _gpus(self, model: ModelShape, options: ExtractionOptions, where: str) -> int:
        if options.engine == "vllm" and options.dtype == "float32":
            raise InputError(f"{where}: {FLOAT32_ON_GPU}; set extraction.engine to transformers or auto")
        gpus = gpus_for(model, options, self.site, where)
        return min(gpus, self.local_gpus) if self.local_gpus else gpus

    def _given_gb(self, corpus: str) -> float | None:
        """The host memory that a model's file gives."""
        found = next((model for model in self.plan.models if model.name == corpus), None)
        return found.memory_gb if found and "memory_gb" in found.model_fields_set else None

    def _write_solutions(self, name: str) -> Needs:
        """Counts as many texts as possible, all as long as allowed. For a model of the hub only its memory tells N."""
        writer, device = self.plan.study.writers[name], self.device("write_solutions")
        options = self.plan.study.extraction.with_overrides(writer.model)
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

    def _model_of_writer(self, writer: Writer, options: ExtractionOptions) -> ModelShape:
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

    def model(self, checkpoint: Checkpoint) -> ModelShape:
        """The shape of a checkpoint's model: the ladder's, the suite's, that of its folder, or assumed from N."""
        key = checkpoint.corpus, checkpoint.size, checkpoint.parameters, checkpoint.active_parameters
        if key not in self._models:
            self._models[key] = self._model(checkpoint)
        return self._models[key]

    def _model(self, checkpoint: Checkpoint) -> ModelShape:
        ladder, suite = self.plan.ladder, self.plan.study.miniature
        counts = checkpoint.parameters, checkpoint.active_parameters
        if ladder and checkpoint.size in ladder.sizes:
            size, vocabulary, context = ladder.sizes[checkpoint.size], ladder.vocabulary, ladder.sequence_length
            return ModelShape(*counts, size.hidden_size, size.layers, 1, vocabulary, context)
        if suite and checkpoint.size in suite.sizes:
            size, vocabulary = suite.sizes[checkpoint.size], suite.vocabulary_of(checkpoint.size)
            return ModelShape(*counts, size.hidden_size, size.layers, 1, vocabulary, CONTEXT)
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


def grown(mem_mb: int) -> Callable:
    """`mem_mb` of a rule that runs no model: twice as much with every retry."""
    return lambda wildcards, attempt: mem_mb * 2 ** (attempt - 1)
