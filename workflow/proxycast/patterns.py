"""Regular expressions of somebody else over texts of somebody else, which may take for ever: with a limit on the time.

Python's `re` cannot be interrupted in a thread. A small process of its own searches, and is ended when it takes too
long; the next search starts another one. It is Python's `re` all the same, so that a pattern means what it always does.
"""

import json
import re
import select
import subprocess
import sys
import threading
from collections.abc import Sequence

from proxycast.options import InputError, told_value

PATTERN_SECONDS = 5.0  # for one text; sound patterns take microseconds
SEARCHER = """
import json, re, resource, sys
resource.setrlimit(resource.RLIMIT_AS, (1 << 30, 1 << 30))  # a replacement may be longer than all memory
for line in sys.stdin:
    pattern, flags, text, replacement = json.loads(line)
    try:
        compiled = re.compile(pattern, flags)
        if replacement is None:
            answer = [match[1] if compiled.groups else match[0] for match in compiled.finditer(text)]
        else:
            answer = compiled.sub(replacement, text)
        answer = {"answer": answer}
    except (re.error, IndexError, RecursionError, OverflowError, MemoryError) as error:
        answer = {"error": str(error) or type(error).__name__}
    print(json.dumps(answer), flush=True)
"""

_lock = threading.Lock()
_searcher: list[subprocess.Popen] = []  # the living one


def first_groups(pattern: re.Pattern, text: str) -> Sequence[str | None]:
    """Group 1 of each match of `pattern` in `text`, in order. Raises InputError when it takes too long."""
    return _ask(pattern.pattern, pattern.flags, text, None)


def substitute(pattern: str, replacement: str, text: str) -> str:
    """As `re.sub`. Raises InputError for no pattern, and when it takes too long."""
    return _ask(pattern, 0, text, replacement)


def _ask(pattern: str, flags: int, text: str, replacement: str | None) -> list[str | None] | str:
    with _lock:
        if not _searcher:
            command = [sys.executable, "-I", "-S", "-c", SEARCHER]
            pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "stderr": subprocess.DEVNULL}
            _searcher.append(subprocess.Popen(command, **pipes, env={}))
        process, finished = _searcher[0], False
        try:
            process.stdin.write(json.dumps([pattern, flags, text, replacement]).encode() + b"\n")
            process.stdin.flush()
            line = process.stdout.readline() if select.select([process.stdout], [], [], PATTERN_SECONDS)[0] else b""
            finished = line.endswith(b"\n")
        except BrokenPipeError:
            line = b""
        finally:
            if not finished:  # what it says later would be taken for the next answer
                _end(_searcher.pop())
    if not finished:
        raise InputError(
            f"pattern {told_value(pattern)}: no end after {PATTERN_SECONDS:g} s in a text of {len(text)} characters; "
            "write it without a repetition within a repetition, or beside a like one"
        )
    found = json.loads(line)
    if "error" in found:
        raise InputError(f"pattern {told_value(pattern)}: {found['error']}")
    return found["answer"]


def _end(process: subprocess.Popen) -> None:
    process.kill()
    process.wait()
    process.stdin.close()
    process.stdout.close()
