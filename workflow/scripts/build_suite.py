"""Write the miniature suite: documents, tokenizers, held-out text, problems; stop if any is invalid or leaked."""

import logging
from pathlib import Path

import polars as pl
from proxycast.jobs import job
from proxycast.solutions.rows import Solution, write_solutions
from proxycast.study.checkpoint_plan import plan_checkpoints
from proxycast.study.checks import check_inputs
from proxycast.study.loader import load_plan
from proxycast.tables import atomic, write_table
from proxycast.training.miniature.leaks import count_leaks, require_no_leak
from proxycast.training.miniature.problems import bare_question
from proxycast.training.miniature.recipes import describe_documents, pool_fingerprint
from proxycast.training.miniature.sources import held_out_text, write_sources
from proxycast.training.miniature.step_problems import STEP_FAMILIES, suite_problems
from proxycast.training.miniature.suite_tokenizer import save_tokenizer, train_tokenizer

with job(snakemake.log[0]):
    # The whole study is no parameter of the rule: a changed corpus is checked, but does not rebuild the suite.
    plan = load_plan(snakemake.config, f"study {snakemake.config['study']}")
    suite, output = plan.study.miniature, snakemake.output
    documents = write_sources(suite.seed, suite.scale, suite.step_documents)
    texts = held_out_text(suite.generic_documents, suite.seed)
    problems = {name: suite_problems(name, suite.problems, suite.seed) for name in snakemake.params.families}
    # A problem with two solutions asks one question. Solutions of several steps repeat it; those of facts are shared.
    asked = [bare_question(row.prompt) for rows in problems.values() for row in rows]
    asked += [row.solution.strip() for name in problems if name in STEP_FAMILIES for row in problems[name]]
    questions = list(dict.fromkeys(asked))

    leaks = count_leaks(documents["text"].to_list(), questions, texts)
    logging.info("leaks: %s", leaks)
    require_no_leak(leaks)
    with atomic(Path(output.leaks)) as temporary:
        pl.DataFrame([leaks]).write_csv(temporary)

    sample = documents["text"].sample(min(12_000, len(documents)), seed=suite.seed)
    tokenizer = train_tokenizer(sample, suite.vocabulary)
    others = {name: train_tokenizer(sample, vocabulary) for name, vocabulary in suite.tokenizers.items()}
    for trained, path in zip([tokenizer, *others.values()], [output.tokenizer, *output.tokenizers], strict=True):
        save_tokenizer(trained, Path(path).parent)
    generic = [Solution(id=f"text-{n:03d}", prompt="", solution=text) for n, text in enumerate(texts)]
    write_solutions(generic, Path(output.generic_text))
    for solutions, path in zip(problems.values(), output.problems, strict=True):
        write_solutions(solutions, Path(path))
    pool = describe_documents(documents, tokenizer, suite.seed, others)
    write_table(pool, Path(output.pool), pool_fingerprint(suite))
    check_inputs(plan, plan_checkpoints(plan))
