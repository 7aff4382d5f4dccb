from proxycast.report.page.blocks import Section
from proxycast.report.page.study_results import StudyResults


def token_section(results: StudyResults) -> Section:
    return Section("token", "token")
