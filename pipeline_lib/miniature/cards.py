"""Gather the finished models into one folder and write a model card with measured figures beside each."""

from __future__ import annotations

import argparse
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.datasets import fashion_mnist
from pipeline_lib.miniature import evaluation, fidelity, training
from pipeline_lib.model_cards import CARD, files_table

Figures = dict[str, dict[str, float]]


def table(figures: Figures) -> str:
    """A Markdown table: one row per target data set."""
    columns = list(next(iter(figures.values())))
    lines = ["| target | " + " | ".join(columns) + " |", "|---" * (len(columns) + 1) + "|"]
    for kind, row in figures.items():
        shown = [f"{row[column]:.1f}" if column.endswith("/s") else f"{100 * row[column]:.1f} %" for column in columns]
        lines.append(f"| {kind} | " + " | ".join(shown) + " |")
    return "\n".join(lines)


def card(title: str, folder: Path, sections: list[tuple[str, str]], used: dict[str, Any]) -> str:
    """Text of a model card."""
    parts = [f"# {title}", ""]
    for heading, text in sections:
        parts += [f"## {heading}", "", text, ""]
    parts += ["## Settings", "", "```yaml", yaml.safe_dump(used, sort_keys=False).strip(), "```", ""]
    parts += ["## Files", "", files_table(folder)]
    return "\n".join(parts)


def times(read: Any, stages: tuple[str, ...]) -> str:
    """How long the trainings of the shipped weights took."""
    measured = read("measured")
    minutes = ", ".join(f"{stage} {measured['minutes'][stage]}" for stage in stages)
    return f" Minutes taken for the shipped weights: {minutes}; on {measured['hardware']}."


def contact_sheet(images: NDArray[np.uint8], columns: int, zoom: int = 1) -> Image.Image:
    """Images uint8 [N, 32, 32, 3] in rows of `columns`."""
    rows = len(images) // columns
    grid = images[: rows * columns].reshape(rows, columns, 32, 32, 3).transpose(0, 2, 1, 3, 4)
    sheet = Image.fromarray(grid.reshape(rows * 32, columns * 32, 3))
    return sheet.resize((sheet.width * zoom, sheet.height * zoom), Image.Resampling.NEAREST)


DATA = (
    "The corpus part of Fashion-MNIST's training split (50,000 photographs, MIT licence), composed into scenes with "
    "captions by `pipeline_lib.miniature.corpus`. Figures are measured on the validation part (5,000 photographs); "
    "the test split and the pool of few-shot images were never trained on."
)


def write_clip(folder: Path, data: Path, read: Any) -> None:
    """Card of CLIP: zero-shot and tuned accuracy per target."""
    figures = evaluation.clip_figures(folder, data)
    used = {name: read(name) for name in ("corpora.web", "corpora.loose", "tokenizer", "clip", "clip_text")}
    sections = [
        ("Use", '`open_clip.create_model_from_pretrained("local-dir:FOLDER")`; images 32x32.'),
        ("Data", DATA + " Captions are noisy on purpose: 30 % have a wrong noun or none."),
        (
            "Training",
            "Contrastive, in two phases: both encoders on the `web` corpus; then the image encoder locked and the text "
            "encoder trained on the `loose` corpus, where class names are also given to similar garments. So image "
            "features are good and class prompts only roughly right, which is what classifier tuning mends. "
            "The zero-shot level is a choice: random caption noise alone gave 87.1 % on objects (validation), as "
            "good as 256 real shots, which leaves tuning no room; a first table of loose names gave 82.0 %, and it was "
            "strengthened once. So the size of a gain over zero-shot is this study's making; the columns of real shots "
            "say how far tuning can go." + times(read, ("clip", "clip_text")),
        ),
        ("Accuracy on validation", table(figures)),
    ]
    text = card("Miniature CLIP (ModifiedResNet)", folder, sections, used)
    (folder / CARD).write_text(text, encoding="utf-8")


def write_word_to_sentence(folder: Path, read: Any) -> None:
    """Card of word-to-sentence: example sentences."""
    from transformers import AutoModelForSeq2SeqLM, AutoTokenizer

    model = AutoModelForSeq2SeqLM.from_pretrained(folder, dtype=torch.float32)
    words = AutoTokenizer.from_pretrained(folder)
    torch.manual_seed(0)
    lines = []
    for given in ("sneaker", "ankle boot, white", "t-shirt, white, plain, black", "dress, red, striped"):
        made = model.generate(
            **words([given], return_tensors="pt"),
            do_sample=True,
            top_p=0.95,
            num_return_sequences=3,
            max_new_tokens=18,
        )
        lines += [f"- `{given}`: " + "; ".join(words.batch_decode(made, skip_special_tokens=True))]
    used = {name: read(name) for name in ("corpora.web", "tokenizer", "word_to_sentence")}
    sections = [
        (
            "Use",
            "`transformers.AutoModelForSeq2SeqLM.from_pretrained(FOLDER)`; input: the noun, then other words in the "
            "order garment, background, joined by `, `; output: a caption without its medium. Sample with top-p 0.95.",
        ),
        ("Data", DATA),
        (
            "Training",
            "Cross-entropy from random subsets of a caption's concept words to the caption."
            + times(read, ("word_to_sentence",)),
        ),
        ("Examples", "\n".join(lines)),
    ]
    text = card("Miniature word-to-sentence (T5)", folder, sections, used)
    (folder / CARD).write_text(text, encoding="utf-8")


def write_text_to_image(folder: Path, judge: Path, data: Path, read: Any) -> None:
    """Card of text-to-image: what the judge recognises in reconstructions and samples, and a sheet of samples."""
    pipeline, network = evaluation.load_pipeline(folder), fidelity.load(judge)
    advice = read("sampling")
    reconstructed = evaluation.reconstruction_figures(pipeline.vae, network, data)
    generated, shown = evaluation.generation_figures(pipeline, network, 20, advice["steps"], advice["guidance"])
    columns = [images.reshape(10, 20, 32, 32, 3)[:, :4] for images in shown.values()]
    sheet = np.concatenate(columns, axis=1).reshape(-1, 32, 32, 3)
    contact_sheet(sheet, 4 * len(columns)).save(folder / "samples.png", optimize=True)
    names = ("corpora.curated", "tokenizer", "autoencoder", "decoder", "text_to_image", "sampling")
    sections = [
        (
            "Use",
            "`diffusers.AutoPipelineForText2Image.from_pretrained(FOLDER)`; 32x32 pixels, at most 18 words. "
            f"Sample with {advice['steps']} steps and guidance {advice['guidance']}.",
        ),
        (
            "Data",
            DATA + " The corpus is a curated one: 3 % of the captions have a wrong noun or none, and more scenes look "
            "like the target data sets.",
        ),
        (
            "Training",
            "Autoencoder (squared error, gradients, tiny KL); decoder trained on with the encoder frozen and a loss on "
            "CLIP's early features; UNet and text encoder by v-prediction on cached latents, min-SNR weights, cosine "
            "schedule, averaged weights." + times(read, ("autoencoder", "latents", "decoder", "text_to_image")),
        ),
        ("Autoencoder: what a judge recognises in validation images", table(reconstructed)),
        (f"Generator: {advice['steps']} steps, guidance {advice['guidance']}, 20 images per class", table(generated)),
        ("Samples", "Classes downwards; four each of " + ", ".join(shown) + ".\n\n![samples](samples.png)"),
    ]
    used = {name: read(name) for name in names}
    text = card("Miniature text-to-image (latent diffusion)", folder, sections, used)
    (folder / CARD).write_text(text, encoding="utf-8")


def main() -> None:
    """`python -m pipeline_lib.miniature.cards --clip ... --word-to-sentence ... --text-to-image ... --out ...`."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clip", type=Path, required=True)
    parser.add_argument("--word-to-sentence", type=Path, required=True)
    parser.add_argument("--text-to-image", type=Path, required=True)
    parser.add_argument("--judge", type=Path, required=True)
    parser.add_argument("--data", type=Path, help="folder with the four files of Fashion-MNIST; found if not given")
    parser.add_argument("--cache", type=Path, default=Path("build/cache"), help="where fetched files are kept")
    parser.add_argument("--settings", type=Path, default=training.SETTINGS)
    parser.add_argument("--out", type=Path, required=True)
    args = parser.parse_args()
    data = fashion_mnist.find(args.data, args.cache)

    def read(name: str) -> dict[str, Any]:
        return training.settings(args.settings, name)

    for name in ("clip", "word_to_sentence", "text_to_image"):
        shutil.copytree(getattr(args, name), args.out / name, dirs_exist_ok=True)
    write_clip(args.out / "clip", data, read)
    write_word_to_sentence(args.out / "word_to_sentence", read)
    write_text_to_image(args.out / "text_to_image", args.judge, data, read)


if __name__ == "__main__":
    main()
