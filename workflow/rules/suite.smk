# The miniature suite: documents, tokenizer and problems once, then one training job for each corpus.
from proxycast.study.checkpoints import checkpoints_fingerprint

TOKENIZERS = list(STUDY.miniature.tokenizers) if STUDY.miniature else []
FAMILIES = sorted({task.family for task in PLAN.tasks if task.family})


rule checkpoints:
    input:
        revisions=expand(f"{RESULTS}/revisions/{{run}}.json", run=DOWNLOADED),
    output:
        f"{RESULTS}/checkpoints.parquet",
    log:
        f"{RESULTS}/logs/checkpoints.log",
    params:
        code=CODE["write_checkpoints"],
        # The script makes the plan again: tens of thousands of rows are too many for a job's parameters.
        checkpoints=lambda wildcards: checkpoints_fingerprint(CHECKPOINTS),
    script:
        "../scripts/write_checkpoints.py"


rule build_suite:
    output:
        pool=f"{RESULTS}/suite/pool.parquet",
        tokenizer=f"{RESULTS}/suite/tokenizer/tokenizer.json",
        tokenizer_config=f"{RESULTS}/suite/tokenizer/tokenizer_config.json",
        tokenizers=expand(f"{RESULTS}/suite/tokenizers/{{name}}/tokenizer.json", name=TOKENIZERS),
        tokenizer_configs=expand(f"{RESULTS}/suite/tokenizers/{{name}}/tokenizer_config.json", name=TOKENIZERS),
        generic_text=f"{RESULTS}/suite/generic_text.jsonl",
        leaks=report(
            f"{RESULTS}/suite/leaks.csv",
            caption="../report/leaks.rst",
            category="Tables",
            labels={"table": "leaks"},
        ),
        problems=expand(f"{RESULTS}/suite/problems/{{family}}.jsonl", family=FAMILIES),
    log:
        f"{RESULTS}/logs/build_suite.log",
    benchmark:
        f"{RESULTS}/benchmarks/build_suite.tsv"
    resources:
        mem_mb=grown(3000),
    params:
        code=CODE["build_suite"],
        suite=(STUDY.miniature.settings_of_pool() if STUDY.miniature else {}),
        families=FAMILIES,
    script:
        "../scripts/build_suite.py"


rule train_corpus:
    input:
        pool=rules.build_suite.output.pool,
        tokenizer=rules.build_suite.output.tokenizer,
        tokenizers=rules.build_suite.output.tokenizers,
        text=lambda wildcards: (
            f"{RESULTS}/text/{wildcards.corpus}/manifest.json" if PLAN.corpus(wildcards.corpus).text else []
        ),
    output:
        f"{RESULTS}/suite/trained/{{corpus}}.json",
    log:
        f"{RESULTS}/logs/train_corpus/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_corpus/{{corpus}}.tsv"
    threads: 1
    resources:
        mem_mb=grown(1500),
    params:
        code=CODE["train_corpus"],
        corpus=lambda wildcards: PLAN.corpus(wildcards.corpus).model_dump(
            mode="json", include={"name", "recipe", "text", "seeds"}
        ),
        suite=STUDY.miniature.model_dump(exclude={"post_training"}) if STUDY.miniature else {},
        models=f"{RESULTS}/suite/models",
        sizes=lambda wildcards: sorted({c.size for c in SCORED if c.corpus == wildcards.corpus}),
    script:
        "../scripts/train_corpus.py"
