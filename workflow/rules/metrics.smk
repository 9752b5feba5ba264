# Predictions on real images, and one cell (JSON) per number of a table.


rule predictions:
    input:
        inputs,
    output:
        f"{STORE}/predictions/{{name}}/{{key}}.parquet",
    log:
        "logs/predictions/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} predictions --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule metrics:
    input:
        inputs,
    output:
        f"{STORE}/metrics/{{name}}/{{key}}.json",
    log:
        "logs/metrics/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} metrics --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"
