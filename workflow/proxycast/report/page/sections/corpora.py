"""Sections of a data selection: the order of the corpora, and how well proxies predict the truth."""

import altair as alt

from proxycast.report.page.blocks import Chart, Column, Dataset, Section, Table
from proxycast.report.page.charts import specification
from proxycast.report.page.study_results import StudyResults


def corpus_sections(results: StudyResults) -> list[Section]:
    if not results.study.corpora:
        return []
    return [Section("ranking", "Ranking", _ranking(results))]


def _ranking(results: StudyResults) -> list:
    ranking = results.table("data_selection/ranking")
    if ranking is None:
        return []
    first, last = results.study.highlighted[0], results.budgets[-1]
    rows = ranking.filter(statistic=first.statistic, weighting=first.weighting, size=last.size, step=last.step).sort(
        "place", "corpus"
    )
    dataset = Dataset("ranking", rows, "data_selection/ranking", "first proxy, last budget")
    base = alt.Chart(alt.NamedData("ranking")).encode(y=alt.Y("corpus:N", sort=rows["corpus"].to_list(), title=None))
    chart = (
        base.mark_rule().encode(x=alt.X("place_low:Q", title="place, 1 is best"), x2="place_high:Q")
        + base.mark_circle(size=70).encode(x="place:Q", tooltip=["corpus:N", "place:Q"])
    ).properties(width="container")
    columns = [
        Column("corpus", "Corpus"),
        Column("place", "Place", "g", "place_low", "place_high"),
        Column("predicted", "Predicted score", ".4g", "predicted_low", "predicted_high"),
    ]
    return [
        Chart("ranking-chart", "Places with intervals", specification(chart), [dataset], alt="Places of corpora"),
        Table("ranking-table", "The same as a table", dataset, columns, key="corpus", selects="corpus"),
    ]
