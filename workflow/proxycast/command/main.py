"""The command `proxycast`: what it takes, and how its errors are told. What each command does is a module of its own.

Imports stand within the commands: `proxycast --help` starts at once, and what needs Snakemake can be missing.
"""

import os
from enum import StrEnum
from importlib.metadata import version
from pathlib import Path
from typing import Annotated, Any

import typer
from typer.core import TyperCommand

from proxycast.command.study_templates import Question
from proxycast.options import InputError, printable

PIPE_CLOSED = 141  # exit status as a shell has it for a reader that is gone, as with `| head`
WORKFLOW_PACKAGES = ("snakemake", "snakemake_executor_plugin_slurm", "snakemake_interface_common")
WORKFLOW_PACKAGES += ("altair", "vl_convert")


class Command(TyperCommand):
    """Errors that the user can mend are one line each on stderr, with exit status 1."""

    def invoke(self, ctx: Any) -> Any:
        try:
            return super().invoke(ctx)
        except InputError as error:
            said = str(error)
        except BrokenPipeError:
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
            raise typer.Exit(PIPE_CLOSED) from None
        except OSError as error:  # such as a folder that may not be written
            said = printable(f"{error.filename}: {error.strerror}" if error.filename else str(error))
        except ModuleNotFoundError as error:
            if (error.name or "").partition(".")[0] not in WORKFLOW_PACKAGES:
                raise
            said = f"{ctx.command_path} needs Snakemake; run: pip install 'proxycast[workflow]'"
        typer.echo(f"error: {said}", err=True)
        raise typer.Exit(1)


app = typer.Typer(
    name="proxycast",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    context_settings={"help_option_names": ["-h", "--help"]},
)


class Engine(StrEnum):
    """Engines that run models."""

    TRANSFORMERS = "transformers"
    VLLM = "vllm"


class By(StrEnum):
    """Columns of picked_solutions that order the solutions of a task."""

    PLACE = "place"
    RANDOM_PLACE = "random_place"


class ColouredBy(StrEnum):
    """What tokens are coloured by."""

    RANK = "rank"
    ENTROPY = "entropy"
    CROSS_ENTROPY = "cross_entropy"
    WEIGHT = "weight"
    DIFFERENCE = "difference"


MEASURE_OF = {ColouredBy.DIFFERENCE: "contribution"}  # to the difference of the proxy
StudyFile = Annotated[Path, typer.Argument(metavar="STUDY", help="File of the study, as in config/config.yaml.")]


def _print_version(wanted: bool) -> None:
    if wanted:
        typer.echo(f"proxycast {version('proxycast')}")
        raise typer.Exit()


@app.callback()
def proxycast(
    _: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version.")
    ] = False,
) -> None:
    """Rank corpora and models, and forecast training runs, from cheap checkpoints and expert solutions."""


@app.command(cls=Command)
def new(
    question: Annotated[Question, typer.Argument(help="What the study is to answer.")],
    name: Annotated[str, typer.Argument(help="Name of the study; its file is config/<name>.yaml.")],
    from_table: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="A .csv with a row a checkpoint: name, folder or hub, size, step, tokens."),
    ] = None,
) -> None:
    """Write a study with comments, and the files that it names. No file is overwritten.

    CHANGE marks what only you know. Run it in the project's folder.
    """
    from proxycast.command.new_study import new_study

    paths = new_study(question, name, from_table)
    for path in paths:
        typer.echo(f"{path}{': change what CHANGE marks' if '# CHANGE' in path.read_text() else ''}")
    typer.echo(f"then: proxycast check {paths[0]}")


@app.command(cls=Command)
def check(
    study: StudyFile,
    template: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the table of the truth to fill in, as a .csv.")
    ] = None,
) -> None:
    """Open a study as Snakemake would, run no job, and print what it holds and what can be judged."""
    if template is None:
        from proxycast.command.study_check import check_study

        check_study(study)
    else:
        from proxycast.command.truth_template import write_truth_template

        typer.echo(write_truth_template(study, template))


@app.command(cls=Command)
def estimate(
    study: StudyFile,
    profile: Annotated[
        str | None, typer.Option(metavar="FOLDER", help="Profile that the study will run with, as in slurm.")
    ] = None,
) -> None:
    """Tell what a study will take before anything runs: jobs, hours, memory and disk."""
    from proxycast.cluster.estimate import print_estimate

    print_estimate(study, profile)


@app.command(cls=Command)
def progress(
    study: StudyFile,
    once: Annotated[bool, typer.Option("--once", help="Print the screen once, in full.")] = False,
) -> None:
    """Show how far a study is, until it has ended.

    The exit status is 0 when every phase is complete, and 1 when jobs have failed and nothing is at work.
    """
    from proxycast.cluster.status.progress_screen import show_progress

    raise typer.Exit(show_progress(study, once))


@app.command(cls=Command)
def report(
    studies: Annotated[list[Path], typer.Argument(metavar="STUDY...", help="Files of finished studies.")],
    out: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Page of several studies; without it results/report.html."),
    ] = None,
) -> None:
    """Make the page of a finished study anew, or one page of several: which proxy to trust where."""
    from proxycast.command.report_page import report as write_report

    typer.echo(write_report(studies, out))


@app.command(cls=Command)
def score(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Folders of models, or ids of the hub: me/model@revision.")
    ],
    solutions: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Expert solutions (.jsonl, .parquet), or a folder of them; may be repeated."),
    ],
    tasks: Annotated[str, typer.Option(metavar="NAMES", help="Tasks to score, with commas; without it all.")] = "",
    proxies: Annotated[
        str,
        typer.Option(
            metavar="NAMES",
            help="statistic/weighting, or bits_per_byte, with commas; without it the paper's two and bits_per_byte.",
        ),
    ] = "",
    engine: Annotated[Engine, typer.Option(help="What runs the models.")] = Engine.TRANSFORMERS,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the token statistics, a row a token, as .parquet.")
    ] = None,
) -> None:
    """Score models on expert solutions and print their order under each proxy, and how sure it is.

    A task has the name of its file. Models with different tokenizers are compared on the same last bytes.
    """
    from proxycast.command.score_models import score_models

    score_models(models, solutions, _split(tasks), _split(proxies), engine.value, out)


@app.command(cls=Command)
def pick(
    table: Annotated[
        Path, typer.Argument(metavar="TABLE", help="picked_solutions.parquet of a study, or ids: task, solution.")
    ],
    solutions: Annotated[
        list[Path],
        typer.Option(metavar="FILE", help="Expert solutions (.jsonl, .parquet), or a folder of them; may be repeated."),
    ],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Where to write a .jsonl for each task.")],
    number: Annotated[
        int | None, typer.Option(min=1, help="Solutions of each task; without it all that the table lists.")
    ] = None,
    by: Annotated[By, typer.Option(help="The most informative solutions, or the first of a random order.")] = By.PLACE,
    proxy: Annotated[
        str, typer.Option(metavar="NAME", help="Proxy whose picks to take; without it the table's first.")
    ] = "",
) -> None:
    """Write the picked ones of expert solutions to files of their own, to score only those."""
    from proxycast.command.pick_solutions import pick_solutions

    pick_solutions(table, solutions, out, number, by.value, proxy)


@app.command(cls=Command)
def tokens(
    study: StudyFile,
    task: Annotated[str, typer.Option(metavar="NAME", help="Task of the solution to show.")] = "",
    solution: Annotated[
        str, typer.Option(metavar="ID", help="Solution to show; without it the one that contributes most.")
    ] = "",
    candidates: Annotated[
        tuple[str, str] | None,
        typer.Option(
            metavar="A B",
            help="Corpora or models to compare, of a forecast checkpoints; without it the first and last of the order.",
        ),
    ] = None,
    by: Annotated[ColouredBy, typer.Option(help="What tokens are coloured by.")] = ColouredBy.RANK,
    step: Annotated[
        int | None, typer.Option(min=0, help="Training step to show; without it that of the order.")
    ] = None,
) -> None:
    """Show a solution as two candidates read it, token by token, and the tokens that decide between them.

    It reads the token statistics of a finished study and runs nothing.
    """
    from proxycast.command.token_screen import show_tokens

    show_tokens(study, task, solution, candidates or (), MEASURE_OF.get(by, by.value), step)


judge = typer.Typer(help="What a study with a truth has learned (judge.json).", no_args_is_help=True)
app.add_typer(judge, name="judge")


@judge.command(cls=Command)
def show(file: Annotated[Path, typer.Argument(metavar="FILE", help="A judge.json.")]) -> None:
    """Tell what a judge is, what it was learned from, and how well its proxies or scorers did there."""
    from proxycast.command.judge_screen import show_judge

    show_judge(file)


def _split(names: str) -> list[str]:
    return [name.strip() for name in names.split(",") if name.strip()]


def run_alone(command: str, program: str) -> None:
    """Run one command under the name that the user called: `python -m proxycast.plan` is `proxycast estimate`."""
    typer.main.get_command(app).commands[command](prog_name=program)
