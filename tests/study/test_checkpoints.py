"""Which models a study looks at: names, parameters and FLOPs against saved models; broken files are removed."""

import dataclasses
import json
import os
import shutil
import time
from pathlib import Path

import polars as pl
import pytest
import torch
from awkward_models import AWKWARD
from conftest import PUBLISHED, tiny_model
from hypothesis import given
from hypothesis import strategies as st
from proxycast.config.corpora import Corpus
from proxycast.config.experiments.selection_options import SelectionOptions
from proxycast.config.ladder import Ladder, RateCheck
from proxycast.config.study import Budget, LadderChoice, Study
from proxycast.config.truth import Target
from proxycast.options import InputError
from proxycast.solutions.rows import Solution, write_solutions
from proxycast.study.checkpoint_plan import (
    WITHOUT_JOBS,
    checkpoints_of_command,
    plan_checkpoints,
    require_active_parameters,
    runs_jobs,
)
from proxycast.study.checkpoints import (
    Checkpoint,
    budgets_of,
    budgets_of_rates,
    checkpoints_fingerprint,
    checkpoints_table,
    compared_rates,
    count_parameters,
    extraction_options,
    job_with_a_proxy,
    runs,
    scored_checkpoints,
    scoring_jobs,
    short_names,
    up_to,
    weight_inputs,
)
from proxycast.study.loader import load_plan
from proxycast.study.repair import broken_results, remove
from proxycast.study.study_plan import Plan
from proxycast.study.yaml_files import read_yaml
from proxycast.tables import require_parts, write_json
from proxycast.training.miniature.train_corpus import ARCHITECTURES
from proxycast.truth.targets import read_target_table, with_full_names
from safetensors.torch import load_file, save_file
from small_ladder import small_ladder
from snakemake.cli import parse_args

CONFIG = Path(__file__).parents[2] / "config"
STUDIES = sorted(CONFIG.glob("*.yaml"))


@pytest.fixture(scope="module")
def default() -> Plan:
    return load_plan(read_yaml(CONFIG / "config.yaml"), "config.yaml", CONFIG)


@pytest.fixture
def given_models(default):
    """A function that makes a plan of corpora with checkpoints of their own: {corpus: [(folder, size, step, seed)]}.

    The first of the smaller models that the first corpus has is the budget.
    """

    def build(entries: dict[str, list[tuple]], jobs: str = "run") -> Plan:
        corpora = [
            Corpus(
                name=name,
                checkpoints=[
                    {"folder": str(folder), "size": size, "step": step, "tokens": 10 * step, "seed": seed}
                    for folder, size, step, seed in models
                ],
            )
            for name, models in entries.items()
        ]
        _, size, step, _ = next((m for m in next(iter(entries.values())) if m[1] != "big"), (None, "none", 0, 0))
        budgets = [Budget(name="early", size=size, step=step)]
        changes = {"jobs": jobs, "target": Target(size="big"), "budgets": budgets, "selection": SelectionOptions()}
        files = {name: Path(f"config/corpora/own/{name}.yaml") for name in entries}
        study = default.study.model_copy(update=changes)
        return Plan(study=study, corpora=corpora, tasks=[], corpus_files=files, ladder=None, where="study.yaml")

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


@pytest.mark.parametrize("study", [p for p in STUDIES if "miniature" in read_yaml(p)], ids=lambda path: path.stem)
def test_parameters_of_the_sizes_are_those_of_saved_models(study, tmp_path):
    suite = load_plan(read_yaml(study), str(study), CONFIG).study.miniature
    for name, size in suite.sizes.items():
        folder, architecture = tmp_path / name, ARCHITECTURES[size.architecture]
        architecture.save_folder(architecture.initialise(size, suite.vocabulary_of(name), seed=0), size, folder)
        stored = sum(tensor.numel() for tensor in load_file(folder / "model.safetensors").values())
        embedding = suite.vocabulary_of(name) * size.hidden_size if size.architecture == "gpt_neox" else 0  # untied
        assert suite.parameters(name) == stored - embedding == count_parameters(folder)


def test_table_has_a_row_for_each(default):
    checkpoints = plan_checkpoints(default)
    seventh = checkpoints[7]
    table = checkpoints_table(checkpoints, {seventh.checkpoint: "abc"})
    in_table = [field.name for field in dataclasses.fields(Checkpoint)][:15]
    assert table.columns == [*in_table, "commit"] and in_table[-1] == "revision"
    assert table.height == len(checkpoints)
    assert table.row(7) == (*(getattr(seventh, name) for name in in_table), "abc")
    assert set(table["commit"]) == {"", "abc"}
    assert table.schema["seed"] == pl.Int64 and not table.null_count().sum_horizontal().item()


def test_fingerprint_changes_with_every_value_of_the_table(default):
    checkpoints = plan_checkpoints(default)[:3]
    mark = checkpoints_fingerprint(checkpoints)
    assert mark == checkpoints_fingerprint(list(checkpoints)) != checkpoints_fingerprint(checkpoints[:2])
    for name, value in checkpoints[1].row().items():
        other = dataclasses.replace(checkpoints[1], **{name: value + 1 if isinstance(value, int) else f"{value}x"})
        assert checkpoints_fingerprint([checkpoints[0], other, checkpoints[2]]) != mark


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


def test_compute_of_a_mixture_of_experts_counts_its_active_parameters(given_models, tmp_path):
    moe = AWKWARD["qwen3_moe"](tmp_path / "moe")
    plan = given_models({name: [(moe, "tiny", 5, 1), (moe, "big", 7, 0)] for name in ("a", "b")})
    inactive = 2 * 3 * 32 * 64  # two of four experts in one layer: three matrices of 32 x 64 each
    (one, *_) = checkpoints = plan_checkpoints(plan)
    assert (one.parameters, one.active_parameters) == (count_parameters(moe), count_parameters(moe) - inactive)
    assert one.flops == 6 * one.active_parameters * one.tokens
    table = checkpoints_table(checkpoints, {})
    assert table.columns[6:8] == ["parameters", "active_parameters"]
    assert (table["flops"] == 6 * table["active_parameters"] * table["tokens"]).all()


def test_active_parameters_that_a_file_gives():
    """Of a hub's weights nothing can be counted: they are what the file says, or all."""
    more = HUB | {"size": "own", "step": 5, "tokens": 11, "parameters": 13, "seed": 9}
    corpora = {n: {"checkpoints": [HUB | {"hub": f"me/{n}-{{size}}"}, more | {"active_parameters": 4}]} for n in "ab"}
    for keys, active in ({"active_parameters": 4}, 4), ({}, 13):
        for corpus in corpora.values():
            corpus["checkpoints"][1] = more | keys
        (own,) = (c for c in plan_checkpoints(ladder_plan(corpora)) if c.seed == 9 and c.corpus == "a")
        assert (own.parameters, own.active_parameters, own.flops) == (13, active, 6 * active * 11)
    corpora["b"]["checkpoints"][1] = more | {"active_parameters": 14}
    with pytest.raises(InputError, match=r"own/b\.yaml: checkpoints\[1\]: active_parameters: found 14; .* of the 13"):
        plan_checkpoints(ladder_plan(corpora))
    corpora["b"]["checkpoints"][1] = more | {"active_parameters": 5}
    corpora["a"]["checkpoints"][1] = more
    with pytest.raises(InputError, match="active_parameters of own at step 5: found 5, but 13"):
        plan_checkpoints(ladder_plan(corpora))


def test_a_mixture_of_the_hub_whose_file_takes_all_for_active(tmp_path, monkeypatch):
    """Seen by the job that has its weights, before a model is loaded."""
    monkeypatch.chdir(tmp_path)
    more = HUB | {"size": "own", "step": 5, "tokens": 11, "parameters": 99_999, "seed": 9}
    corpora = {n: {"checkpoints": [HUB | {"hub": f"me/{n}-{{size}}"}, more]} for n in "ab"}
    plan = ladder_plan(corpora)
    (own,) = (c for c in plan_checkpoints(plan) if c.seed == 9 and c.corpus == "a")
    checkpoints = [(own.checkpoint, own.folder, own.role)]
    AWKWARD["llama_no_bos_bytelevel"](Path(own.folder))
    require_active_parameters(plan, "a", checkpoints)
    shutil.rmtree(own.folder)
    AWKWARD["qwen3_moe"](Path(own.folder))
    words = r"own/a\.yaml: a-own-seed9-step5 is a mixture of experts, of whose 99999 parameters a token meets 87711"
    with pytest.raises(InputError, match=words):
        require_active_parameters(plan, "a", checkpoints)
    for corpus in corpora.values():
        corpus["checkpoints"][1] = more | {"active_parameters": 87_711}
    require_active_parameters(ladder_plan(corpora), "a", checkpoints)


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
    with pytest.raises(InputError, match=r"own/a\.yaml: checkpoints\[0\]: .*absent: no such folder"):
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
    "less, named", [(0, "big of seed 0"), (2, "tiny of seed 0 at step 2"), (3, "tiny of seed 1 at step 2")]
)
def test_corpus_that_lacks_a_model(given_models, model_folder, less, named):
    """One that is judged, having a target: without any, a corpus is a candidate (below)."""
    models = [(model_folder(), *model) for model in (("big", 9, 0), ("big", 9, 1), ("tiny", 2, 0), ("tiny", 2, 1))]
    fewer = [model for number, model in enumerate(models) if number != less]
    words = rf"own/b\.yaml: checkpoints: found no {named}, which another corpus has; .*\(1 missing\)"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(given_models({"a": models, "b": fewer, "c": models}))


def test_candidate_has_no_target(given_models, model_folder):
    folder = model_folder()
    models = [(folder, *model) for model in (("big", 9, 0), ("tiny", 2, 0), ("tiny", 3, 0), ("tiny", 2, 1))]
    found = plan_checkpoints(given_models({"a": models, "b": models, "new": models[3:]}))
    assert [c.checkpoint for c in found if c.corpus == "new"] == ["new-tiny-seed1-step2"]
    # The budget's model, of a seed that all have: another seed or step is none.
    for others in ([(folder, "tiny", 2, 5)], [(folder, "tiny", 3, 0)]):
        words = r"own/new\.yaml: checkpoints: found no tiny at step 2 of seed 0 or 1, which the budget 'early' compares"
        with pytest.raises(InputError, match=words):
            plan_checkpoints(given_models({"a": models, "b": models, "new": others}))
    words = r"own/c\.yaml: checkpoints: found no tiny at step 2 of seed 1, which"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(given_models({"a": models, "b": models, "new": models[3:], "c": models[1:2]}))


def test_a_truth_needs_two_corpora(given_models, model_folder):
    models = [(model_folder(), *model) for model in (("big", 9, 0), ("tiny", 2, 0))]
    words = "^study.yaml: target: found models of size big for 1 corpora; a truth needs at least two"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(given_models({"a": models, "b": models[1:]}))


def test_models_of_one_name_must_be_of_one_size(given_models, model_folder):
    wide = tiny_model()
    wide.resize_token_embeddings(360)
    small, other = model_folder("small"), model_folder("other", model=wide)
    models = [(small, "big", 9, 0), (small, "tiny", 2, 0)]
    found = count_parameters(other), count_parameters(small)
    words = r"own/b\.yaml: checkpoints: parameters of tiny at step 2: found {}, but {} in .*own/a\.yaml; .* equal"
    with pytest.raises(InputError, match=words.format(*found)):
        plan_checkpoints(given_models({"a": models, "b": [models[0], (other, "tiny", 2, 0)]}))


def test_target_alone(given_models, model_folder):
    models = [(model_folder(), "big", 9, 0)]
    with pytest.raises(InputError, match="^study.yaml: target.size: 'big' is the only size; a proxy must be smaller"):
        plan_checkpoints(given_models({"a": models, "b": models}))


# Models of a ladder

LADDER = small_ladder(
    {
        "4M": {"steps": 10},
        "6M": {"layers": 2, "steps": 12},
        "1B": {"layers": 3, "steps": 200, "checkpoint_every": 90, "stopped": {1: 198}},
    }
)
STEPS = {"4M": [0, 4, 8, 10], "6M": [0, 4, 8, 12], "1B": [0, 90, 180, 200]}
N = {"4M": 1, "6M": 2, "1B": 3}  # layers
N = {size: layers * (16 * 64**2 + 2 * 64) + 64 + 100 * 64 for size, layers in N.items()}
HUB = {"hub": "me/{size}", "revision": "step{step}-{seed_name}"}


def ladder_plan(corpora: dict[str, dict] | None = None, sizes: Ladder | None = LADDER, **changes) -> Plan:
    """A plan of two corpora on the ladder `sizes`, from the hub or as they are given, with changes of the study."""
    given = corpora or {name: {"checkpoints": [HUB | {"hub": f"me/{name}-{{size}}"}]} for name in ("a", "b")}
    study = {
        **{"study": "mine", "corpora": {"own": "all"}, "ladder": {"name": "mine"}, "target": {"size": "1B"}},
        **{"highlighted": [{"statistic": "margin"}], "budgets": [{"name": "early", "size": "4M", "step": 10}]},
    }
    return Plan(
        study=Study(**{**study, **changes}),
        corpora=[Corpus(name=name, **values) for name, values in given.items()],
        tasks=[],
        corpus_files={name: Path(f"config/corpora/own/{name}.yaml") for name in given},
        ladder=sizes,
        where="study.yaml",
    )


def models_of(checkpoints: list[Checkpoint], corpus: str, role: str = "proxy") -> set[tuple[str, int, int]]:
    return {(c.size, c.seed, c.step) for c in checkpoints if (c.corpus, c.role) == (corpus, role)}


def test_hub_checkpoints_by_hand():
    plan = ladder_plan()
    checkpoints = plan_checkpoints(plan)
    expected = {(size, seed, step) for size in ("4M", "6M") for seed in (0, 1) for step in STEPS[size][1:]}
    expected |= {("1B", seed, step) for seed in (0, 1) for step in (90, 180)}  # unfinished: early ones of the target
    for corpus in "ab":
        assert models_of(checkpoints, corpus) == expected
        assert models_of(checkpoints, corpus, "target") == {("1B", 0, 200), ("1B", 1, 198)}
    c = next(c for c in checkpoints if c.checkpoint == "b-6M-seed1-step8")
    tokens = 8 * 4 * 8
    assert c == Checkpoint(
        **{"checkpoint": "b-6M-seed1-step8", "run": "b-6M-seed1", "corpus": "b", "family": "llama", "recipe": ""},
        **{"size": "6M", "parameters": N["6M"], "active_parameters": N["6M"]},
        **{"step": 8, "tokens": tokens, "flops": 6 * N["6M"] * tokens, "seed": 1},
        **{"role": "proxy", "source": "me/b-6M", "revision": "step8-second", "convert_from": ""},
        **{"folder": "results/mine/weights/b-6M-seed1/step8", "model": c.model},
    )
    assert weight_inputs(plan, runs(checkpoints)["b-6M-seed1"]) == ["results/mine/weights/b-6M-seed1"]


def test_what_is_downloaded_is_converted_there_and_run_as_the_entry_says():
    entry = HUB | {"convert_from": "hf_olmo", "model": {"dtype": "bfloat16"}}
    corpora = {"a": {"checkpoints": [entry], "model": {"dtype": "float32", "max_model_len": 6}, "family": "olmo"}}
    corpora["b"] = {"checkpoints": [HUB | {"hub": "me/b-{size}"}]}
    plan = ladder_plan(corpora, jobs="corpus")
    checkpoints = plan_checkpoints(plan)
    assert {c.folder.split("/")[2] for c in checkpoints if c.corpus == "a"} == {"weights"}
    assert {(c.convert_from, c.family) for c in checkpoints if c.corpus == "a"} == {("hf_olmo", "olmo")}
    options = dict(zip([c.corpus for c in checkpoints], extraction_options(plan, checkpoints)))
    assert (options["a"].dtype, options["a"].max_model_len) == ("bfloat16", 6)
    assert options["b"] == plan.study.extraction
    jobs = scoring_jobs(plan, checkpoints)
    assert list(jobs) == ["a", "b"]
    assert weight_inputs(plan, jobs["a"]) == [f"results/mine/weights/{run}" for run in runs(jobs["a"])]


def test_an_engine_without_temperatures_is_refused_where_the_study_asks_for_them():
    corpora = {
        "a": {"checkpoints": [HUB]},
        "b": {"checkpoints": [HUB | {"hub": "me/b-{size}"}], "model": {"engine": "vllm"}},
    }
    temperatures = {"temperatures": [0.5, 0.7, 1, 1.4, 2]}
    plan = ladder_plan(corpora, extraction=temperatures)
    with pytest.raises(InputError, match="b: temperatures: only the engine transformers .* found vllm"):
        extraction_options(plan, plan_checkpoints(plan))
    del corpora["b"]["model"]
    plan = ladder_plan(corpora, extraction=temperatures)
    assert extraction_options(plan, plan_checkpoints(plan))[0].temperatures == (0.5, 0.7, 1, 1.4, 2)


@pytest.mark.parametrize("jobs", ["run", "corpus"])
@pytest.mark.parametrize("first", ["4M", "1B"])
def test_a_job_that_scores_a_small_model_is_found_wherever_the_target_stands(jobs, first):
    """With `jobs: corpus` and the target's size first in the ladder, every job begins with a target."""
    sizes = dict(sorted(LADDER.sizes.items(), key=lambda item: item[0] != first))
    checkpoints = plan_checkpoints(plan := ladder_plan(sizes=LADDER.model_copy(update={"sizes": sizes}), jobs=jobs))
    found = scoring_jobs(plan, checkpoints)
    if (jobs, first) == ("corpus", "1B"):
        assert {of_job[0].size for of_job in found.values()} == {"1B"}
    (job,) = job_with_a_proxy(found)
    assert "proxy" in {c.role for c in found[job]}
    assert job_with_a_proxy({"a": [c for c in checkpoints if c.role == "target"]}) == []


def expected_steps(choice: LadderChoice, size: str, seed: int) -> set[int]:
    """The meaning of a choice, counted back by hand."""
    by_rule = [step for step in STEPS[size] if step < 198] + [198] if (size, seed) == ("1B", 1) else STEPS[size]
    by_rule = [step for step in by_rule if step >= choice.first_step]
    if choice.sizes != "all" and size not in choice.sizes:
        return {by_rule[-1]} if size == "1B" else set()
    if choice.checkpoints == "all":
        return set(by_rule)
    every = len(by_rule) if choice.checkpoints == "last" else choice.checkpoints
    return {step for n, step in enumerate(reversed(by_rule)) if n % every == 0}


@pytest.mark.parametrize("sizes", ["all", ["4M"], ["4M", "6M"], ["4M", "1B"]])
@pytest.mark.parametrize("seeds", ["all", [0], [1]])
@pytest.mark.parametrize("checkpoints", ["all", "last", 1, 2, 3])
@pytest.mark.parametrize("first_step", [0, 1, 5])
def test_choice_of_a_ladder(sizes, seeds, checkpoints, first_step):
    """The target's last checkpoints are always there: without them there is no truth."""
    choice = LadderChoice(name="mine", sizes=sizes, seeds=seeds, checkpoints=checkpoints, first_step=first_step)
    found = plan_checkpoints(ladder_plan(ladder=choice))
    expected = {
        (size, seed, step)
        for size in STEPS
        for seed in (0, 1)
        if seeds == "all" or seed in seeds
        for step in expected_steps(choice, size, seed)
    }
    target = {model for model in expected if model[0] == "1B" and model[2] >= 198}
    for corpus in "ab":
        assert models_of(found, corpus, "target") == target
        assert models_of(found, corpus) == expected - target


def changed(**sizes: dict) -> Ladder:
    """LADDER with changes of some of its sizes."""
    new = {name: LADDER.sizes[name].model_copy(update=changes) for name, changes in sizes.items()}
    return LADDER.model_copy(update={"sizes": LADDER.sizes | new})


def with_exceptions(*exceptions: dict, **values) -> dict[str, dict]:
    """The two corpora of `ladder_plan`; runs of the first do not follow the rule, or its entry has other values."""
    first = {"hub": "me/a-{size}", "revision": HUB["revision"], "exceptions": exceptions} | values
    return {"a": {"checkpoints": [first]}, "b": {"checkpoints": [HUB | {"hub": "me/b-{size}"}]}}


def test_steps_that_only_some_runs_have_are_among_all_of_them_alone():
    corpora = with_exceptions({"size": "6M", "seed": 1, "last": 14, "also": [5, 12]})
    plans = [ladder_plan(corpora, ladder={"name": "mine", "checkpoints": n}) for n in (1, "all")]
    every, all_steps = map(plan_checkpoints, plans)
    assert models_of(all_steps, "a") - models_of(all_steps, "b") == {("6M", 1, 5), ("6M", 1, 14)}
    assert models_of(every, "a") == models_of(every, "b") == models_of(all_steps, "b")


def test_run_of_the_target_that_stopped_early_is_no_target():
    """A hundredth may be missing, or there may be too much of it."""
    for last, finished in ((197, False), (198, True), (203, True)):
        corpora = with_exceptions({"size": "1B", "seed": 1, "last": last})
        corpora["b"]["checkpoints"] = [corpora["a"]["checkpoints"][0] | {"hub": "me/b-{size}"}]
        found = plan_checkpoints(ladder_plan(corpora, ladder={"name": "mine", "checkpoints": "all"}))
        assert models_of(found, "a", "target") == {("1B", 0, 200)} | ({("1B", 1, last)} if finished else set())
        assert (("1B", 1, last) in models_of(found, "a")) == (not finished)  # a model of less compute as any other
    found = plan_checkpoints(
        ladder_plan(sizes=changed(**{"1B": {"stopped": {1: 90}}}), ladder={"name": "mine", "sizes": ["4M"]})
    )
    assert models_of(found, "a", "target") == {("1B", 0, 200)}
    assert {size for size, _, _ in models_of(found, "a")} == {"4M"}


def test_no_run_of_the_target_is_finished():
    with pytest.raises(InputError, match="^study.yaml: target: no finished run of size '1B' in any corpus"):
        plan_checkpoints(ladder_plan(sizes=changed(**{"1B": {"stopped": {0: 90, 1: 90}}})))


def test_target_seed_that_one_corpus_lacks():
    words = r"own/a\.yaml: checkpoints: found no 1B of seed 1, which another corpus has; .*\(1 missing\)"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(ladder_plan(with_exceptions({"size": "1B", "seed": 1, "last": 90})))


def test_steps_that_an_entry_names_are_not_chosen():
    """Whoever writes a step wants it, whatever the study's choice of the ladder."""
    more = {"size": "6M", "seed": 0, "step": 6}
    entries = {name: [HUB | {"hub": f"me/{name}-{{size}}"}, HUB | more] for name in "ab"}
    corpora = {name: {"checkpoints": checkpoints} for name, checkpoints in entries.items()}
    found = plan_checkpoints(ladder_plan(corpora, ladder={"name": "mine", "sizes": ["4M"]}))
    assert {model for model in models_of(found, "a") if model[0] == "6M"} == {("6M", 0, 6)}


def test_a_ladders_proxies_may_differ_between_corpora():
    found = plan_checkpoints(ladder_plan(with_exceptions({"size": "6M", "seed": 1, "without": [8]})))
    assert models_of(found, "b") - models_of(found, "a") == {("6M", 1, 8)}
    # But for those of the budgets, which need a seed that all have.
    plan_checkpoints(ladder_plan(with_exceptions({"size": "4M", "seed": 0, "without": [10]})))
    neither = [{"size": "4M", "seed": seed, "without": [10]} for seed in (0, 1)]
    words = r"own/a\.yaml: checkpoints: found no 4M at step 10 of seed 0 or 1, which the budget 'early' compares"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(ladder_plan(with_exceptions(*neither)))


@pytest.mark.parametrize("size, step", [("4M", 9), ("5M", 10), ("1B", 90)])
def test_budget_that_no_smaller_model_has(size, step):
    budgets = [{"name": "x", "size": "4M", "step": 10}, {"name": "y", "size": size, "step": step}]
    words = rf"^study.yaml: budgets\[1\]: no checkpoint {size} at step {step}; there are .*'4M': \[4, 8, 10\]"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(ladder_plan(budgets=budgets))


@pytest.mark.parametrize(
    "entry, words",
    [
        ({"revision": "main"}, r"step: 4 and 8 would have the same weights, me/a-4M, revision main; {step} is missing"),
        ({"revision": "step{step}"}, r"seed: 0 and 1 would have the same weights, me/a-4M, revision step4; {seed} is "),
        ({"hub": "me/a"}, r"size: 4M and 6M would have the same weights, me/a, revision step4-default; {size} is "),
    ],
)
def test_pattern_that_lacks_a_placeholder(entry, words):
    with pytest.raises(InputError, match=rf"own/a\.yaml: checkpoints\[0\]: {words}"):
        plan_checkpoints(ladder_plan(with_exceptions(**entry)))


def test_pattern_that_needs_no_placeholder():
    """Where a run has one checkpoint, the revision need not say its step."""
    corpora = {name: {"checkpoints": [{"hub": f"me/{name}-{{size}}-{{seed}}"}]} for name in "ab"}
    found = plan_checkpoints(ladder_plan(corpora, ladder={"name": "mine", "checkpoints": "last"}))
    assert models_of(found, "a") == {(size, seed, STEPS[size][-1]) for size in ("4M", "6M") for seed in (0, 1)}
    assert {c.revision for c in found} == {"main"}


@pytest.mark.parametrize(
    "entry, words",
    [
        (
            {"hub": "me/x", "size": "own", "step": 5, "parameters": 7},
            "tokens: missing; .*no ladder tells them of 'own'",
        ),
        ({"hub": "me/x", "size": "own", "step": 5, "tokens": 7}, "parameters: missing; N of 'own' is not known before"),
        ({"hub": "me/x", "size": "own"}, "step: missing; only a ladder knows the steps"),
        ({"folder": "none/{size}-{seed}-{step}"}, "folder: .* finds no folder"),
        ({"folder": "none/{size}-{seed}-{step}", "size": "4M", "seed": 0, "step": 4}, "none/4M-0-4: no such folder"),
    ],
)
def test_what_is_not_known_of_a_checkpoint(entry, words):
    corpora = with_exceptions()
    corpora["b"]["checkpoints"].append(entry)
    with pytest.raises(InputError, match=rf"own/b\.yaml: checkpoints\[1\]: {words}"):
        plan_checkpoints(ladder_plan(corpora))


def test_n_of_weights_that_must_be_converted_is_not_counted(model_folder):
    corpora = with_exceptions()
    entry = {"folder": str(model_folder()), "size": "own", "step": 5, "tokens": 7, "convert_from": "hf_olmo"}
    corpora["b"]["checkpoints"].append(entry)
    with pytest.raises(
        InputError, match=r"own/b\.yaml: checkpoints\[1\]: parameters: missing; N of 'own' is not known"
    ):
        plan_checkpoints(ladder_plan(corpora))


def test_folders_of_another_format_wait_for_their_conversion(model_folder):
    entry = {"folder": str(model_folder()), "size": "4M", "seed": 7, "step": 4, "convert_from": "hf_olmo"}
    corpora = {name: {"checkpoints": [HUB | {"hub": f"me/{name}-{{size}}"}, entry]} for name in "ab"}
    plan = ladder_plan(corpora)
    (own,) = [c for c in plan_checkpoints(plan) if c.run == "a-4M-seed7"]
    assert own.source == entry["folder"] and own.folder == "results/mine/converted/a-4M-seed7/step4"
    assert weight_inputs(plan, [own]) == ["results/mine/converted/a-4M-seed7"]


def test_what_an_entry_says_goes_before_the_ladder():
    more = HUB | {"size": ["own", "4M"], "step": [5, 7], "tokens_per_step": 11, "parameters": 13, "seed": 9}
    corpora = {name: {"checkpoints": [HUB | {"hub": f"me/{name}-{{size}}"}, more]} for name in "ab"}
    own = [c for c in plan_checkpoints(ladder_plan(corpora)) if c.seed == 9 and c.corpus == "a"]
    assert [(c.size, c.step, c.tokens, c.parameters, c.flops) for c in own] == [
        (size, step, step * 11, 13, 6 * 13 * step * 11) for size in ("own", "4M") for step in (5, 7)
    ]


def test_folders_of_a_ladder(tmp_path, model_folder):
    """What lies on the disk and follows the ladder: N and tokens are the ladder's, other folders are left alone."""
    folder = model_folder()
    for name in "ab":
        for model in ("4M-0-10", "4M-0-9", "9M-0-10", "1B-0-200"):
            shutil.copytree(folder, tmp_path / name / model)
    corpora = {n: {"checkpoints": [{"folder": f"{tmp_path}/{n}/{{size}}-{{seed}}-{{step}}"}]} for n in "ab"}
    plan = ladder_plan(corpora)
    found = plan_checkpoints(plan)
    assert models_of(found, "a") == {("4M", 0, 10)} and models_of(found, "a", "target") == {("1B", 0, 200)}
    last = found[-1]
    assert (last.size, last.parameters, last.tokens) == ("4M", N["4M"], 10 * 32)
    assert last.folder == last.source == f"{tmp_path}/b/4M-0-10" and last.revision == ""
    assert weight_inputs(plan, [last]) == [f"{last.folder}/model.safetensors"]
    # Without a ladder they are all there is, and N is counted.
    for corpus in corpora.values():
        corpus["checkpoints"][0]["tokens_per_step"] = 32
    found = plan_checkpoints(ladder_plan(corpora, sizes=None, ladder=None))
    assert models_of(found, "a") == {("4M", 0, 10), ("4M", 0, 9), ("9M", 0, 10)}
    assert {(c.parameters, c.tokens // c.step) for c in found} == {(count_parameters(folder), 32)}


def test_one_model_costs_the_same_in_all_corpora():
    words = r"own/b\.yaml: checkpoints: tokens of 4M at step 4: found 128, but 132 in config/corpora/own/a\.yaml"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(ladder_plan(with_exceptions(tokens_per_step=33)))


# Models that are trained here on text


def text(**values) -> dict:
    return {"text": {"mixture": [{"files": "x.txt"}]}, **values}


def test_text_is_trained_at_the_ladders_sizes_but_the_targets():
    """A candidate: its models are those of the others, its place among them is to be predicted."""
    plan = ladder_plan({**with_exceptions(), "new": text()}, ladder={"name": "mine", "seeds": [1], "checkpoints": 2})
    found = plan_checkpoints(plan)
    assert models_of(found, "new") == {("4M", 1, 10), ("4M", 1, 4), ("6M", 1, 12), ("6M", 1, 4)}
    assert models_of(found, "new", "target") == set()
    c = next(c for c in found if c.checkpoint == "new-4M-seed1-step10")
    assert (c.parameters, c.tokens, c.revision, c.source) == (N["4M"], 10 * 32, "", c.folder)
    assert c.folder == "results/mine/text/models/new-4M-seed1/step10"
    assert weight_inputs(plan, [c]) == ["results/mine/text/trained/new-4M-seed1.json"]


def test_text_that_says_what_is_trained():
    corpora = {**with_exceptions(), "new": text(sizes=["4M"], seeds=[0, 7])}
    found = plan_checkpoints(ladder_plan(corpora, ladder={"name": "mine", "checkpoints": "last"}))
    assert models_of(found, "new") == {("4M", 0, 10), ("4M", 7, 10)}


def test_text_can_be_trained_at_the_targets_size():
    corpora = {name: text(sizes=["4M", "1B"], seeds=[0]) for name in "ab"}
    found = plan_checkpoints(ladder_plan(corpora, ladder={"name": "mine", "checkpoints": "last"}))
    assert models_of(found, "b") == {("4M", 0, 10)} and models_of(found, "b", "target") == {("1B", 0, 200)}


def test_text_is_trained_as_far_as_what_it_is_compared_with():
    early = changed(**{"4M": {"stopped": {0: 9}}})
    for checkpoints in (1, "last", "all"):
        plan = ladder_plan(
            {**with_exceptions(), "new": text()}, early, ladder={"name": "mine", "checkpoints": checkpoints}
        )
        found = plan_checkpoints(plan)
        assert models_of(found, "new") == {model for model in models_of(found, "a") if model[0] != "1B"}
        assert max(step for size, seed, step in models_of(found, "new") if (size, seed) == ("4M", 0)) == 9


def test_text_trained_at_two_rates():
    """The second training has the steps, seeds and tokens of the first; the default budget is not its."""
    check = RateCheck(size="4M", factor=0.5)
    choice = {"name": "mine", "checkpoints": "last", "rate_check": check, "learning_rate_factor": 0.1}
    ladder = LADDER.with_rates(0.1, check)
    assert ladder.sizes["4M"].learning_rate == pytest.approx(0.1 * LADDER.sizes["4M"].learning_rate)
    assert ladder.sizes[check.name].learning_rate == pytest.approx(0.05 * LADDER.sizes["4M"].learning_rate)
    corpora = {name: text(sizes=["4M", "1B"]) for name in "ab"}
    plan = ladder_plan(corpora, ladder, ladder=choice, budgets=[])
    found = plan_checkpoints(plan)
    assert models_of(found, "a") == {(size, seed, 10) for size in ("4M", "4M-rate0.5") for seed in (0, 1)}
    assert [(budget.size, budget.step) for budget in budgets_of(plan, found)] == [("4M", 10)]
    pair = [c for c in found if c.corpus == "a" and c.seed == 0 and c.role == "proxy"]
    assert len({(c.parameters, c.tokens, c.flops) for c in pair}) == 1 and len({c.folder for c in pair}) == 2
    [pair] = compared_rates(plan, found)
    assert (pair.size, pair.slower_size, pair.step) == ("4M", "4M-rate0.5", 10)
    assert (pair.factor, pair.slower_factor) == pytest.approx((0.1, 0.05))
    assert [(b.size, b.step) for b in budgets_of_rates([pair])] == [("4M", 10), ("4M-rate0.5", 10)]


def at_rates(default: Plan, **changes: object) -> Plan:
    """The default study with 30k also at a third and at three times its rate; `changes`: of the size 30k_third."""
    suite = default.study.miniature
    usual = suite.sizes["30k"]
    third = usual.model_copy(update={"learning_rate_factor": 1 / 3} | changes)
    sizes = suite.sizes | {"30k_third": third, "30k_triple": usual.model_copy(update={"learning_rate_factor": 3.0})}
    study = default.study.model_copy(update={"miniature": suite.model_copy(update={"sizes": sizes})})
    return default.model_copy(update={"study": study})


def test_sizes_of_the_suite_that_differ_in_the_rate_alone_are_compared(default):
    """Every two, the higher rate first; neither the target nor a size that differs in more."""
    assert compared_rates(default, plan_checkpoints(default)) == []
    plan = at_rates(default)
    pairs = compared_rates(plan, [])
    assert [(pair.size, pair.slower_size) for pair in pairs] == [
        *(("30k_triple", "30k"), ("30k_triple", "30k_third"), ("30k", "30k_third"))
    ]
    assert [(pair.factor, pair.slower_factor) for pair in pairs] == [(3, 1), (3, 1 / 3), (1, 1 / 3)]
    assert {pair.step for pair in pairs} == {plan.study.miniature.sizes["30k"].steps}
    assert {b.size for b in budgets_of_rates(pairs)} == {"30k", "30k_third", "30k_triple"}
    for changes in ({"steps": 400}, {"seeds": (0,)}, {"layers": 2}, {"learning_rate_factor": 1.0}):
        pairs = compared_rates(at_rates(default, **changes), [])
        slower = [("30k_triple", "30k"), *([("30k_triple", "30k_third")] if "learning_rate_factor" in changes else [])]
        assert sorted((pair.size, pair.slower_size) for pair in pairs) == sorted(slower), changes
    of_target = at_rates(default, **plan.study.miniature.sizes["140k"].model_dump(exclude={"learning_rate_factor"}))
    assert "30k_third" not in {pair.slower_size for pair in compared_rates(of_target, [])}


def test_the_default_budget_is_of_the_usual_rate(default):
    plan = at_rates(default)
    study = plan.study.model_copy(update={"budgets": [], "target": Target(size="43k")})
    plan = plan.model_copy(update={"study": study})
    small = [c for c in plan_checkpoints(plan) if c.size.startswith("30k")]
    assert [(budget.size, budget.step) for budget in budgets_of(plan, small)] == [("30k", 160)]


def test_budgets_are_those_of_a_data_selection():
    """Judges of models would look for small models there."""
    plan = ladder_plan(target={"metric": "accuracy"}, model_selection={})
    assert plan.study.budgets and budgets_of(plan, plan_checkpoints(plan)) == []


def test_a_job_keeps_what_the_study_keeps_where_two_rates_are_compared():
    """Also of a corpus that has no second training, whose own checkpoints would not tell."""
    check = RateCheck(size="4M")
    corpora = {**with_exceptions(), "new": text(), "newer": text()}
    plan = ladder_plan(
        *(corpora, LADDER.with_rates(1, check)),
        ladder={"name": "mine", "rate_check": check},
        budgets=[{"name": "early", "size": "6M", "step": 4}],
    )
    every = plan_checkpoints(plan)
    rates = compared_rates(plan, every)
    assert [pair.step for pair in rates] == [10]
    for job in ("solution_proxies:corpus=a", "score:job=new-4M-seed0"):
        assert compared_rates(plan, checkpoints_of_command(plan, ["--target-jobs", job])) == rates


def test_what_means_of_checkpoints_need():
    found = plan_checkpoints(ladder_plan())
    early = [Budget(name="early", size="4M", step=8)]
    of_run = [c.step for c in up_to(found, early, 2) if c.run == "a-4M-seed0"]
    assert of_run == [4, 8] and {c.size for c in up_to(found, early, 2)} == {"4M"}
    assert {c.step for c in up_to(found, early, 1)} == {8} and {c.step for c in up_to(found, early, 9)} == {4, 8}


def test_text_at_two_rates_beside_released_models():
    check = RateCheck(size="4M")
    corpora = {**with_exceptions(), "new": text(), "newer": text()}
    choice = {"name": "mine", "checkpoints": "last", "rate_check": check}
    found = plan_checkpoints(ladder_plan(corpora, LADDER.with_rates(1, check), ladder=choice))
    sizes = {name: {c.size for c in found if c.corpus == name} for name in corpora}
    assert check.name in sizes["new"] & sizes["newer"] and check.name not in sizes["a"] | sizes["b"]


def test_text_beside_the_suite(default):
    """The suite trains it as its recipes: all sizes but the target's, with its own seeds and steps."""
    new = Corpus(name="new", **text())
    changes = {"corpora": [*default.corpora, new], "corpus_files": {**default.corpus_files, "new": Path("new.yaml")}}
    plan = default.model_copy(update=changes)
    found = [c for c in plan_checkpoints(plan) if c.corpus == "new"]
    sizes = {n: s for n, s in default.study.miniature.sizes.items() if n != default.study.target.size}
    expected = {(n, seed, step) for n, s in sizes.items() for seed in s.seeds for step in s.all_checkpoints}
    assert {(c.size, c.seed, c.step) for c in found} == expected and {c.role for c in found} == {"proxy"}
    assert weight_inputs(plan, found) == ["results/miniature/suite/trained/new.json"]


# A truth that only a table knows


@pytest.fixture
def table(tmp_path) -> Path:
    path = tmp_path / "truth.csv"
    names = [f"{corpus}-70B-seed{seed}-step9" for corpus in ("a", "b") for seed in (0, 3)]
    names += ["a-4M-seed0-step10", "other-70B-seed0-step9", "xa-70B-seed0-step9"]
    rows = [(name, task, "accuracy", 0.5, 10) for name in names for task in ("s", "t")]
    pl.DataFrame(rows, ["checkpoint", "task", "metric", "value", "n"], orient="row").write_csv(path)
    return path


def test_targets_of_a_table(table):
    target = {"size": "70B", "table": table, "parameters": 700, "tokens": 90}
    plan = ladder_plan({**with_exceptions(), "a-70B": text()}, target=target)
    found = plan_checkpoints(plan)
    for corpus in "ab":
        assert models_of(found, corpus, "target") == {("70B", 0, 9), ("70B", 3, 9)}
        assert ("1B", 0, 200) in models_of(found, corpus)
    assert models_of(found, "a-70B", "target") == set()
    targets = [c for c in found if c.role == "target"]
    assert {(c.parameters, c.tokens, c.flops, c.source, c.folder) for c in targets} == {(700, 90, 6 * 700 * 90, "", "")}
    assert scored_checkpoints(plan, found) == [c for c in found if c.role == "proxy"]


def test_targets_of_a_table_that_names_corpora_alone(table):
    table.write_text("checkpoint,task,metric,value\na,s,accuracy,0.5\nb,s,accuracy,0.4\nother,s,accuracy,0.1\n")
    target = {"size": "70B", "table": table, "parameters": 700, "tokens": 90}
    found = plan_checkpoints(ladder_plan({**with_exceptions(), "a-70B": text()}, target=target))
    targets = {c.corpus: c.checkpoint for c in found if c.role == "target"}
    assert targets == {name: f"{name}-70B-seed0-step0" for name in "ab"}
    names = short_names(found)
    assert names == {name: [full] for short, full in targets.items() for name in (short, f"{short}-70B-seed0")}
    read = with_full_names(read_target_table(table), names, table)["checkpoint"].to_list()
    assert read == [targets["a"], targets["b"], "other"]


def test_a_seed_of_5000_digits_in_a_table_is_none(table):
    """Python takes no text of so many for a number."""
    table.write_text(table.read_text() + f"a-70B-seed{'9' * 5000}-step9,sums,accuracy,0.5,2\n")
    target = {"size": "70B", "table": table, "parameters": 700, "tokens": 90}
    found = plan_checkpoints(ladder_plan({**with_exceptions(), "a-70B": text()}, target=target))
    assert {c.seed for c in found if c.role == "target"} == {0, 3}


@pytest.mark.parametrize("lacks", ["table", "parameters", "tokens"])
def test_target_size_that_nobody_knows(table, lacks):
    target = {"size": "2B", "table": table, "parameters": 700, "tokens": 90}
    del target[lacks]
    words = "^study.yaml: target.size: '2B' is no size of this study; known are 4M, 6M, 1B; a truth .* target.tokens"
    with pytest.raises(InputError, match=words):
        plan_checkpoints(ladder_plan(target=target))


def test_table_without_a_target(table):
    target = {"size": "7B", "table": table, "parameters": 700, "tokens": 90}
    with pytest.raises(InputError, match="^study.yaml: target: no finished run of size '7B' in any corpus"):
        plan_checkpoints(ladder_plan(target=target))


def test_target_that_others_measured_needs_no_weights():
    plan = ladder_plan(target={"size": "1B", "evaluations": {"files": "x.parquet"}})
    checkpoints = plan_checkpoints(plan)
    scored = scored_checkpoints(plan, checkpoints)
    assert {c.role for c in scored} == {"proxy"} and {c.role for c in checkpoints} == {"proxy", "target"}
    assert [c for job in scoring_jobs(plan, checkpoints).values() for c in job] == scored
    here = ladder_plan()
    assert scored_checkpoints(here, plan_checkpoints(here)) == plan_checkpoints(here)


# The studies of DataDecide


@pytest.fixture(scope="module")
def listed() -> pl.DataFrame:
    """size, corpus, seed, step of every published checkpoint, each once."""
    table = pl.read_csv(PUBLISHED / "datadecide_checkpoint_steps.csv")
    recipes = pl.read_csv(PUBLISHED / "datadecide_recipes.csv")
    table = table.join(recipes, left_on="recipe", right_on="internal_name")  # drops three runs that stand twice
    names = {"default": 0, "small-aux-2": 1, "small-aux-3": 2, "large-aux-2": 1, "large-aux-3": 2}
    late = (pl.col("size") == "1B") & pl.col("seed_name").str.starts_with("small")
    seed = pl.col("seed_name").replace_strict(names, return_dtype=pl.Int64) + pl.when(late).then(2).otherwise(0)
    corpus = pl.col("hf_repo_pattern").str.strip_prefix("allenai/DataDecide-").str.strip_suffix("-<SIZE>")
    steps = pl.col("steps").str.split(" ").cast(pl.List(pl.Int64))
    return table.select("size", corpus=corpus, seed=seed, step=steps).explode("step")


def shipped(name: str) -> tuple[Plan, list[Checkpoint]]:
    """The plan of a study that we ship. It is made at every start of Snakemake, and so must be quick."""
    started = time.process_time()
    plan = load_plan(read_yaml(CONFIG / f"{name}.yaml"), name, CONFIG)
    checkpoints = plan_checkpoints(plan)
    assert time.process_time() - started < 3
    return plan, checkpoints


def models(checkpoints: list[Checkpoint], role: str) -> set[tuple]:
    return {(c.corpus, c.size, c.seed, c.step) for c in checkpoints if c.role == role}


LAST_OF_1B = 69369
SMALL = ["4M", "6M", "8M", "10M", "14M", "16M", "20M", "60M", "90M"]


@pytest.mark.published
def test_study_of_the_paper(listed):
    """Proxies from 4M to 90M, three seeds, every step of the rule that a run has; they are counted from the lists."""
    plan, checkpoints = shipped("data_selection")
    last = dict(pl.read_csv(PUBLISHED / "datadecide_sizes.csv").select("size", "train_steps").iter_rows())
    small = listed.filter(pl.col("size").is_in(SMALL), pl.col("step") > 0)
    end = pl.col("size").replace_strict(last, return_dtype=pl.Int64)
    by_rule = (pl.col("step") % 1250 == 0) & (pl.col("step") < end)
    expected = small.filter(by_rule | (pl.col("step") == end))
    assert models(checkpoints, "proxy") == set(expected.select("corpus", "size", "seed", "step").iter_rows())
    assert len(expected) == 10_125 and len(checkpoints) == 10_200
    targets = {(corpus, "1B", seed, LAST_OF_1B) for corpus in listed["corpus"].unique() for seed in range(3)}
    assert models(checkpoints, "target") == targets and len(targets) == 75
    # Their weights are not needed, as their evaluations are published.
    assert {c.size for c in scored_checkpoints(plan, checkpoints)} == set(SMALL)
    assert len(scoring_jobs(plan, checkpoints)) == 25 * len(SMALL) * 3
    flops = {c.flops for c in checkpoints if c.role == "target"}
    assert flops == {6 * 1_176_832_000 * LAST_OF_1B * 704 * 2048}
    assert {c.folder.split("/")[2] for c in checkpoints} == {"weights"}


@pytest.mark.published
def test_study_of_all_of_datadecide(listed):
    _, checkpoints = shipped("datadecide_full")
    targets = {(corpus, "1B", seed, LAST_OF_1B) for corpus in listed["corpus"].unique() for seed in range(3)}
    assert models(checkpoints, "target") == targets
    everything = set(listed.select("corpus", "size", "seed", "step").iter_rows())
    assert models(checkpoints, "proxy") == everything - targets
    assert len(checkpoints) == len(everything) == 31_404 and len(runs(checkpoints)) == 1_100


# Broken files


def some_table(path: Path) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pl.DataFrame({"a": range(1000)}).write_parquet(path)
    return path


def content(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def remove_broken(results: Path) -> list[Path]:
    """What a run does with broken files, and a dry run only tells."""
    there = sorted(results.rglob("*"))
    broken, to_make = broken_results(results)
    assert sorted(results.rglob("*")) == there
    remove(to_make)
    return broken


@given(share=st.floats(0, 1, exclude_max=True))
def test_truncated_tables_go_and_whole_ones_stay(tmp_path_factory, share):
    results = tmp_path_factory.mktemp("results")
    whole, cut = some_table(results / "a.parquet"), some_table(results / "parts" / "job" / "b.parquet")
    content = cut.read_bytes()
    cut.write_bytes(content[: int(share * len(content))])
    assert remove_broken(results) == [cut]
    assert whole.exists() and not cut.exists()
    assert remove_broken(results) == []


@pytest.mark.parametrize("lose", [Path.unlink, lambda path: os.truncate(path, 9)])
def test_a_lost_part_goes_with_its_manifest_alone(tmp_path, lose):
    jobs = {}
    for kind in ("token_stats", "targets"):
        parts = [some_table(tmp_path / kind / "job" / f"{name}.parquet") for name in "ab"]
        jobs[kind] = parts[0].with_name("manifest.json")
        jobs[kind].write_text(json.dumps({"a": "mark", "b": "mark"}))
    assert remove_broken(tmp_path) == []
    lose(tmp_path / "targets/job/b.parquet")
    assert remove_broken(tmp_path)
    assert not jobs["targets"].exists() and not (tmp_path / "targets/job/b.parquet").exists()
    assert (tmp_path / "targets/job/a.parquet").exists() and jobs["token_stats"].exists()
    assert remove_broken(tmp_path) == []


@pytest.mark.parametrize("content", ["", "[]", "{", '{"a": "ma'])
@pytest.mark.parametrize(
    "name", ["token_stats/job/manifest.json", "targets/job/manifest.json", "revisions/run.json", "suite/trained/a.json"]
)
def test_a_truncated_record_is_made_again(tmp_path, name, content):
    record = tmp_path / name
    record.parent.mkdir(parents=True)
    record.write_text(content)
    assert remove_broken(tmp_path) == [record] and not record.exists()
    assert remove_broken(tmp_path) == []


def test_a_truncated_manifest_of_text_is_made_again(tmp_path):
    manifest = text_corpus(tmp_path / "text/corpus")
    assert remove_broken(tmp_path) == []
    os.truncate(manifest, 9)
    assert remove_broken(tmp_path) == [manifest]


def text_corpus(folder: Path) -> Path:
    """Two sources of text, as `tokenize_text` leaves them -> their manifest."""
    sources = []
    for number in range(2):
        own, shards = folder / f"source{number}", [{"name": f"0000{n}.bin", "tokens": 5} for n in range(2)]
        sources.append({"dtype": "<u2", "content": "c", "shards": shards})
        write_json(sources[-1], own / "manifest.json")
        for shard in shards:
            (own / shard["name"]).write_bytes(b"0123456789")
    write_json(sources, folder / "manifest.json")
    return folder / "manifest.json"


@pytest.mark.parametrize("name", ["00001.bin", "manifest.json"])
@pytest.mark.parametrize("lose", [Path.unlink, lambda path: os.truncate(path, 8)])
def test_a_text_that_lost_a_shard_is_tokenised_again(tmp_path, name, lose):
    manifest = text_corpus(tmp_path / "text/corpus")
    lost = tmp_path / "text/corpus/source1" / name
    lose(lost)
    broken, to_make = broken_results(tmp_path)
    assert broken == [lost] and manifest in to_make
    remove_broken(tmp_path)
    assert not manifest.exists()


def test_solutions_that_have_changed_by_themselves_are_made_again(tmp_path):
    whole, changed = (tmp_path / f"solutions/{name}.jsonl" for name in "ab")
    for path in (whole, changed):
        write_solutions([Solution(id="1", prompt="Q", solution=" the mat")], path)
    assert remove_broken(tmp_path) == []
    changed.write_text(changed.read_text().replace("mat", "hat"))
    assert remove_broken(tmp_path) == [changed] and whole.exists() and not changed.exists()
    assert remove_broken(tmp_path) == []


def test_somebodys_own_file_is_not_lost(tmp_path):
    notes = tmp_path / "notes.parquet"
    notes.write_text("years of work")
    assert remove_broken(tmp_path) == [notes]
    assert (tmp_path / "notes.parquet.damaged").read_text() == "years of work"


def test_tables_that_are_linked_to_another_place_are_looked_at(tmp_path):
    results, elsewhere = tmp_path / "results", tmp_path / "elsewhere"
    part = some_table(elsewhere / "job/a.parquet")
    part.with_name("manifest.json").write_text(json.dumps({"a": "mark"}))
    (elsewhere / "round").symlink_to(results)
    results.mkdir()
    (results / "token_stats").symlink_to(elsewhere)
    assert remove_broken(results) == []
    os.truncate(part, 9)
    assert remove_broken(results) == [results / "token_stats/job/a.parquet"]
    assert not part.exists() and not part.with_name("manifest.json").exists()


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


@pytest.mark.parametrize("link", ["a", "a/step1"])
def test_a_run_that_lies_on_another_disk_stays(tmp_path, model_folder, link):
    """Its owner has linked it; what is broken there is made again and what is whole is not."""
    (tmp_path / "results/suite/trained").mkdir(parents=True)
    (tmp_path / "results/suite/models").mkdir()
    model_folder("disk/a/step1")
    place = tmp_path / "results/suite/models" / link
    place.parent.mkdir(exist_ok=True)
    place.symlink_to(tmp_path / "disk" / link)
    manifest = tmp_path / "results/suite/trained/a.json"
    manifest.write_text(json.dumps({"a/step1": "mark"}))
    assert remove_broken(tmp_path / "results") == [] and manifest.exists()
    damage_truncated(tmp_path / "disk/a/step1")
    assert remove_broken(tmp_path / "results") == [tmp_path / "results/suite/models/a/step1"]
    assert not manifest.exists() and (tmp_path / "disk/a/step1").exists()


def test_absent_checkpoint_costs_the_manifest(tmp_path):
    manifest = tmp_path / "suite" / "trained" / "a.json"
    manifest.parent.mkdir(parents=True)
    manifest.write_text(json.dumps({"a-step1": "mark"}))
    assert remove_broken(tmp_path) == [tmp_path / "suite" / "models" / "a-step1"]
    assert not manifest.exists()


# Snakemake's command line


@pytest.mark.parametrize(
    "arguments",
    [
        "-n",
        "-np",
        "--dry-run",
        "--unlock",
        "--summary",
        "--touch",
        "--report r.html",
        "--rulegraph",
        "--list-changes code",
    ],
)
def test_snakemake_runs_no_jobs(arguments):
    assert not runs_jobs([*arguments.split(), "--cores", "1"])


@pytest.mark.parametrize("arguments", ["", "--report r.html --report-after-run", "all --keep-going", "--forceall"])
def test_snakemake_runs_jobs(arguments):
    assert runs_jobs([*arguments.split(), "--cores", "1"])


def test_a_profile_may_ask_for_a_dry_run(tmp_path):
    (tmp_path / "config.yaml").write_text("dry-run: true\ncores: 1\n")
    assert not runs_jobs(["--profile", str(tmp_path)])


def test_every_option_without_jobs_is_one_of_snakemakes():
    known = vars(parse_args(["--cores", "1"])[1])
    assert set(WITHOUT_JOBS) <= known.keys()


# Results of somebody else


@pytest.fixture
def home(tmp_path):
    """What no results may touch: notes, a broken table, one that is whole, checkpoints without safetensors."""
    home = tmp_path / "home"
    (home / "thesis/step5").mkdir(parents=True)
    for name in ("thesis/chapter1.tex", "thesis/step5/model.bin", "broken.parquet", "thesis/broken.parquet"):
        (home / name).write_text("years of work")
    (home / "thesis/.chapter1.tex.sha256").write_text("another")
    (home / "thesis/manifest.json").write_text('{"name": "app", "version": "1"}')
    some_table(home / "thesis/whole.parquet")
    before = content(home)
    yield home
    assert content(home) == before


def results_of(tmp_path: Path) -> Path:
    results = tmp_path / "project/results/study"
    for folder in ("suite/trained", "suite/models/base-seed0", "text/trained", "text/models", "token_stats/job"):
        (results / folder).mkdir(parents=True)
    return results


NAMES = [
    *(
        "../../../../../home/thesis",
        "{home}",
        "{home}/thesis",
        "..",
        ".",
        "",
        "/nonexistent",
        "~",
        "base-seed0",
        "base-seed0/step",
    ),
    *("base-seed0/../../../../../../home/thesis/step5", "../models/base-seed0/step5", "base-seed0//step5"),
    *(
        "base-seed0/step5/",
        "base-seed0/step-5",
        "base-seed0/step5/x",
        "./step5",
        "../step5",
        ".hidden/step5",
        "-r/step5",
    ),
    *("base-seed0/step5\n", "base-seed0\\step5", "base-seed0/step\u0665", "base-seed0\0/step5", "x" * 999 + "/step5"),
]


@pytest.mark.parametrize("kind", ["suite", "text"])
@pytest.mark.parametrize("name", NAMES)
def test_a_manifest_of_training_names_checkpoints_or_is_made_again(tmp_path, home, kind, name):
    results = results_of(tmp_path)
    manifest = results / kind / "trained/base.json"
    (results / "suite/models/base-seed0/notes").write_text("mine")
    manifest.write_text(json.dumps({"base-seed0/step7": "0", name.format(home=home): "0"}))
    assert remove_broken(results) == [manifest]
    assert not manifest.exists() and (results / "suite/models/base-seed0/notes").exists()


@pytest.mark.parametrize("place", ["suite/models", "suite/models/a-seed0", "suite/models/a-seed0/step5"])
def test_checkpoints_behind_a_link_that_were_not_made_here_stay(tmp_path, home, place):
    results = results_of(tmp_path)
    (home / "a-seed0").symlink_to("thesis")
    lead = {"suite/models": home, "suite/models/a-seed0": home / "thesis"}.get(place, home / "thesis/step5")
    shutil.rmtree(results / "suite/models")
    (results / place).parent.mkdir(parents=True, exist_ok=True)
    (results / place).symlink_to(lead)
    (results / "suite/trained/a.json").write_text('{"a-seed0/step5": "0"}')
    assert remove_broken(results)
    (home / "a-seed0").unlink()


@pytest.mark.parametrize(
    "place", ["token_stats", "token_stats/link", "token_stats/job/link", "link", "revisions", "suite"]
)
def test_a_link_out_of_the_results_takes_nothing_along(tmp_path, home, place):
    results = results_of(tmp_path)
    if (results / place).is_dir():
        shutil.rmtree(results / place)
    (results / place).symlink_to(home)
    (home / "trained").mkdir()
    (home / "trained/x.json").write_text("[]")
    assert remove_broken(results) == ([] if place != "suite" else [results / "suite/trained/x.json"])
    shutil.rmtree(home / "trained")


@pytest.mark.parametrize(
    "names", [{"../../../../../home/whole": "m"}, {"{home}/thesis/whole": "m"}, ["a"], {"a": 1}, {}]
)
def test_a_manifest_of_tables_names_those_beside_it(tmp_path, home, names):
    results = results_of(tmp_path)
    some_table(results / "token_stats/job/a.parquet")
    manifest = results / "token_stats/job/manifest.json"
    manifest.write_text(json.dumps(names).replace("{home}", str(home)))
    if names and isinstance(names, dict):
        with pytest.raises(InputError, match="manifest.json: no list of tables beside it"):
            require_parts(manifest)
    assert remove_broken(results) == [manifest] and not manifest.exists()


@pytest.mark.parametrize("found", [{"step1": "x"}, {"step1": {"commit": 7}}, {"step1": {}}, ["x"], {"a": [[]]}])
def test_a_record_of_a_download_is_one_or_made_again(tmp_path, found):
    record = tmp_path / "revisions/run.json"
    write_json(found, record)
    assert remove_broken(tmp_path) == [record]
    write_json({"step1": {"commit": "0" * 40}}, record)
    write_json({"commit": "0" * 40, "files": {}}, tmp_path / "revisions/data/text.json")
    assert remove_broken(tmp_path) == []


def test_pipes_and_deep_json_stop_no_planning(tmp_path):
    results = results_of(tmp_path)
    for name in ("token_stats/job/manifest.json", "suite/trained/a.json", "proxies.parquet", "proxies.csv"):
        (results / name).unlink(missing_ok=True)
        os.mkfifo(results / name)
    some_table(results / "ranking.parquet")
    os.mkfifo(results / "ranking.csv")
    (results / "text/trained/b.json").write_text("[" * 10**5)
    (results / "token_stats/job/.x.sha256").write_bytes(b"\xff")
    (results / "token_stats/job/x").touch()
    assert len(remove_broken(results)) == 7
    assert remove_broken(results) == []


def test_what_is_set_aside_takes_the_place_of_what_was_before(tmp_path):
    (tmp_path / "a.parquet.damaged").mkdir()
    (tmp_path / "a.parquet").write_text("x")
    assert remove_broken(tmp_path) == [tmp_path / "a.parquet"]
    assert (tmp_path / "a.parquet.damaged").read_text() == "x"
