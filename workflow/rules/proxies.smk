# Token statistics to the 80 proxies: one job for each corpus, which reads one run after the other.

SCORED_CORPORA = list(dict.fromkeys(checkpoint.corpus for checkpoint in SCORED))
JOBS_OF = {corpus: [job for job, found in JOBS.items() if found[0].corpus == corpus] for corpus in SCORED_CORPORA}


# Proxies whose values of single solutions are kept, for bootstraps over solutions.
POOLED = [name.split("/") for name in STUDY.forecasting.proxies if "/" in name] if STUDY.forecasting else []
KEPT = [proxy.model_dump() for proxy in STUDY.highlighted] + [{"statistic": s, "weighting": w} for s, w in POOLED]


def kept_checkpoints(wildcards):
    """Whose values of single solutions are kept; None: of all. A data selection ranks with them at its budgets."""
    if not PLAN.selects_data:
        return None
    budgets = {(budget.size, budget.step) for budget in STUDY.budgets}
    found = [c for job in JOBS_OF[wildcards.corpus] for c in JOBS[job]]
    return [c.checkpoint for c in found if (c.size, c.step) in budgets]


rule solution_proxies:
    input:
        token_stats=lambda wildcards: expand(rules.score.output.token_stats, job=JOBS_OF[wildcards.corpus]),
        solutions=SOLUTIONS if STUDY.model_selection else [],
        experts=EXPERTS,
    output:
        **({"subsets": f"{RESULTS}/subsets/{{corpus}}.parquet"} if STUDY.model_selection else {}),
        proxies=f"{RESULTS}/proxies/{{corpus}}.parquet",
        of_solutions=f"{RESULTS}/solution_proxies/{{corpus}}.parquet",
    log:
        f"{RESULTS}/logs/solution_proxies/{{corpus}}.log",
    benchmark:
        f"{RESULTS}/benchmarks/solution_proxies/{{corpus}}.tsv"
    resources:
        mem_mb=grown(4000),
    params:
        code=CODE["solution_proxies"],
        proxies=STUDY.proxies.model_dump(),
        tails=(STUDY.extraction.tail_tokens, STUDY.extraction.tail_bytes),
        kept=KEPT,
        kept_checkpoints=kept_checkpoints,
        model_selection=STUDY.model_selection.model_dump() if STUDY.model_selection else {},
        seed=STUDY.selection.seed if STUDY.model_selection else None,
    script:
        "../scripts/solution_proxies.py"


rule join_proxies:
    input:
        expand(rules.solution_proxies.output.proxies, corpus=SCORED_CORPORA),
    output:
        f"{RESULTS}/proxies.parquet",
    log:
        f"{RESULTS}/logs/join_proxies.log",
    resources:
        mem_mb=grown(2000),
    params:
        code=CODE["join_proxies"],
    script:
        "../scripts/join_proxies.py"
