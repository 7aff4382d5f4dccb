# From token statistics to the 80 proxies: one job for each corpus, which reads its runs one by one.
from proxycast.experiments.judges.judge_limits import judge_proxies
from proxycast.proxy_formulas import BASELINES, STATISTICS, TEMPERED, WEIGHTINGS
from proxycast.study.checkpoints import budgets_of_rates, compared_rates, up_to

SCORED_CORPORA = list(dict.fromkeys(checkpoint.corpus for checkpoint in SCORED))
JOBS_OF = {corpus: [job for job, found in JOBS.items() if found[0].corpus == corpus] for corpus in SCORED_CORPORA}


RATES = compared_rates(PLAN, CHECKPOINTS)

# Proxies whose values are also kept per solution, for bootstraps over solutions.
POOL = STUDY.forecasting.proxies if STUDY.forecasting else []
POOLED = [parts for name in POOL if len(parts := name.split("/")) == 2]
KEPT = [{"statistic": s, "weighting": w} for s, w in POOLED]
KEPT += [proxy.model_dump() for proxy in STUDY.highlighted] if not STUDY.forecasting else []
JUDGES_MODELS = bool(STUDY.model_selection and STUDY.target)
if JUDGES_MODELS:  # scorers need all of them
    KEPT = [{"statistic": s, "weighting": w} for s in STATISTICS for w in WEIGHTINGS]
TEMPERATURES = STUDY.extraction.temperatures
if PLAN.selects_models or PLAN.selects_data:  # ratios are baselines of every ranking
    KEPT += [{"statistic": s, "weighting": "none"} for s in (BASELINES | TEMPERED if TEMPERATURES else BASELINES)]
KEPT += [{"statistic": s, "weighting": w} for judge in PLAN.judges.values() for s, w in judge_proxies(judge)]


def kept_checkpoints(wildcards):
    """Checkpoints whose values are kept per solution; None: all. Data selection needs them at its budgets."""
    if not PLAN.selects_data:
        return None
    found = [c for job in JOBS_OF[wildcards.corpus] for c in JOBS[job]]
    return [c.checkpoint for c in up_to(found, [*BUDGETS, *budgets_of_rates(RATES)], STUDY.selection.last_checkpoints)]


rule solution_proxies:
    input:
        token_stats=lambda wildcards: expand(rules.score.output.token_stats, job=JOBS_OF[wildcards.corpus]),
        solutions=SOLUTIONS if JUDGES_MODELS else [],
        experts=EXPERTS,
    output:
        **({"subsets": f"{RESULTS}/subsets/{{corpus}}.parquet"} if JUDGES_MODELS else {}),
        **({"temperatures": f"{RESULTS}/temperatures/{{corpus}}.parquet"} if TEMPERATURES else {}),
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
        model_selection=STUDY.model_selection.model_dump() if JUDGES_MODELS else {},
        seed=STUDY.selection.seed if JUDGES_MODELS else None,
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


if TEMPERATURES:

    rule join_temperatures:
        input:
            expand(rules.solution_proxies.output.temperatures, corpus=SCORED_CORPORA),
        output:
            f"{RESULTS}/temperatures.parquet",
        log:
            f"{RESULTS}/logs/join_temperatures.log",
        params:
            code=CODE["join_proxies"],
        script:
            "../scripts/join_proxies.py"
