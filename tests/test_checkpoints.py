"""Which models a study looks at: names, parameters and FLOPs against saved models; broken files are removed."""

import json
from pathlib import Path

import polars as pl
import pytest
import torch
from conftest import tiny_model
from hypothesis import given
from hypothesis import strategies as st
from proxycast.checkpoints import (
    checkpoints_table,
    count_parameters,
    plan_checkpoints,
    remove_broken,
    scoring_jobs,
    weight_inputs,
)
from proxycast.config import Corpus, Plan, load_plan, read_yaml
from proxycast.miniature.llama import initialise, save_folder
from proxycast.options import InputError
from safetensors.torch import load_file, save_file

CONFIG = Path(__file__).parents[1] / "config"


@pytest.fixture(scope="module")
def default() -> Plan:
    return load_plan(read_yaml(CONFIG / "config.yaml"), "config.yaml", CONFIG)


@pytest.fixture
def given_models(default):
    """A function that makes a plan of corpora with checkpoints of their own: {corpus: [(folder, size, step, seed)]}."""

    def build(entries: dict[str, list[tuple]], jobs: str = "run") -> Plan:
        corpora = [
            Corpus(
                name=name,
                checkpoints=[
                    {"folder": folder, "size": size, "step": step, "tokens": 10 * step, "seed": seed}
                    for folder, size, step, seed in models
                ],
            )
            for name, models in entries.items()
        ]
        study = default.study.model_copy(update={"target": default.study.target.model_copy(update={"size": "big"})})
        study = study.model_copy(update={"jobs": jobs})
        files = {name: Path(f"config/corpora/own/{name}.yaml") for name in entries}
        return Plan(study=study, corpora=corpora, tasks=[], corpus_files=files)

    return build


# The plan of a suite that trains itself


def test_default_study_by_hand(default):
    checkpoints, suite = plan_checkpoints(default), default.study.miniature
    each = sum(len(size.seeds) * len(set(size.checkpoints) | {size.steps}) for size in suite.sizes.values())
    assert len(checkpoints) == 25 * each
    assert len({c.checkpoint for c in checkpoints}) == len({c.source for c in checkpoints}) == len(checkpoints)
    assert {c.size for c in checkpoints if c.role == "target"} == {default.study.target.size}
    for c in checkpoints:
        assert c.run == f"{c.corpus}-{c.size}-seed{c.seed}" and c.checkpoint == f"{c.run}-step{c.step}"
        assert c.tokens == c.step * suite.training.batch_sequences * suite.training.sequence_length
        assert c.flops == 6 * c.parameters * c.tokens


@pytest.mark.parametrize("study", sorted(CONFIG.glob("*.yaml")), ids=lambda path: path.stem)
def test_parameters_of_the_sizes_are_those_of_saved_models(study, tmp_path):
    suite = load_plan(read_yaml(study), str(study), CONFIG).study.miniature
    for name, size in suite.sizes.items():
        folder = tmp_path / name
        save_folder(initialise(size, suite.vocabulary, seed=0), size, folder)
        stored = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
        assert size.parameters(suite.vocabulary) == stored == count_parameters(folder)


def test_table_has_a_row_for_each(default):
    checkpoints = plan_checkpoints(default)
    table = checkpoints_table(checkpoints)
    assert table.height == len(checkpoints) and table.row(7) == tuple(vars(checkpoints[7]).values())
    assert table.schema["seed"] == pl.Int64 and not table.null_count().sum_horizontal().item()


@pytest.mark.parametrize("jobs", ["run", "corpus"])
def test_scoring_jobs_split_the_checkpoints(default, jobs):
    plan = default.model_copy(update={"study": default.study.model_copy(update={"jobs": jobs})})
    checkpoints = plan_checkpoints(plan)
    found = scoring_jobs(plan, checkpoints)
    assert [c for job in found.values() for c in job] == checkpoints
    assert all({getattr(c, jobs) for c in job} == {name} for name, job in found.items())
    name, job = next(iter(found.items()))
    assert weight_inputs(plan, job) == [f"results/miniature/suite/trained/{job[0].corpus}.json"]


# Models that exist already


@pytest.mark.parametrize("architecture", ["llama", "gpt2", "gpt_neox"])
@pytest.mark.parametrize("tied", [False, True])
def test_parameters_without_the_input_embedding(tmp_path, architecture, tied):
    """Against the live model: all its parameters, less the input embedding unless that is the output head as well."""
    model = tiny_model(architecture, tied=tied)
    model.save_pretrained(tmp_path)
    embedding, head = model.get_input_embeddings().weight, model.get_output_embeddings().weight
    assert (embedding is head) == tied
    assert count_parameters(tmp_path) == model.num_parameters() - (0 if tied else embedding.numel())


def test_parameters_of_a_sharded_model(tmp_path):
    model = tiny_model()
    model.save_pretrained(tmp_path, max_shard_size="100KB")
    assert len(list(tmp_path.glob("*.safetensors"))) > 1
    assert count_parameters(tmp_path) == model.num_parameters() - model.get_input_embeddings().weight.numel()


def test_unknown_input_embedding(tmp_path):
    save_file({"lm_head.weight": torch.ones(2, 3), "own.weight": torch.ones(3)}, tmp_path / "model.safetensors")
    with pytest.raises(InputError, match="found no input embedding.*give `parameters`"):
        count_parameters(tmp_path)


def test_given_checkpoints(given_models, model_folder):
    small, big = model_folder("small"), model_folder("big", tied=True)
    plan = given_models({name: [(small, "tiny", 5, 1), (big, "big", 7, 0)] for name in ("a", "b")})
    checkpoints = plan_checkpoints(plan)
    assert [(c.checkpoint, c.role, c.tokens, c.source) for c in checkpoints[2:]] == [
        ("b-tiny-seed1-step5", "proxy", 50, str(small)),
        ("b-big-seed0-step7", "target", 70, str(big)),
    ]
    assert [c.parameters for c in checkpoints[2:]] == [count_parameters(small), count_parameters(big)]
    jobs = scoring_jobs(plan, checkpoints)
    assert list(jobs) == ["a-tiny-seed1", "a-big-seed0", "b-tiny-seed1", "b-big-seed0"]
    assert weight_inputs(plan, jobs["a-big-seed0"]) == [str(big / "model.safetensors")]


def test_missing_folder(given_models, tmp_path):
    with pytest.raises(InputError, match=r"own/a\.yaml: checkpoints: .*absent: no such folder"):
        plan_checkpoints(given_models({"a": [(tmp_path / "absent", "big", 1, 0)]}))


def test_model_given_twice(given_models, model_folder):
    entry = (model_folder(), "big", 1, 0)
    with pytest.raises(InputError, match=r"own/a\.yaml: checkpoint a-big-seed0-step1 stands in .*own/a\.yaml already"):
        plan_checkpoints(given_models({"a": [entry, entry]}))


def test_names_that_meet_across_corpora(given_models, model_folder):
    sizes = [(model_folder(), size, 1, 0) for size in ("big", "b-big", "c-b-big")]
    with pytest.raises(InputError, match=r"own/a-c\.yaml: checkpoint a-c-b-big-seed0-step1 stands in .*own/a\.yaml"):
        plan_checkpoints(given_models({"a": sizes, "a-c": sizes}))


@pytest.mark.parametrize(
    "less, named", [(0, "big of seed 0"), (1, "tiny of seed 0 at step 2"), (2, "tiny of seed 1 at step 2")]
)
def test_corpus_that_lacks_a_model(given_models, model_folder, less, named):
    models = [(model_folder(), *model) for model in (("big", 9, 0), ("tiny", 2, 0), ("tiny", 2, 1))]
    fewer = [model for number, model in enumerate(models) if number != less]
    with pytest.raises(InputError, match=rf"own/b\.yaml: checkpoints: found no {named}, which another corpus has"):
        plan_checkpoints(given_models({"a": models, "b": fewer, "c": models}))


# Broken files


def some_table(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"a": range(1000)}).write_parquet(path)
    return path


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_tables_go_and_whole_ones_stay(tmp_path_factory, share):
    results = tmp_path_factory.mktemp("results")
    whole, cut = some_table(results / "a.parquet"), some_table(results / "parts" / "job" / "b.parquet")
    content = cut.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert remove_broken(results) == [cut]
    assert whole.exists() and not cut.exists()
    assert remove_broken(results) == []


def test_file_that_a_job_is_writing_stays(tmp_path):
    (tmp_path / ".proxies.123.parquet").write_bytes(b"PAR1 unfinished")
    assert remove_broken(tmp_path) == []
    assert (tmp_path / ".proxies.123.parquet").exists()


def test_nothing_is_there_yet(tmp_path):
    assert remove_broken(tmp_path / "absent") == []


def damage_truncated(folder: Path) -> None:
    weights = folder / "model.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])


def damage_empty(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def damage_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


@pytest.mark.parametrize("damage", [damage_truncated, damage_empty, damage_no_weights])
def test_broken_checkpoint_goes_with_its_manifest_alone(tmp_path, model_folder, damage):
    models, trained = tmp_path / "suite" / "models", tmp_path / "suite" / "trained"
    models.mkdir(parents=True)
    trained.mkdir()
    for name in ("a-step1", "a-step2", "b-step1"):
        model_folder(f"suite/models/{name}")
    (trained / "a.json").write_text(json.dumps({"a-step1": "mark", "a-step2": "mark"}))
    (trained / "b.json").write_text(json.dumps({"b-step1": "mark"}))
    assert remove_broken(tmp_path) == []
    damage(models / "a-step2")
    assert remove_broken(tmp_path) == [models / "a-step2"]
    assert sorted(path.name for path in models.iterdir()) == ["a-step1", "b-step1"]
    assert [path.name for path in trained.iterdir()] == ["b.json"]


def test_absent_checkpoint_costs_the_manifest(tmp_path):
    manifest = tmp_path / "suite" / "trained" / "a.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"a-step1": "mark"}))
    assert remove_broken(tmp_path) == [tmp_path / "suite" / "models" / "a-step1"]
    assert not manifest.exists()
