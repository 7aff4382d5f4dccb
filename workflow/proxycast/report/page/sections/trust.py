from collections.abc import Sequence

from proxycast.report.page.blocks import Section
from proxycast.report.page.study_results import StudyResults


def trust_section(results: StudyResults, sections: Sequence[Section]) -> Section:
    return Section("trust", "Trust")
