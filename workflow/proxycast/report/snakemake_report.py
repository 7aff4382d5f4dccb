"""Cures of Snakemake's report (9.27.1, which is pinned): what names, parameters and files say stays text on the page.

The report is one page of HTML with scripts that hold its data as JSON. JSON leaves `</script>` as it is, which ends the
script wherever it stands: what follows is markup of whoever wrote the name. And the report reads an environment from
Snakemake's records of a result with a loader of YAML that runs code; no rule of this workflow has one.
"""

import json
import sys
from types import SimpleNamespace

MARKUP = str.maketrans({character: f"\\u{ord(character):04x}" for character in "<>&"})
REPORTER = "snakemake.report.html_reporter"


def script_json(value: object, **options: object) -> str:
    """JSON that means the same and may stand between <script> and </script>."""
    return json.dumps(value, **options).translate(MARKUP)  # in JSON these characters stand in strings alone


def repair() -> None:
    """Put the cures into Snakemake's report."""
    import snakemake.report
    import snakemake.report.html_reporter

    for name, module in list(sys.modules.items()):
        if name.startswith(REPORTER) and getattr(module, "json", None) is json:
            module.json = SimpleNamespace(dumps=script_json)
    record = snakemake.report.RuleRecord
    if not hasattr(record, "with_environment"):
        record.with_environment = record.__post_init__
        record.__post_init__ = _without_environment


def _without_environment(self: object, job: object, job_rec: object) -> None:
    job_rec.conda_env = None
    self.with_environment(job, job_rec)
