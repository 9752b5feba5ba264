# Frozen CLIP features of images, once per (image, encoder), and of class prompts: the zero-shot heads.


rule embeddings:
    input:
        inputs,
    output:
        f"{STORE}/embeddings/sets/{{name}}/{{key}}.json",
    log:
        "logs/embeddings/{name}.{key}.log",
    threads: max(1, PLAN.config.embeddings.workers)
    resources:
        gpu=GPU,
    shell:
        "{RUN} embeddings --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule heads:
    input:
        inputs,
    output:
        f"{STORE}/heads/sets/{{name}}/{{key}}.json",
    log:
        "logs/heads/{name}.{key}.log",
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} heads --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule all_embeddings:
    input:
        PLAN.paths(PLAN.stage("embeddings") + PLAN.stage("heads")),
