"""Solutions by the teacher of a distillation: a post-trained base of the suite, whose right solutions others learn."""

from pathlib import Path

import polars as pl

from proxycast.config.post_training_options import Distillation
from proxycast.training.miniature.leaks import holding_questions
from proxycast.training.miniature.post_training.course import Course
from proxycast.training.miniature.post_training.post_train import load_model
from proxycast.training.miniature.post_training.text_sampling import sample_solutions
from proxycast.training.miniature.post_training.worked_solutions import (
    SolutionTokens,
    is_worked_out,
    prompt_of,
    training_problems,
)

# A row for each text: `finished`, it ended by itself; `verified`, that and every step is right.
TAUGHT_SCHEMA = {
    "family": pl.String,
    "question": pl.String,
    "prompt": pl.String,
    "solution": pl.String,
    "answer": pl.String,
    "finished": pl.Boolean,
    "verified": pl.Boolean,
}


def write_as_teacher(course: Course, folder: Path) -> pl.DataFrame:
    """What the model in `folder` writes for the training questions of the distillation (TAUGHT_SCHEMA).

    A text that holds a question of the benchmark is left out.
    """
    options: Distillation = course.options.distillation
    problems = training_problems(course.families, options.questions, f"{course.seed} distillation")
    tokens, asked = SolutionTokens(folder), [problem for problem in problems for _ in range(options.samples)]
    prompts = tokens.prompts(list(map(prompt_of, asked)))
    longest, seed = tokens.longest(problems), course.seed_of("teacher")
    found = sample_solutions(load_model(folder), prompts, options.temperature, longest, tokens, seed)
    rows = []
    for problem, written in zip(asked, found, strict=True):
        text, finished = tokens.text(written), written[-1:] == [tokens.end]
        verified = finished and is_worked_out(problem, text)
        rows.append((problem.family, problem.question, prompt_of(problem), text, problem.answer, finished, verified))
    table = pl.DataFrame(rows, schema=TAUGHT_SCHEMA, orient="row")
    texts = [prompt + text for prompt, text in table.select("prompt", "solution").iter_rows()]
    return table.filter(~pl.Series(holding_questions(texts, course.questions)))
