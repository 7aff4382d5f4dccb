"""Where a study lies outside of what a judge saw: what is refused, and what is said beside its predictions."""

from collections.abc import Sequence

import polars as pl

from proxycast.experiments.judges.judge_file import Judge, Kind, Reading, Share
from proxycast.experiments.reliability import NOISE
from proxycast.options import InputError
from proxycast.proxy_formulas import BASELINES, RBRIDGE, STATISTICS, TEMPERED, WEIGHTINGS

# Values of these are sums over tokens, or means over them, so another tokenizer gives others. Bits per byte is none.
PER_TOKEN = {"expert_cross_entropy", "generic_cross_entropy", "tempered_cross_entropy", RBRIDGE}


def judge_proxies(judge: Judge) -> list[tuple[str, str]]:
    """statistic and weighting of everything that a study must have for the judge to be applied."""
    found = [(proxy.statistic, proxy.weighting) for proxy in judge.corpus_proxies]
    found += [pair for scorer in judge.scorers for pair in zip(scorer.statistics, scorer.weightings)]
    return list(dict.fromkeys(found))


def require_kind(judge: Judge, kind: Kind, where: str) -> None:
    if judge.kind != kind:
        raise InputError(
            f"{where}: kind: found {judge.kind!r}, a judge of {judge.study}; this study needs one of {kind!r}"
        )


def require_known_proxies(judge: Judge, where: str, rbridge: bool, tempered: bool = False) -> None:
    """`InputError` for a proxy that a study which runs models does not compute.

    `rbridge`: whether it has writers; `tempered`: whether it scores at temperatures.
    """
    known = set(BASELINES) | ({RBRIDGE} if rbridge else set()) | (set(TEMPERED) if tempered else set())
    for statistic, weighting in judge_proxies(judge):
        if (statistic in STATISTICS and weighting in WEIGHTINGS) or (weighting == "none" and statistic in known):
            continue
        needed = dict.fromkeys(TEMPERED, "extraction.temperatures") | {RBRIDGE: "writers"}
        needs = f"; it needs `{needed[statistic]}`" if statistic in needed else ""
        raise InputError(
            f"{where}: its proxy {statistic}/{weighting} is none that this study computes{needs}; known are the "
            f"proxies, and with the weighting none {', '.join(sorted(known))}"
        )


def require_same_values(judge: Judge, reading: Reading, where: str) -> None:
    """`InputError` for an option with which a proxy has another value than in the judged study."""
    if judge.reading is None:
        return
    seen, own = judge.reading.proxies.model_dump(), reading.proxies.model_dump()
    pairs = {f"proxies.{key}": (own[key], seen[key]) for key in seen}
    pairs["extraction.tail_tokens"] = reading.tail_tokens, judge.reading.tail_tokens
    if any(scorer.tail == "bytes" for scorer in judge.scorers):
        pairs["extraction.tail_bytes"] = reading.tail_bytes, judge.reading.tail_bytes
    for key, (found, expected) in pairs.items():
        if found != expected:
            raise InputError(
                f"{where}: made with {key} {expected}, but this study has {found}, with which proxies have other "
                f"values; set {key}: {expected}, or make a judge with {found}"
            )


def about_reading(judge: Judge, reading: Reading | None) -> list[str]:
    """How texts are read, where that is unknown or not as in the judged study."""
    if judge.reading is None:
        return []
    if reading is None:
        return ["options: unknown how the values were made, the judge needs its own"]
    keys = ("chat_template", "leading_space", "windowing", "window_stride", "last_checkpoints")
    return [
        f"{key}: {getattr(reading, key)}, the judge saw {getattr(judge.reading, key)}"
        for key in keys
        if getattr(reading, key) != getattr(judge.reading, key)
    ]


def about_tasks(judge: Judge, values: pl.DataFrame, name: str) -> tuple[list[str], list[str], bool]:
    """Tasks to compare by, what is to be said of them, and whether they are those of the judge.

    The tasks that both have, or all of the study where they share none.
    """
    found = values["task"].unique().sort().to_list()
    seen = {task.name: task for task in judge.tasks}
    shared = [task for task in found if task in seen]
    told = []
    if missing := [task for task in seen if task not in shared]:
        told.append(f"tasks: found no {', '.join(missing)}, which the judge learned from, so no metric is predicted")
    if shared and (others := [task for task in found if task not in seen]):
        told.append(f"tasks: {', '.join(others)} left out, the judge did not see them")
    for task in shared:
        told += about_solutions(task, seen[task].solutions, values)
    if not found:
        raise InputError(f"judge {name}: the values of the candidates have no row")
    return shared or found, told, not missing


def about_solutions(task: str, seen: int | None, values: pl.DataFrame) -> list[str]:
    own = values.filter(pl.col("solution") != "", task=task)["solution"].n_unique()
    if seen is None or own in (0, seen):
        return []
    return [f"task {task}: {own} solutions, the judge saw {seen}, so these are others"]


def about_tokenizers(judge: Judge, statistic: str, weighting: str, tokenizers: Sequence[str]) -> tuple[list[str], bool]:
    """What is to be said of the tokenizers, and whether values of this proxy can be compared with the judge's.

    Bits per byte hardly depend on the tokens. A judge that saw several tokenizers has their differences in its errors.
    """
    if judge.reading is None:  # others measured it
        return [], True
    if not (tokenizers and judge.tokenizers):
        return ["tokenizer: unknown whether it is that of the judge"], True
    if set(tokenizers) <= set(judge.tokenizers):
        return [], True
    told = "tokenizer: not that of the judge"
    if len(judge.tokenizers) > 1 or (weighting == "none" and statistic not in PER_TOKEN):
        return [told], True
    return [f"{told}, values per token differ, so no metric is predicted"], False


def about_metric(judge: Judge) -> list[str]:
    return [f"the judge's truth may be {NOISE}"] if judge.metric.verdict == NOISE else []


def in_words(share: Share) -> str:
    """0.82 [0.77, 0.86]"""
    if share.value is None:
        return "an unknown value"
    ends = "" if share.low is None or share.high is None else f" [{share.low:.2f}, {share.high:.2f}]"
    return f"{share.value:.2f}{ends}"
