"""The keys of a study's file."""

from pathlib import Path
from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxycast.config.experiments.forecasting_options import ForecastingOptions
from proxycast.config.experiments.selection_options import (
    MixtureOptions,
    ModelSelectionOptions,
    Proxy,
    SelectionOptions,
)
from proxycast.config.extraction import ExtractionOptions, Writer
from proxycast.config.ladder import RateCheck
from proxycast.config.tasks import Rows
from proxycast.config.training import Suite
from proxycast.config.truth import OutsideStatistics, Target
from proxycast.options import InputPath, Options, SafeName, ShownName
from proxycast.proxy_formulas import ProxyOptions

CONFIG = Path("config")


class HubOptions(Options):
    """How models and data sets are downloaded from the hub."""

    concurrent_downloads: int = Field(4, ge=1, description="download jobs at a time")
    retries: int = Field(5, ge=0, description="retries of a request or file after a temporary error")
    disk_gb: float | None = Field(
        None,
        gt=0,
        description="largest disk space of downloaded weights that wait to be scored; downloads wait until there is "
        "space. Unit: 10^9 bytes",
    )
    keep: bool = Field(False, description="keep downloaded weights; otherwise they are removed once they are scored")

    @model_validator(mode="after")
    def _room_is_made_by_removal(self) -> "HubOptions":
        if self.keep and self.disk_gb is not None:
            raise ValueError(
                "keep and disk_gb: found both; kept weights never free disk space, so give only one of them"
            )
        return self


class LadderChoice(Options):
    """The part of a ladder (config/ladders/<name>.yaml) that a study uses."""

    name: SafeName = Field(description="name of the ladder")
    sizes: Literal["all"] | list[SafeName] = Field("all", description="sizes whose checkpoints are scored")
    seeds: Literal["all"] | list[int] = Field("all", description="training seeds, also of the target")
    checkpoints: Literal["all", "last"] | Annotated[int, Field(ge=1)] = Field(
        1,
        description="a number n: every n-th checkpoint of the ladder's rule, counted back from a run's last; "
        "last: only the last; all: also checkpoints that only some runs have",
    )
    first_step: int = Field(1, ge=0, description="first step whose checkpoints are used; 0: also the untrained model")
    learning_rate_factor: float = Field(
        1.0,
        gt=0,
        description="corpora of text: factor of the ladder's peak learning rates. Lower rates can make the order of "
        "corpora at small sizes more like that at large ones (arXiv 2512.24503)",
    )
    rate_check: RateCheck | None = Field(
        None,
        description="corpora of text: train one size also at a lower learning rate, and tell how far the order moves",
    )


# The two that the paper names, and the plain baseline that is hardest to beat.
DEFAULT_PROXIES = [
    Proxy(statistic="top5_accuracy", weighting="token_frequency"),
    Proxy(statistic="top1_accuracy", weighting="inverse_token_frequency"),
    Proxy(statistic="bits_per_byte", weighting="none"),
]


class Budget(Options):
    """A size and step of the small models at which proxies are compared."""

    name: ShownName = Field(description="short name, used in figures")
    size: SafeName = Field(description="model size")
    step: int = Field(ge=0, description="training step")


class Study(Options):
    """One study: corpora, tasks, truth, and how proxies are extracted and judged."""

    study: SafeName = Field(description="name of the study; results go to results/<study>")
    corpora: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of corpora (folders of config/corpora): 'all' or names"
    )
    models: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of released models (folders of config/models): 'all' or names"
    )
    tasks: dict[SafeName, Literal["all"] | list[SafeName]] = Field(
        {}, description="suites of tasks (folders of config/tasks): 'all' or names"
    )
    writers: dict[SafeName, Writer] = Field(
        {},
        description="strong models that write expert solutions of all tasks, in addition to given ones; tasks without "
        "solutions need them",
    )
    generic_text: InputPath | Rows | None = Field(
        None,
        description="text for the generic cross-entropy: a JSONL like a solutions file with empty prompts, or rows of "
        "a data set; the miniature suite has its own. Without it this baseline is left out",
    )
    miniature: Suite | None = Field(None, description="the miniature suite; needed by corpora with a recipe")
    ladder: LadderChoice | None = Field(None, description="model sizes, steps and training that all corpora share")
    hub: HubOptions = Field(HubOptions(), description="how weights and data sets are downloaded from the hub")
    statistics: OutsideStatistics | None = Field(
        None, description="statistics that others measured, compared like proxies (data and model selection)"
    )
    target: Target | None = Field(
        None, description="the truth; without it corpora or models are ranked, and nothing is judged"
    )
    jobs: Literal["run", "corpus"] = Field(
        "run",
        description="one scoring job for each training run, or for all runs of a corpus (faster for small models)",
    )
    extraction: ExtractionOptions = Field(ExtractionOptions(), description="how token statistics are made")
    proxies: ProxyOptions = Field(ProxyOptions(), description="details that the paper leaves open")
    selection: SelectionOptions = Field(SelectionOptions(), description="intervals and thresholds of the comparison")
    highlighted: list[Proxy] = Field(
        DEFAULT_PROXIES,
        description="proxies fixed in advance, which rank the candidates, as in [top5_accuracy/token_frequency, "
        "bits_per_byte]; figures of a single proxy show the first",
    )
    budgets: list[Budget] = Field(
        [],
        description="data selection: budgets fixed in advance; figures of a single budget are drawn for each. Without "
        "them: the largest size below the target's at the last step that all corpora have",
    )
    token_view: tuple[ShownName, ShownName] | None = Field(
        None,
        description="the two candidates that are compared token by token: corpora, models or, of a forecast, "
        "checkpoints. Without it the first and the last of the ranking, or of a run",
    )
    mixtures: MixtureOptions | None = Field(
        None,
        description="data selection: the sources of corpora whose recipe or text the study does not know",
    )
    judges: dict[SafeName, InputPath] = Field(
        {},
        description="name -> judge.json of a study with a truth; each predicts the order and metric of this study's "
        "corpora or models",
    )
    model_selection: ModelSelectionOptions | None = Field(
        None, description="choose among models: scorers learn from some tasks and are judged on the others"
    )
    replay: InputPath | None = Field(
        None,
        description="only to test the workflow: token statistics (parquet) used for every checkpoint. No checkpoint is "
        "downloaded or run, and the numbers mean nothing",
    )
    forecasting: ForecastingOptions | None = Field(
        None, description="forecast training runs: curves fitted to early checkpoints, judged by the later ones"
    )

    @model_validator(mode="before")
    @classmethod
    def _published_was_replaced(cls, values: object) -> object:
        if isinstance(values, dict) and "published" in values:
            raise ValueError(
                "published: this key is gone; write the published files as one long table, by the command in "
                "docs/tutorials/datadecide.md, and name it in statistics.table (see config/published_datadecide.yaml)"
            )
        return values
