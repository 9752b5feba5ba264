# Tables, gathered from their cells, and contact sheets. A table comes with the pictures that it rests on.


rule tables:
    input:
        ancient(lambda wildcards: PLAN.inputs(PLAN.tables[wildcards.table].short_key)),
        sheets=lambda wildcards: [
            f"{RESULTS}/samples/{dataset}.{strategy}.png" for dataset, strategy in PLAN.sample_sheets(wildcards.table)
        ],
    output:
        csv=f"{RESULTS}/{{table}}.csv",
        markdown=f"{RESULTS}/{{table}}.md",
        metrics=f"{RESULTS}/{{table}}.json",
    log:
        "logs/tables/{table}.log",
    params:
        key=lambda wildcards: PLAN.tables[wildcards.table].short_key,
    shell:
        "{RUN} tables --spec {STORE:q}/specs/{params.key}.json --out {output.csv:q} --store {STORE:q} --log {log}"


rule samples:
    input:
        ancient(lambda wildcards: PLAN.inputs(SAMPLE_JOBS[wildcards.sheet].short_key)),
    output:
        f"{RESULTS}/samples/{{sheet}}.png",
    log:
        "logs/samples/{sheet}.log",
    params:
        key=lambda wildcards: SAMPLE_JOBS[wildcards.sheet].short_key,
    shell:
        "{RUN} samples --spec {STORE:q}/specs/{params.key}.json --out {output:q} --store {STORE:q} --log {log}"
