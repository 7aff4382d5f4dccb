"""Post-training in a study's plan: names, order, manifests, jobs, and what is refused."""

from pathlib import Path

import pytest
from proxycast.cluster.model_jobs import ModelJobs
from proxycast.cluster.status.watch import Watch
from proxycast.config.post_training_options import RECIPES
from proxycast.options import InputError
from proxycast.study.checkpoint_plan import checkpoints_of_command, plan_checkpoints
from proxycast.study.checkpoints import (
    base_run,
    checkpoints_table,
    scored_checkpoints,
    scoring_jobs,
    trained_manifest,
    weight_inputs,
)
from proxycast.study.loader import load_plan
from proxycast.study.repair import broken_results
from proxycast.study.study_plan import Plan
from proxycast.tables import write_json

CONFIG = Path(__file__).parents[2] / "config"
TEACHER = "steps_much-small-seed0"
STUDY = {
    "study": "post",
    "corpora": {"miniature_steps": ["steps_little", "steps_much"]},
    "tasks": {"miniature_steps": ["rooms", "dial", "days", "board"]},
    "miniature": {
        "step_documents": 100,
        "sizes": {
            "small": {"hidden_size": 32, "layers": 1, "intermediate_size": 32, "steps": 8, "checkpoints": [4]},
            "other": {
                **{"hidden_size": 32, "layers": 1, "intermediate_size": 32, "steps": 6, "seeds": [0, 1]},
                "architecture": "gpt2",
            },
        },
        "post_training": {"teacher": TEACHER},
    },
    "target": {"metric": "multiple_choice_accuracy"},
    "jobs": "corpus",
    "model_selection": {},
}


def plan_of(post_training: dict | None = None, **changes) -> Plan:
    suite = STUDY["miniature"] | ({"post_training": post_training} if post_training else {})
    return load_plan(STUDY | {"miniature": suite} | changes, "study.yaml", CONFIG)


def test_recipes_follow_their_base():
    checkpoints = plan_checkpoints(plan_of())
    names = [c.run for c in checkpoints if c.corpus == "steps_little" and c.size == "small"]
    base = "steps_little-small-seed0"
    assert names == [base, base, *(f"steps_little-small-{recipe}-seed0" for recipe in RECIPES)]
    assert [c.recipe for c in checkpoints][:9] == ["none", "none", *RECIPES]
    assert len(checkpoints) == 2 * (2 + 7 + 2 * (1 + 7)) and {c.role for c in checkpoints} == {"candidate"}
    by_run = {c.run: c for c in checkpoints}
    for c in checkpoints:
        last = by_run[base_run(c)]
        assert c.recipe == "none" or (c.step, c.tokens, c.flops, c.family) == (
            *(last.step, last.tokens, last.flops, last.family),
        )
        assert c.folder == f"results/post/suite/models/{c.run}/step{c.step}"
    assert set(checkpoints_table(checkpoints, {})["recipe"]) == {"none", *RECIPES}


def test_a_scoring_job_waits_for_bases_and_for_what_was_made_of_them():
    plan = plan_of({"teacher": TEACHER, "corpora": ["steps_much"]})
    checkpoints = plan_checkpoints(plan)
    assert {c.recipe for c in checkpoints if c.corpus == "steps_little"} == {"none"}
    jobs = scoring_jobs(plan, scored_checkpoints(plan, checkpoints))
    folder = "results/post/suite"
    assert weight_inputs(plan, jobs["steps_little"]) == [f"{folder}/trained/steps_little.json"]
    runs = [f"steps_much-{run}" for run in ("small-seed0", "other-seed0", "other-seed1")]
    assert weight_inputs(plan, jobs["steps_much"]) == [
        f"{folder}/trained/steps_much.json",
        *(f"{folder}/post_trained/{run}.json" for run in runs),
    ]


def test_a_study_without_it_is_as_before():
    suite = {key: value for key, value in STUDY["miniature"].items() if key != "post_training"}
    checkpoints = plan_checkpoints(plan_of(miniature=suite))
    assert {c.recipe for c in checkpoints} == {""} and all(c.run == base_run(c) for c in checkpoints)


def test_jobs_and_disk_are_counted(monkeypatch, tmp_path):
    plan = plan_of()
    checkpoints = plan_checkpoints(plan)
    jobs = ModelJobs(plan, checkpoints)
    base = jobs.by_name["steps_much-small-seed0-step8"]
    bytes_of_one = jobs.model(base).weight_bytes("float32")
    assert jobs.trained_bytes(base.run) == 7 * bytes_of_one
    bases = [c for c in checkpoints if c.corpus == "steps_much" and c.run == base_run(c)]
    assert jobs.trained_bytes("steps_much") == sum(jobs.model(c).weight_bytes("float32") for c in bases)
    folders = Watch(plan, checkpoints).run_folders[False, base.run]
    assert {Path(folder).name for folder in folders} == {
        base.run,
        *(f"steps_much-small-{recipe}-seed0" for recipe in RECIPES),
    }
    assert len(checkpoints_of_command(plan, ["--target-jobs", f"post_train:run={base.run}"])) == 25


def test_a_lost_model_is_made_again(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    plan = plan_of()
    found = next(c for c in plan_checkpoints(plan) if c.recipe == "rl")
    manifest = trained_manifest(plan, found)
    write_json({f"{found.run}/step{found.step}": "f"}, manifest)
    assert broken_results(plan.results) == ([Path(found.folder)], [Path(found.folder), manifest]) or (
        manifest in broken_results(plan.results)[1]
    )


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"post_training": {"teacher": "steps_much-smal-seed0"}}, "teacher: 'steps_much-smal-seed0' is no run that is"),
        ({"post_training": {"teacher": TEACHER, "corpora": ["steps_many"]}}, "corpora: 'steps_many' is no corpus"),
        ({"post_training": {"teacher": TEACHER, "corpora": ["steps_little"]}}, "teacher: 'steps_much-small-seed0'"),
        ({"tasks": {"miniature_steps": ["rooms", "dial", "days"], "miniature": ["homes"]}}, "'homes' has no worked"),
        ({"model_selection": None, "target": {"metric": "multiple_choice_accuracy", "size": "small"}}, "needs `model_"),
    ],
)
def test_what_makes_no_sense_is_refused(changes, said):
    with pytest.raises(InputError, match=f"study.yaml: miniature.post_training.*{said}"):
        plan_checkpoints(plan_of(**changes))
