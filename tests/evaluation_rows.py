"""Evaluations in DataDecide's published format, drawn at random, for several test modules."""

import random

from proxycast.config.ladder import Ladder, LadderSize, Tokenizer
from proxycast.truth.evaluations import METRICS

SHAPE = dict(hidden_size=8, layers=1, heads=2, batch_sequences=1, learning_rate=1e-3)
LADDER = Ladder(
    name="two-sizes",
    tokenizer=Tokenizer(hub="a/b"),
    vocabulary=100,
    sequence_length=8,
    checkpoint_every=1250,
    seeds={0: "default", 1: "small-aux-2"},
    sizes={
        "4M": LadderSize(steps=5725, **SHAPE),
        "1B": LadderSize(steps=69369, seeds={0: "default", 1: "large-aux-2"}, **SHAPE),
    },
)
RUNS = {  # params, seed as the hub spells it -> size, seed of the ladder
    ("4M", "default"): ("4M", 0),
    ("4M", "small aux 2"): ("4M", 1),
    ("1B", "default"): ("1B", 0),
    ("1B", "large aux 2"): ("1B", 1),
}
CORPORA = {"DCLM-Baseline (QC 10%)": "qc10", "DCLM-Baseline (QC 20%)": "qc20", "Dolma1.7": "dolma17"}
SUBJECTS = ["mmlu_anatomy", "mmlu_virology", "mmlu_world_religions"]
TASKS = ["arc_easy", "boolq", "mmlu"]
STEPS = (0, 1250, 5725)
UNWANTED = {"predicted_index_raw": 1.5, "acc_uncond": None, "no_answer": 0, "logits_per_char_corr": float("nan")}


def all_rows(tasks=("arc_easy", "boolq", *SUBJECTS), seed=0) -> list[dict]:
    """Every checkpoint and task, with figures of every length and sign, in no order."""
    draw = random.Random(seed)
    rows = [
        {
            "params": params,
            "data": data,
            "task": task,
            "step": step,
            "seed": name,
            "metrics": UNWANTED
            | {key: draw.choice([-1, 1]) * draw.random() ** draw.choice([1, 5, 30]) for key in METRICS},
        }
        for params, name in RUNS
        for data in CORPORA
        for step in STEPS
        for task in tasks
    ]
    draw.shuffle(rows)
    for row in rows:
        row["metrics"]["primary_metric"] = abs(row["metrics"]["primary_metric"])  # a share
    return rows
