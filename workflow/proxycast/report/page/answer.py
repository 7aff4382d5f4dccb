"""The answer of a study in a sentence, and what a reader must know beside it."""

from collections.abc import Sequence
from dataclasses import dataclass, field

from jinja2 import Environment
from markupsafe import Markup

from proxycast.report.page.study_results import StudyResults


@dataclass(frozen=True)
class Answer:
    """`sentence`: the decision, its interval. `facts`: how sure, at what cost. `missing`: what is unknown, and why."""

    sentence: str
    facts: Sequence[str] = ()
    missing: Sequence[str] = field(default_factory=tuple)


def answers(results: StudyResults) -> list[Answer]:
    """One answer for each question of the study: corpora, models, forecasts."""
    return []


ANSWERS = """{% for answer in answers %}
<p class="sentence">{{ answer.sentence }}</p>
<ul>{% for fact in answer.facts %}<li>{{ fact }}</li>{% endfor %}</ul>
{% for line in answer.missing %}<p class="note caution">{{ line }}</p>{% endfor %}
{% endfor %}"""


def answer_markup(found: Sequence[Answer]) -> Markup:

    return Markup(Environment(autoescape=True).from_string(ANSWERS).render(answers=found))
