# The map: a study is opened, then its rules by phase. --configfile chooses the study; config/config.yaml is the default.
import sys
from pathlib import Path

from proxycast.cluster.model_jobs import grown
from proxycast.cluster.opening import open_study
from proxycast.study.checkpoints import budgets_of, runs, scored_checkpoints, weight_inputs, weight_states
from snakemake.utils import min_version

min_version("9.27")

# Only without --configfile: Snakemake would merge a given study into the default one, key by key.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


# What every rule may use; workflow/proxycast/cluster/opening.py says what it is.
OPENED = open_study(workflow, config, sys.argv[1:])
PLAN, STUDY, SITE, CODE, CHECKPOINTS = OPENED.plan, OPENED.study, OPENED.site, OPENED.code, OPENED.checkpoints
MODEL_JOBS, state_of = OPENED.model_jobs, OPENED.state_of
RESULTS = PLAN.results.as_posix()
SOLUTIONS = [f"{RESULTS}/solutions/{name}.jsonl" for name in PLAN.solution_names]
SCORED = scored_checkpoints(PLAN, CHECKPOINTS)
RUNS = runs(SCORED)  # training run -> its checkpoints
BUDGETS = budgets_of(PLAN, CHECKPOINTS)
AT_BUDGETS = {"budgets": [budget.model_dump(mode="json") for budget in BUDGETS]}
JOBS = MODEL_JOBS.jobs  # job of rule score -> its checkpoints


# Names as config allows them. A list of all would be part of every pattern, and make planning slow.
wildcard_constraints:
    corpus=r"[A-Za-z0-9_.-]+",
    job=r"[A-Za-z0-9_.-]+",
    run=r"[A-Za-z0-9_.-]+",


report: "workflow/report/workflow.rst"


include: "workflow/rules/hub.smk"
include: "workflow/rules/suite.smk"
include: "workflow/rules/post_train.smk"
include: "workflow/rules/text.smk"
include: "workflow/rules/solutions.smk"
include: "workflow/rules/write.smk"
include: "workflow/rules/extract.smk"
include: "workflow/rules/proxies.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/forecast.smk"
include: "workflow/rules/signal.smk"
include: "workflow/rules/choices.smk"
include: "workflow/rules/solution_counts.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/mixtures.smk"
include: "workflow/rules/tokens.smk"
include: "workflow/rules/page.smk"
include: "workflow/rules/end.smk"
include: "workflow/rules/all.smk"


localrules:
    all,
    checkpoints,
    copy_problems,
    copy_solutions,
    # The machine that Snakemake runs on has network; that of a job may have none.
    download_run,
    download_data,
    download_tokenizer,
    download_writer,


rule all:
    default_target: True
    input:
        made_again,
        EVERYTHING,
