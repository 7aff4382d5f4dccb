"""A whole study from a hub: a stub of its interface on this machine serves real ai2-olmo checkpoints, rows and truth.

All of `config/data_selection.yaml` happens here in small: revisions become commits, a training run is downloaded,
converted, scored and removed; tasks are rendered from rows; the truth is read from published evaluations; and a corpus
of text is tokenised, trained at the ladder's shapes and ranked among the others.
"""

import io
import json
import os
import re
import shutil
from pathlib import Path

import forked_python
import polars as pl
import pytest
import yaml
from conftest import byte_level_tokenizer
from hub_stub import Fault, HubStub, Status, commit_of

pytestmark = pytest.mark.olmo

ROOT = Path(__file__).parents[2]
TOKEN = "hf_planted_token_that_no_log_may_hold"
VOCABULARY, LENGTH = 352, 64
SIZES = {
    "tiny": {"hidden_size": 32, "layers": 2, "heads": 2, "batch_sequences": 4, "steps": 12, "learning_rate": 0.01},
    "large": {"hidden_size": 64, "layers": 2, "heads": 2, "batch_sequences": 4, "steps": 30, "learning_rate": 0.01},
}
QUESTIONS = [(f"What is {a} plus {b}?", [str(a + b), str(a + b + 1)], 0) for a in range(2, 8) for b in range(2, 8)]
CORPORA = ["alpha", "beta", "gamma"]


def parquet(table: pl.DataFrame) -> bytes:
    table.write_parquet(buffer := io.BytesIO())
    return buffer.getvalue()


def evaluations() -> pl.DataFrame:
    """As published: the large models' accuracy, by which gamma is best, and the tiny ones'."""
    rows = []
    for size, steps in (("tiny", (5, 10, 12)), ("large", (30,))):
        for place, corpus in enumerate(CORPORA):
            for step in steps:
                metrics = {"primary_metric": 0.5 + 0.01 * place, "correct_prob": 0.1 * place}
                for metric in ("correct_prob", "margin", "norm_correct_prob", "total_prob"):
                    metrics |= {metric + suffix: 0.1 * place for suffix in ("", "_per_char", "_per_token")}
                rows.append((size, corpus.upper(), "arc_easy", float(step), "default", 1.0, 1.0, str(metrics)))
    columns = ["params", "data", "task", "step", "seed", "tokens", "compute", "metrics"]
    return pl.DataFrame(rows, columns, orient="row")


def hub(folder: Path) -> HubStub:
    tokenizer = folder / "tokenizer"
    byte_level_tokenizer().save_pretrained(tokenizer)
    tokenizer_files = {path.name: path.read_bytes() for path in tokenizer.iterdir()}
    models = {"lab/tokenizer": {"main": tokenizer_files}}
    for seed, corpus in enumerate(CORPORA):
        revisions = {}
        for step in (0, 5, 10, 12):
            checkpoint = folder / f"{corpus}-{step}"
            save_olmo(checkpoint, SIZES["tiny"], seed=100 * seed + step)
            # What training leaves behind is not needed, and must not be fetched.
            files = {path.name: path.read_bytes() for path in checkpoint.iterdir()} | {"optimizer.pt": b"0" * 1000}
            revisions[f"step{step}-seed-default"] = files
        models[f"lab/{corpus}-tiny"] = revisions
    rows = pl.DataFrame(QUESTIONS, ["question", "options", "right"], orient="row")
    texts = pl.DataFrame({"text": [f"The hat number {n} sat on the mat." for n in range(40)]})
    datasets = {
        "lab/questions": {"main": {"data/test-0.parquet": parquet(rows), "data/train-0.parquet": b"not needed"}},
        "lab/web": {"refs/convert/parquet": {"default/validation/0000.parquet": parquet(texts)}},
        "lab/evaluations": {"main": {"README.md": b"", "results.parquet": parquet(evaluations())}},
    }
    return HubStub(models, datasets, token=TOKEN)


def save_olmo(folder: Path, size: dict, seed: int) -> None:
    """A random model of the real package, as `save_pretrained` of its class writes it, without a tokenizer."""
    import torch
    from hf_olmo import OLMoConfig, OLMoForCausalLM

    torch.manual_seed(seed)
    shape = {"d_model": size["hidden_size"], "n_layers": size["layers"], "n_heads": size["heads"], "mlp_ratio": 8}
    config = OLMoConfig(
        **shape,
        vocab_size=VOCABULARY - 2,
        embedding_size=VOCABULARY,
        max_sequence_length=LENGTH,
        rope=True,
        activation_type="swiglu",
        layer_norm_type="rms",
        layer_norm_with_affine=True,
        layer_norm_eps=1e-6,
        attention_layer_norm=False,
        include_bias=False,
        weight_tying=False,
        alibi=False,
        flash_attention=False,
        init_device="cpu",
        eos_token_id=1,
        pad_token_id=1,
    )
    OLMoForCausalLM(config, init_params=True).save_pretrained(folder)


STUDY = {
    "study": "hub",
    "corpora": {"lab": "all"},
    "tasks": {"lab": "all"},
    "generic_text": {"hub": "lab/web", "revision": "refs/convert/parquet", "files": "default/validation/*.parquet"}
    | {"solution": "{{ text }}"},
    "ladder": {"name": "lab", "sizes": ["tiny"]},
    "target": {"size": "large", "metric": "primary_metric"}
    | {"evaluations": {"hub": "lab/evaluations", "files": "*.parquet"}},
    "hub": {"concurrent_downloads": 2, "disk_gb": 0.1, "retries": 3},
    "selection": {"bootstrap_replicates": 100},
    "highlighted": [{"statistic": "cross_entropy"}, {"statistic": "correct_prob", "weighting": "none"}],
    "budgets": [{"name": "end", "size": "tiny", "step": 12}],
}
LADDER = {
    "name": "lab",
    "tokenizer": {"hub": "lab/tokenizer"},
    "vocabulary": VOCABULARY,
    "sequence_length": LENGTH,
    "checkpoint_every": 5,
    "seeds": {0: "default"},
    "sizes": SIZES,
}
TASK = {
    "name": "arc_easy",
    "rows": {"hub": "lab/questions", "files": "data/test-*.parquet", "prompt": "Question: {{ question }}\nAnswer:"}
    | {"choices": "options", "gold": "right"},
}


@pytest.fixture
def project(tmp_path) -> Path:
    project = tmp_path / "project"
    shutil.copytree(ROOT / "workflow", project / "workflow", ignore=shutil.ignore_patterns("__pycache__"))
    shutil.copy2(ROOT / "Snakefile", project)
    entry = {"hub": "", "revision": "step{step}-seed-{seed_name}", "convert_from": "hf_olmo"}
    corpora = {
        name: {"name": name, "display_name": name.upper(), "checkpoints": [entry | {"hub": f"lab/{name}-{{size}}"}]}
        for name in CORPORA
    }
    corpora["mine"] = {"name": "mine", "text": {"mixture": [{"files": "notes/*.txt"}]}}
    files = {"study.yaml": STUDY, "ladders/lab.yaml": LADDER, "tasks/lab/arc_easy.yaml": TASK}
    files |= {f"corpora/lab/{name}.yaml": corpus for name, corpus in corpora.items()}
    for name, content in files.items():
        path = project / "config" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(yaml.safe_dump(content))
    (project / "notes").mkdir()
    (project / "notes/a.txt").write_text("".join(f"{n} plus {n} is {2 * n}.\n" for n in range(3000)))
    return project


def snakemake(project: Path, endpoint: str, *arguments: str, fails: bool = False) -> str:
    hub = {"HF_ENDPOINT": endpoint, "HF_TOKEN": TOKEN, "HF_HOME": str(project / "cache"), "HF_HUB_OFFLINE": "0"}
    hub["PYTHONPATH"] = str(project / "workflow")  # its own library, which a test may break
    command = ["snakemake", "--configfile", "config/study.yaml", "--cores", "2", *arguments]
    finished = forked_python.run(*command, cwd=project, env=os.environ | hub, merged=True)
    assert (finished.returncode != 0) == fails, finished.stdout[-5000:]
    return finished.stdout


def test_a_study_from_the_hub(project, tmp_path):
    """A misspelt revision is told, and the rest is finished; with the file mended, what was finished stays."""
    results, beta = project / "results/hub", project / "config/corpora/lab/beta.yaml"
    right = beta.read_text()
    beta.write_text(right.replace("-seed-", "-sed-"))
    with hub(tmp_path / "models") as stub:
        stub.fail(r"resolve/.*model\.safetensors|resolve/.*pytorch_model\.bin", Fault.CUT, times=1)
        stub.fail(r"resolve/.*config\.json", Status(429, {"Retry-After": "1"}), times=1)
        said = snakemake(project, stub.endpoint, "--keep-going", fails=True)
        assert re.search(r"hub: 9 checkpoints of 3 training runs", said)
        assert "lab/beta-tiny" in said and "step5-sed-default" in said and "step5-seed-default" in said
        assert json.loads((results / "revisions/alpha-tiny-seed0.json").read_text())
        finished = {
            path: path.stat().st_mtime_ns
            for run in ("token_stats/alpha-tiny-seed0", "token_stats/gamma-tiny-seed0", "text/models/mine-tiny-seed0")
            for path in (results / run).rglob("*")
        }
        assert {results / "token_stats/alpha-tiny-seed0/manifest.json"} < finished.keys()
        assert (results / "text/trained/mine-tiny-seed0.json").exists()

        beta.write_text(right)
        said += snakemake(project, stub.endpoint)
        assert {path: path.stat().st_mtime_ns for path in finished} == finished
        fetched = {path.rsplit("/", 1)[1] for method, path in stub.requests if "/resolve/" in path and method == "GET"}
        assert not fetched & {"optimizer.pt", "train-0.parquet", "README.md"}

        # What the revisions were.
        checkpoints = pl.read_parquet(results / "checkpoints.parquet")
        by_name = {row["checkpoint"]: row for row in checkpoints.iter_rows(named=True)}
        for corpus in CORPORA:
            row = by_name[f"{corpus}-tiny-seed0-step10"]
            files = stub.repos["models"][f"lab/{corpus}-tiny"]["step10-seed-default"]
            assert row["commit"] == commit_of(f"lab/{corpus}-tiny", files)
            assert (row["source"], row["revision"]) == (f"lab/{corpus}-tiny", "step10-seed-default")
        assert by_name["mine-tiny-seed0-step12"]["commit"] == ""
        assert by_name["alpha-large-seed0-step30"]["role"] == "target"

        # Scored, removed, ranked.
        assert not [path for kind in ("weights", "converted") for path in (results / kind).glob("[!.]*")]
        stats = pl.read_parquet(results / "token_stats/alpha-tiny-seed0/*.parquet")
        assert set(stats["checkpoint"]) == {f"alpha-tiny-seed0-step{step}" for step in (5, 10, 12)}
        assert set(stats["task"]) == {"arc_easy", "generic_text"}
        ranking = pl.read_parquet(results / "data_selection/ranking.parquet")
        truth = ranking.filter(statistic="cross_entropy", step=12).sort("true_rank", nulls_last=True)
        assert truth["corpus"].to_list() == ["gamma", "beta", "alpha", "mine"]
        assert truth.filter(corpus="mine")["predicted_rank"].item() == 1, "trained on sums, among random models"
        pareto = pl.read_parquet(results / "data_selection/pareto.parquet").filter(size="tiny", step=12)
        known = {row["statistic"]: row["decision_accuracy"] for row in pareto.iter_rows(named=True)}
        assert known["primary_metric"] == known["correct_prob_per_char"] == 1.0

        written = [path for path in project.rglob("*") if path.is_file()]
        assert not [path for path in written if TOKEN.encode() in path.read_bytes()]
        assert TOKEN not in said
        before = sum(stub.requests.values())
        assert "Nothing to be done" in snakemake(project, stub.endpoint)
        assert sum(stub.requests.values()) == before


def change_study(project: Path, **changes) -> None:
    (project / "config/study.yaml").write_text(yaml.safe_dump(STUDY | changes))


def test_a_run_that_fails_for_good_leaves_the_room_to_the_others(project, tmp_path):
    """Room for one run and a half: what alpha had planned to take must not keep beta and gamma waiting."""
    with hub(tmp_path / "models") as stub:
        runs = stub.repos["models"]["lab/beta-tiny"]
        weights = sum(len(files["model.safetensors"]) for revision, files in runs.items() if "step0" not in revision)
        change_study(project, hub=STUDY["hub"] | {"disk_gb": 1.5 * weights / 1e9, "retries": 0})
        stub.fail(r"alpha.*model\.safetensors", Status(404), times=99)
        said = snakemake(project, stub.endpoint, "--keep-going", fails=True)
    assert "lab/alpha-tiny" in said
    results = project / "results/hub"
    assert (results / "weights/.alpha-tiny-seed0.partial/.planned_bytes").exists()
    for corpus, is_scored in (("alpha", False), ("beta", True), ("gamma", True)):
        assert (results / f"token_stats/{corpus}-tiny-seed0/manifest.json").exists() == is_scored


BROKEN_CONVERSION = """
begin = job


def job(log):
    from proxycast.weights import conversion

    whole = conversion.convert

    def convert(source, folder, *others):
        if "alpha" in str(folder) and "step12" in str(folder):
            raise OSError("broken")
        whole(source, folder, *others)

    conversion.convert = convert
    return begin(log)
"""


def test_a_failed_conversion_is_repeated_without_the_download(project, tmp_path):
    """The last checkpoint of a run cannot be written, as on a full disk; the others of it are not converted again."""
    # Behind a module whose code does not count: what another code converts is converted anew, from another download.
    module = project / "workflow/proxycast/jobs/running.py"
    whole = module.read_text()
    with hub(tmp_path / "models") as stub:
        module.write_text(whole + BROKEN_CONVERSION)
        target = ["results/hub/token_stats/alpha-tiny-seed0/manifest.json"]
        assert "broken" in snakemake(project, stub.endpoint, *target, fails=True)
        partial = project / "results/hub/weights/.alpha-tiny-seed0.partial"
        converted = {path.parent.name: path.stat().st_mtime_ns for path in partial.glob("*/fingerprint.txt")}
        assert converted.keys() == {"step5", "step10"}
        asked = stub.gets("resolve|storage")
        module.write_text(whole)
        study = yaml.safe_load((project / "config/study.yaml").read_text())
        change_study(project, hub=study["hub"] | {"keep": True, "disk_gb": None})
        snakemake(project, stub.endpoint, *target)
        assert stub.gets("resolve|storage") == asked
    weights = project / "results/hub/weights/alpha-tiny-seed0"
    marks = {path.parent.name: path.stat().st_mtime_ns for path in weights.glob("*/fingerprint.txt")}
    assert marks.keys() == {"step5", "step10", "step12"} and converted.items() <= marks.items()
    assert json.loads((project / "results/hub/revisions/alpha-tiny-seed0.json").read_text()).keys() == marks.keys()
