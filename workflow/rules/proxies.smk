# Token statistics to the 80 proxies: per solution in each job, then joined per task.


rule solution_proxies:
    input:
        rules.score.output.token_stats,
    output:
        proxies=f"{RESULTS}/proxies/{{job}}.parquet",
        baselines=f"{RESULTS}/baselines/{{job}}.parquet",
    log:
        f"{RESULTS}/logs/solution_proxies/{{job}}.log",
    resources:
        mem_mb=2000,
    params:
        proxies=STUDY.proxies.model_dump(),
    script:
        "../scripts/solution_proxies.py"


rule join_proxies:
    input:
        proxies=expand(rules.solution_proxies.output.proxies, job=JOBS),
        baselines=expand(rules.solution_proxies.output.baselines, job=JOBS),
    output:
        f"{RESULTS}/proxies.parquet",
    log:
        f"{RESULTS}/logs/join_proxies.log",
    script:
        "../scripts/join_proxies.py"
