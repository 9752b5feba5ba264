# Few-shot recognition: the real shots that are drawn, and what is fitted to them. All numbers of shots and all seeds of
# one method on one data set are one job.


rule shots:
    input:
        inputs,
    output:
        f"{STORE}/shots/sets/{{name}}/{{key}}.json",
    log:
        "logs/shots/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} shots --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule few_shot:
    input:
        inputs,
    output:
        f"{STORE}/few_shot/{{name}}/{{key}}.safetensors",
    log:
        "logs/few_shot/{name}.{key}.log",
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} few_shot --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule batch_norm:
    input:
        inputs,
    output:
        f"{STORE}/batch_norm/{{name}}/{{key}}.parquet",
    log:
        "logs/batch_norm/{name}.{key}.log",
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} batch_norm --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"


rule few_shot_metrics:
    input:
        inputs,
    output:
        f"{STORE}/few_shot_metrics/{{name}}/{{key}}.json",
    log:
        "logs/few_shot_metrics/{name}.{key}.log",
    threads: 1
    shell:
        "{RUN} few_shot_metrics --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"
