# Synthetic images (`images`) and the real images of the data sets (`datasets`), as shards: a receipt names the shards.


rule images:
    input:
        inputs,
    output:
        f"{STORE}/images/sets/{{name}}/{{key}}.json",
    log:
        "logs/images/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} images --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule datasets:
    input:
        inputs,
    output:
        f"{STORE}/datasets/sets/{{name}}/{{key}}.json",
    log:
        "logs/datasets/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} datasets --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule all_images:
    input:
        PLAN.paths(PLAN.stage("images")),
