"""Templates that never end or take all memory are one error, in any thread."""

import re
import threading
import time

import pytest
from conftest import byte_level_tokenizer
from jinja2 import Environment
from jinja2.exceptions import SecurityError
from proxycast.config.tasks import Rows
from proxycast.options import InputError
from proxycast.sandbox import TooMuch, bounded_environment, limited
from proxycast.solutions.templates import render_solutions
from proxycast.solutions.tokenisation import tokenize

ENDLESS = [
    "{% for a in x * 999 %}{% for b in x * 999 %}{% for c in x * 999 %}{% endfor %}{% endfor %}{% endfor %}",
    "{% for a in x*99 %}{% for b in x*999 %}{% for c in x*999 %}{{ text }}{% endfor %}{% endfor %}{% endfor %}",
    "{% macro m(n) %}{% for a in x %}{{ m(n) }}{{ m(n) }}{% endfor %}{% endmacro %}{{ m(1) }}",
    "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(200) }}",
    "{% set a = text %}" + "{% set a = a ~ a ~ a ~ a %}" * 40,
    "{{ 'a' * 10 ** 11 }}",
    "{{ text * (9 ** 12) }}",
    "{{ 9 ** (9 ** 9) }}",
    "{{ x | length ** (10 ** 9) }}",
    "{{ '%9999999999d' % 1 }}",
    "{{ '%*d' % (9999999999, 1) }}",
    "{{ '{:9999999999}'.format(1) }}",
    "{{ '{:{}}'.format(1, 9999999999) }}",
    "{{ '{:{}}'.format(1, '99999999') }}",
    "{{ '{:{w[0]}}'.format(1, w=[99999999]) }}",
    "{{ '{a:{w}}'.format_map({'a': 1, 'w': 99999999}) }}",
    "{{ '{a:9999999999}'.format_map({'a': 1}) }}",
    "{{ '%9999999999d' | format(1) }}",
    "{{ '%*d' | format(999999, 1) }}",
    "{{ text.ljust(10 ** 11) }}",
    "{{ text | center(10 ** 11) }}",
    "{{ text | indent(10 ** 11, true) }}",
    "{{ (text * 100000).replace('a', text * 100000) }}",
    "{{ (text * 100000) | replace('a', text * 100000) }}",
    "{{ (text * 90000).join(x * 90000) }}",
    "{{ ('a' * 800000) | wordwrap(1) }}",  # in Python, and copies the rest of the text for each line
    "{{ ('a' * 100000).translate({97: 'b' * 11000}) | length }}",
    "{{ " + "(" * 5000 + "1" + ")" * 5000 + " }}",
]
ROW = {"text": "aaaaaaaaaa", "x": list(range(100))}


@pytest.mark.parametrize("template", ENDLESS, ids=range(len(ENDLESS)))
def test_a_template_without_an_end_is_ended(template, monkeypatch):
    monkeypatch.setattr("proxycast.sandbox.SECONDS", 0.5)
    began = time.monotonic()
    with pytest.raises((TooMuch, RecursionError, MemoryError, SyntaxError)), limited():
        bounded_environment()().from_string(template).render(ROW)
    assert time.monotonic() - began < 10


def test_it_is_ended_in_another_thread_too(monkeypatch):
    monkeypatch.setattr("proxycast.sandbox.SECONDS", 0.5)
    raised = []

    def render():
        try:
            with limited():
                bounded_environment()().from_string(ENDLESS[0]).render(ROW)
        except TooMuch as error:
            raised.append(str(error))

    thread = threading.Thread(target=render)
    thread.start()
    thread.join(20)
    assert raised == ["the template runs for more than 0.5 s; does it have an endless loop?"]


@pytest.mark.parametrize("template", [*ENDLESS[:4], *ENDLESS[5:7]])
def test_rows_name_file_row_and_key(template, monkeypatch, tmp_path):
    monkeypatch.setattr("proxycast.sandbox.SECONDS", 0.5)
    (tmp_path / "rows.jsonl").write_text('{"text": "aaaaaaaaaa", "x": [1, 2, 3, 4, 5, 6, 7, 8, 9]}\n')
    rows = Rows(files=str(tmp_path / "rows.jsonl"), prompt=template.replace("* 999", "* 9999"), solution="{{ text }}")
    with pytest.raises(InputError, match=r"task: .*rows\.jsonl, row 1: prompt: (the template|maximum recursion)"):
        render_solutions(rows.paths(), rows, "task")


@pytest.mark.parametrize(
    "template",
    [ENDLESS[0], ENDLESS[3], ENDLESS[5], "{{ '{a:9999999999}'.format_map({'a': 1}) }}", "{{ 1 / 0 }}", ENDLESS[-1]],
)
def test_chat_templates_are_refused_by_name(template, monkeypatch):
    chat_tokenizer = byte_level_tokenizer()
    monkeypatch.setattr("proxycast.sandbox.SECONDS", 0.5)
    chat_tokenizer.chat_template = (
        "{% set text = 'aaaaaaaaaa' %}{% set x = [1, 2, 3, 4, 5, 6, 7, 8, 9] * 9 %}" + template
    )
    with pytest.raises(InputError, match="its chat template refuses a single user message"):
        tokenize([("a", "question", "answer")], chat_tokenizer, 128, chat_template=True)


def test_ordinary_templates_are_what_they_were():
    """Large products, long texts and loops that a real data set may need."""
    template = (
        "{% for n in x %}{{ '%03d' % n }}{{ n * 2 ** 8 }} {% endfor %}{{ '-' * 80 }}{{ text | center(40) | trim }}"
        "{{ '{:,.2f}'.format(1234.5) }}{{ (text * 100) | wordwrap(79) | length }}"
        "{{ x | join(', ') | replace(',', ';') }}"
    )
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    with limited():
        found = bounded_environment()().from_string(template).render(ROW)
    assert found == ImmutableSandboxedEnvironment().from_string(template).render(ROW)


@pytest.mark.parametrize("content", [r"\frac{100000}{7}", '{"id": 12345678}', "5% of 123456", "%*d", "{:99999999}"])
def test_what_a_text_holds_is_no_pattern(content):
    """Chat templates look for marks in messages, which may be mathematics, JSON or code."""
    template = (
        "{{ text.startswith('<tool_response>') }}{{ text.split('</think>')[-1].lstrip('\\n') }}"
        "{{ text | replace('a', 'b') }}"
        "{{ '* %s: %d%%' % (text, 3) }}{{ '{{\"%s\": {}}}' | format(text) }}{{ '{{\"name\": {}}}'.format(text) }}"
    )
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    with limited():
        found = bounded_environment()().from_string(template).render(text=content)
    assert found == ImmutableSandboxedEnvironment().from_string(template).render(text=content)


# Each tells of an object of Python where no sandbox is.
ESCAPES = [
    "{{ text.__class__ }}",
    "{{ text['__class__'] }}",
    "{{ text | attr('__class__') }}",
    "{{ text | attr('__cla' ~ 'ss__') }}",
    "{{ text | attr(('__ssalc__') | reverse) }}",
    "{{ text.__class__.__mro__ }}",
    "{{ text.__class__.__base__.__subclasses__() }}",
    "{{ ''.__class__.__mro__[1] }}",
    "{{ x.__class__ }}",
    "{{ {}.__class__ }}",
    "{{ ().__class__.__bases__ }}",
    "{{ (1).__class__ }}",
    "{{ text.upper.__self__.__class__ }}",
    "{{ text.format.__self__.__class__ }}",
    "{{ '{0.__class__}'.format(text) }}",
    "{{ '{a.__class__.__mro__}'.format(a=text) }}",
    "{{ '{0[0].__class__}'.format([text]) }}",
    "{{ '{a.__class__}'.format_map({'a': text}) }}",
    "{{ [text] | map(attribute='__class__') | list }}",
    "{{ [text] | map('attr', '__class__') | list }}",
    "{{ [text] | groupby('__class__') | list }}",
    "{{ [text] | sort(attribute='__class__.__name__') | map(attribute='__class__') | list }}",
    "{{ range.__class__ }}",
    "{{ dict.__base__ }}",
    "{{ cycler.__init__.__globals__ }}",
    "{{ joiner.__init__.__globals__ }}",
    "{{ namespace.__init__.__globals__ }}",
    "{{ self.__init__.__globals__ }}",
    "{{ self._TemplateReference__context.__class__ }}",
    "{% macro m() %}{% endmacro %}{{ m.__init__.__globals__ }}",
    "{% macro m() %}{% endmacro %}{{ m._func.__code__ }}",
    "{% for a in x %}{{ loop.__class__ }}{% endfor %}",
    "{% set a = text %}{{ a.__getattribute__('__class__') }}",
    "{{ (x | map('upper')).gi_frame }}",
]


@pytest.mark.parametrize("template", ESCAPES)
def test_templates_reach_no_object_of_python(template):
    def rendered(environment):
        return environment.from_string(template).render(text="a", x=["a"])

    assert re.search("<(class|function|frame|code)|__name__", rendered(Environment()))  # so it would
    try:
        told = rendered(bounded_environment()())
    except SecurityError:
        return
    assert not re.search("[<_]|class", told)


def test_rows_tell_of_no_object_of_python(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a", "x": ["a"]}\n')
    refused = 0
    for template in ESCAPES:
        try:
            [solution] = render_solutions([path], Rows(files=str(path), prompt=template, solution="b"), "task a")
            assert not re.search("<(class|function|frame|code)|__", solution.prompt), template
        except InputError as error:
            assert re.match("task a: .*prompt: ", str(error))
            refused += 1
    assert refused > 0.8 * len(ESCAPES)
