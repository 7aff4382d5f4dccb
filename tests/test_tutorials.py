"""The commands of the tutorials and of README.md, as a reader copies them: each block is run, or its form is checked.

Every ```sh block is found here, and of all of them the form is checked: programs, options, modules, variables and files
that it names are there. Beyond that `treatment` says what is done with a block:

run         the whole page is run, block by block, in a copy of the finished smoke study
log         it makes a training log, or a study that forecasts it: these are run one after the other
plan        it plans a study without network, as it stands
smoke       it trains a miniature study for minutes: it plans it (`-n`), and runs with the smoke study in its place
form        it needs a cluster, network, a GPU, an installation or files of the reader

The ```python blocks of a page are run as one script, beside two tiny models and a folder of solutions, as if only the
library were installed.

A program, or a study, that is not known here is an error: say what is to be done with it.
"""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from string import Template

import forked_python
import jsonschema
import numpy as np
import polars as pl
import pytest
import typer
import yaml
from conftest import ROOT, byte_level_tokenizer, copy_project, tiny_model, write_rows
from judged_corpora import learned
from polars.testing import assert_frame_equal
from proxycast import load_solutions, score
from proxycast.command.main import app
from proxycast.experiments.judges.judge_file import write_judge
from proxycast.study.loader import load_plan
from proxycast.study.yaml_files import read_yaml
from scipy.stats import spearmanr
from snakemake.cli import get_argument_parser
from test_workflow import CORPORA, JOINS, jobs, project  # noqa: F401  a fixture

SMOKE = "config/smoke.yaml"
# Pages whose commands change a project in which the smoke study is finished.
RUN = ("own-corpus-checkpoints.md", "own-corpus-text.md", "command-line.md", "which-corpus.md", "which-model.md")
MINIATURE = ("config/config.yaml", "config/miniature_model_selection.yaml", "config/miniature_forecasting.yaml")
NUMBERS = "config/my_numbers.yaml"  # that numbers-of-others.md makes
OWN = "config/my_study.yaml"  # a copy of the default study that first-run.md makes
OWN_LOG, OWN_RUN = "run.csv", "config/my_run.yaml"  # a log and a study that forecasting-a-run.md makes
NEED_MORE = {
    "config/data_selection.yaml": "the hub, and a cluster",
    "config/hub_check.yaml": "the hub",
    "config/model_selection.yaml": "the hub, and GPUs",
    "config/forecasting.yaml": "the hub, and GPUs",
    "config/forecasting_think.yaml": "the hub, and GPUs",
    "config/published_datadecide.yaml": "a folder of the reader",
    "config/published_perplexity.yaml": "a folder of the reader",
    "config/published_olmo_ladder.yaml": "a folder of the reader",
    "config/published_ladder.yaml": "a file of the reader",
    "config/published_olmo2.yaml": "a file of the reader",
}
# Programs of a block that is not run here: they install something, or wait for an editor or a cluster.
NOT_HERE = {"bash", "conda", "nohup", "sbatch", "$EDITOR", "pytest"}
# Variables of other programs, which our code does not name.
VARIABLES = {"PIP_EXTRA_INDEX_URL"}
PARSER = get_argument_parser()
PARSER.allow_abbrev = False
OLD_FORMS = {"proxycast.plan": "estimate", "proxycast.progress": "progress"}  # module -> command


@dataclass(frozen=True)
class Block:
    page: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def blocks_of(path: Path) -> list[Block]:
    text = path.read_text()
    found = re.finditer(r"^```sh\n(.*?)^```$", text, re.DOTALL | re.MULTILINE)
    blocks = [Block(path.name, text[: match.start()].count("\n") + 1, match[1]) for match in found]
    assert len(blocks) == len(re.findall(r"```\s*(?:sh|bash|shell|console)\b", text)), f"{path}: a block is not found"
    return blocks


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs/tutorials").glob("*.md"))]
BLOCKS = [block for page in PAGES for block in blocks_of(page)]


def commands(script: str) -> Iterator[list[str]]:
    """The words of each command, with the values of variables that the script sets; without the text of files."""
    variables: dict[str, str] = {}
    script = re.sub(r"<<'(\w+)'\n.*?^\1$", "", script, flags=re.DOTALL | re.MULTILINE)
    for line in script.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        tokens = list(lexer)
        for position, word in enumerate([*tokens, ";"]):
            if re.fullmatch(r"[;&|]+", word):
                if words:
                    yield words
                words = []
            elif not words and re.match(r"[a-z]+=", word):
                name, _, value = word.partition("=")
                variables[name] = Template(value).safe_substitute(variables)
            elif word != ">" and (position == 0 or tokens[position - 1] != ">"):
                words.append(Template(word).safe_substitute(variables))


def snakemake_arguments(words: list[str]):
    """What Snakemake, with its plugins, makes of them; an error for an option that it does not have."""
    try:
        arguments, unknown = PARSER.parse_known_args(words)
    except SystemExit:
        raise AssertionError(f"Snakemake refuses {words}") from None
    assert not unknown, f"snakemake has no {unknown}"
    return arguments


def studies_of(command: list[str]) -> list[str]:
    """The studies that a command opens."""
    program, *words = command
    if Path(program).name == "snakemake":
        arguments = snakemake_arguments(words)
        return [str(path) for path in arguments.configfile or ([] if arguments.unlock else ["config/config.yaml"])]
    if Path(program).name == "proxycast" or (words[:1] == ["-m"] and words[1].startswith("proxycast.")):
        return [word for word in words if word.endswith(".yaml")]
    return []


def treatment(block: Block) -> str:
    every = list(commands(block.text))
    studies = {study for command in every for study in studies_of(command)}
    if block.page in RUN or NUMBERS in studies:
        return "run"
    known = {SMOKE, OWN, OWN_RUN, *MINIATURE, *NEED_MORE}
    assert studies <= known, f"{block}: say what {sorted(studies - known)} needs"
    programs = {Path(command[0]).name for command in every}
    if OWN_LOG in block.text:
        return "log"
    if not studies or programs & NOT_HERE or any("--profile" in command for command in every):
        return "form"
    if studies & {*NEED_MORE}:
        return "plan" if all("-n" in command for command in every) else "form"
    return "smoke"


# The form


def check_snakemake(words: list[str]) -> None:
    arguments = snakemake_arguments(words)
    assert not arguments.targets, f"{arguments.targets} are taken for targets"
    for profile in arguments.profile or []:
        assert (ROOT / profile / "config.yaml").is_file()


def check_python(words: list[str]) -> None:
    if words[0] == "-":  # a script follows, and is run
        return
    if words[0].endswith(".py"):
        assert (ROOT / words[0]).is_file()
        return
    assert words[0] == "-m", words
    spec = find_spec(words[1])
    assert spec, f"there is no module {words[1]}"
    if words[1].startswith("proxycast."):
        check_proxycast([OLD_FORMS[words[1]], *words[2:]])


def check_proxycast(words: list[str]) -> None:
    """The command takes these words; it does not run."""
    command = typer.main.get_command(app)
    try:
        group = command.make_context("proxycast", list(words))
        name, inner, rest = command.resolve_command(group, [*group._protected_args, *group.args])
        inner.make_context(name, rest, parent=group)
    except typer.Exit:
        pass
    except Exception as error:
        raise AssertionError(f"proxycast refuses {words}: {getattr(error, 'message', error)}") from None


def check_pip(words: list[str]) -> None:
    assert words[0] == "install"
    if "-r" in words:
        assert (ROOT / words[words.index("-r") + 1]).is_file()
    else:
        own, extra = re.fullmatch(r"(\.)(?:\[(\w+)\])?", words[words.index("-e") + 1]).groups()
        extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
        assert own and (extra is None or extra in extras)


def check_export(words: list[str]) -> None:
    [name] = re.fullmatch(r"([A-Z_]+)=\S+", words[0]).groups()
    code = (path.read_text() for path in (ROOT / "workflow").rglob("*.py"))
    assert name in VARIABLES or any(re.search(rf"\b{name}\b", text) for text in code), f"nobody reads {name}"


def check_sbatch(words: list[str]) -> None:
    """What it starts; Slurm itself reads the rest in tests/components/test_slurm_faults.py."""
    for command in commands(words[words.index("--wrap") + 1]):
        check(command)


CHECKS = {
    "snakemake": check_snakemake,
    "proxycast": check_proxycast,
    "python": check_python,
    "python3": check_python,
    "pip": check_pip,
    "export": check_export,
    "sbatch": check_sbatch,
    "nohup": lambda words: check(words),
    "exec": lambda words: check(words),
    "conda": lambda words: None,  # its file is looked for with all others
    "bash": lambda words: None,
    "$EDITOR": lambda words: None,
    "pytest": lambda words: None,
    **dict.fromkeys(["cat", "cp", "grep", "head", "mkdir", "sed"], lambda words: None),
}


def check(command: list[str]) -> None:
    name = Path(command[0]).name
    assert name in CHECKS, f"say how {command[0]} is checked or run"
    CHECKS[name](command[1:])


@pytest.mark.parametrize("block", BLOCKS, ids=str)
def test_form(block):
    subprocess.run(["bash", "-n"], input=block.text, text=True, check=True)
    for command in commands(block.text):
        check(command)
    page = "".join(other.text for other in BLOCKS if other.page == block.page)
    made = re.findall(r"^(?:cp .*|cat >) (\S+)", page, re.MULTILINE)  # on the page itself
    for name in re.findall(r"proxycast new \S+ (\w+)", page):
        made += [f"config/{name}.yaml", f"config/tasks/{name}/{name}-task.yaml"]
    for path in re.findall(r"\b(?:config|envs|slurm)/[\w./-]+\.\w+", block.text):
        assert path in made or (ROOT / path).is_file(), f"there is no {path}"
    assert treatment(block) in ("run", "log", "plan", "smoke", "form")


@pytest.mark.parametrize("study", [SMOKE, *MINIATURE, *NEED_MORE])
def test_studies_that_are_named_can_be_opened(study):
    assert any(study in block.text or study == MINIATURE[0] for block in BLOCKS), f"no page names {study} any more"
    load_plan(read_yaml(ROOT / study), study, ROOT / "config")


@pytest.mark.parametrize(
    "text, said",
    [
        ("snakemake --core 2\n", "--core"),
        ("snakemake config/smoke.yaml --cores 2\n", "targets"),
        ("python -m proxycast.plans config/smoke.yaml\n", "no module"),
        ("python -m proxycast.plan config/smoke.yaml --profiles slurm\n", "--profiles"),
        ("proxycast score model --solution x.jsonl\n", "--solution"),
        ("proxycast chek config/smoke.yaml\n", "chek"),
        ("export PROXYCAST_TRUST=yes\n", "nobody reads"),
        ("run='exec snakemake --cpus 4'\nsbatch --wrap \"$run\"\n", "--cpus"),
        ("curl -O x\n", "say how curl"),
        ("snakemake --configfile config/other.yaml --cores 2\n", "there is no config/other.yaml"),
        ("snakemake --configfile config/datadecide_full.yaml --cores 2\n", "say what .*datadecide_full.yaml"),
    ],
)
def test_a_block_that_is_wrong_or_unknown_is_an_error(text, said):
    with pytest.raises(AssertionError, match=said):
        test_form(Block("page.md", 1, text))


FILES = [
    (page.name, *match.groups())
    for page in PAGES
    for match in re.finditer(r"^```yaml\n# (config/(\w+)/\S+)\n(.*?)^```$", page.read_text(), re.DOTALL | re.MULTILINE)
]


@pytest.mark.parametrize("page, path, folder, text", FILES, ids=[f"{page}:{path}" for page, path, *_ in FILES])
def test_files_that_are_shown_fit_their_schema(page, path, folder, text):
    kind = {"corpora": "corpus", "models": "model", "tasks": "task"}[folder]
    values = yaml.safe_load(text)
    jsonschema.validate(values, json.loads((ROOT / f"config/schema/{kind}.schema.json").read_text()))
    assert values["name"] == Path(path).stem


def test_the_readme_is_one_page():
    lines = (ROOT / "README.md").read_text().splitlines()
    assert len(lines) <= 150 and max(map(len, lines)) <= 120
    for target in re.findall(r"\]\((?!http)([^)#]+)|^\[\d\]: (?!http)(\S+)", "\n".join(lines), re.MULTILINE):
        assert (ROOT / "".join(target)).exists(), f"README.md leads to {''.join(target)}"


# The run


def treated(name: str) -> list[str]:
    """The texts of these blocks, each once."""
    return list(dict.fromkeys(block.text for block in BLOCKS if treatment(block) == name))


def with_programs(project: Path, *always: str) -> Path:  # noqa: F811
    """The project with what a reader has in .venv/bin; the environment is there, so nothing is installed.

    `always` are further arguments of snakemake.
    """
    python = shlex.quote(sys.executable)
    programs = {
        "python": f'exec {python} "$@"',
        "snakemake": f'exec {shlex.join(forked_python.command("-m", "snakemake", *always))} "$@"',
        "proxycast": f"exec {python} -c 'from proxycast.command.main import app; app()' \"$@\"",
        "python3": "exit 0",
        "pip": "exit 0",
    }
    folder = project / ".venv/bin"
    folder.mkdir(parents=True)
    for name, line in programs.items():
        (folder / name).write_text(f"#!/bin/sh\n{line}\n")
        (folder / name).chmod(0o755)
    return project


def start(text: str, folder: Path) -> subprocess.Popen:
    environment = os.environ | {"PATH": f"{folder / '.venv/bin'}:{os.environ['PATH']}", "HF_HUB_OFFLINE": "1"}
    shell = ["bash", "-euo", "pipefail", "-c", text]
    return subprocess.Popen(
        shell, cwd=folder, env=environment, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True
    )


def said_by(process: subprocess.Popen) -> str:
    said, _ = process.communicate()
    assert process.returncode == 0, said[-5000:]
    return said


SCRIPTS = {
    page: blocks
    for page in PAGES
    if (blocks := re.findall(r"^```python\n(.*?)^```$", page.read_text(), re.DOTALL | re.M))
    and "results/published" not in page.read_text()  # needs published measurements
}


# What only the extra `workflow` brings. (transformers and scikit-learn bring others of its packages.)
WITHOUT_WORKFLOW = """
import sys

class Blocked:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0].startswith(("snakemake", "matplotlib", "pythonbible", "backports")):
            raise ModuleNotFoundError(f"{name} is not installed here", name=name)

sys.meta_path.insert(0, Blocked())
"""


# Each page in a process and a folder of its own; that of the first argument in the folder of the second, and so on.
RUN_PAGES = """
import os
import transformers.models.llama.modeling_llama

for script, folder in zip(sys.argv[1::2], sys.argv[2::2]):
    if not os.fork():
        os.chdir(folder)
        with open("said", "w") as said:
            os.dup2(said.fileno(), 1)
            os.dup2(said.fileno(), 2)
        sys.argv[1:] = []
        exec(compile(script, "page", "exec"), {"__name__": "__main__"})
        sys.exit()
    print(os.waitstatus_to_exitcode(os.wait()[1]), flush=True)
"""


@pytest.fixture(scope="module")
def pages_run(tmp_path_factory):
    """Page -> the exit status of its blocks, and what they said. To import transformers takes most of the time."""
    folders = {page: tmp_path_factory.mktemp("page") for page in SCRIPTS}
    files_of_a_reader(next(iter(folders.values())))
    for folder in list(folders.values())[1:]:
        shutil.copytree(next(iter(folders.values())), folder, dirs_exist_ok=True)
    arguments = [word for page, folder in folders.items() for word in ("\n".join(SCRIPTS[page]), str(folder))]
    done = subprocess.run(
        [sys.executable, "-c", WITHOUT_WORKFLOW + RUN_PAGES, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]
    ends = map(int, done.stdout.split())
    return {page: (end, (folder / "said").read_text()) for end, (page, folder) in zip(ends, folders.items())}


@pytest.mark.parametrize("page", SCRIPTS, ids=lambda page: page.name)
def test_python_blocks_run(page, pages_run):
    status, said = pages_run[page]
    assert status == 0, said[-3000:]


def files_of_a_reader(tmp_path: Path) -> None:
    """Two tiny models, solutions of two tasks, the models' statistics, and a judge."""
    for seed, name in enumerate(["my-model", "other-model"]):
        tiny_model(seed=seed).save_pretrained(tmp_path / name)
        byte_level_tokenizer().save_pretrained(tmp_path / name)
    for task, text in (("sums", "2 plus 3 is five"), ("cats", "The cat sat on the mat")):
        rows = [{"id": f"{task}-{i}", "prompt": "Q:" * i, "solution": f" {text}" * (i + 1)} for i in range(4)]
        write_rows(rows, tmp_path / f"solutions/{task}.jsonl")
    solutions = load_solutions(tmp_path / "solutions")
    statistics = [score(tmp_path / name, solutions, device="cpu") for name in ("my-model", "other-model")]
    pl.concat(statistics).write_parquet(tmp_path / "statistics.parquet")  # as `proxycast score --out` does
    write_judge(learned(np.linspace(0, 1, 8), tasks=["cats", "sums"]), tmp_path / "judge.json")


@pytest.mark.slow
def test_miniature_studies_are_planned_as_on_the_page(tmp_path):
    """All at once: most of the time is Snakemake's start."""
    folder = with_programs(copy_project(tmp_path), "-n")
    texts = [text for text in treated("smoke") if "--cores" in text and not re.search(f"--report|{SMOKE}|{OWN}", text)]
    assert len(texts) == len(MINIATURE)
    for process in [start(text, folder) for text in texts]:
        assert "This was a dry-run" in said_by(process)


@pytest.mark.slow
def test_plans_need_no_network(tmp_path):
    """Among them the plan of a study of one's own."""
    folder = with_programs(copy_project(tmp_path))
    [own] = [text for text in treated("smoke") if OWN in text]
    texts = [*treated("plan"), own.replace("snakemake", "snakemake -n")]
    assert len(texts) > 3
    for process in [start(text, folder) for text in texts]:
        assert "This was a dry-run" in said_by(process)


@pytest.mark.slow
def test_blocks_run_with_the_smoke_study_in_place_of_a_longer_one(project):  # noqa: F811
    """The commands, to the report; what the miniature studies themselves do is tested in test_studies.py.

    Commands that now differ in the report's name alone run once.
    """
    folder = with_programs(project)
    texts = {}
    for text in [text for text in treated("smoke") if OWN not in text]:
        text = re.sub("|".join(map(re.escape, MINIATURE)), SMOKE, text)
        text = text.replace("snakemake --cores", f"snakemake --configfile {SMOKE} --cores")
        texts.setdefault(re.sub(r"--report \S+", "--report", text), text)
    # A fresh install, one that is there, and Snakemake's own report.
    assert sum("snakemake" in text for text in texts) == 3 and sum("--report" in text for text in texts) == 1
    for text in texts.values():
        (folder / "results/miniature").mkdir(exist_ok=True)  # of a report
        said = said_by(start(text, folder))
        for report in re.findall(r"--report (\S+)", text):
            assert (folder / report).stat().st_size > 100_000, said[-5000:]
    assert (folder / "results/smoke/report.html").stat().st_size > 1_000_000


@pytest.mark.slow
def test_a_run_of_ones_own_is_forecast_by_the_tutorial(tmp_path):
    """The page has the lines that are told at the end, and they are right: the page's own code says what the end is."""
    folder = with_programs(copy_project(tmp_path))
    said = [said_by(start(text, folder)) for text in treated("log")][-1]
    lines = "Run my-run is|  (forecast by|at the cut|forecast for|in rehearsals): "
    told = [line for line in said.splitlines() if re.match(lines, line)]
    assert len(told) == 5 and "\n".join(told) in (ROOT / "docs/tutorials/forecasting-a-run.md").read_text()
    ends = pl.read_csv(folder / "results/my_run/forecasting/summary.csv").filter("is_end")
    t = 100_000 / 500
    truth = [0.95 - 0.4 * (0.55 + 0.9 * t**-0.45), 0.8 - 0.13 * (2.2 + 3.2 * t**-0.4)]
    assert ends["predicted"].to_list() == pytest.approx(truth, abs=0.01)
    assert (ends["low"] < pl.Series(truth)).all() and (ends["high"] > pl.Series(truth)).all()
    assert ends["truth"].null_count() == 2 and ends["flops"].to_list() == [6e20] * 2


@pytest.mark.slow
@pytest.mark.parametrize(
    "page, own",
    [
        ("own-corpus-checkpoints.md", {("score", "elsewhere"), ("solution_proxies", "elsewhere")}),
        (
            "own-corpus-text.md",
            {("tokenize_text", "notes")} | {(rule, "notes") for rule in ("train_corpus", "score", "solution_proxies")},
        ),
    ],
)
def test_an_own_corpus_joins_by_the_tutorial(project, page, own):  # noqa: F811
    """The page, followed to the letter, in a project with a finished smoke study."""
    folder, results = with_programs(project), project / "results/smoke/data_selection"
    before = pl.read_parquet(results / "decision_accuracy.parquet")
    texts = [block.text for block in BLOCKS if block.page == page]
    said = [said_by(start(text, folder)) for text in texts]

    assert "Nothing to be done" in said[0]
    [rerun] = [output for output, text in zip(said, texts) if text.count("snakemake") == 2]
    assert jobs(rerun) - {(rule, "") for rule in JOINS} == own | {("checkpoints", "")}
    name = next(iter(own))[1]
    assert said[-1].startswith("corpus,") and f"\n{name}," in said[-1]

    checkpoints = pl.read_parquet(results.parent / "checkpoints.parquet").filter(corpus=name)
    assert len(checkpoints) == 4 and set(checkpoints["role"]) == {"proxy"} and set(checkpoints["size"]) == {"30k"}
    ranking = pl.read_parquet(results / "ranking.parquet").filter(statistic="top5_accuracy", step=40)
    rows = {row["corpus"]: row for row in ranking.iter_rows(named=True)}
    assert set(rows) == {*CORPORA, name}
    assert rows[name]["truth"] is None and rows[name]["true_rank"] is None
    assert 1 <= rows[name]["predicted_rank"] <= len(CORPORA) + 1
    if name == "elsewhere":
        # The same models as core's: the same score, and a place right beside it.
        assert rows[name]["predicted"] == pytest.approx(rows["core"]["predicted"], abs=1e-9)
        assert rows[name]["predicted_rank"] == rows["core"]["predicted_rank"] + 0.5
    # The others are judged as before.
    assert_frame_equal(before, pl.read_parquet(results / "decision_accuracy.parquet"))
    assert "Nothing to be done" in said_by(start(texts[0], folder))


@pytest.mark.slow
def test_numbers_of_others_are_judged_by_the_tutorial(tmp_path):
    """The page, followed to the letter in a fresh project, against scipy."""
    folder = with_programs(copy_project(tmp_path))
    [text] = [block.text for block in BLOCKS if treatment(block) == "run" and NUMBERS in block.text]
    said = said_by(start(text, folder))
    wide = pl.read_csv(folder / "wide.csv")
    rho = [spearmanr(-wide["web_loss"], wide[task])[0] for task in ("arc_easy", "piqa", "sciq")]
    summary = pl.read_csv(folder / "results/my_numbers/model_selection/summary.csv").filter(split="two_tasks")
    for method in ("web_loss", "univariate"):
        assert summary.filter(method=method)["spearman"].item() == pytest.approx(sum(rho) / 3)
    assert said.splitlines()[-5].startswith("split,method,kind")
    assert not (folder / "results/my_numbers/proxies.parquet").exists()


@pytest.mark.slow
def test_the_page_on_the_command_runs(project):  # noqa: F811
    """Models are ranked without a study, and by the study that the page writes: both have the same values."""
    folder = with_programs(project)
    page = ROOT / "docs/tutorials/command-line.md"
    said = [said_by(start(block.text, folder)) for block in blocks_of(page)]
    assert "Nothing to be done" in said[0]
    scored = next(text for text in said if "pairs can be told apart" in text)
    assert all(f"{name}-30k-seed0/step40" in scored for name in ("core", "base", "web_crawl"))
    ranking = pl.read_parquet(folder / "results/mine/model_selection/ranking.parquet")
    rows = ranking.filter(task="mine-task", method="top5_accuracy/token_frequency", tail="tokens")
    for model, value in rows.select("model", "score").iter_rows():
        assert re.search(rf"{model}-30k-seed0/step40 +{value:.4f} ", scored)


@pytest.mark.slow
def test_own_corpora_are_ordered_without_a_truth_by_the_tutorial(project):  # noqa: F811
    """From folders of models to the order in ten lines of YAML, which the end of the run tells as the table does."""
    folder = with_programs(project)
    texts = [block.text for block in BLOCKS if block.page == "which-corpus.md"]
    yaml_lines = [
        line
        for text in texts
        for part in re.findall(r"\.yaml <<'EOT'\n(.*?)EOT", text, re.DOTALL)
        for line in part.split("\n")
        if line
    ]
    assert len(yaml_lines) <= 12
    said = [said_by(start(text, folder)) for text in texts]
    results = folder / "results/which_corpus/data_selection"
    ranking, pairs = (pl.read_parquet(results / f"{name}.parquet") for name in ("ranking", "pairs"))
    first = {"statistic": "top5_accuracy", "weighting": "token_frequency", "size": "30k", "step": 40}
    rows = ranking.filter(**first)
    assert set(rows["corpus"]) == {"core", "base", "web_crawl"} and rows["place_low"].null_count() == 0
    assert ranking.head(3).equals(rows) and ranking["statistic"].n_unique() == 3 and set(ranking["seeds"]) == {2}
    [run] = [output for output in said if "corpora, best first" in output]
    told = re.findall(r"^  (\S+) \[\S+, \S+\] (\S+)$", run, re.MULTILINE)
    assert told == [(f"{place:g}", corpus) for place, corpus in rows.select("place", "corpus").iter_rows()]
    assert "left out: nothing is judged" in run and "`generic_text` adds it" in run
    apart = pairs.filter(**first)["told_apart"]
    assert ("pairs cannot be told apart" in run) == (not apart.all())
    # The values are those that the smoke study has of the same models, with other solutions in another task.
    stats = pl.read_parquet(results.parent / "proxies/base.parquet").filter(statistic="bits_per_byte", tail="tokens")
    of_last = stats.filter(pl.col("checkpoint").str.ends_with("step40"))["value"]
    predicted = ranking.filter(corpus="base", statistic="bits_per_byte")["predicted"].item()
    assert predicted == pytest.approx(-of_last.mean(), abs=1e-12)
    assert all((results / f"{name}.png").is_file() for name in ("agreement_of_proxies", "order_of_corpora_30k_step40"))
    # Nothing of a truth is there, and the report can be made.
    assert {path.stem for path in results.glob("*.parquet")} == {
        *("ranking", "pairs", "agreement", "signal_to_noise", "solution_counts", "picked_solutions")
    }
    report = "snakemake --configfile config/which_corpus.yaml --report results/which_corpus/provenance.html"
    said_by(start(f".venv/bin/{report}", folder))
    assert "nothing is judged" in (folder / "results/which_corpus/provenance.html").read_text()


@pytest.mark.slow
def test_the_best_model_is_found_by_the_tutorial(project):  # noqa: F811
    """The page, followed to the letter: from folders and solutions to the winner, without a truth."""
    folder = with_programs(project)
    texts = [block.text for block in BLOCKS if block.page == "which-model.md"]
    said = [said_by(start(text, folder)) for text in texts]
    tables = {
        name: pl.read_parquet(folder / f"results/which_model/model_selection/{name}.parquet")
        for name in ("ranking", "pairs", "agreement")
    }
    assert {path.stem for path in (folder / "results/which_model/model_selection").glob("*.png")} == {
        *("models_ranked", "model_pairs", "model_agreement", "model_solution_counts")
    }
    first = tables["ranking"].row(0, named=True)
    assert (first["method"], first["task"]) == ("top5_accuracy/token_frequency", "all")
    assert set(tables["ranking"]["model"]) == {"core", "web"} and set(tables["ranking"]["task"]) == {"all", "days"}
    # The winner is told at the end, and is the one whose proxy, as the page of statistics has it, is better.
    assert f"decided by: {first['method']}, named in advance" in said[2]
    title = "models, best first (place"
    assert (
        re.search(rf"{re.escape(title)}.*\n  {first['place']:g} .*{first['model']}\n", said[2])
        and "nothing is judged" in said[2]
    )
    proxies = pl.read_parquet(folder / "results/which_model/proxies.parquet")
    own = proxies.filter(statistic="top5_accuracy", weighting="token_frequency").sort("value", descending=True)
    assert own.filter(checkpoint=first["checkpoint"])["value"].item() == own["value"][0]
    bits = proxies.filter(statistic="bits_per_byte").sort("value")["checkpoint"].to_list()
    found = tables["ranking"].filter(task="days", method="bits_per_byte")
    assert found["checkpoint"].to_list() == bits and found["score_low"].null_count() == 0
    assert len(said[-1].splitlines()) == 3 and said[-1].startswith("task,method,kind,tail,model")
