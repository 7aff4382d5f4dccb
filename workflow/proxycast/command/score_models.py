"""Scores models on expert solutions and prints their order: `proxycast score`. One model at a time is in memory."""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

import polars as pl
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn

from proxycast.command.ranking_screen import print_ranking
from proxycast.config.errors import closest
from proxycast.config.extraction import ExtractionOptions
from proxycast.files import HUB_ID
from proxycast.library.candidate_ranking import rank
from proxycast.library.proxy_values import RECOMMENDED, parsed_name, require_temperatures
from proxycast.library.scoring import score
from proxycast.library.solution_files import Tasks, load_solutions
from proxycast.options import InputError
from proxycast.study.checks import check_folders
from proxycast.tables import fingerprint, write_table


def score_models(
    models: Sequence[str],
    solutions: Sequence[Path],
    tasks: Sequence[str],
    proxies: Sequence[str],
    engine: str,
    out: Path | None,
) -> None:
    """Score each model, print the order under each proxy, and write the token statistics to `out`.

    `models`: folders, or ids of the hub, with @revision if need be. `solutions`: files or folders, as `load_solutions`
    reads them. `tasks`: of these, those that count; empty: all. Raises InputError before the first model runs for what
    can be known then.
    """
    require_temperatures([parsed_name(proxy)[0] for proxy in proxies], False, "--proxies")
    if out is not None:
        require_new_table(out)
    chosen = chosen_tasks(load_solutions(solutions), tasks)
    names = candidate_names(models)
    options = ExtractionOptions(engine=engine)
    folders = {Path(model): options for model in names.values() if Path(model).is_dir()}
    check_folders(folders, [Path(task) for task in chosen], lambda task: chosen[str(task)])
    token_stats = dict(_scored(names, chosen, engine))
    if out is not None:
        tables = [table.with_columns(checkpoint=pl.lit(name)) for name, table in token_stats.items()]
        write_table(pl.concat(tables), out, fingerprint(list(names.items())))
    ranking = rank(token_stats, proxies or RECOMMENDED)
    print_ranking(ranking, {task: len(rows) for task, rows in chosen.items()})
    if out is not None:
        print(f"token statistics: {out}")


def require_new_table(path: Path) -> None:
    if path.suffix != ".parquet":
        raise InputError(f"{path}: found the suffix {path.suffix!r}; token statistics are written as .parquet")
    if path.exists():
        raise InputError(f"{path}: is there already, and is not overwritten; name another file")


def chosen_tasks(found: Tasks, names: Sequence[str]) -> Tasks:
    """The named tasks, or all. `InputError` for one that no file has."""
    for name in names:
        if name not in found:
            raise InputError(f"--tasks: {name!r} is in no file{closest(name, found)}; found {', '.join(found)}")
    return {name: found[name] for name in names or found}


def candidate_names(models: Sequence[str]) -> dict[str, str]:
    """Name -> model, as it was given. A name is as many last parts of the path as tell all models apart.

    `InputError` for a model that is given twice, or that is neither a folder with config.json nor an id of the hub.
    """
    for model in models:
        if not Path(model).is_dir():
            _require_hub_id(model)
        elif not (Path(model) / "config.json").is_file():
            raise InputError(
                f"{model}: found no config.json; a model's folder has config.json, weights and a tokenizer"
            )
    parts = [Path(model).resolve().parts if Path(model).is_dir() else (model,) for model in models]
    if twice := [model for model, place in zip(models, parts) if parts.count(place) > 1]:
        raise InputError(f"{twice[0]}: given twice; give each model once")
    names = (["/".join(place[-length:]) for place in parts] for length in range(1, max(map(len, parts)) + 1))
    return dict(zip(next(found for found in names if len(set(found)) == len(found)), models))


def _require_hub_id(model: str) -> None:
    name = model.partition("@")[0]
    if not re.fullmatch(HUB_ID, name):
        raise InputError(f"{model}: no such folder, and no id of the hub, which is owner/name or owner/name@revision")
    if "/" in name and Path(name).parent.is_dir():
        raise InputError(f"{model}: no such folder in {Path(name).parent}")


def _scored(names: Mapping[str, str], tasks: Tasks, engine: str) -> Iterator[tuple[str, pl.DataFrame]]:
    """Name -> token statistics, with a progress bar on stderr."""
    columns = TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        progress = bar.add_task("models", total=len(names))
        for name, model in names.items():
            bar.update(progress, description=name)
            source, _, revision = (model, "", "") if Path(model).is_dir() else model.partition("@")
            at = {"revision": revision} if revision else {}
            yield name, score(source, tasks, checkpoint=name, engine=engine, **at)
            bar.advance(progress)
