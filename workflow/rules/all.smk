# What rule `all` makes.

TRAINED = [corpus.name for corpus in PLAN.corpora if STUDY.miniature and not corpus.checkpoints]


def made_again(wildcards):
    """In a dry run, plan to make again the files that a real run would remove first."""
    if workflow.is_main_process and not OPENED.runs_jobs:
        workflow.dag.forcefiles.update(map(str, OPENED.to_make))
    return []


# Every file that results depend on, except weights, which are removed once they are scored. Snakemake makes a missing file
# again only if it is a target or a job needs it; otherwise results of an older version of the file would stay.
EVERYTHING = [
    f"{RESULTS}/checkpoints.parquet",
    rules.build_suite.output if STUDY.miniature else [],
    expand(rules.train_corpus.output, corpus=TRAINED),
    TEACHER,
    expand(rules.post_train.output, run=POST_TRAINED),
    rules.post_training_table.output if POST_TRAINED else [],
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
    rules.join_temperatures.output if JOBS and TEMPERATURES else [],
    TARGETS,
    rules.study_page.output,
    [output for experiment in EXPERIMENTS for output in experiment.output],
]
