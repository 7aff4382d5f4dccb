# The map: configuration, rules by phase, targets. A study is chosen by --configfile; config/config.yaml is the default.
from proxycast.checkpoints import extraction_options, plan_checkpoints, remove_broken, scoring_jobs, weight_inputs
from proxycast.checks import check_inputs
from proxycast.config import GENERIC_TEXT, load_plan
from proxycast.options import InputError
from snakemake.exceptions import WorkflowError
from snakemake.utils import min_version

min_version("9.27")

# Only without --configfile: Snakemake would merge a given study into the default one, key by key.
if not workflow.overwrite_configfiles:

    configfile: "config/config.yaml"


try:
    PLAN = load_plan(config, where=str((workflow.overwrite_configfiles or workflow.configfiles)[-1]))
    CHECKPOINTS = plan_checkpoints(PLAN)
    if workflow.is_main_process:
        for path in remove_broken(PLAN.results):
            logger.warning(f"{path} was truncated and is made again.")
        check_inputs(PLAN, CHECKPOINTS)
except InputError as error:
    raise WorkflowError(str(error)) from None

STUDY = PLAN.study
RESULTS = PLAN.results.as_posix()
JOBS = scoring_jobs(PLAN, CHECKPOINTS)
TRAINED = [corpus.name for corpus in PLAN.corpora if corpus.recipe]
FAMILIES = sorted({task.family for task in PLAN.tasks if task.family})
SOLUTIONS = [f"{RESULTS}/solutions/{name}.jsonl" for name in (*(task.name for task in PLAN.tasks), GENERIC_TEXT)]


wildcard_constraints:
    corpus="|".join(TRAINED) or "none",
    job="|".join(JOBS),


report: "workflow/report/workflow.rst"


include: "workflow/rules/suite.smk"
include: "workflow/rules/solutions.smk"
include: "workflow/rules/extract.smk"
include: "workflow/rules/proxies.smk"
include: "workflow/rules/targets.smk"
include: "workflow/rules/select.smk"
include: "workflow/rules/report.smk"


localrules:
    all,
    checkpoints,
    copy_solutions,


rule all:
    default_target: True
    input:
        f"{RESULTS}/checkpoints.parquet",
        # Named one by one: Snakemake makes a missing file again only if it is a target or somebody needs it now.
        expand(rules.train_corpus.output, corpus=TRAINED),
        expand(rules.score.output, job=JOBS),
        expand(rules.solution_proxies.output, job=JOBS),
        rules.data_selection.output,
        rules.figures.output,
