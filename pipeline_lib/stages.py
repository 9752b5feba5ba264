"""The stages: each reads its inputs from the store, calls the module that does the work, and writes its artifact.

Together they are the data flow: prompts -> images -> embeddings -> scores -> manifest -> classifier -> predictions ->
metrics -> tables. What computes lives in the modules named after the nouns; torch is imported only where it computes.
"""

import logging
from collections.abc import Callable, Sequence
from functools import cache
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.records import MANIFEST, SCORES, Cell, predictions_schema
from pipeline_lib.sets import make_set, member_paths, read_receipt
from pipeline_lib.store import Artifact, Store, atomic_path, write_json
from pipeline_lib.timings import phase

log = logging.getLogger(__name__)
SHARDS_PER_ROUND = 4  # shards that a job claims at a time: data sets with classes in common share their drawing


def prompts(artifact: Artifact, store: Store) -> None:
    """The prompts of some classes, of whichever data sets."""
    from pipeline_lib.prompts import SentenceModel, class_prompts, write_prompts

    def make(units: Sequence[Artifact]) -> None:
        first = units[0]
        needs_model = first.spec["strategy"] == "language_enhancement"
        model = SentenceModel(first.location["model"], first.location["revision"]) if needs_model else None
        for unit in units:
            table, counts = class_prompts(unit.spec, model)
            with store.making(unit, counts) as path:
                write_prompts(table, path)

    make_set(artifact, store, make)


def images(artifact: Artifact, store: Store) -> None:
    """The synthetic images of some classes of a data set."""
    from pipeline_lib.generators import Generator
    from pipeline_lib.images import make_shards

    location, spec = artifact.members[0].location, artifact.members[0].spec

    @cache
    def load() -> Generator:
        from pipeline_lib.generators.latent_diffusion import LatentDiffusion

        return LatentDiffusion(location["model"], location["revision"], spec)

    def make(units: Sequence[Artifact]) -> None:
        make_shards(units, store, load, location["batch_size"])

    make_set(artifact, store, make, SHARDS_PER_ROUND)


def datasets(artifact: Artifact, store: Store) -> None:
    """The real images of a split, as shards."""
    from pipeline_lib.datasets.loaders import real_images
    from pipeline_lib.shards import write_shard

    def make(units: Sequence[Artifact]) -> None:
        for unit in units:
            rows = list(real_images(unit.spec, unit.location))
            with store.making(unit) as path:
                write_shard(rows, path, unit.spec)

    make_set(artifact, store, make)


def embeddings(artifact: Artifact, store: Store) -> None:
    """Features of every image of a set of shards."""
    from pipeline_lib.embeddings import COPIED, write_embeddings
    from pipeline_lib.encoders import Encoder
    from pipeline_lib.progress import Progress
    from pipeline_lib.shards import decode_image, read_rows

    def make(units: Sequence[Artifact]) -> None:
        encoder = Encoder(**units[0].location)

        def encode(batch: Sequence[Image.Image]) -> NDArray[np.float32]:
            with phase("embedding"):
                return encoder.images(batch)

        total = sum(pq.read_metadata(store.path(unit.spec["images"])).num_rows for unit in units)
        with Progress("embeddings", total, "image") as progress:
            for unit in units:
                source = store.path(unit.spec["images"])
                rows, features = [], []
                for row in read_rows(source, ["image"]):
                    rows.append(decode_image(row["image"]["bytes"]))
                    if len(rows) == encoder.batch_size:
                        features.append(encode(rows))
                        progress.update(len(rows))
                        rows = []
                if rows:
                    features.append(encode(rows))
                    progress.update(len(rows))
                with store.making(unit, {"device": encoder.device}) as path:
                    write_embeddings(pq.read_table(source, columns=list(COPIED)), np.concatenate(features), path)

    make_set(artifact, store, make)


def heads(artifact: Artifact, store: Store) -> None:
    """The zero-shot heads: the class prompts are encoded once per data set."""
    from pipeline_lib.classifiers.head import save_head, zero_shot_head
    from pipeline_lib.encoders import Encoder

    def make(units: Sequence[Artifact]) -> None:
        encoder = Encoder(**units[0].location)
        for unit in units:
            names, templates = unit.spec["class_names"], unit.spec["templates"]
            text = encoder.text([template.replace("{}", name) for name in names for template in templates])
            head = zero_shot_head(text.reshape(len(names), len(templates), -1), encoder.logit_scale, names)
            with store.making(unit, {"device": encoder.device}) as path:
                save_head(path, head, {"key": unit.key})

    make_set(artifact, store, make)


def scores(artifact: Artifact, store: Store) -> None:
    """How sure the zero-shot head is that each synthetic image shows its class."""
    from pipeline_lib.classifiers.head import load_head
    from pipeline_lib.embeddings import read_embeddings
    from pipeline_lib.scores import score

    spec = artifact.spec
    head = load_head(store.path(spec["head"]), spec["class_names"])
    found = read_embeddings(store, member_paths(store, spec["embeddings"]))
    class_index = found.class_index(spec["class_names"])
    result = score(found.features, class_index, head)
    columns = {
        "image_id": found.table["image_id"],
        "class_index": class_index,
        "prompt": found.table["prompt"],
        "seed": found.table["seed"],
        "valid": found.table["valid"],
        "own_probability": result.own_probability,
        "predicted_class": result.predicted_class,
        "max_probability": result.max_probability,
    }
    with store.making(artifact) as path:
        pq.write_table(pa.table(columns, schema=SCORES), path, compression="zstd")


def manifests(artifact: Artifact, store: Store) -> None:
    """Which images are kept, and why. Reads scores only: re-cutting encodes nothing."""
    from pipeline_lib.manifests import Reason, counts_per_class, resolve_threshold, select

    spec = artifact.spec
    table = pq.read_table(store.path(spec["scores"]), schema=SCORES)
    cut = spec["filter"]
    class_index = table["class_index"].to_numpy()
    selection = select(
        class_index,
        table["own_probability"].to_numpy(),
        table["valid"].to_numpy(zero_copy_only=False),
        spec["n_classes"],
        resolve_threshold(cut["threshold"], spec["n_classes"]) if cut else None,
        cut["per_class"] if cut else None,
        cut["min_per_class"] if cut else 0,
        spec["seed"],
    )
    names = pa.array([reason.name.lower() for reason in Reason])
    reasons = pa.DictionaryArray.from_arrays(pa.array(selection.reason), names)
    head = pa.DictionaryArray.from_arrays(pa.array(np.zeros(len(table), np.int8)), pa.array([spec["head"]]))
    columns = [*table.columns, pa.array(selection.kept), reasons, head]
    counts = counts_per_class(class_index, selection.reason, spec["n_classes"]).sum(axis=0)
    details = {reason.name.lower(): int(count) for reason, count in zip(Reason, counts, strict=True) if count}
    log.info("%s: %d of %d images kept; %s", artifact.folder, int(selection.kept.sum()), len(table), details)
    with store.making(artifact, details) as path:
        pq.write_table(pa.table(columns, schema=MANIFEST), path, compression="zstd")


def classifiers(artifact: Artifact, store: Store) -> None:
    """Heads tuned on the kept images, one per seed."""
    from pipeline_lib.classifiers.head import load_head, save_heads
    from pipeline_lib.classifiers.tuning import TuningSettings, tune
    from pipeline_lib.embeddings import read_embeddings

    spec = artifact.spec
    initial = load_head(store.path(spec["head"]))
    found = read_embeddings(store, member_paths(store, spec["embeddings"]))
    manifest = pq.read_table(store.path(spec["manifest"]), columns=["image_id", "class_index", "kept"])
    if not manifest["image_id"].equals(found.table["image_id"]):
        raise ValueError(f"{spec['manifest']} and its embeddings do not list the same images in the same order")
    kept = manifest["kept"].to_numpy(zero_copy_only=False)
    features = found.features[kept]
    settings = TuningSettings(
        epochs=spec["epochs"],
        learning_rate=spec["learning_rate"],
        weight_decay=spec["weight_decay"],
        batch_size=spec["batch_size"],
        soft_target_weight=spec.get("soft_target_weight", 0.0),
        temperature=spec.get("temperature", 1.0),
    )
    soft_targets = initial.logits(features) if spec["loss"] == "sce" else None
    labels = manifest["class_index"].to_numpy()[kept].astype(np.int64)
    with phase("tuning"):
        tuned = tune(features, labels, initial, settings, spec["seeds"], soft_targets)
    details = {
        "n_images": int(kept.sum()),
        "steps": tuned[0].steps,
        "epoch_losses": [round(loss, 5) for loss in tuned[0].epoch_losses],
        "empty_classes": list(tuned[0].empty_classes),
    }
    log.info("%s: %d heads on %d images, %d steps each", artifact.folder, len(tuned), kept.sum(), tuned[0].steps)
    with store.making(artifact, details) as path:
        save_heads(path, {result.seed: result.head for result in tuned}, {"key": artifact.key})


def predictions(artifact: Artifact, store: Store) -> None:
    """What the zero-shot and the tuned heads say of every real image."""
    from pipeline_lib.classifiers.head import load_head, load_heads
    from pipeline_lib.embeddings import read_embeddings

    spec = artifact.spec
    found = read_embeddings(store, member_paths(store, [spec["embeddings"]]))
    zero_shot = load_head(store.path(spec["head"]), spec["class_names"])
    tuned = load_heads(store.path(spec["classifier"]), spec["class_names"])
    by_seed = np.stack([head.logits(found.features).argmax(axis=1) for head in tuned.values()], axis=1)
    schema = predictions_schema(len(tuned))
    columns = [
        found.table["image_id"],
        found.table["source_id"],
        pa.array(found.class_index(spec["class_names"])),
        pa.array(zero_shot.logits(found.features).argmax(axis=1).astype(np.int32)),
        pa.FixedSizeListArray.from_arrays(pa.array(by_seed.astype(np.int32).reshape(-1)), len(tuned)),
    ]
    with store.making(artifact) as path:
        pq.write_table(pa.table(columns, schema=schema), path, compression="zstd")


def metrics(artifact: Artifact, store: Store) -> None:
    """One cell of a table: accuracies, the gain and its interval."""
    from pipeline_lib.metrics.cells import evaluate

    spec = artifact.spec
    n_kept = int(
        np.sum(pq.read_table(store.path(spec["manifest"]), columns=["kept"])["kept"].to_numpy(zero_copy_only=False))
    )
    cell = evaluate(spec, pq.read_table(store.path(spec["predictions"])), n_kept)
    with store.making(artifact) as path:
        path.write_text(cell.model_dump_json(indent=1) + "\n", encoding="utf-8")


def tables(artifact: Artifact, store: Store, out: Path) -> None:
    """A table as CSV, Markdown and JSON metrics, gathered from its cells."""
    from pipeline_lib.tables import TABLES, as_csv, as_markdown, as_metrics

    spec = artifact.spec
    cells = [Cell.model_validate_json(store.path(name).read_bytes()) for name in spec["cells"]]
    rows = TABLES[spec["table"]](cells, lambda name: pq.read_table(store.path(name)), spec["bootstrap_resamples"])
    with atomic_path(out.with_suffix(".md")) as path:
        path.write_text(as_markdown(spec["table"], rows, spec["study"], cells), encoding="utf-8")
    write_json(out.with_suffix(".json"), as_metrics(spec["table"], rows))
    with store.making(artifact, path=out) as path:
        path.write_text(as_csv(spec["table"], rows), encoding="utf-8")


def samples(artifact: Artifact, store: Store, out: Path) -> None:
    """A contact sheet, so that a person can look."""
    from pipeline_lib.figures import contact_sheet
    from pipeline_lib.shards import decode_image, read_rows

    sheet: dict[str, list[Image.Image]] = {}
    for name in artifact.spec["images"]:
        for member in read_receipt(store.path(name)).members:
            for row in read_rows(store.path(member.path), ["class_name", "image"]):
                column = sheet.setdefault(row["class_name"], [])
                if len(column) == artifact.spec["per_class"]:
                    break
                column.append(decode_image(row["image"]["bytes"]))
    with store.making(artifact, path=out) as path:
        contact_sheet(sheet, f"{artifact.spec['dataset']}, {artifact.spec['strategy']}", path)


STAGES: dict[str, Callable[[Artifact, Store], None]] = {
    stage.__name__: stage
    for stage in (
        prompts,
        images,
        datasets,
        embeddings,
        heads,
        scores,
        manifests,
        classifiers,
        predictions,
        metrics,
    )
}
# Stages whose artifact lies where people look, not in the store.
RESULTS: dict[str, Callable[[Artifact, Store, Path], None]] = {"tables": tables, "samples": samples}
