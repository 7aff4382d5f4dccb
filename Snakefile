# The map: configuration, rules by phase, targets. A study is chosen by --configfile; config/config.yaml is the default.
import gc
import sys
from pathlib import Path

from proxycast import report_page, slurm_plugin
from proxycast.checkpoints import (
    broken_results,
    checkpoints_fingerprint,
    checkpoints_of_command,
    distinct_options,
    job_with_a_proxy,
    plan_checkpoints,
    remove,
    runs,
    runs_jobs,
    scored_checkpoints,
    scoring_jobs,
    weight_inputs,
    weight_states,
)
from proxycast.checks import check_inputs, edits_of, require_plain_results, require_same_disk
from proxycast.code_fingerprint import code_fingerprint
from proxycast.config import FROZEN, frozen, load_plan, require_keys_once
from proxycast.disk import disk_plan
from proxycast.files import own_files
from proxycast.options import InputError, printable
from proxycast.resources import ModelJobs, grown, read_site, require_site_kept, site_of_profile, visible_gpus
from proxycast.solutions import GENERIC_TEXT
from proxycast.tables import change_nothing, edited, fingerprint, input_states, stat_of, write_json
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
    where = str((workflow.overwrite_configfiles or workflow.configfiles)[-1])
    if workflow.is_main_process:
        require_site_kept(sys.argv[1:])
        if FROZEN in config:
            raise InputError(f"{where}: {FROZEN}: unknown key; jobs alone read a study that is frozen")
        for path in workflow.overwrite_configfiles or workflow.configfiles:
            require_keys_once(Path(path))
        given = dict(config)
        SITE = read_site(site_of_profile(config, workflow.config_settings.config, where))
        PLAN = load_plan(config, where)
        RUNS_JOBS = runs_jobs(sys.argv[1:])
        if not RUNS_JOBS:
            change_nothing()
        slurm_plugin.repair()
        report_page.repair()
        RECORD = Path(f".snakemake/proxycast/{PLAN.study.study}.json")
        require_plain_results(PLAN.results)
        require_same_disk(PLAN.results, RECORD, write=RUNS_JOBS)
        CHECKPOINTS = plan_checkpoints(PLAN)
        broken, to_make = broken_results(PLAN.results)
        for path in broken:
            logger.warning(f"{printable(str(path))} was truncated, damaged or lacked a part, and is made again.")
        if RUNS_JOBS:
            remove(to_make)
        check_inputs(PLAN, CHECKPOINTS, record=RUNS_JOBS)
        for line in disk_plan(PLAN, CHECKPOINTS):
            logger.info(line)
        EDITS = edits_of(RECORD, write=RUNS_JOBS)
        SCRIPTS = {
            str(path): code_fingerprint(path) for path in Path(workflow.basedir, "workflow/scripts").glob("*.py")
        }
        CODE = {Path(path).stem: edited(code, EDITS.get(path)) for path, code in SCRIPTS.items()}
        # Jobs read the study as it is now, from one file by its content: edits are for the next start.
        study_of_jobs = PLAN.results / "study" / f"{fingerprint(frozen(given, PLAN, CODE))}.json"
        if RUNS_JOBS:
            write_json(frozen(given, PLAN, CODE), study_of_jobs)
        workflow.config_settings.configfiles = [study_of_jobs.absolute()]
        config |= frozen(config, PLAN, CODE)
    else:
        SITE = read_site(config.pop("site", None))
        PLAN, CODE = load_plan(config, where), config[FROZEN]["code"]
        CHECKPOINTS = checkpoints_of_command(PLAN, sys.argv[1:])
    MODEL_JOBS = ModelJobs(PLAN, CHECKPOINTS, SITE, correct=workflow.is_main_process)
    MODEL_JOBS.check()
except (InputError, OSError) as error:  # a results folder that may not be written, say
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


INPUTS = {}  # the user's files that jobs read, and what told at the start whether they have changed


def state_of(paths):
    """A parameter of rules that read the user's files, which may change while their times do not."""
    paths = [paths] if isinstance(paths, (str, Path)) else paths
    own = [path for path in map(Path, paths) if PLAN.results not in path.parents]
    if workflow.is_main_process:
        INPUTS.update({path: stat_of(path) if path.exists() else None for path in own if path not in INPUTS})
    return input_states(own, edits=EDITS if workflow.is_main_process else None)


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


def made_again(wildcards):
    """A dry run plans what a run makes again, but removes no file."""
    if workflow.is_main_process and not RUNS_JOBS:
        workflow.dag.forcefiles.update(map(str, to_make))
    return []


rule all:
    default_target: True
    input:
        made_again,
        # Every file that a result rests on, but the weights that are removed when they are scored. Snakemake makes a
        # missing file again only if it is a target or somebody needs it now; else results made from an older one stand.
        f"{RESULTS}/checkpoints.parquet",
        rules.build_suite.output if STUDY.miniature else [],
        expand(rules.train_corpus.output, corpus=TRAINED),
        expand(rules.download_run.output.record, run=DOWNLOADED),
        expand(rules.download_data.output, data=HUB_DATA),
        rules.download_tokenizer.output if PLAN.results in PLAN.tokenizer_folder.parents and TOKENIZER else [],
        expand(rules.tokenize_text.output, corpus=TEXTS),
        expand(rules.train_run.output, run=TRAINED_RUNS),
        expand(rules.download_writer.output.record, writer=[name for name in WRITERS if WRITERS[name].hub]),
        expand(rules.write_solutions.output, writer=WRITERS),
        PROBLEMS,
        SOLUTIONS,
        expand(rules.score.output, job=JOBS),
        expand(rules.solution_proxies.output, corpus=SCORED_CORPORA),
        rules.join_proxies.output if JOBS else [],
        TARGETS,
        [output for experiment in EXPERIMENTS for output in experiment.output],
