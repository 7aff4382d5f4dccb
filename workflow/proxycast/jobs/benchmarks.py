"""What Snakemake measured of a job: its time and memory."""

from pathlib import Path

from proxycast.options import require_regular

LARGEST_MEASURED = 1e9  # seconds or MB; results of somebody else may tell any number


def read_benchmark(path: Path) -> dict[str, float] | None:
    """Seconds `s` and peak memory `max_rss` (MB) of a finished job; None if they were not measured."""
    try:
        require_regular(path)
        header, values, *_ = path.read_text().splitlines()
        found = dict(zip(header.split("\t"), values.split("\t")))
        measured = {key: float(found[key]) for key in ("s", "max_rss")}
    except (OSError, ValueError, KeyError):
        return None
    return measured if all(0 < v < LARGEST_MEASURED for v in measured.values()) else None
