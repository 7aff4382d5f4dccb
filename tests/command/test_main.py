"""The command `proxycast`, called as a user would: what it prints, what it writes, and what it refuses."""

import json
import shutil
import subprocess
import sys
from pathlib import Path

import jsonschema
import polars as pl
import pytest
import yaml
from conftest import ROOT, copy_project, write_json, write_rows
from proxycast import tables
from proxycast.command.main import app
from proxycast.command.study_templates import Question
from typer.testing import CliRunner


@pytest.fixture
def project(tmp_path, monkeypatch) -> Path:
    """A project of a user, with the working directory in it."""
    monkeypatch.setattr(tables, "_CHANGES_NOTHING", [])  # what `check` sets for its process
    monkeypatch.chdir(copy_project(tmp_path))
    return tmp_path


def run(*words: object):
    return CliRunner().invoke(app, list(map(str, words)))


def said(*words: object) -> str:
    result = run(*words)
    assert result.exit_code == 0, result.output
    return result.stdout


def refused(*words: object, status: int = 1) -> str:
    """The one line on stderr of a command that is refused."""
    result = run(*words)
    assert result.exit_code == status and "Traceback" not in result.output, result.output
    if status == 1:
        assert not result.stdout and result.stderr.startswith("error: ") and result.stderr.count("\n") == 1
    return result.stderr


def test_help_names_every_command():
    text = said("--help")
    for name in ("new", "check", "estimate", "progress", "score", "pick"):
        assert name in text and said(name, "--help")
    assert said("--version").startswith("proxycast 0.")


def test_a_wrong_use_is_status_2():
    assert "No such option" in refused("check", "config/smoke.yaml", "--templates", "x.csv", status=2)
    assert "'corpora'" in refused("new", "corpora", "mine", status=2)


def test_the_command_runs_in_a_process_and_without_snakemake_says_what_to_install(project):
    program = [sys.executable, "-c", "from proxycast.command.main import app; app()", "check"]
    found = subprocess.run([*program, "config/none.yaml"], capture_output=True, text=True)
    assert (found.returncode, found.stdout, found.stderr) == (1, "", "error: config/none.yaml: no such file\n")
    program[2] = f"import sys; sys.modules['snakemake'] = None; {program[2]}"
    found = subprocess.run([*program, "config/smoke.yaml"], capture_output=True, text=True)
    assert found.returncode == 1 and found.stderr.count("\n") == 1
    assert found.stderr.endswith("needs Snakemake; run: pip install 'proxycast[workflow]'\n")


# check


def test_check_tells_what_a_study_holds_and_changes_nothing(project):
    before = {path: path.stat().st_mtime_ns for path in project.rglob("*")}
    text = said("check", "config/smoke.yaml")
    assert "corpora      5: base, core, core_wiki_10, web_crawl, web_edu\n" in text
    assert "checkpoints  20 of size 30k (role proxy; 2 steps from 20 to 40; seeds 0, 1)\n" in text
    assert "judged       proxies, by how they order 10 pairs of 5 corpora with a truth\n" in text
    assert {path: path.stat().st_mtime_ns for path in project.rglob("*")} == before


def test_check_tells_whose_code_must_be_allowed(project, monkeypatch):
    monkeypatch.delenv("PROXYCAST_TRUST_CODE", raising=False)
    monkeypatch.setenv("PROXYCAST_RUN_PROGRAMS", "usaco")
    lines = [line for line in said("check", "config/model_selection.yaml").splitlines() if line.startswith("refused")]
    assert len(lines) == 3 and all(line.endswith("a run needs it in PROXYCAST_TRUST_CODE") for line in lines)


def test_check_refuses_what_snakemake_would(project):
    study = yaml.safe_load((project / "config/smoke.yaml").read_text())
    changed = study | {"taks": {}, "miniature": study["miniature"] | {"problems": "many"}}
    Path("config/wrong.yaml").write_text(json.dumps(changed))
    result = run("check", "config/wrong.yaml")
    assert result.exit_code == 1 and len(result.stderr.splitlines()) == 2  # both keys at once
    assert "did you mean 'tasks'" in result.stderr and "miniature.problems" in result.stderr


def test_the_template_is_the_table_that_the_study_wants(project):
    """Filled in it is accepted; one row less is refused."""
    study = yaml.safe_load((project / "config/smoke.yaml").read_text())
    study["target"] |= {"table": "truth.csv"}
    Path("config/mine.yaml").write_text(json.dumps(study))
    assert "5 corpora" not in refused("check", "config/mine.yaml")  # there is no table yet
    # 5 corpora, 2 seeds, 3 tasks, 3 metrics
    assert "truth.csv: 90 rows" in said("check", "config/mine.yaml", "--template", "truth.csv")
    table = pl.read_csv("truth.csv", infer_schema=False)
    assert table.columns == ["checkpoint", "task", "metric", "value", "n"] and table["value"].null_count() == 90
    assert "truth.csv: is there already" in refused("check", "config/mine.yaml", "--template", "truth.csv")
    filled = table.with_columns(value=pl.lit("0.5"))
    filled.write_csv("truth.csv")
    assert "judged       proxies" in said("check", "config/mine.yaml")
    filled[1:].write_csv("truth.csv")
    assert "truth.csv" in refused("check", "config/mine.yaml")


def test_a_study_of_tables_needs_no_template(project):
    assert "runs no model" in refused("check", "config/published_olmo2.yaml", "--template", "truth.csv")
    assert not Path("truth.csv").exists()


# new


SCHEMAS = {"corpora": "corpus", "models": "model", "tasks": "task", "ladders": "ladder"}


@pytest.mark.parametrize("question", list(Question))
def test_what_new_writes_fits_the_schemas(project, question):
    before = set(project.rglob("*.yaml"))
    text = said("new", question, "mine")
    written = set(project.rglob("*.yaml")) - before
    assert written == {project / line.partition(":")[0] for line in text.splitlines()[:-1]}
    for path in written:
        kind = SCHEMAS.get(path.relative_to(project / "config").parts[0], "study")
        jsonschema.validate(
            yaml.safe_load(path.read_text()), json.loads((ROOT / f"config/schema/{kind}.schema.json").read_text())
        )
        assert max(map(len, path.read_text().splitlines())) <= 120
    assert "config/mine.yaml: is there already" in refused("new", question, "mine")


def fill_in(replacements: dict[str, object]) -> None:
    """As an editor does what CHANGE marks."""
    for path in Path("config").rglob("*.yaml"):
        text = path.read_text()
        for placeholder, value in replacements.items():
            text = text.replace(placeholder, str(value))
        path.write_text(text)


@pytest.fixture
def solutions(project) -> Path:
    choices = [" 4", " 5"]
    rows = [{"id": str(n), "prompt": f"{n} + 3 =", "solution": " 5", "choices": choices} for n in range(6)]
    write_rows(rows, project / "own.jsonl")
    return project / "own.jsonl"


def checked(solutions: Path, **replacements: object) -> str:
    """What `check` says of the study `mine` once it is filled in; before that it is refused."""
    refused("check", "config/mine.yaml")
    fill_in({"path/to/solutions.jsonl": solutions} | replacements)
    return said("check", "config/mine.yaml")


def test_a_new_study_of_models_passes_when_it_is_filled_in(project, solutions, model_folder):
    said("new", "models", "mine")
    folders = {f"path/to/model-{name}": model_folder(name, seed=n) for n, name in enumerate("ab")}
    text = checked(solutions, **folders)
    assert "models       2: model-a, model-b\n" in text
    assert "task         mine-task: 6 problems, 6 with a solution, 6 with choices\n" in text
    assert "not judged   the order of 2 models (no truth, so it is predicted only)\n" in text
    told = said("check", "config/mine.yaml", "--template", "truth.csv")
    assert "truth.csv: 2 rows" in told
    # What it says to do next is what the comments of the study say, and fits the metric in the table.
    assert told.endswith(
        "; then set target: {metric: accuracy, table: truth.csv} and model_selection: {} in config/mine.yaml\n"
    )
    assert "# target: {metric: accuracy, table: truth.csv}\n" in Path("config/mine.yaml").read_text()
    assert pl.read_csv("truth.csv")["metric"].unique().to_list() == ["accuracy"]


def test_check_tells_which_models_and_tasks_have_a_truth(project, solutions, model_folder):
    """Five models and four tasks; the table leaves out a model and a task."""
    folder, rows = model_folder("model"), ["name,family,folder"]
    for name in "abcde":
        shutil.copytree(folder, project / "models" / name)
        rows.append(f"{name},{'llama' if name < 'd' else name},models/{name}")
    Path("models.csv").write_text("\n".join(rows))
    said("new", "models", "mine", "--from-table", "models.csv")
    uncommented = {f"# {key}:": f"{key}:" for key in ("target", "model_selection")}
    fill_in({"path/to/solutions.jsonl": solutions} | uncommented)
    for task in "xyz":
        write_json({"name": task, "solutions": str(solutions)}, Path(f"config/tasks/mine/{task}.yaml"))
    assert "truth.csv: 20 rows" in said("check", "config/mine.yaml", "--template", "truth.csv")
    table = pl.read_csv("truth.csv", infer_schema=False).with_columns(value=pl.lit("0.5"))
    table.filter(~pl.col("checkpoint").str.starts_with("b-"), pl.col("task") != "x").write_csv("truth.csv")
    text = said("check", "config/mine.yaml")
    assert "judged       scorers and proxies, by accuracy of 4 models in 3 tasks\n" in text
    assert "not judged   models without a truth, ranked by what the others teach: 1: b\n" in text
    assert "not judged   tasks without a truth, where models are ranked all the same: 1: x\n" in text
    assert "not judged   models of a new family (no family has 3 models to hold out)\n" in text  # b was one of three
    pl.read_csv("truth.csv").with_columns(pl.col("checkpoint").str.head(1)).write_csv("truth.csv")  # the name alone
    assert said("check", "config/mine.yaml") == text


def test_check_tells_the_candidates_of_a_table(project):
    """No file of the study names the models and corpora."""
    names, tasks = "abcde", ("sums", "arcs", "words")
    rows = [(name, task, f, 0.1 * n) for n, name in enumerate(names) for task in tasks for f in ("margin", "accuracy")]
    pl.DataFrame(rows, ["unit", "task", "statistic", "value"], orient="row").write_csv("numbers.csv")
    target = {"metric": "accuracy"}
    study = {"study": "mine", "statistics": {"table": "numbers.csv"}, "target": target, "model_selection": {}}
    write_json(study, Path("config/mine.yaml"))
    text = said("check", "config/mine.yaml")
    assert "models       5: a, b, c, d, e\n" in text and "corpora" not in text
    assert "ranked by    margin\n" in text  # no model is run, so no proxy that is named by default is there
    columns = ["unit", "size", "step", "parameters", "tokens"]
    sizes = [("small", 8, 10, 100), ("large", 9, 100, 900)]
    wide = pl.DataFrame([(name, *size) for name in names for size in sizes], columns, orient="row")
    wide = wide.with_columns(task=pl.lit("sums"), statistic=pl.lit("accuracy"), value=pl.int_range(10) / 20)
    pl.concat([wide, wide.filter(size="small").with_columns(statistic=pl.lit("margin"))]).write_csv("numbers.csv")
    highlighted = [{"statistic": "margin", "weighting": "none"}]
    del study["model_selection"]
    corpora = {"target": target | {"size": "large"}, "budgets": [{"name": "b", "size": "small", "step": 8}]}
    write_json(study | corpora | {"highlighted": highlighted}, Path("config/mine.yaml"))
    text = said("check", "config/mine.yaml")
    assert "corpora      5: a, b, c, d, e\n" in text and "ranked at    size small, step 8\n" in text
    assert "judged       proxies, by how they order 10 pairs of 5 corpora" in text


def test_a_new_study_of_checkpoints_passes_when_it_is_filled_in(project, solutions, model_folder):
    said("new", "corpora-by-checkpoints", "mine")
    for corpus in "ab":
        for seed in (0, 1):
            model_folder(f"corpus-{corpus}/20k-seed{seed}/step10", seed=seed)
    text = checked(solutions, **{"path/to/corpus-": project / "corpus-"})
    assert "checkpoints  4 of size 20k (role proxy; step 10; seeds 0, 1)\n" in text
    assert "ranked by    top5_accuracy/token_frequency, top1_accuracy/inverse_token_frequency, bits_per_byte\n" in text
    assert "not judged   the order of 2: corpus-a, corpus-b (no truth" in text
    assert "target.size: missing" in refused("check", "config/mine.yaml", "--template", "truth.csv")


def test_a_truth_of_corpora_outside_of_the_study_gets_a_template(project, solutions, model_folder):
    """The commented block of the new study, with its comment taken away."""
    said("new", "corpora-by-checkpoints", "mine")
    for corpus in "ab":
        model_folder(f"corpus-{corpus}/20k-seed0/step10")
    fill_in({"path/to/solutions.jsonl": solutions, "path/to/corpus-": project / "corpus-", "# target:": "target:"})
    assert "truth.csv: 2 rows" in said("check", "config/mine.yaml", "--template", "truth.csv")
    table = pl.read_csv("truth.csv", infer_schema=False).with_columns(value=pl.Series(["0.4", "0.5"]))
    assert table["metric"].unique().to_list() == ["accuracy"]
    table.write_csv("truth.csv")
    assert "judged       proxies, by how they order 1 pairs of 2 corpora" in said("check", "config/mine.yaml")


def test_a_new_study_of_text_passes_when_it_is_filled_in(project, solutions, model_folder):
    said("new", "corpora-by-text", "mine")
    for corpus in "ab":
        write_rows([{"text": "some words"}], project / f"text/corpus-{corpus}/part.jsonl")
    own = {"path/to/corpus-": project / "text/corpus-", "path/to/tokenizer": model_folder("tokenizer")}
    text = checked(solutions, **own)
    assert "checkpoints  4 of size 4M (role proxy; 2 steps from 1000 to 2000; seed 0)\n" in text
    assert "corpora      2: corpus-a, corpus-b\n" in text


def test_a_new_forecast_passes_when_it_is_filled_in(project, solutions, model_folder):
    said("new", "forecast", "mine")
    for step in (1000, 2000, 4000, 8000, 10000, 20000):
        model_folder(f"run-a/step{step}")
    text = checked(solutions, **{"path/to/run-a": project / "run-a"})
    assert "end          of run-a-7B-seed0 at step 100,000, 5 times the compute of step 20,000\n" in text
    assert "not judged   forecasts of run-a-7B-seed0 at 2, 4, 5 times the compute of step 20,000\n" in text
    fill_in({"# fit_up_to_step": "fit_up_to_step"})
    text = said("check", "config/mine.yaml")
    assert "\njudged       forecasts of run-a-7B-seed0 at 2 times the compute of step 10,000\n" in text
    assert "end          of run-a-7B-seed0 at step 100,000, 10 times the compute of step 10,000\n" in text
    assert "not judged   forecasts of run-a-7B-seed0 at 4, 9, 10 times" in text
    assert "truth.csv: 6 rows" in said("check", "config/mine.yaml", "--template", "truth.csv")


def test_check_tells_of_both_experiments_of_a_study(project):
    study = yaml.safe_load(Path("config/miniature_forecasting.yaml").read_text())
    write_json(study | {"study": "both", "model_selection": {}}, Path("config/both.yaml"))
    text = said("check", "config/both.yaml")
    assert "study        both: which model is best? where does a training run end?\n" in text
    assert "judged       scorers and proxies, by" in text and "judged       forecasts of" in text


def test_check_tells_which_forecasts_of_a_log_are_judged(project):
    """Two runs: one goes on, the other is cut at a quarter of its steps."""
    steps = range(1000, 8001, 1000)
    Path("log.csv").write_text("\n".join(["step,run,acc", *(f"{s},{r},0.{s}" for r in ("on", "done") for s in steps)]))
    curve = {"path": "log.csv", "run_column": "run", "tokens_per_step": 10, "tasks": {"x": {"truth": "acc"}}}
    curve["runs"] = {"on": {}, "done": {"fit_up_to_step": 4000}}
    study = {"study": "mine", "target": {"metric": "accuracy"}}
    write_json(study | {"forecasting": {"end": {"run": "on", "step": 16000}, "curve": curve}}, Path("config/mine.yaml"))
    text = said("check", "config/mine.yaml")
    assert "end          of on at step 16,000, 2 times the compute of step 8,000\n" in text
    assert "not judged   forecasts of on at 2 times the compute of step 8,000\n" in text
    assert "\njudged       forecasts of done at 2 times the compute of step 4,000\n" in text


def test_new_takes_checkpoints_from_a_table(project):
    Path("models.csv").write_text(
        "name,folder,hub,revision,family,parameters,tokens\n"
        "small,/models/small,,,llama,,\n"
        "large,,me/large,step9,,7000000000,2000000000000\n"
    )
    said("new", "models", "mine", "--from-table", "models.csv")
    read = {path.stem: yaml.safe_load(path.read_text()) for path in Path("config/models/mine").glob("*.yaml")}
    large = {"hub": "me/large", "revision": "step9", "parameters": 7000000000, "tokens": 2000000000000}
    assert read == {
        "small": {"name": "small", "family": "llama", "folder": "/models/small"},
        "large": {"name": "large", **large},
    }
    Path("corpora.csv").write_text(
        "name,folder,size,seed,step,tokens\nweb,/m/web-0,20M,0,100,1000\nweb,/m/web-1,20M,1,100,1000\n"
        "books,/m/books,20M,0,100,1000\n"
    )
    said("new", "corpora-by-checkpoints", "own", "--from-table", "corpora.csv")
    web = yaml.safe_load(Path("config/corpora/own/web.yaml").read_text())
    assert web["checkpoints"] == [
        {"folder": f"/m/web-{seed}", "size": "20M", "seed": seed, "step": 100, "tokens": 1000} for seed in (0, 1)
    ]
    assert {path.stem for path in Path("config/corpora/own").glob("*")} == {"web", "books"}


def test_new_takes_statistics_from_a_table(project):
    rows = [("m", "sums", name, 0.5) for name in ("bits_per_byte", "bpb_of_pages", "accuracy")]
    pl.DataFrame(rows, ["unit", "task", "statistic", "value"], orient="row").write_csv("numbers.csv")
    assert said("new", "models", "mine", "--from-table", "numbers.csv").startswith("config/mine.yaml: change")
    assert yaml.safe_load(Path("config/mine.yaml").read_text()) == {
        "study": "mine",
        "statistics": {"table": "numbers.csv", "higher_is_better": {"bpb_of_pages": False}},
        "target": {"metric": "accuracy"},
        "model_selection": {},
    }
    assert "is for the question models, found forecast" in refused(
        "new", "forecast", "x", "--from-table", "numbers.csv"
    )


@pytest.mark.parametrize(
    "question, table, message",
    [
        ("models", "model,folder\na,/a\n", "t.csv: column name: missing"),
        ("models", "name,folder\na,/a\na,/b\n", "t.csv, row 3: name: 'a' stands in another row already"),
        ("models", "name,foldr\na,/a\n", "t.csv, row 2: foldr: unknown key; did you mean 'folder'"),
        ("models", "name,hub\na,me/a\n", "t.csv, row 2: parameters: missing"),
        ("corpora-by-checkpoints", "name,folder,step\na,/a,many\n", "t.csv, row 2: step"),
        ("corpora-by-checkpoints", "name,folder,step\na b,/a,1\n", "t.csv, row 2: name"),
        ("corpora-by-checkpoints", "name,folder\n", "t.csv: found no rows"),
        ("corpora-by-text", "name,folder\na,/a\n", "t.csv: --from-table is for checkpoints"),
    ],
)
def test_a_table_that_is_wrong_is_refused_by_row(project, question, table, message):
    Path("t.csv").write_text(table)
    assert message in refused("new", question, "mine", "--from-table", "t.csv")
    assert not Path("config/mine.yaml").exists()


def test_new_needs_a_project_and_a_name(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert "run this in the folder of the project" in refused("new", "models", "mine")
    assert "a name must begin with a letter" in refused("new", "models", "../mine")
