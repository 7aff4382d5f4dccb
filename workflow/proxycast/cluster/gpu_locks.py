"""GPUs of a machine: jobs of several studies take turns at them."""

import fcntl
import logging
import math
import os
import socket
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from pathlib import Path

from proxycast.config.extraction import ExtractionOptions
from proxycast.jobs import open_private
from proxycast.options import InputError, one_line
from proxycast.processes import visible_gpus

log = logging.getLogger(__name__)


GPU_DRIVERS = ("/dev/nvidiactl", "/dev/kfd")  # there where a GPU of NVIDIA, or of AMD, is
# What tells one allocation of Slurm, LSF or PBS from another. SLURM_STEP_GPUS are numbers of the node, the same in all.
ALLOCATION = ("SLURM_JOB_ID", "SLURM_STEP_GPUS", "LSB_JOBID", "PBS_JOBID")
TELL_SECONDS = 60.0  # between two lines in the log of a job that waits for GPUs


def with_gpus(options: ExtractionOptions, resources: Mapping) -> ExtractionOptions:
    """`options` with tensor parallelism over the GPUs that a job asked for, unless they set it themselves.

    Copies of an engine (`data_parallel_size`) have equal shares of the GPUs.
    """
    gpus = asked_gpus(resources) // (options.pipeline_parallel_size * options.data_parallel_size)
    if "tensor_parallel_size" in options.model_fields_set or gpus <= 1:
        return options
    return options.model_copy(update={"tensor_parallel_size": gpus})


def asked_gpus(resources: Mapping) -> int:
    """GPUs in a job's resources, in either dialect."""
    return int(resources.get("gpu") or str(resources.get("gres") or "gpu:0").rpartition(":")[2])


@contextmanager
def own_gpus(count: int) -> Iterator[None]:
    """Take `count` of the visible GPUs, or all if there are fewer, and hide the others from this process.

    Each is locked, so that jobs of all studies on this machine have different ones; the log tells of a wait. On a
    cluster a job waits only for other jobs that were given the same GPUs.
    """
    visible, before = visible_gpus(), os.environ.get("CUDA_VISIBLE_DEVICES")
    with ExitStack() as locks:
        taken = _lock_gpus(min(count, len(visible)), locks)
        if 0 < len(taken) < len(visible):
            os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(taken)
        try:
            _require_usable_gpus(count)
            yield
        finally:
            os.environ.pop("CUDA_VISIBLE_DEVICES", None)
            if before is not None:
                os.environ["CUDA_VISIBLE_DEVICES"] = before


def _require_usable_gpus(count: int) -> None:
    """`InputError` if PyTorch cannot use the GPUs that exist: models would run for days on the CPU."""
    if not count or not any(map(os.path.exists, GPU_DRIVERS)):
        return
    import torch

    if not torch.cuda.is_available():
        raise InputError(
            f"this job was given {count} GPUs, and PyTorch {torch.__version__} cannot use them: install its CUDA (or "
            "ROCm) build in the environment that Snakemake is started from, or set device: cpu in the study's section "
            "extraction"
        )


def _lock_gpus(count: int, locks: ExitStack) -> list[str]:
    """Wait for `count` free GPUs, and hold them until `locks` is closed."""
    told = -math.inf
    while len(taken := _free_gpus(count, locks)) < count:
        locks.close()  # two jobs that each hold a part would wait for each other
        if time.monotonic() - told >= TELL_SECONDS:
            told = time.monotonic()
            held = ", ".join(f"{name} ({_lock_file(name)})" for name in visible_gpus() if name not in taken)
            log.info("waiting for %d of %d GPUs; other jobs hold (lock file): %s", count, len(visible_gpus()), held)
        time.sleep(1)
    return taken


def _free_gpus(count: int, locks: ExitStack) -> list[str]:
    """Up to `count` free GPUs, held until `locks` is closed or the process dies."""
    taken: list[str] = []
    for name in visible_gpus():
        if len(taken) == count:
            break
        file = locks.enter_context(os.fdopen(_open_gpu_lock(_lock_file(name)), "w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue
        except OSError as error:
            log.warning("%s: not locked, as its file system knows no locks: %s", file.name, error)
        taken.append(name)
    return taken


def _open_gpu_lock(path: Path) -> int:
    """A lock that no other user can hold. `InputError` if another user has put something in its place."""
    try:
        return open_private(path)
    except OSError as error:
        raise InputError(f"{path}: the lock of a GPU cannot be opened: {one_line(error)}; see who made it") from None


def _lock_file(gpu: str) -> Path:
    """The lock of a GPU of this host, of this user's jobs.

    Two allocations of a scheduler never have the same GPU, but each may call its own 0: they have different locks. So
    have two steps of one Slurm job, unless they share their GPUs.
    """
    allocation = [f"{name}-{os.environ[name]}" for name in ALLOCATION if name in os.environ]
    name = "-".join(["proxycast", str(os.getuid()), socket.gethostname(), *allocation, "gpu", gpu])
    return Path(tempfile.gettempdir(), name.replace("/", "_") + ".lock")
