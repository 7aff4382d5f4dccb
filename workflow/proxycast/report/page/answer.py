"""The answer of a study at the top of its page: the decision in a sentence, and what a reader must know beside it."""

from collections.abc import Sequence

from jinja2 import Environment
from markupsafe import Markup

from proxycast.report.page.answers.corpora_answer import corpus_answer
from proxycast.report.page.answers.forecasts_answer import forecast_answer
from proxycast.report.page.answers.models_answer import model_answer
from proxycast.report.page.answers.wording import Answer
from proxycast.report.page.study_results import StudyResults


def answers(results: StudyResults) -> list[Answer]:
    """One answer for each question of the study: corpora, models, forecasts."""
    found = corpus_answer(results), model_answer(results), forecast_answer(results)
    return [answer for answer in found if answer]


ANSWERS = """{% for answer in answers %}
{% if answer.warning %}<p class="warning">{{ answer.warning }}</p>{% endif %}
<p class="sentence">{{ answer.sentence }}</p>
<dl class="facts">
{% for fact in answer.facts %}<div><dt>{{ fact.label }}</dt><dd>{{ fact.text }}</dd></div>
{% endfor %}</dl>
{% if answer.missing %}<div class="missing"><p>Not known</p>
<ul>{% for line in answer.missing %}<li>{{ line }}</li>{% endfor %}</ul></div>{% endif %}
{% else %}
<p class="sentence">The study has no ranking and no forecast yet.</p>
{% endfor %}"""


def answer_markup(found: Sequence[Answer]) -> Markup:
    return Markup(Environment(autoescape=True).from_string(ANSWERS).render(answers=found))
