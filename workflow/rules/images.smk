# Synthetic images (`images`) and the real images of the data sets (`real_images`), as shards: a receipt names the shards.


rule images:
    input:
        inputs,
    output:
        f"{STORE}/images/sets/{{name}}/{{key}}.json",
    log:
        "logs/images/{name}.{key}.log",
    threads: ENCODING_THREADS if GPU else 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} images --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule real_images:
    input:
        inputs,
    output:
        f"{STORE}/real_images/sets/{{name}}/{{key}}.json",
    log:
        "logs/real_images/{name}.{key}.log",
    threads: 8  # as many as decode images (datasets/preparation.py)
    shell:
        "{RUN} real_images --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule all_images:
    input:
        PLAN.paths(PLAN.stage("images") + PLAN.stage("real_images")),
