# Classifier tuning on cached features, all seeds in one process.


rule classifiers:
    input:
        inputs,
    output:
        f"{STORE}/classifiers/{{name}}/{{key}}.safetensors",
    log:
        "logs/classifiers/{name}.{key}.log",
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} classifiers --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"
