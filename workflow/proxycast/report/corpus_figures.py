"""Every figure of a data selection: which tables it is drawn from, and its name, which is that of its file.

One job draws all of them: Python and its libraries take longer to start than most figures take.
"""

from collections.abc import Iterator, Mapping

import polars as pl
from matplotlib.figure import Figure

from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.study import Budget
from proxycast.config.truth import Target
from proxycast.experiments.data_selection.corpus_truth import about_noisy_metric
from proxycast.experiments.reliability import NOISE
from proxycast.experiments.signal_to_noise import CONSTANT
from proxycast.report import corpus_order_figures as ordered
from proxycast.report import data_selection_figures as judged
from proxycast.report.comparisons import choice_figures as chosen
from proxycast.report.comparisons import law_figures as laws
from proxycast.report.comparisons import signal_figures as signals
from proxycast.report.comparisons.rate_figures import orders_over_learning_rate
from proxycast.report.comparisons.solution_count_figures import figure_over_number
from proxycast.tables import read_table


def corpus_figures(tables: Mapping[str, str], study: dict) -> Iterator[tuple[str, Figure]]:
    """Name and figure, one after the other; `tables`: name -> path; `study`: its sections, as a rule's parameter.

    Tables are read where they are drawn: all together they would take much memory.
    """
    drawn = _Corpora(tables, study)
    yield from drawn.of_the_truth() if study["target"] else drawn.of_the_order()
    yield from drawn.of_signals()
    if "rates" in tables:
        yield from drawn.of_rates()
    if "law_gains" in tables:
        yield from drawn.of_laws()
    if "choices" in tables:
        yield from drawn.of_choices()
    if "solution_counts" in tables:
        yield from drawn.of_solution_counts()


class _Corpora:
    def __init__(self, tables: Mapping[str, str], study: dict):
        self._paths = tables
        self._options = SelectionOptions(**study["selection"])
        self._highlighted = [(proxy["statistic"], proxy["weighting"]) for proxy in study["highlighted"]]
        self._budgets = [Budget(**budget) for budget in study["budgets"]]
        if study["target"]:
            self._metric = Target(**study["target"]).metric
            self._truth = self._read("truth").row(by_predicate=pl.col("metric") == self._metric, named=True)
            self._ceiling = self._truth["ceiling_decision_accuracy"]
            self._warning = about_noisy_metric(self._truth) if self._truth["verdict"] == NOISE else ""

    def _read(self, name: str) -> pl.DataFrame:
        return read_table(self._paths[name])

    def of_the_truth(self) -> Iterator[tuple[str, Figure]]:
        """How well the truth is predicted."""
        highlighted, ceiling, warning = self._highlighted, self._ceiling, self._warning
        accuracy = self._read("decision_accuracy").filter(truth=self._metric, task="all")
        ranking = self._read("ranking")
        yield (
            "pareto_frontier",
            judged.decision_accuracy_over_compute(
                self._read("pareto"), ceiling, self._options.thresholds, highlighted, warning
            ),
        )
        yield (
            "decision_accuracy_over_training",
            judged.decision_accuracy_over_training(
                accuracy, ceiling, highlighted, judged.LINED_BASELINES, warning=warning
            ),
        )
        for budget in self._budgets:
            at = (budget.size, budget.step)
            proxy_at = (*highlighted[0], *at)
            yield (
                _at("ranking_with_intervals", budget),
                judged.ranking_with_intervals(ranking, accuracy, proxy_at, ceiling, warning=warning),
            )
            yield (
                _at("proxy_against_truth", budget),
                judged.proxy_against_truth(
                    ranking, accuracy, proxy_at, ceiling, "mean", warning, self._truth["higher_is_better"]
                ),
            )
            if "proxy" in set(accuracy["kind"]):
                yield (
                    _at("decision_accuracy_heatmap", budget),
                    judged.decision_accuracy_heatmap(accuracy, *at, ceiling, warning=warning),
                )

    def of_the_order(self) -> Iterator[tuple[str, Figure]]:
        """The order of corpora that nobody has measured."""
        ranking, pairs = self._read("ranking"), self._read("pairs")
        yield "agreement_of_proxies", ordered.agreement_of_proxies(self._read("agreement"), ranking)
        for budget in self._budgets:
            proxy = (*self._highlighted[0], budget.size, budget.step)
            figure = ordered.order_of_corpora(ranking, pairs, proxy, self._options.confidence)
            yield _at("order_of_corpora", budget), figure

    def of_signals(self) -> Iterator[tuple[str, Figure]]:
        """Signal to noise by statistic and task; with a truth, against decision accuracy, and what repeats buy."""
        highlighted, confidence = self._highlighted, self._options.confidence
        signal = self._read("signal_to_noise")
        for budget in self._budgets:
            figure = signals.signal_to_noise(signal, budget.size, budget.step, highlighted, confidence)
            yield _at("signal_to_noise", budget), figure
        if "repeats" not in self._paths:
            return
        yield (
            "snr_against_decision_accuracy",
            signals.snr_against_decision_accuracy(signal, self._read("snr_and_accuracy"), highlighted, confidence),
        )
        shown = [*highlighted, *signals.COMPARED, (self._metric, "none")]
        yield "repeats_over_compute", signals.repeats_over_compute(self._read("repeats"), shown, confidence)

    def of_rates(self) -> Iterator[tuple[str, Figure]]:
        """How far the order of corpora moves with the learning rate of the small models."""
        rates, confidence = self._read("rates"), self._options.confidence
        yield "orders_over_learning_rate", orders_over_learning_rate(rates, confidence, self._warning)

    def of_laws(self) -> Iterator[tuple[str, Figure]]:
        gains, warning = self._read("law_gains"), self._warning
        ranks = self._read("ranking").select("corpus", "true_rank").drop_nulls().unique().sort("true_rank", "corpus")
        yield (
            "law_decision_accuracy",
            laws.law_decision_accuracy(self._read("pareto"), gains, self._ceiling, warning),
        )
        yield "law_differences", laws.law_differences(gains, warning)
        yield (
            "law_curves",
            laws.law_curves(self._read("scaling_laws"), self._read("law_points"), ranks["corpus"].to_list(), warning),
        )

    def of_choices(self) -> Iterator[tuple[str, Figure]]:
        """What choosing a corpus costs, and how sure a predicted gap is."""
        highlighted, metric, warning = self._highlighted, self._metric, self._warning
        choices, margins = self._read("choices"), self._read("margins")
        yield "regret_over_compute", chosen.regret_over_compute(choices, highlighted, metric, warning)
        for budget in self._budgets:
            costs, gaps = (
                chosen.corpus_methods(table.filter(size=budget.size, step=budget.step, seed="mean"), highlighted)
                for table in (choices, margins)
            )
            costs = costs.filter(~pl.col("statistic").is_in(CONSTANT))
            title = f"What choosing a corpus costs: {_models(budget)}"
            yield (
                _at("regret_by_method", budget),
                chosen.regret_by_method(costs, title, metric, "corpora", warning),
            )
            title, gaps = f"How sure a predicted gap is: {_models(budget)}", chosen.first_methods(gaps, "statistic")
            yield _at("gap_calibration", budget), chosen.gap_calibration(gaps, title, "corpora", warning)

    def of_solution_counts(self) -> Iterator[tuple[str, Figure]]:
        """How many solutions are enough to order the corpora."""
        counts = self._read("solution_counts")
        for budget in self._budgets:
            yield (
                _at("solution_counts", budget),
                figure_over_number(
                    counts.filter(size=budget.size, step=budget.step),
                    "decision_accuracy",
                    "corpora",
                    self._options.confidence,
                    f": {_models(budget)}",
                ),
            )


def _at(name: str, budget: Budget) -> str:
    return f"{name}_{budget.size}_step{budget.step}"


def _models(budget: Budget) -> str:
    return f"{budget.size} models at step {budget.step:,}"
