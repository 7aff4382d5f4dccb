"""The cure of two faults of Snakemake's Slurm plugin; on a real Slurm, components/test_slurm_faults.py."""

import asyncio
import logging

import pytest
import snakemake_executor_plugin_slurm as plugin
from proxycast.slurm_plugin import repair


def test_what_slurmctld_said_stands_while_it_is_away(monkeypatch):
    """`None` is no answer; the plugin would turn from squeue to sacct, which need not run."""
    answers = iter([None, 300, None, None, 60, None])
    monkeypatch.setattr(plugin, "get_min_job_age", lambda: next(answers))
    monkeypatch.setattr(plugin, "query_job_status", None)
    repair()
    assert [plugin.get_min_job_age() for _ in range(6)] == [None, 300, 300, 300, 60, 60]


@pytest.mark.parametrize(
    ("answer", "states"),
    [
        ("printf '7|CANCELLED by 1000\\n8|RUNNING\\n'", {"7": "CANCELLED", "8": "RUNNING"}),
        ("true", {}),
        ("false", None),
    ],
)
def test_who_cancelled_a_job_is_left_out(monkeypatch, answer, states):
    monkeypatch.setattr(plugin, "get_min_job_age", None)
    monkeypatch.setattr(plugin, "query_job_status", plugin.query_job_status)
    repair()
    found, seconds = asyncio.run(plugin.query_job_status(f'sh -c "{answer}"', logging.getLogger("test")))
    assert found == states and (seconds is None) == (states is None)
