"""How corpora and models are chosen: proxies, intervals, scaling laws, scorers."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from proxycast.config.errors import closest
from proxycast.options import InputPath, Options, SafeName, ShownName
from proxycast.proxy_formulas import BASELINE_SIGNS, STATISTICS, WEIGHTINGS


class Proxy(Options):
    """One of the 80 proxies or, with the weighting none, a baseline."""

    statistic: ShownName = Field(description="core statistic")
    weighting: str = Field("uniform", description="weighting of the tokens")

    @model_validator(mode="before")
    @classmethod
    def _by_name(cls, given: object) -> object:
        """`top5_accuracy/token_frequency`, as the command has it, or a baseline's name alone."""
        if not isinstance(given, str):
            return given
        statistic, _, weighting = given.partition("/")
        return {"statistic": statistic, "weighting": weighting or ("uniform" if statistic in STATISTICS else "none")}

    @model_validator(mode="after")
    def _known(self) -> "Proxy":
        if self.weighting == "none":
            return self
        if self.statistic in BASELINE_SIGNS:
            raise ValueError(f"{self.statistic} is a baseline; give weighting: none, or its name alone")
        for key, known in (("statistic", STATISTICS), ("weighting", WEIGHTINGS)):
            value = getattr(self, key)
            if value not in known:
                raise ValueError(f"{key} {value!r} is unknown{closest(value, known)}; known are {', '.join(known)}")
        return self


LawName = Literal[
    "2_param",
    "3_param",
    "2_param-default",
    "3_param-default",
    "5_param-ai2",
    "3_param-1_step",
    "5_param-1_step-ai2",
    "3_param-default-helper_points",
    "3_param-default-step2=0.5",
    "3_param-default-helper_points-step2=0.5",
]


class ScalingLawOptions(Options):
    """Scaling laws fitted to small models of several sizes, each corpus by itself, and predicted at the target."""

    laws: tuple[LawName, ...] = Field(
        ("2_param", "3_param"),
        min_length=1,
        description="2_param and 3_param extrapolate a source itself over compute. The others are the eight of "
        "DataDecide (arXiv 2504.11393), by its names: they end in the target's metric, which must be a share that was "
        "measured at these sizes",
    )
    sources: tuple[Proxy, ...] = Field(
        min_length=1,
        description="what is extrapolated: proxies, baselines and metrics, as in [top5_accuracy/token_frequency, "
        "bits_per_byte, accuracy]. Losses, or shares of which more is better",
    )
    sizes: tuple[tuple[SafeName, ...], ...] = Field(
        (),
        description="sets of sizes, as in [[150M, 300M, 530M]]; the laws are fitted to each. Without any: one set, of "
        "all sizes smaller than the target",
    )

    @model_validator(mode="after")
    def _once(self) -> "ScalingLawOptions":
        for key in ("laws", "sources", "sizes"):
            found = [str(value) for value in getattr(self, key)]
            if repeated := sorted({value for value in found if found.count(value) > 1}):
                raise ValueError(f"{key}: found {repeated[0]} more than once")
        for sizes in self.sizes:
            if len(set(sizes)) < max(len(sizes), 2):
                raise ValueError(f"sizes: found {list(sizes)}; a law needs at least two different sizes")
        return self


class SelectionOptions(Options):
    """How the ranking of corpora is judged."""

    bootstrap_replicates: int = Field(2000, ge=100, description="Bootstrap samples for every interval. Unit: samples.")
    confidence: float = Field(
        0.95,
        gt=0,
        lt=1,
        description="Probability that an interval covers (percentile bootstrap). Too few corpora give no interval.",
    )
    seed: int = Field(0, ge=0, description="Seed of the bootstrap's random numbers.")
    last_checkpoints: int = Field(
        1,
        ge=1,
        description="Checkpoints whose mean is a candidate's value: that of a step and those before it in the run. "
        "It is less noisy than a single one (Signal and Noise, arXiv 2508.13144). Unit: checkpoints.",
    )
    noise_checkpoints: int = Field(
        5,
        ge=2,
        description="Last checkpoints of a run whose spread is its noise, and whose mean is tried as a candidate's "
        "value. Unit: checkpoints.",
    )
    thresholds: list[Annotated[float, Field(gt=0, le=1)]] = Field(
        [0.75, 0.8, 0.85],
        description="Decision accuracies for which the compute to reach them is reported. Unit: share of pairs.",
    )
    scaling_laws: ScalingLawOptions | None = Field(
        None,
        description="data selection: scaling laws over small models of several sizes, judged like proxies",
    )


class MixtureOptions(Options):
    """Corpora as mixtures of the same sources."""

    ratios: InputPath = Field(
        description="csv with a row for each corpus: column run (its name), and for each source a column with its "
        "share of the training tokens; like ratios.csv, which a study writes. It takes the place of the weights of "
        "recipes and texts"
    )


ScorerName = Literal["univariate", "sparse3", "rank_svm_linear", "rank_svm_rbf"]
PopulationName = Literal["all", "bases", "post_trained", "within_base"]


class Claim(Options):
    """A claim that is fixed before the results: these methods order models better than those."""

    methods: tuple[ShownName, ...] = Field(
        min_length=1,
        description="what is claimed to be better: scorers, proxies (`statistic/weighting`) or baselines, as in "
        "[rank_svm_linear, top1_accuracy/inverse_token_frequency]",
    )
    against: tuple[ShownName, ...] = Field(
        min_length=1, description="better than each of these, as in [generic_cross_entropy, bits_per_byte]"
    )
    populations: tuple[PopulationName, ...] = Field(
        ("all",),
        min_length=1,
        description="among which models: all; bases (recipe none); post_trained (the others); within_base: only models "
        "of the same base are compared. All but the first need models whose recipe is told",
    )


class ModelSelectionOptions(Options):
    """How models are chosen by their proxies."""

    scorers: tuple[ScorerName, ...] = Field(
        ("univariate", "sparse3", "rank_svm_linear", "rank_svm_rbf"),
        min_length=1,
        description="scorers that learn from the proxies: the best one, the best linear combination of three, RankSVMs",
    )
    numbers: tuple[Annotated[int, Field(gt=0)], ...] = Field(
        (10, 30, 100),
        description="numbers of problems drawn per task, to test how the ranking depends on their number and writer",
    )
    draws: int = Field(5, gt=0, description="draws for each of these numbers")
    claim: Claim | None = Field(
        None, description="a claim fixed in advance; the table claims says whether it is supported or refuted"
    )
