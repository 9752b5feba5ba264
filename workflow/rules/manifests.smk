# Scores of the zero-shot head, and from them which images are kept.


rule scores:
    input:
        inputs,
    output:
        f"{STORE}/scores/{{name}}/{{key}}.parquet",
    log:
        "logs/scores/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} scores --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule manifests:
    input:
        inputs,
    output:
        f"{STORE}/manifests/{{name}}/{{key}}.parquet",
    log:
        "logs/manifests/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} manifests --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"
