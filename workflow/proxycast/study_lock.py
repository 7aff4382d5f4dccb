"""One Snakemake a study. Snakemake's own lock is of a whole folder, and stays when its process is killed."""

import fcntl
import os
import socket
from pathlib import Path

_held = []  # open files: a lock ends with the process, however it ends


def lock_study(results: Path) -> str | None:
    """Lock the study with these results until this process ends. -> who has locked it already, or None

    On a file system without locks, nothing is locked.
    """
    results.mkdir(parents=True, exist_ok=True)
    file = (results / ".lock").open("a+", encoding="utf8")
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        file.seek(0)
        return file.read().strip() or "another process"
    except OSError:
        return None
    _held.append(file)
    file.truncate(0)
    file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
    file.flush()
    return None
