from proxycast.report.page.blocks import Section
from proxycast.report.page.study_results import StudyResults


def loss_section(results: StudyResults) -> Section:
    return Section("loss", "loss")
