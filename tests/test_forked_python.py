"""What is forked is as `python` would be: exit status, streams, folder, environment, and what is left behind a kill."""

import os
import signal
import subprocess
import sys
from contextlib import suppress

import forked_python
import psutil
import pytest

ENDS = {
    "import sys; sys.exit(7)": 7,
    "import sys; sys.exit()": 0,
    "import sys; sys.exit('no such file')": 1,
    "raise ValueError('wrong')": 1,
    "import os, signal; os.kill(os.getpid(), signal.SIGTERM)": -signal.SIGTERM,
    "import atexit; atexit.register(print, 'the end')": 0,
    "import threading; threading.Timer(0.2, print, ['late']).start()": 0,
    "import os, sys; print(os.getcwd(), os.environ['COLOUR'], sys.argv, __name__, sys.stdin.read())": 0,
}


@pytest.mark.parametrize("code, status", ENDS.items(), ids=range(len(ENDS)))
def test_it_ends_as_python_does(code, status, tmp_path):
    (tmp_path / "ends.py").write_text(code)
    environment = os.environ | {"COLOUR": "green", "PYTHONPATH": str(tmp_path)}
    forked = forked_python.run("ends", "one", cwd=tmp_path, env=environment)
    command = [sys.executable, "-m", "ends", "one"]
    real = subprocess.run(
        command, cwd=tmp_path, env=environment, capture_output=True, text=True, stdin=subprocess.DEVNULL
    )
    assert (forked.returncode, forked.stdout) == (real.returncode, real.stdout)
    assert forked.returncode == status
    assert forked.stderr.splitlines()[-1:] == real.stderr.splitlines()[-1:]


def test_what_takes_too_long_is_killed(tmp_path):
    (tmp_path / "sleeps.py").write_text("import os, time; open('pid', 'w').write(str(os.getpid())); time.sleep(60)")
    forked_python.run("platform", cwd=tmp_path)  # the server has imported what it needs
    with pytest.raises(TimeoutError):
        forked_python.run("sleeps", cwd=tmp_path, timeout=3)
    with suppress(psutil.NoSuchProcess):
        psutil.Process(int((tmp_path / "pid").read_text())).wait(30)


def test_who_asks_and_is_killed_leaves_nothing(tmp_path):
    (tmp_path / "sleeps.py").write_text("import os, time; print(os.getpid(), flush=True); time.sleep(60)")
    command = forked_python.command("-m", "sleeps")
    with subprocess.Popen(command, cwd=tmp_path, stdout=subprocess.PIPE, text=True) as asking:
        sleeping = psutil.Process(int(asking.stdout.readline()))
        asking.kill()
    sleeping.wait(30)


def test_a_script_begins_anew_where_what_was_imported_has_read_another_environment(tmp_path):
    code = "import os, sys; print('snakemake.cli' in sys.modules, os.environ.get('HF_HOME'), sys.argv)"
    (tmp_path / "script.py").write_text(code)
    command, own = forked_python.command("script.py", "one"), os.environ.get("HF_HOME")
    for home in (own, str(tmp_path)):
        environment = os.environ | ({"HF_HOME": home} if home else {})
        said = subprocess.check_output(command, cwd=tmp_path, env=environment, text=True)
        assert said == f"{home == own} {home} ['script.py', 'one']\n"
