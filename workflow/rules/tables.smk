# Tables and figures, gathered from their cells, and contact sheets. A table comes with the pictures that it rests on.


rule tables:
    input:
        lambda wildcards: result_inputs(table_job(wildcards.table), f"{RESULTS}/{wildcards.table}.csv"),
        # Not ancient: a job of which all inputs are is not looked at when something before it runs.
        sheets=lambda wildcards: sheets(wildcards.table),
    output:
        csv=f"{RESULTS}/{{table}}.csv",
        markdown=f"{RESULTS}/{{table}}.md",
        metrics=f"{RESULTS}/{{table}}.json",
    log:
        "logs/tables/{table}.log",
    params:
        key=lambda wildcards: table_job(wildcards.table).short_key,
    shell:
        "{RUN} tables --spec {STORE:q}/specs/{params.key}.json --out {output.csv:q} --store {STORE:q} --log {log}"


rule figures:
    input:
        lambda wildcards: result_inputs(table_job(wildcards.figure), f"{RESULTS}/{wildcards.figure}.csv"),
        sheets=lambda wildcards: sheets(wildcards.figure),
    output:
        csv=f"{RESULTS}/{{figure}}.csv",
        markdown=f"{RESULTS}/{{figure}}.md",
        metrics=f"{RESULTS}/{{figure}}.json",
        png=f"{RESULTS}/{{figure}}.png",
        svg=f"{RESULTS}/{{figure}}.svg",
    log:
        "logs/tables/{figure}.log",
    params:
        key=lambda wildcards: table_job(wildcards.figure).short_key,
    shell:
        "{RUN} tables --spec {STORE:q}/specs/{params.key}.json --out {output.csv:q} --store {STORE:q} --log {log}"


rule samples:
    input:
        lambda wildcards: result_inputs(SHEETS[wildcards.sheet], f"{RESULTS}/samples/{wildcards.sheet}.png"),
    output:
        f"{RESULTS}/samples/{{sheet}}.png",
    log:
        "logs/samples/{sheet}.log",
    params:
        key=lambda wildcards: SHEETS[wildcards.sheet].short_key,
    shell:
        "{RUN} samples --spec {STORE:q}/specs/{params.key}.json --out {output:q} --store {STORE:q} --log {log}"
