# The miniature suite: documents, tokenizer and problems once, then one training job for each corpus.


rule checkpoints:
    output:
        f"{RESULTS}/checkpoints.parquet",
    log:
        f"{RESULTS}/logs/checkpoints.log",
    params:
        checkpoints=[vars(checkpoint) for checkpoint in CHECKPOINTS],
    script:
        "../scripts/write_checkpoints.py"


rule build_suite:
    output:
        pool=f"{RESULTS}/suite/pool.parquet",
        tokenizer=f"{RESULTS}/suite/tokenizer/tokenizer.json",
        tokenizer_config=f"{RESULTS}/suite/tokenizer/tokenizer_config.json",
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
        mem_mb=3000,
    params:
        suite=(STUDY.miniature.settings_of_pool() if STUDY.miniature else {}),
        families=FAMILIES,
    script:
        "../scripts/build_suite.py"


rule train_corpus:
    input:
        corpus=lambda wildcards: PLAN.corpus_files[wildcards.corpus],
        pool=rules.build_suite.output.pool,
        tokenizer=rules.build_suite.output.tokenizer,
    output:
        f"{RESULTS}/suite/trained/{{corpus}}.json",
    log:
        f"{RESULTS}/logs/train_corpus/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_corpus/{{corpus}}.tsv"
    threads: 1
    resources:
        mem_mb=1500,
    params:
        suite=STUDY.miniature.model_dump() if STUDY.miniature else {},
        models=f"{RESULTS}/suite/models",
    script:
        "../scripts/train_corpus.py"
