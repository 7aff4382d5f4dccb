"""The plan: a study with the files that it names."""

from functools import cached_property
from pathlib import Path

import polars as pl
from pydantic import BaseModel

from proxycast.config.corpora import Corpus
from proxycast.config.experiments.forecasting_options import WideCurve
from proxycast.config.ladder import Ladder
from proxycast.config.models import ReleasedModel
from proxycast.config.study import Study
from proxycast.config.tasks import Rows, Task
from proxycast.experiments.judges.judge_file import Judge
from proxycast.files import Files
from proxycast.solutions.rows import GENERIC_TEXT
from proxycast.truth.mixture_ratios import known_mixtures
from proxycast.truth.outside_statistics import named_tasks, read_statistics, require_signs, with_own_names


class Plan(BaseModel):
    """A study with the files it names, all of them checked against each other."""

    study: Study
    corpora: list[Corpus]  # released models too, each as a corpus with one checkpoint
    tasks: list[Task]
    corpus_files: dict[str, Path]  # corpus or model name -> its file
    ladder: Ladder | None
    where: str  # the study's file, for errors
    models: list[ReleasedModel] = []
    judges: dict[str, Judge] = {}
    files: dict[Path, dict] = {}  # every YAML file and judge that the study reads, and what it held

    @cached_property
    def results(self) -> Path:
        return Path("results") / self.study.study

    @property
    def task_names(self) -> list[str]:
        if self.curve:
            return list(self.curve.tasks)
        return [task.name for task in self.tasks] if self.runs_models else self.outside_tasks

    @property
    def runs_models(self) -> bool:
        """Whether models are run at all; if not, others have measured everything.

        With statistics from outside and no task to read, there is nothing to run models for.
        """
        return self.curve is None and (self.study.statistics is None or bool(self.tasks))

    @cached_property
    def outside(self) -> pl.DataFrame | None:
        """The statistics that others measured (`read_statistics`), by the study's names of corpora and models."""
        options = self.study.statistics
        if options is None:
            return None
        table = read_statistics(options.table)
        require_signs(table, options, self.study.target, self.runs_models)
        return with_own_names(table, options.table, self.unit_names) if self.unit_names else table

    @cached_property
    def outside_tasks(self) -> list[str]:
        return named_tasks(self.outside, self.study.statistics.table, self.study.target)

    @property
    def unit_names(self) -> dict[str, str]:
        """What a corpus or model of the study may be called in tables of others -> its name here."""
        return self.published_names | {corpus.name: corpus.name for corpus in self.corpora}

    @property
    def corpus_names(self) -> list[str]:
        """The corpora and models of the study; where it names none, those of its table of statistics."""
        if self.corpora or self.outside is None:
            return [corpus.name for corpus in self.corpora]
        return self.outside["unit"].unique(maintain_order=True).to_list()

    def origin(self, corpus: str) -> Path:
        """The file that a corpus or model is in, for errors."""
        return self.corpus_files[corpus] if corpus in self.corpus_files else self.study.statistics.table

    @cached_property
    def mixtures(self) -> dict[str, dict[str, float]]:
        """Corpus -> source -> share of its tokens, of the corpora whose mixture is known (`known_mixtures`)."""
        names = self.unit_names | {name: name for name in self.corpus_names}
        return known_mixtures(self.corpora, self.study.mixtures, names) if self.selects_data else {}

    @property
    def curve(self) -> WideCurve | None:
        """The logs of training runs that the study forecasts, if it reads any."""
        return self.study.forecasting.curve if self.study.forecasting else None

    @property
    def selects_data(self) -> bool:
        """Whether small models rank the corpora: as models of the target's size do, if the study has a truth."""
        study = self.study
        if study.target:
            return study.target.size is not None
        corpora = study.corpora or (study.statistics and not study.tasks)  # those of the table, if the study names none
        return bool(corpora) and not (study.models or study.model_selection or study.forecasting)

    @property
    def selects_models(self) -> bool:
        """Whether the models themselves are ranked."""
        study = self.study
        return study.model_selection is not None or (study.target is None and bool(study.models))

    @property
    def target_size(self) -> str | None:
        return self.study.target.size if self.study.target else None

    @property
    def solution_names(self) -> list[str]:
        """Every task, and the generic text if there is one: what checkpoints read."""
        if not self.runs_models:
            return []
        has_generic = self.study.generic_text or self.study.miniature
        return [*self.task_names, *([GENERIC_TEXT] if has_generic else [])]

    @property
    def left_out(self) -> list[str]:
        """What the study leaves out as it asks for little, and the key that brings it; one line each."""
        lines = []
        if self.study.target is None:
            data = "decision accuracy, noise ceiling or compute to reach"
            models = "rank correlation on held-out tasks or noise ceiling"
            lines.append(f"nothing is judged: no {data if self.selects_data else models} (`target` adds them)")
        if self.study.target and self.study.statistics and (self.selects_models or not self.runs_models):
            lines.append("no judge.json: nothing learned from `statistics` of others can be applied to another study")
        if self.runs_models and GENERIC_TEXT not in self.solution_names:
            lines.append("no baseline generic_cross_entropy (`generic_text` adds it)")
        return lines

    @property
    def harness_tasks(self) -> list[Task]:
        """Tasks that lm-eval measures."""
        target = self.study.target
        return [task for task in self.tasks if task.lm_eval] if target and target.lm_eval else []

    @property
    def measured_tasks(self) -> list[Task]:
        """Tasks that scoring jobs measure themselves, by multiple choice and exact match."""
        if not (self.study.target and self.study.target.measured_here):
            return []
        by_harness = {task.name for task in self.harness_tasks}
        return [task for task in self.tasks if task.name not in by_harness]

    def corpus(self, name: str) -> Corpus:
        return next(corpus for corpus in self.corpora if corpus.name == name)

    @property
    def post_trains(self) -> bool:
        """Whether models that the suite trains are post-trained."""
        return self.study.miniature is not None and self.study.miniature.post_training is not None

    def recipes_of(self, corpus: str) -> tuple[str, ...]:
        """The post-training of the models that the suite trains on a corpus, in the order in which it is done."""
        options = self.study.miniature.post_training if self.post_trains else None
        return options.in_order if options and options.post_trains(corpus) else ()

    def solutions_source(self, task: str) -> Path:
        """The file that a task's expert solutions are copied from; of rows, the file that they are rendered to."""
        if self.rows(task):
            return self.results / "solutions" / f"{task}.jsonl"
        if task == GENERIC_TEXT:
            return self.study.generic_text or self.results / "suite" / "generic_text.jsonl"
        found = next(entry for entry in self.tasks if entry.name == task)
        return found.solutions or self.results / "suite" / "problems" / f"{found.family}.jsonl"

    def rows(self, task: str) -> Rows | None:
        """The rows that a task's solutions, or the generic text, are rendered from."""
        if task == GENERIC_TEXT:
            return self.study.generic_text if isinstance(self.study.generic_text, Rows) else None
        return next(entry for entry in self.tasks if entry.name == task).rows

    def file_sets(self) -> dict[str, Files]:
        """Name -> files of every data set that the study reads, from this machine or from the hub."""
        found: dict[str, Files] = {f"solutions-{name}": self.rows(name) for name in self.solution_names}
        found["evaluations"] = self.study.target.evaluations if self.study.target else None
        for corpus in self.corpora:
            found |= {
                f"text-{corpus.name}-{n}": source for n, source in enumerate(corpus.text.mixture if corpus.text else [])
            }
        return {name: files for name, files in found.items() if files}

    @property
    def published_names(self) -> dict[str, str]:
        """Name of a corpus in tables of others -> its name here."""
        return {corpus.display_name or corpus.name: corpus.name for corpus in self.corpora}

    @property
    def tokenizer_folder(self) -> Path:
        """The tokenizer of the models that are trained here, and of the ladder's."""
        if self.ladder is None:
            return self.results / "suite" / "tokenizer"
        return Path(self.ladder.tokenizer.folder or self.results / "tokenizer")

    def size_in_choices(self, size: str) -> str:
        """The size by whose name a study chooses models of this size: the second training goes with the first."""
        check = self.study.ladder.rate_check if self.study.ladder else None
        return check.size if check and size == check.name else size

    @property
    def vocabulary(self) -> int | None:
        """Tokens that all models have an embedding for; None if models may have different tokenizers."""
        if not self.selects_data:
            return None
        suite = self.study.miniature
        return suite.vocabulary if suite else self.ladder.vocabulary if self.ladder else None

    def file_set_origin(self, name: str) -> str:
        """The file and key that one of the `file_sets` comes from, for errors."""
        for corpus in self.corpora:
            for number in range(len(corpus.text.mixture) if corpus.text else 0):
                if name == f"text-{corpus.name}-{number}":
                    return f"{self.corpus_files[corpus.name]}: text.mixture[{number}]"
        task = name.removeprefix("solutions-")
        if name == "evaluations" or task == GENERIC_TEXT:
            return f"{self.where}: {'target.evaluations' if name == 'evaluations' else GENERIC_TEXT}"
        return f"{self.where}: task {task}: rows"

    def data_folder(self, name: str) -> Path:
        """Where the files of a data set of the hub are downloaded to."""
        return self.results / "data" / name
