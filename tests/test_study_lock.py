"""One Snakemake a study, also after `snakemake --unlock`."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from conftest import copy_project
from proxycast.jobs import Presence

LOG = "logs/snakemake.log"
HOLD = "import sys, time; from pathlib import Path; from proxycast.jobs import Presence; "
HOLD += "held = Presence(Path(sys.argv[1])); print('locked', flush=True); time.sleep(600)"


def holder(results: Path) -> subprocess.Popen:
    """Another process that works on the study."""
    command = [sys.executable, "-c", HOLD, str(results / LOG)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "locked\n"
    return process


def test_a_study_is_locked_as_long_as_its_process_lives(tmp_path):
    other = holder(tmp_path / "results/one")
    Presence(tmp_path / "results/two" / LOG)
    other.send_signal(signal.SIGKILL)
    other.wait()
    Presence(tmp_path / "results/one" / LOG)


@pytest.mark.slow
def test_a_second_snakemake_is_refused_after_an_unlock(tmp_path):
    copy_project(tmp_path)
    command = [sys.executable, "-m", "snakemake", "--configfile", "config/smoke.yaml", "--cores", "1"]
    other = holder(tmp_path / "results/smoke")
    try:
        subprocess.run([*command, "--unlock"], cwd=tmp_path, check=True)
        subprocess.run([*command, "--dry-run", "--quiet"], cwd=tmp_path, check=True, stdout=subprocess.DEVNULL)
        refused = subprocess.run(command, cwd=tmp_path, stderr=subprocess.PIPE, text=True, timeout=120)
    finally:
        other.kill()
        other.wait()
    assert refused.returncode != 0
    assert f"process {other.pid} on {os.uname().nodename} works on this study" in refused.stderr
    assert not (tmp_path / "results/smoke/suite").exists()
