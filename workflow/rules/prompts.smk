# What the generator is asked to draw: one file of prompts per class, a receipt per data set and strategy.


rule prompts:
    input:
        inputs,
    output:
        f"{STORE}/prompts/sets/{{name}}/{{key}}.json",
    log:
        "logs/prompts/{name}.{key}.log",
    threads: 1
    resources:
        gpu=GPU,
    shell:
        "{RUN} prompts --spec {STORE:q}/specs/{wildcards.key}.json --out {output:q} --store {STORE:q}"
        " --threads {threads} --log {log}"
