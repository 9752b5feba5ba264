# The miniature study's small models: `snakemake miniature_models` makes them again from Fashion-MNIST and
# pipeline_lib/miniature/settings.yaml (about two hours on two cores). Their weights ship with the repository, so no
# other rule asks for these files. To ship new ones, copy build/miniature/weights over pipeline_lib/miniature/weights.

MINIATURE = "build/miniature"
MINIATURE_SETTINGS = "pipeline_lib/miniature/settings.yaml"


rule miniature_models:
    input:
        f"{MINIATURE}/weights/clip/README.md",
        f"{MINIATURE}/weights/word_to_sentence/README.md",
        f"{MINIATURE}/weights/text_to_image/README.md",


rule miniature_corpus:
    input:
        settings=MINIATURE_SETTINGS,
    output:
        f"{MINIATURE}/corpora/{{corpus}}/images.npy",
        f"{MINIATURE}/corpora/{{corpus}}/captions.jsonl",
    log:
        "logs/miniature/corpus_{corpus}.log",
    wildcard_constraints:
        corpus="web|loose|curated",
    params:
        out=lambda wildcards, output: str(output[0]).rsplit("/", 1)[0],
    shell:
        "python -m pipeline_lib.miniature.corpus --name {wildcards.corpus} --settings {input.settings}"
        " --out {params.out} 2> {log}"


rule miniature_tokenizer:
    input:
        settings=MINIATURE_SETTINGS,
        corpus=f"{MINIATURE}/corpora/web/captions.jsonl",
    output:
        directory(f"{MINIATURE}/tokenizer"),
    log:
        "logs/miniature/tokenizer.log",
    params:
        corpus=f"{MINIATURE}/corpora/web",
    shell:
        "python -m pipeline_lib.miniature.tokenizer --settings {input.settings} --corpus {params.corpus}"
        " --out {output} 2> {log}"


rule miniature_clip:
    input:
        settings=MINIATURE_SETTINGS,
        corpus=f"{MINIATURE}/corpora/web/captions.jsonl",
        tokenizer=f"{MINIATURE}/tokenizer",
    output:
        directory(f"{MINIATURE}/clip_images"),
    log:
        "logs/miniature/clip.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/web",
        work=f"{MINIATURE}/work/clip",
    shell:
        "python -m pipeline_lib.miniature.clip --settings {input.settings} --corpus {params.corpus}"
        " --tokenizer {input.tokenizer} --work {params.work} --out {output} 2> {log}"


rule miniature_clip_text:
    input:
        settings=MINIATURE_SETTINGS,
        corpus=f"{MINIATURE}/corpora/loose/captions.jsonl",
        clip=f"{MINIATURE}/clip_images",
        tokenizer=f"{MINIATURE}/tokenizer",
    output:
        directory(f"{MINIATURE}/clip"),
    log:
        "logs/miniature/clip_text.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/loose",
    shell:
        "python -m pipeline_lib.miniature.clip_text --settings {input.settings} --corpus {params.corpus}"
        " --clip {input.clip} --tokenizer {input.tokenizer} --out {output} 2> {log}"


rule miniature_word_to_sentence:
    input:
        settings=MINIATURE_SETTINGS,
        corpus=f"{MINIATURE}/corpora/web/captions.jsonl",
        tokenizer=f"{MINIATURE}/tokenizer",
    output:
        directory(f"{MINIATURE}/word_to_sentence"),
    log:
        "logs/miniature/word_to_sentence.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/web",
        work=f"{MINIATURE}/work/word_to_sentence",
    shell:
        "python -m pipeline_lib.miniature.word_to_sentence --settings {input.settings} --corpus {params.corpus}"
        " --tokenizer {input.tokenizer} --work {params.work} --out {output} 2> {log}"


rule miniature_autoencoder:
    input:
        settings=MINIATURE_SETTINGS,
        corpus=f"{MINIATURE}/corpora/curated/captions.jsonl",
    output:
        directory(f"{MINIATURE}/autoencoder"),
    log:
        "logs/miniature/autoencoder.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/curated",
        work=f"{MINIATURE}/work/autoencoder",
    shell:
        "python -m pipeline_lib.miniature.autoencoder --settings {input.settings} --corpus {params.corpus}"
        " --work {params.work} --out {output} 2> {log}"


rule miniature_latents:
    input:
        corpus=f"{MINIATURE}/corpora/curated/images.npy",
        autoencoder=f"{MINIATURE}/autoencoder",
    output:
        f"{MINIATURE}/latents.safetensors",
    log:
        "logs/miniature/latents.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/curated",
    shell:
        "python -m pipeline_lib.miniature.latents --corpus {params.corpus} --autoencoder {input.autoencoder}"
        " --out {output} 2> {log}"


rule miniature_decoder:
    input:
        settings=MINIATURE_SETTINGS,
        latents=f"{MINIATURE}/latents.safetensors",
        autoencoder=f"{MINIATURE}/autoencoder",
        clip=f"{MINIATURE}/clip_images",
    output:
        directory(f"{MINIATURE}/decoder"),
    log:
        "logs/miniature/decoder.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/curated",
        work=f"{MINIATURE}/work/decoder",
    shell:
        "python -m pipeline_lib.miniature.decoder --settings {input.settings} --corpus {params.corpus}"
        " --latents {input.latents} --autoencoder {input.autoencoder} --clip {input.clip}"
        " --work {params.work} --out {output} 2> {log}"


rule miniature_text_to_image:
    input:
        settings=MINIATURE_SETTINGS,
        latents=f"{MINIATURE}/latents.safetensors",
        autoencoder=f"{MINIATURE}/decoder",
        tokenizer=f"{MINIATURE}/tokenizer",
    output:
        directory(f"{MINIATURE}/text_to_image"),
    log:
        "logs/miniature/text_to_image.log",
    threads: 2
    params:
        corpus=f"{MINIATURE}/corpora/curated",
        work=f"{MINIATURE}/work/text_to_image",
    shell:
        "python -m pipeline_lib.miniature.text_to_image --settings {input.settings} --corpus {params.corpus}"
        " --latents {input.latents} --autoencoder {input.autoencoder} --tokenizer {input.tokenizer}"
        " --work {params.work} --out {output} 2> {log}"


rule miniature_judge:
    input:
        settings=MINIATURE_SETTINGS,
    output:
        f"{MINIATURE}/judge.safetensors",
    log:
        "logs/miniature/judge.log",
    threads: 2
    shell:
        "python -m pipeline_lib.miniature.fidelity --settings {input.settings} --out {output} > {log} 2>&1"


rule miniature_cards:
    input:
        clip=f"{MINIATURE}/clip",
        word_to_sentence=f"{MINIATURE}/word_to_sentence",
        text_to_image=f"{MINIATURE}/text_to_image",
        judge=f"{MINIATURE}/judge.safetensors",
    output:
        f"{MINIATURE}/weights/clip/README.md",
        f"{MINIATURE}/weights/word_to_sentence/README.md",
        f"{MINIATURE}/weights/text_to_image/README.md",
    log:
        "logs/miniature/cards.log",
    threads: 2
    params:
        weights=f"{MINIATURE}/weights",
    shell:
        "python -m pipeline_lib.miniature.cards --clip {input.clip} --word-to-sentence {input.word_to_sentence}"
        " --text-to-image {input.text_to_image} --judge {input.judge} --out {params.weights} 2> {log}"
