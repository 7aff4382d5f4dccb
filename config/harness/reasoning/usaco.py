"""Runs the program in a model's answer on the tests of its problem, in a sandbox that is no wall.

A program gets an empty environment and folder, and limits on time, memory, processes, open files and on what it writes;
with it ends all that it has started. Where Linux lets the user make namespaces it has no network, sees no process of
others, and has no rights of its own. It still runs as the user of the job, and reads what that user may read:
docs/how/foreign-code.md says what is not protected.
"""

import json
import os
import re
import shutil
import signal
import subprocess
import sys
import tempfile
import time
from functools import cache

from proxycast import processes

SECONDS = 4  # of a processor, for each test: USACO gives Python twice the two seconds of other languages
WALL_SECONDS = 40  # of a clock, for programs that wait: a busy machine is no fault of a program
MEMORY_BYTES = 1 << 30  # of each process
OUTPUT_BYTES = 16 << 20  # of what it prints, and of each file
FOLDER_BYTES = 64 << 20  # of all files in its folder, in a namespace
OPEN_FILES = 64
PROCESSES = 32  # at a time; more than so many are seen, and ended
TASKS = 512  # processes and threads that all of this user's may become more meanwhile
END_SECONDS = 60  # until what cannot be ended ends the job
LOOK_SECONDS = 0.02
PROGRAM = re.compile(r"```(?:python|py)[^\n]*\n(.*?)```", re.DOTALL)
NAMESPACES = "--user --map-root-user --net --ipc --uts --pid --fork --kill-child --mount --mount-proc".split()

# The program's parent, in a process of its own: whatever the program leaves behind becomes a child of it. In namespaces
# it is the first process, with which all others end.
KEEPER = """
import ctypes, os, resource, subprocess, sys
folder, seconds, memory, output, files, processes, room, apart = sys.argv[1], *map(int, sys.argv[2:])
bare = {name: os.environ[name] for name in ("LD_LIBRARY_PATH",) if name in os.environ}
libc = ctypes.CDLL(None, use_errno=True)
libc.prctl(36, 1, 0, 0, 0)  # PR_SET_CHILD_SUBREAPER
if apart:
    libc.mount(b"tmpfs", folder.encode(), b"tmpfs", 6, b"size=%d,mode=700" % room)  # nosuid, nodev
os.chdir(folder)
with open("program.py", "wb") as file:
    file.write(sys.stdin.buffer.read(int(sys.stdin.buffer.readline())))

def limit():
    libc.prctl(1, 9, 0, 0, 0)  # PR_SET_PDEATHSIG: a program that kills its keeper ends
    libc.prctl(38, 1, 0, 0, 0)  # PR_SET_NO_NEW_PRIVS
    if apart:
        for right in range(64):
            libc.prctl(24, right, 0, 0, 0)  # PR_CAPBSET_DROP: root of a namespace is nobody in it
    for name, value in dict(AS=memory, CPU=seconds, CORE=0, NOFILE=files, NPROC=processes, FSIZE=output).items():
        limited = getattr(resource, "RLIMIT_" + name)
        most = resource.getrlimit(limited)[1]
        value = value if most == resource.RLIM_INFINITY else min(value, most)
        resource.setrlimit(limited, (value, value))

given = sys.stdin.buffer.read()
with open("given", "wb+") as file:
    file.write(given)
    file.seek(0)
    child = subprocess.Popen([sys.executable, "-I", "program.py"], stdin=file, preexec_fn=limit, env=bare)
    os.unlink("given")
is_right = child.wait() == 0
while True:  # what it leaves behind, until there is no more
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            with open(f"/proc/{number}/stat") as file:
                parent = file.read().rpartition(")")[2].split()[1]
            if int(parent) == os.getpid():
                os.kill(int(number), 9)
        except OSError:
            pass
    try:
        os.waitpid(-1, 0)
    except ChildProcessError:
        os._exit(0 if is_right else 1)
"""


def process_results(doc: dict, results: list[str]) -> dict[str, int]:
    """solved: 1 if the last Python program in the answer passes all tests of the problem."""
    programs = PROGRAM.findall(results[0])
    tests = json.loads(doc["input_output"])
    cases = zip(tests["inputs"], tests["outputs"], strict=True)
    return {"solved": int(bool(programs) and all(passes(programs[-1], given, wanted) for given, wanted in cases))}


def passes(program: str, given: str, wanted: str) -> bool:
    """Whether the program writes what is wanted for the given input; white space around words does not count."""
    source, given = (text.encode("utf8", "replace") for text in (program, given))
    apart, limits = namespaces(), (SECONDS, MEMORY_BYTES, OUTPUT_BYTES, OPEN_FILES, tasks() + TASKS, FOLDER_BYTES)
    with (
        tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder,
        tempfile.TemporaryFile() as told,
        tempfile.TemporaryFile() as said,
    ):
        told.write(b"%d\n%b%b" % (len(source), source, given))
        told.seek(0)
        arguments = [sys.executable, "-I", "-S", "-c", KEEPER, folder, *map(str, limits), str(int(bool(apart)))]
        keeper = subprocess.Popen(
            [*apart, *arguments],
            stdin=told,
            stdout=said,
            stderr=subprocess.DEVNULL,
            env=processes.bare_environment(),
            start_new_session=True,
        )
        try:
            is_right = _ends(keeper)
        finally:
            _end(keeper)
        said.seek(0)
        return is_right and said.read(OUTPUT_BYTES).decode("utf8", "replace").split() == wanted.split()


@cache
def namespaces() -> tuple[str, ...]:
    """The command that puts a program into namespaces of its own; empty where the user may not have any."""
    unshare = shutil.which("unshare")
    if unshare is None:
        return ()
    command = [unshare, *NAMESPACES, sys.executable, "-I", "-S", "-c", ""]
    tried = subprocess.run(command, capture_output=True, env=processes.bare_environment())
    return (unshare, *NAMESPACES) if tried.returncode == 0 else ()


def tasks() -> int:
    """Processes and threads of this user on this machine. A limit on them counts all, whoever has started them."""
    found = 0
    for number in filter(str.isdigit, os.listdir("/proc")):
        try:
            if os.stat(f"/proc/{number}").st_uid == os.getuid():
                found += len(os.listdir(f"/proc/{number}/task"))
        except OSError:  # it has ended
            pass
    return found


def _ends(keeper: subprocess.Popen) -> bool:
    """Whether the program ends by itself, without an error, in its time, and never has more processes than it may."""
    until = time.monotonic() + WALL_SECONDS
    while not (ended := os.waitid(os.P_PID, keeper.pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)):
        if time.monotonic() > until or len(processes.descendants(keeper.pid)) > PROCESSES:
            return False
        time.sleep(LOOK_SECONDS)
    return ended.si_code == os.CLD_EXITED and ended.si_status == 0


def _end(keeper: subprocess.Popen) -> None:
    """End the keeper and everything below it, or of its session. The first process of a namespace takes all with it."""
    until = time.monotonic() + END_SECONDS
    while (below := processes.descendants(keeper.pid)) and time.monotonic() < until:
        for process, start in below.items():
            processes.end(process, start)
    os.killpg(keeper.pid, signal.SIGKILL)  # its number stands for nothing else, as nobody has asked for its status yet
    keeper.wait()
    if below:
        raise RuntimeError(f"processes {sorted(below)} of a program that a model wrote cannot be ended")
