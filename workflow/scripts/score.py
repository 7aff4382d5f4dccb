"""Run the checkpoints of one job: write token statistics and, unless a table gives the truth, downstream results."""

import gc
from pathlib import Path

import torch
from proxycast.cluster.gpu_locks import asked_gpus, own_gpus, with_gpus
from proxycast.config.tasks import Task
from proxycast.config.truth import Target
from proxycast.extraction.engines.factory import engines_for
from proxycast.extraction.sweep import extract, side_by_side
from proxycast.jobs import job
from proxycast.solutions.rows import read_problems, read_solutions
from proxycast.study.checkpoint_plan import job_options, require_active_parameters
from proxycast.study.checks import require_vocabulary
from proxycast.study.loader import load_plan
from proxycast.tables import write_json
from proxycast.truth.measurement import evaluate_checkpoints


def score(snakemake) -> None:
    # One thread without a GPU: more threads would sum in another order and round differently.
    torch.set_num_threads(snakemake.threads if torch.cuda.is_available() else 1)
    params, output, code = snakemake.params, snakemake.output, snakemake.params.code
    target, tasks = Target(**params.target), [Task(**task) for task in params.tasks]
    solutions = {Path(path).stem: read_solutions(Path(path)) for path in snakemake.input.solutions}
    problems = {Path(path).stem: read_problems(Path(path)) for path in snakemake.input.problems}
    checkpoints = [(name, Path(folder)) for name, folder, _ in params.checkpoints]
    read = {name for name, _, role in params.checkpoints if role != "target"}
    # Generation is the most expensive measurement. Only the target is measured by it, unless it is the truth.
    generate = {name for name, _ in checkpoints} - (set() if target.is_generated else read)

    require_vocabulary([folder for _, folder in checkpoints], params.vocabulary)
    plan = load_plan(snakemake.config, where="the study")
    require_active_parameters(plan, params.corpus, params.checkpoints)
    token_stats, targets = {}, {}
    wanted = job_options(plan, params.corpus, params.checkpoints)
    all_options = [with_gpus(options, snakemake.resources) for options in wanted]
    engines = engines_for(checkpoints, all_options)
    gc.freeze()  # what is imported stays; an engine that frees a model would look through all of it
    for engine, options, group in engines:
        reading = [(name, folder) for name, folder in group if name in read]
        parts = Path(output.token_stats).parent
        walks = [extract(engine, reading, solutions, options, parts, code=code)]
        if tasks:
            there = generate & {name for name, _ in group}
            parts = Path(output.targets).parent
            walks.append(evaluate_checkpoints(engine, group, tasks, problems, options, there, parts, target, code=code))
        extracted, *evaluated = side_by_side(walks, group)
        token_stats |= extracted
        for found in evaluated:
            targets |= found
        engine.close()

    order = [name for name, _ in checkpoints]
    write_json({name: token_stats[name] for name in order if name in read}, Path(output.token_stats))
    if tasks:
        write_json({name: targets[name] for name in order}, Path(output.targets))


if __name__ == "__main__":  # vLLM's worker processes import this file
    with job(snakemake.log[0]), own_gpus(asked_gpus(snakemake.resources)):
        score(snakemake)
