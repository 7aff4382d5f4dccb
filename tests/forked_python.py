"""`python -m module` in a process of its own, forked by one that has imported what it needs; so are jobs of Snakemake.

To import it takes most of the processor time of a short run of Snakemake, and of a short job. As with `python`, modules
of proxycast are imported anew, from where PYTHONPATH says; folder, environment and both streams are as they are given.
"""

import atexit
import os
import socket
import subprocess
import sys
import tempfile
from functools import cache
from pathlib import Path

import forking_server


def run(
    module: str,
    *arguments: str,
    cwd: Path,
    env: dict[str, str] | None = None,
    merged: bool = False,
    forked_jobs: str = "jobs",
    timeout: float = 2400,
) -> subprocess.CompletedProcess:
    """A finished `python -m module arguments`; `merged`: both streams are in `stdout`. May be called from threads.

    `forked_jobs`: if it is Snakemake, scripts that it runs are forked by this server of forking_server.py, too, and
    Snakemake does not see their memory; '' stands for none. After `timeout` seconds it is killed: a TimeoutError.
    """
    more = {"env": dict(os.environ if env is None else env), "jobs": _servers().get(forked_jobs)}
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as errors:
        streams = out.fileno(), (out if merged else errors).fileno()
        words = ["-m", module, *arguments]
        status = forking_server.ask(_servers()["snakemake"], words, streams, timeout, cwd=str(cwd), **more)
        out.seek(0), errors.seek(0)
        return subprocess.CompletedProcess([module, *arguments], status, out.read(), errors.read())


def command(*words: str) -> list[str]:
    """What starts as `python *words` does, while this process runs."""
    return [
        sys.executable,
        "-I",
        "-S",
        forking_server.__file__,
        "ask",
        *[_servers()[kind] for kind in ("snakemake", "jobs")],
        *words,
    ]


@cache
def _servers() -> dict[str, str]:
    """Where the processes listen that fork, by what they have imported; they end with this one."""
    folder = tempfile.TemporaryDirectory()
    places = {kind: f"{folder.name}/{kind}" for kind in forking_server.IMPORTED}
    atexit.register(folder.cleanup)
    for kind, place in places.items():
        with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as requests:
            requests.bind(place)
            start = [sys.executable, forking_server.__file__, kind, str(requests.fileno())]
            process = subprocess.Popen(start, pass_fds=[requests.fileno()], stdin=subprocess.PIPE)
        atexit.register(process.communicate)
    return places
