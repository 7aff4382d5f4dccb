"""A judge on a terminal: what it is, what it was learned from, and what it knows: `proxycast judge show`."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from proxycast.experiments.judges.judge_application import evidence_in_words
from proxycast.experiments.judges.judge_file import Judge, Link, read_judge
from proxycast.experiments.judges.judge_limits import in_words
from proxycast.options import printable
from proxycast.proxy_formulas import proxy_name

SHOWN_NAMES = 8  # of a list of names
KINDS = {"data_selection": "corpora", "model_selection": "models"}


def show_judge(path: Path) -> None:
    """Print a judge.json. `InputError` for a file that is none, or of another version of the format."""
    for label, text in about_judge(read_judge(path)):
        print(printable(f"{label:12} {text}"))


def about_judge(judge: Judge) -> Iterator[tuple[str, str]]:
    """Label and text of each line."""
    origin, metric = judge.origin, judge.metric
    better = "more" if metric.higher_is_better else "less"
    yield "judge", f"of {KINDS[judge.kind]}, by study {judge.study} (proxycast {origin.proxycast}, {origin.date})"
    yield "learned from", _names(judge.candidates)
    yield (
        "metric",
        f"{metric.name}, {better} is better, {metric.lowest:.4g} to {metric.highest:.4g}; as a truth {metric.verdict}",
    )
    if judge.target_size:
        yield "target", f"{judge.target_size}, {judge.target_flops:.3g} FLOPs a run"
    for task in judge.tasks:
        yield "task", f"{task.name}" + ("" if task.solutions is None else f": {task.solutions:,} solutions")
    if judge.reading:
        reading, values = judge.reading, judge.reading.proxies.model_dump(exclude_defaults=True)
        yield (
            "read",
            f"the last {reading.tail_tokens:,} tokens of each solution"
            + "".join(f", {name} {value}" for name, value in values.items()),
        )
    for proxy in judge.corpus_proxies:
        yield "proxy", proxy_name(proxy.statistic, proxy.weighting)
        yield "", evidence_in_words(proxy, proxy.mean, judge)
        yield "", _link(proxy.link, metric.name)
    for scorer in judge.scorers:
        yield "scorer", f"{scorer.scorer}, of {len(scorer.coefficients):,} proxies; tail {scorer.tail}"
        yield "", f"Spearman's rho {in_words(scorer.two_tasks)} on tasks that were held out"
        if scorer.family.value is not None:
            yield "", f"Spearman's rho {in_words(scorer.family)} where a family was held out too"
        linked = [name for name, task in scorer.tasks.items() if task.link]
        yield "", f"predicts {metric.name} in {_names(linked)}" if linked else f"predicts no {metric.name}"


def _link(link: Link | None, metric: str) -> str:
    if link is None:
        return f"predicts no {metric}: no link could be fitted"
    error = link.left_out_error[link.form]
    return (
        f"predicts {metric} by a {link.form} link of {link.n} corpora; off by {error:.3g} (root mean square, left out)"
    )


def _names(names: Sequence[str]) -> str:
    more = f" and {len(names) - SHOWN_NAMES} more" if len(names) > SHOWN_NAMES else ""
    return f"{len(names)}: {', '.join(names[:SHOWN_NAMES])}{more}"
