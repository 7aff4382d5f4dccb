# The map: configuration, rules by phase, targets. A study is chosen by --configfile; config/config.yaml is the default.
import gc
import sys

from proxycast.checkpoints import (
    checkpoints_fingerprint,
    checkpoints_of_command,
    distinct_options,
    plan_checkpoints,
    remove_broken,
    runs,
    scored_checkpoints,
    scoring_jobs,
    weight_inputs,
)
from proxycast.checks import check_inputs
from proxycast.config import load_plan
from proxycast.disk import disk_plan
from proxycast.options import InputError
from proxycast.resources import ModelJobs, grown, read_site, require_site_kept, visible_gpus
from proxycast.slurm_plugin import repair
from proxycast.solutions import GENERIC_TEXT
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

# A plan is a million objects that stay; to look through them for garbage again and again takes a tenth of the time.
gc.freeze()
gc.set_threshold(50_000, 20, 100)

# Only without --configfile: Snakemake would merge a given study into the default one, key by key.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


try:
    if workflow.is_main_process:
        require_site_kept(sys.argv[1:])
    SITE = read_site(config.pop("site", None))
    PLAN = load_plan(config, where=str((workflow.overwrite_configfiles or workflow.configfiles)[-1]))
    if workflow.is_main_process:
        repair()
        CHECKPOINTS = plan_checkpoints(PLAN)
        for path in remove_broken(PLAN.results):
            logger.warning(f"{path} was truncated or lacked a part, and is made again.")
        check_inputs(PLAN, CHECKPOINTS)
        for line in disk_plan(PLAN, CHECKPOINTS):
            logger.info(line)
    else:
        CHECKPOINTS = checkpoints_of_command(PLAN, sys.argv[1:])
    MODEL_JOBS = ModelJobs(PLAN, CHECKPOINTS, SITE, correct=workflow.is_main_process)
    MODEL_JOBS.check()
except InputError as error:
    raise WorkflowError(str(error)) from None

STUDY = PLAN.study
RESULTS = PLAN.results.as_posix()
SCORED = scored_checkpoints(PLAN, CHECKPOINTS)
RUNS = runs(SCORED)
JOBS = scoring_jobs(PLAN, CHECKPOINTS)
TRAINED = [corpus.name for corpus in PLAN.corpora if STUDY.miniature and not corpus.checkpoints]
SOLUTIONS = [f"{RESULTS}/solutions/{name}.jsonl" for name in PLAN.solution_names]

# Jobs of one machine take turns at its GPUs, unless the command line says --resources gpu=<n>.
if SITE is None and visible_gpus() and "gpu" not in workflow.global_resources:
    workflow.register_resource("gpu", len(visible_gpus()))


# Names as config allows them. A list of all would be part of every pattern, and make planning slow.
wildcard_constraints:
    corpus=r"[A-Za-z0-9_.-]+",
    job=r"[A-Za-z0-9_.-]+",
    run=r"[A-Za-z0-9_.-]+",


report: "workflow/report/workflow.rst"


include: "workflow/rules/hub.smk"
include: "workflow/rules/suite.smk"
include: "workflow/rules/text.smk"
include: "workflow/rules/solutions.smk"
include: "workflow/rules/write.smk"
include: "workflow/rules/extract.smk"
include: "workflow/rules/proxies.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/forecast.smk"
include: "workflow/rules/report.smk"
include: "workflow/rules/end.smk"


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
        f"{RESULTS}/checkpoints.parquet",
        # Named one by one: Snakemake makes a missing file again only if it is a target or somebody needs it now.
        expand(rules.train_corpus.output, corpus=TRAINED),
        expand(rules.train_run.output, run=TRAINED_RUNS),
        expand(rules.score.output, job=JOBS),
        expand(rules.solution_proxies.output, corpus=SCORED_CORPORA),
        [output for experiment in EXPERIMENTS for output in experiment.output],
