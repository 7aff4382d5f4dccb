"""`python -m snakemake` in a process of its own, forked by one that has imported what Snakemake needs.

To import it takes three quarters of the processor time of a short run. As with `python -m`, modules of proxycast are
imported anew, from where PYTHONPATH says; folder, environment and both streams are those that the test gives.
"""

import array
import atexit
import json
import os
import runpy
import select
import signal
import socket
import subprocess
import sys
import tempfile
from contextlib import suppress
from functools import cache
from pathlib import Path

# What `snakemake -n` of a study imports of others, but polars, which starts a thread.
IMPORTED = ["snakemake.cli", "snakemake.workflow", "snakemake.dag", "snakemake.script", "snakemake.linting"]
IMPORTED += ["snakemake.report.html_reporter", "docutils.parsers.rst.directives.images", "PIL.Image"]
IMPORTED += ["smart_open", "jinja2.environment", "pydantic", "rich.console"]


def run(
    module: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    merged: bool = False,
    timeout: float = 1200,
) -> subprocess.CompletedProcess:
    """A finished `python -m module arguments`; `merged`: both streams are in `stdout`. May be called from threads.

    After `timeout` seconds it is killed: a TimeoutError.
    """
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        ours, theirs = socket.socketpair()
        ours.settimeout(timeout)
        with ours:
            environment = dict(os.environ if env is None else env)
            request = dict(module=module, arguments=arguments, cwd=str(cwd), env=environment)
            streams = [out.fileno(), (out if merged else errors).fileno(), theirs.fileno()]
            _server().sendmsg(
                [json.dumps(request).encode()], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", streams))]
            )
            theirs.close()
            status = int(ours.recv(16))
        out.seek(0), errors.seek(0)
        return subprocess.CompletedProcess([module, *arguments], status, out.read(), errors.read())


@cache
def _server() -> socket.socket:
    """The connection to the process that forks; it ends with this one."""
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
    with theirs:
        command = [sys.executable, __file__, str(theirs.fileno())]
        process = subprocess.Popen(command, pass_fds=[theirs.fileno()], stdin=subprocess.DEVNULL)
    atexit.register(process.wait)
    atexit.register(ours.close)
    return ours


def _next(requests: socket.socket) -> tuple[dict, list[int]]:
    """Returns in a new process for each request, with the descriptors of its streams."""
    while True:
        message, streams, *_ = socket.recv_fds(requests, 1 << 20, 3)
        if not message:
            sys.exit()
        if os.fork():
            for stream in streams:
                os.close(stream)
            while any(os.waitid(os.P_ALL, 0, os.WEXITED | os.WNOHANG) or ()):
                pass
            continue
        requests.close()
        if child := os.fork():
            _wait(child, streams[2])
            os._exit(0)
        os.close(streams.pop())
        return json.loads(message), streams


def _wait(child: int, reply: int) -> None:
    """Tell the exit status of `child`; where nobody waits for it any more, end it."""
    ends = select.poll()
    ends.register(os.pidfd_open(child), select.POLLIN)
    ends.register(reply, select.POLLRDHUP)
    if reply in dict(ends.poll()):
        os.kill(child, signal.SIGKILL)
    status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
    with suppress(BrokenPipeError):
        os.write(reply, str(status).encode())


def _serve(requests: socket.socket) -> None:
    for name in IMPORTED:
        __import__(name)
    paths = [path for path in sys.path[1:] if path not in os.environ.get("PYTHONPATH", "").split(os.pathsep)]
    request, streams = _next(requests)
    for stream, place in zip(streams, (1, 2)):
        os.dup2(stream, place)
        os.close(stream)
    os.chdir(request["cwd"])
    os.environ.clear()
    os.environ.update(request["env"])
    sys.path[:] = [request["cwd"], *filter(None, os.environ.get("PYTHONPATH", "").split(os.pathsep)), *paths]
    sys.argv[1:] = request["arguments"]
    runpy.run_module(request["module"], run_name="__main__", alter_sys=True)


if __name__ == "__main__":
    _serve(socket.socket(fileno=int(sys.argv[1])))
