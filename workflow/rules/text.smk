# Corpora of text: tokenised once into shards, then one training job for each run of a ladder (suite.smk trains the others).

TEXTS = {corpus.name: corpus.text for corpus in PLAN.corpora if corpus.text and PLAN.runs_models}
TRAINED_RUNS = [run for run, found in RUNS.items() if PLAN.ladder and found[0].corpus in TEXTS]


def text_files(wildcards):
    """Local files of every source, or the folder that it is downloaded to."""
    numbers = range(len(TEXTS[wildcards.corpus].mixture))
    found = [data_set(f"text-{wildcards.corpus}-{number}") for number in numbers]
    return [path for paths in found for path in ([paths] if isinstance(paths, str) else paths)]


rule tokenize_text:
    input:
        text=text_files,
        tokenizer=TOKENIZER or rules.build_suite.output.tokenizer,
    output:
        f"{RESULTS}/text/{{corpus}}/manifest.json",
    log:
        f"{RESULTS}/logs/tokenize_text/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/tokenize_text/{{corpus}}.tsv"
    resources:
        mem_mb=grown(2000),
    params:
        code=CODE["tokenize_text"],
        contents=lambda wildcards: state_of([*text_files(wildcards), *TOKENIZER_FILES]),
        text=lambda wildcards: TEXTS[wildcards.corpus].model_dump(mode="json"),
        tokens=lambda wildcards: max(c.tokens for c in SCORED if c.corpus == wildcards.corpus),
        downloaded=lambda wildcards: [
            PLAN.data_folder(f"text-{wildcards.corpus}-{n}").as_posix()
            for n in range(len(TEXTS[wildcards.corpus].mixture))
        ],
    script:
        "../scripts/tokenize_text.py"


rule train_run:
    input:
        text=lambda wildcards: f"{RESULTS}/text/{RUNS[wildcards.run][0].corpus}/manifest.json",
        tokenizer=TOKENIZER,
    output:
        f"{RESULTS}/text/trained/{{run}}.json",
    log:
        f"{RESULTS}/logs/train_run/{{run}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/train_run/{{run}}.tsv"
    threads: MODEL_JOBS.threads("train_run")
    resources:
        **MODEL_JOBS.resources("train_run"),
    params:
        code=CODE["train_run"],
        contents=state_of(TOKENIZER_FILES),
        text=lambda wildcards: TEXTS[RUNS[wildcards.run][0].corpus].model_dump(mode="json"),
        size=lambda wildcards: RUNS[wildcards.run][0].size,
        seed=lambda wildcards: RUNS[wildcards.run][0].seed,
        steps=lambda wildcards: [checkpoint.step for checkpoint in RUNS[wildcards.run]],
        ladder=lambda wildcards: PLAN.ladder.only(RUNS[wildcards.run][0].size).model_dump(mode="json"),
        models=f"{RESULTS}/text/models/{{run}}",
        # Not an output: Snakemake would remove it when the job fails, and training resumes from it.
        state=f"{RESULTS}/text/state/{{run}}",
    script:
        "../scripts/train_run.py"
