"""Downstream tasks: where their expert solutions come from, and how they are measured."""

import re
from collections.abc import Callable

from pydantic import Field, ValidationInfo, field_validator, model_validator

from proxycast.files import Files
from proxycast.options import InputPath, Options, SafeName, told_value
from proxycast.sandbox import template_environment
from proxycast.tables import sql_condition

TEMPLATES = ("prompt", "choice", "solution", "answer")
EXPRESSIONS = ("choices", "gold", "id")
LONGEST_SHOWN = 200  # characters of a template


class Rows(Files):
    """Rows of a data set, and the templates that turn each into an expert solution."""

    prompt: str = Field("", description="Jinja template over a row's columns; empty for generic text")
    choices: str | None = Field(None, description="Jinja expression: the list of choices, as in 'choices.text'")
    gold: str | None = Field(
        None, description="Jinja expression: index of the right choice, from 0, as in 'choices.label.index(answerKey)'"
    )
    choice: str = Field(
        " {{ choice }}",
        description="Jinja template of the text by which a choice continues the prompt; `choice` is the choice",
    )
    solution: str | None = Field(
        None,
        description="Jinja template of a worked solution. Without it the right choice is the solution; '' if there is "
        "none and writers will write it",
    )
    answer: str | None = Field(
        None, description="Jinja template of the right answer; leave it out for rows with choices"
    )
    id: str | None = Field(None, description="Jinja expression: the problem's id; without it the row number")
    where: str | None = Field(None, description="SQL condition on the columns, as in \"answerKey <> ''\"")
    sample: int | None = Field(None, gt=0, description="number of rows drawn at random after `where`; without it all")
    seed: int = Field(0, ge=0, description="seed of the draw by random.Random(seed).sample")

    @field_validator(*TEMPLATES, *EXPRESSIONS)
    @classmethod
    def _is_jinja(cls, source: str | None, info: ValidationInfo) -> str | None:
        from jinja2 import TemplateSyntaxError

        try:
            if source is not None:
                compile_template(info.field_name, source)
        except (TemplateSyntaxError, RecursionError, MemoryError, SyntaxError, ValueError) as error:
            kind = "template" if info.field_name in TEMPLATES else "expression"
            shown = told_value(source, LONGEST_SHOWN)
            raise ValueError(f"{shown} is no Jinja {kind}: {getattr(error, 'message', error)}") from None
        return source

    @field_validator("where")
    @classmethod
    def _is_sql(cls, where: str | None) -> str | None:
        if where is not None:
            sql_condition(where)
        return where

    @model_validator(mode="after")
    def _complete(self) -> "Rows":
        if (self.choices is None) != (self.gold is None):
            raise ValueError("choices and gold: found one without the other; a multiple-choice question needs both")
        if self.choices is not None and self.answer is not None:
            raise ValueError("answer: found one beside choices; leave it out, the answer is the right choice")
        if self.choices is None and not self.solution and self.answer is None:
            raise ValueError(
                "solution: missing; rows without choices need a template of the solution, or of the answer if "
                "writers write the solutions"
            )
        return self


def compile_template(key: str, source: str) -> Callable[[dict], object]:
    if key in TEMPLATES:
        return template_environment().from_string(source).render
    return template_environment().compile_expression(source, undefined_to_none=False)


class HarnessTask(Options):
    """How the harness measures a task."""

    task: str = Field(min_length=1, description="the harness's name of a task, or of a group that has a mean")
    metric: str = Field(
        min_length=1, description="key in its results, metric and filter: 'acc_norm,none', 'exact_match,strict-match'"
    )
    num_fewshot: int | None = Field(
        None, ge=0, description="solved examples before each problem; without it the harness's own number"
    )
    apply_chat_template: bool | None = Field(
        None,
        description="whether to format prompts with the chat template; without it each model's `chat_template` decides",
    )


LONGEST_PATTERN = 2000  # characters; each set of Unicode letters takes milliseconds to compile


class Task(Options):
    """A downstream task: expert solutions from a file, from rows of a data set, or from the miniature suite."""

    name: SafeName = Field(description="name of the task, used in file names")
    description: str = Field("", description="what the task asks, in a sentence")
    family: SafeName | None = Field(None, description="miniature suite: the family of problems")
    solutions: InputPath | None = Field(
        None, description="JSONL or parquet with id, prompt, solution (answer, choices, correct, writer, problem)"
    )
    rows: Rows | None = Field(None, description="rows of a data set, and templates that turn them into solutions")
    answer_pattern: str | None = Field(
        None,
        max_length=LONGEST_PATTERN,
        description="regular expression; its group 1 finds the answer in generated text; without it no exact match",
    )
    max_new_tokens: int = Field(16, gt=0, description="tokens generated for the exact match")
    lm_eval: HarnessTask | None = Field(
        None,
        description="how lm-eval measures the task in a study with `target.lm_eval`; without it proxycast measures it",
    )

    @model_validator(mode="after")
    def _one_origin(self) -> "Task":
        if [self.family, self.solutions, self.rows].count(None) != 2:
            raise ValueError("a task has a family, a solutions file or rows, exactly one of the three")
        return self

    @field_validator("answer_pattern")
    @classmethod
    def _pattern_with_a_group(cls, pattern: str | None) -> str | None:
        try:
            groups = re.compile(pattern or "()").groups
        except (re.error, RecursionError, OverflowError) as error:
            raise ValueError(f"{told_value(pattern)} is no regular expression: {error}") from None
        if groups < 1:
            raise ValueError(f"{pattern!r} has no group; put the answer in parentheses")
        return pattern
