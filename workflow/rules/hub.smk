# Downloads from the hub: weights of training runs (converted where needed, removed once scored), data sets, the ladder's
# tokenizer. Also the conversion of checkpoints that lie in folders.

DOWNLOADED = {run: remote for run, found in RUNS.items() if (remote := [c for c in found if c.revision])}
if STUDY.replay:
    DOWNLOADED = {}
CONVERTED = {run: [c for c in found if c.convert_from and not c.revision] for run, found in RUNS.items()}
HUB_DATA = [name for name, files in PLAN.file_sets().items() if files.hub]
# Corpora of text need the tokenizer, and so do checkpoints whose folders have none.
TOKENIZER = PLAN.tokenizer_folder.as_posix() if PLAN.ladder and PLAN.runs_models else []
TOKENIZER_FILES = sorted(Path(TOKENIZER).glob("*.json")) if TOKENIZER else []

# Downloads at a time, unless the command line sets --resources hub_downloads=<n>.
if "hub_downloads" not in workflow.global_resources:
    workflow.register_resource("hub_downloads", STUDY.hub.concurrent_downloads)

# How long a download waits for disk space while nothing changes and only downloads run. On this machine the job that frees
# space starts at once; on a cluster it may wait in the queue.
IDLE_MINUTES = 10 if SITE is None else 24 * 60

# Scoring needs these first. Queued behind downloads of runs, which wait for scoring to free space, they would never start.
DATA_FIRST = 1


def removed_when_scored(path):
    return path if STUDY.hub.keep else temp(path)


def data_set(name):
    """The input of a rule that reads a data set: its local files, or the folder that it is downloaded to."""
    files = PLAN.file_sets()[name]
    return PLAN.data_folder(name).as_posix() if files.hub else [path.as_posix() for path in files.paths()]


rule download_run:
    input:
        tokenizer=TOKENIZER,
    output:
        weights=removed_when_scored(directory(f"{RESULTS}/weights/{{run}}")),
        record=f"{RESULTS}/revisions/{{run}}.json",
    log:
        f"{RESULTS}/logs/download_run/{{run}}.log",
    threads: 0  # a download that waits for disk space must not hold a core that scoring needs
    resources:
        hub_downloads=1,
        idle_minutes=IDLE_MINUTES,
    params:
        code=CODE["download_run"],
        contents=state_of(TOKENIZER_FILES),
        checkpoints=lambda wildcards: [
            (c.step, c.source, c.revision, c.convert_from) for c in DOWNLOADED[wildcards.run]
        ],
    script:
        "../scripts/download_run.py"


rule convert_run:
    input:
        weights=lambda wildcards: [c.source for c in CONVERTED[wildcards.run]],
        tokenizer=TOKENIZER,
    output:
        removed_when_scored(directory(f"{RESULTS}/converted/{{run}}")),
    log:
        f"{RESULTS}/logs/convert_run/{{run}}.log",
    priority: 1  # score runs that are here before downloading more
    resources:
        # Weights are memory-mapped, not loaded.
        mem_mb=grown(4000),
    params:
        code=CODE["convert_run"],
        contents=lambda wildcards: [weight_states(PLAN, CONVERTED[wildcards.run]), state_of(TOKENIZER_FILES)],
        steps=lambda wildcards: [c.step for c in CONVERTED[wildcards.run]],
    script:
        "../scripts/convert_run.py"


rule download_data:
    output:
        folder=directory(f"{RESULTS}/data/{{data}}"),
        record=f"{RESULTS}/revisions/data/{{data}}.json",
    log:
        f"{RESULTS}/logs/download_data/{{data}}.log",
    wildcard_constraints:
        data="|".join(HUB_DATA) or "none",
    priority: DATA_FIRST
    resources:
        hub_downloads=1,
    params:
        code=CODE["download_data"],
        files=lambda wildcards: PLAN.file_sets()[wildcards.data].model_dump(include={"files", "hub", "revision"}),
    script:
        "../scripts/download_data.py"


rule download_tokenizer:
    output:
        folder=directory(f"{RESULTS}/tokenizer"),
        record=f"{RESULTS}/revisions/data/tokenizer.json",
    log:
        f"{RESULTS}/logs/download_tokenizer.log",
    priority: DATA_FIRST
    resources:
        hub_downloads=1,
    params:
        code=CODE["download_tokenizer"],
        tokenizer=PLAN.ladder.tokenizer.model_dump() if PLAN.ladder else {},
    script:
        "../scripts/download_tokenizer.py"
