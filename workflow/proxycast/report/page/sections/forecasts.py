from proxycast.report.page.blocks import Section
from proxycast.report.page.study_results import StudyResults


def forecast_sections(results: StudyResults) -> list[Section]:
    return []
