"""Estimates how much a study downloads from the hub, and how much disk it takes."""

import math

from proxycast.cluster.cost_model import GB
from proxycast.study.checkpoints import Checkpoint, runs, scored_checkpoints
from proxycast.study.study_plan import Plan

BYTES_PER_PARAMETER = 4  # float32, as DataDecide's and most small models are stored
BYTES_PER_SCORED_TOKEN = 30  # of a table of token statistics, compressed


def weight_bytes(plan: Plan, checkpoint: Checkpoint) -> int:
    """Size of a checkpoint's weights: N, and the input embedding where the ladder tells its size."""
    embedding = 0
    if plan.ladder and checkpoint.size in plan.ladder.sizes:
        embedding = plan.ladder.vocabulary * plan.ladder.sizes[checkpoint.size].hidden_size
    return BYTES_PER_PARAMETER * (checkpoint.parameters + embedding)


def downloaded_bytes(plan: Plan, checkpoints: list[Checkpoint]) -> tuple[float, float, float]:
    """Weights to download: of all runs, of the largest run, and of those that are downloaded at a time."""
    remote = runs([c for c in scored_checkpoints(plan, checkpoints) if c.revision])
    by_run = sorted((sum(weight_bytes(plan, c) for c in found) for found in remote.values()), reverse=True)
    options = plan.study.hub
    at_a_time = min(sum(by_run[: options.concurrent_downloads]), options.disk_gb * GB if options.disk_gb else math.inf)
    return sum(by_run), max(by_run, default=0), at_a_time


def disk_plan(plan: Plan, checkpoints: list[Checkpoint]) -> list[str]:
    """Lines on what is downloaded, how much lies on the disk at a time, and what is kept. None without the hub."""
    remote = [c for c in scored_checkpoints(plan, checkpoints) if c.revision]
    if not remote or plan.study.replay:
        return []
    options = plan.study.hub
    total, largest, at_a_time = downloaded_bytes(plan, checkpoints)
    lines = [
        f"hub: {len(remote):,} checkpoints of {len(runs(remote)):,} training runs, {_gb(total)} of weights (float32), "
        f"at most {options.concurrent_downloads} runs at a time"
    ]
    if writers := [name for name, writer in plan.study.writers.items() if writer.hub]:
        lines.append(f"hub: and the writers {', '.join(writers)}, whose size is not known before")
    if options.disk_gb and largest > options.disk_gb * GB:
        lines.append(
            f"disk: the largest run, {_gb(largest)} if it is stored as float32 and half of that as bfloat16, may be "
            f"more than hub.disk_gb {options.disk_gb:g}, and is then refused: a run is downloaded whole"
        )
    if options.keep:
        return [*lines, f"disk: {_gb(total)} of weights are kept (hub.keep) in {plan.results}/weights"]
    bound = f"at most {options.disk_gb:g} GB of downloads wait" if options.disk_gb else "downloads wait without a bound"
    return [
        *lines,
        f"disk: weights are temporary; the largest run takes {_gb(largest)}, {options.concurrent_downloads} at a "
        f"time up to {_gb(at_a_time)}; {bound} for their scoring job (hub.disk_gb); kept are token statistics, about "
        f"{BYTES_PER_SCORED_TOKEN} bytes a scored token",
    ]


def _gb(size: float) -> str:
    return f"{size / GB:,.1f} GB"
