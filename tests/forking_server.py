"""A process that has imported much, and forks another one for each command that begins with `python`.

    python -I -S forking_server.py ask SOCKET JOBS WORD ...     is as `python WORD ...`, from the server of SOCKET

If it is Snakemake, scripts that it runs are from the server of JOBS; '' stands for none.
Modules of proxycast are not among what is imported: each fork takes them from where its PYTHONPATH says.
"""

import atexit
import gc
import json
import os
import runpy
import select
import signal
import socket
import sys
import threading
from collections.abc import Callable
from contextlib import suppress

# What `snakemake -n` of a study imports of others, but polars, which starts a thread.
SNAKEMAKE = ["snakemake.cli", "snakemake.workflow", "snakemake.dag", "snakemake.script", "snakemake.linting"]
SNAKEMAKE += ["snakemake.report.html_reporter", "docutils.parsers.rst.directives.images", "PIL.Image"]
SNAKEMAKE += ["smart_open", "jinja2.environment", "pydantic", "rich.console"]
# What the jobs of a study import of others: those that train, score, judge and draw.
JOBS = ["torch", "transformers.models.gpt2.modeling_gpt2", "transformers.models.llama.modeling_llama"]
JOBS += ["torch._inductor.compile_fx", "safetensors.torch", "scipy.stats", "scipy.optimize", "sklearn.linear_model"]
JOBS += ["matplotlib.pyplot", "matplotlib.backends.backend_svg", "jinja2.environment", "pydantic", "rich.progress"]
VLLM = [*JOBS, "vllm.entrypoints.llm", "vllm.model_executor.models.llama", "vllm.v1.worker.cpu_worker"]
IMPORTED = {"snakemake": SNAKEMAKE, "jobs": JOBS, "vllm": VLLM}
READ_AT_IMPORT = {"HF_HOME", "HF_ENDPOINT", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE"}


def ask(place: str, words: list[str], streams: tuple[int, int], timeout: float | None = None, **more) -> int:
    """The exit status of `python *words`, negative for a signal; `more` has its `cwd` and `env` in place of ours.

    `jobs` is the server of scripts that it runs, if it is Snakemake; without one they are not forked. What it prints
    goes to the two descriptors `streams`. After `timeout` seconds it is killed: a TimeoutError.
    """
    ours, theirs = socket.socketpair()
    with ours, theirs, socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as server:
        request = {"words": words, "cwd": os.getcwd(), "env": dict(os.environ), **more}
        server.connect(place)
        socket.send_fds(server, [json.dumps(request).encode()], [*streams, theirs.fileno()])
        theirs.close()
        ours.settimeout(timeout)
        status = ours.recv(16)
    if not status:
        raise RuntimeError(f"the server of {place} has ended")
    return int(status)


def _next(requests: socket.socket) -> tuple[dict, list[int]]:
    """Returns in a new process for each request, with the descriptors of its streams.

    The server itself ends with its standard input; a fork for which nobody waits any more is killed.
    """
    events = select.poll()
    for descriptor in (0, requests.fileno()):
        events.register(descriptor, select.POLLIN)
    forks, replies = {}, {}  # by descriptor of the process, and of who waits for it
    while True:
        descriptor, _ = events.poll()[0]  # to handle one may be to close another
        if descriptor == 0:
            for pid, _ in forks.values():
                os.kill(pid, signal.SIGKILL)
            os._exit(0)
        if descriptor == requests.fileno():
            message, streams, *_ = socket.recv_fds(requests, 1 << 20, 3)
            pid = os.fork()
            if not pid:
                for each in (requests.fileno(), streams.pop(), *forks, *replies):
                    os.close(each)
                return json.loads(message), streams
            for stream in streams[:2]:
                os.close(stream)
            process, reply = os.pidfd_open(pid), streams[2]
            forks[process], replies[reply] = (pid, reply), pid
            events.register(process, select.POLLIN)
            events.register(reply, select.POLLRDHUP)
        elif descriptor in replies:
            os.kill(replies.pop(descriptor), signal.SIGKILL)
            events.unregister(descriptor)
        else:
            pid, reply = forks.pop(descriptor)
            status = os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])
            if replies.pop(reply, None):
                events.unregister(reply)
                with suppress(BrokenPipeError):
                    os.write(reply, str(status).encode())
            events.unregister(descriptor)
            os.close(descriptor), os.close(reply)


def _fork_jobs(place: str) -> None:
    """Scripts that this Snakemake runs are asked for at the server of `place`."""
    from snakemake.script import PythonScript

    execute = PythonScript._execute_cmd

    def forked(self, command, **options):
        if "py_exec" in options:
            options["py_exec"] = f"{sys.executable} -I -S {__file__} ask {place} ''"
        return execute(self, command, **options)

    PythonScript._execute_cmd = forked


def _become(request: dict, streams: list[int], paths: list[str]) -> None:
    """Run what is asked for, as `python` does."""
    for stream, place in zip([os.open(os.devnull, os.O_RDONLY), *streams], (0, 1, 2)):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(request["cwd"])
    asked, own = request["env"], dict(os.environ)
    changed = {name for name in asked.keys() | own.keys() if asked.get(name) != own.get(name)}
    os.environ.clear()
    os.environ.update(asked)
    kind, *arguments = request["words"]
    path = list(filter(None, asked.get("PYTHONPATH", "").split(os.pathsep))) + paths
    if kind == "-m":
        if request.get("jobs"):
            _fork_jobs(request["jobs"])
        sys.path[:] = [request["cwd"], *path]
        sys.argv[1:] = arguments[1:]
        runpy.run_module(arguments[0], run_name="__main__", alter_sys=True)
        return
    if changed & READ_AT_IMPORT:  # by what is imported: too late for a fork
        os.execv(sys.executable, [sys.executable, *request["words"]])
    if "OMP_NUM_THREADS" in changed:
        from threadpoolctl import threadpool_limits

        threadpool_limits(int(asked.get("OMP_NUM_THREADS", 0)) or os.cpu_count())
    sys.path[:] = [os.path.dirname(kind), *path]
    sys.argv[:] = request["words"]
    runpy.run_path(kind, run_name="__main__")


def _end(run: Callable[[], None]) -> None:
    """As Python ends behind `run`, but nothing is taken down, which would write to all that was shared."""
    status = 0
    try:
        run()
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
        if end.code is not None and not isinstance(end.code, int):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())
        status = 1
    threading._shutdown()
    atexit._run_exitfuncs()
    for stream in (sys.stdout, sys.stderr):
        with suppress(OSError, ValueError):
            stream.flush()
    os._exit(status & 255)


def _serve(kind: str, descriptor: str) -> None:
    requests = socket.socket(fileno=int(descriptor))
    if 0 in select.select([requests, 0], [], [])[0]:  # nothing is imported before somebody asks
        return
    gc.disable()
    if kind == "vllm":
        from proxycast.extraction.engines.vllm_support import prepare_environment

        prepare_environment()
    for name in IMPORTED[kind]:
        __import__(name)
    for name in [name for name in sys.modules if name.split(".")[0] == "proxycast"]:
        del sys.modules[name]
    gc.freeze()
    if kind == "vllm":  # it collects six times an engine, and would look through all that was imported
        gc.freeze = gc.unfreeze = lambda: None
    ours = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    paths = [path for path in sys.path[1:] if path not in ours]
    request, streams = _next(requests)
    gc.enable()
    _end(lambda: _become(request, streams, paths))


if __name__ == "__main__":
    if sys.argv[1] == "ask":
        place, jobs, *words = sys.argv[2:]
        status = ask(place, words, (1, 2), jobs=jobs)
        if status < 0:
            os.kill(os.getpid(), -status)
        sys.exit(status)
    _serve(*sys.argv[1:])
