# Post-training of the miniature suite's bases: the teacher of a distillation first, then one job for each training run.
from proxycast.study.checkpoints import base_run

POST_TRAINING = STUDY.miniature.post_training if PLAN.post_trains else None
POST_TRAINED = list(dict.fromkeys(base_run(c) for c in SCORED if c.run != base_run(c)))
TEACHER = f"{RESULTS}/suite/teacher.parquet" if POST_TRAINING and POST_TRAINING.teacher else []


def base_of(run):
    """The last checkpoint of a training run."""
    return max((c for c in CHECKPOINTS if c.run == run), key=lambda c: c.step)


def folders_of(run):
    """Recipe -> folder of the model that it makes of a base."""
    return {c.recipe: c.folder for c in CHECKPOINTS if base_run(c) == run != c.run}


def course_of(run):
    """Parameters that all recipes of a base share. Two rules train with the code of one: a teacher is trained once."""
    base, code = base_of(run), CODE["post_train"]
    return {"run": run, "folder": base.folder, "families": FAMILIES, "seed": STUDY.miniature.seed, "code": code}


rule teach:
    input:
        trained=lambda wildcards: f"{RESULTS}/suite/trained/{base_of(POST_TRAINING.teacher).corpus}.json",
        problems=rules.build_suite.output.problems,
    output:
        TEACHER or f"{RESULTS}/suite/teacher.parquet",
    log:
        f"{RESULTS}/logs/teach.log",
    benchmark:
        f"{RESULTS}/benchmarks/teach.tsv"
    threads: 1
    resources:
        mem_mb=grown(1500),
    params:
        code=CODE["teach"],
        course=lambda wildcards: course_of(POST_TRAINING.teacher),
        options=POST_TRAINING.model_dump(mode="json") if POST_TRAINING else {},
        folders=lambda wildcards: {"sft_styles": folders_of(POST_TRAINING.teacher)["sft_styles"]},
    script:
        "../scripts/teach.py"


rule post_train:
    input:
        trained=lambda wildcards: f"{RESULTS}/suite/trained/{base_of(wildcards.run).corpus}.json",
        problems=rules.build_suite.output.problems,
        teacher=TEACHER,
    output:
        f"{RESULTS}/suite/post_trained/{{run}}.json",
    log:
        f"{RESULTS}/logs/post_train/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/post_train/{{run}}.tsv"
    threads: 1
    resources:
        mem_mb=grown(1500),
    params:
        code=CODE["post_train"],
        course=lambda wildcards: course_of(wildcards.run),
        options=POST_TRAINING.model_dump(mode="json") if POST_TRAINING else {},
        folders=lambda wildcards: folders_of(wildcards.run),
    script:
        "../scripts/post_train.py"


rule post_training_table:
    input:
        expand(rules.post_train.output, run=POST_TRAINED),
    output:
        f"{RESULTS}/suite/post_training.parquet",
        report(
            f"{RESULTS}/suite/post_training.csv",
            caption="../report/post_training.rst",
            category="Tables",
            labels={"table": "post_training"},
        ),
    log:
        f"{RESULTS}/logs/post_training_table.log",
    params:
        code=CODE["post_training_table"],
    script:
        "../scripts/post_training_table.py"


# What tells the rules that compare models which of them are copies.
RECIPES_TABLE = [rules.post_training_table.output[0]] if POST_TRAINED else []
