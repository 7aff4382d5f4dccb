"""What the page of a study holds, from top to bottom."""

from proxycast.report.page.answer import answer_markup, answers
from proxycast.report.page.html_page import page_html
from proxycast.report.page.of_corpora.corpus_evidence import evidence_section
from proxycast.report.page.of_corpora.corpus_frontier import frontier_section, pareto_dataset
from proxycast.report.page.of_corpora.corpus_ranking import ranking_section
from proxycast.report.page.of_corpora.proxy_heat_map import heat_map_section
from proxycast.report.page.of_forecasts.forecast_sections import forecast_sections
from proxycast.report.page.of_models.model_sections import model_sections
from proxycast.report.page.sections.losses import loss_section
from proxycast.report.page.sections.tokens import token_section
from proxycast.report.page.sections.trust import trust_section
from proxycast.report.page.study_results import StudyResults


def study_page(results: StudyResults) -> str:
    """The page of a study as HTML, from the tables that stand in its results folder."""
    pareto = pareto_dataset(results)
    sections = [
        ranking_section(results),
        frontier_section(results, pareto),
        heat_map_section(results),
        evidence_section(results, pareto),
        *model_sections(results),
        *forecast_sections(results),
        token_section(results),
        loss_section(results),
    ]
    sections.append(trust_section(results, sections))
    return page_html(results.study.study, sections, answer_markup(answers(results)))
