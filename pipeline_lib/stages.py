"""The stages: each reads its inputs from the store, calls the module that does the work, and writes its artifact.

Together they are the data flow: prompts -> images -> embeddings -> scores -> manifest -> classifier -> predictions ->
metrics -> tables; what only few-shot recognition adds is in `stages_few_shot`. What computes lives in the modules named
after the nouns; torch is imported only where it computes.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

from pipeline_lib.devices import claimed
from pipeline_lib.files import atomic_path, write_json
from pipeline_lib.predictions import predictions_table, write_predictions
from pipeline_lib.records import MANIFEST, SCORES, Cell
from pipeline_lib.sets import make_set, member_paths
from pipeline_lib.stages_few_shot import FEW_SHOT_STAGES, few_shot_table, guided_sheet
from pipeline_lib.store import Artifact, Store
from pipeline_lib.timings import phase

if TYPE_CHECKING:
    from pipeline_lib.classifiers.head import Head
    from pipeline_lib.classifiers.tip_adapter import TipAdapter
    from pipeline_lib.encoders import Encoder
    from pipeline_lib.sentences import SentenceModel

log = logging.getLogger(__name__)
# Images in the shards that a job claims at a time, or a little more: several batches, and few enough for data sets with
# classes in common to share their drawing.
IMAGES_PER_ROUND = 800


def prompts(artifact: Artifact, store: Store) -> None:
    """The prompts of some classes, of whichever data sets."""
    from pipeline_lib.prompts import basic_prompts, enhance, enhanced_prompts, write_prompts

    def basic(units: Sequence[Artifact]) -> None:
        for unit in units:
            with store.making(unit) as path:
                write_prompts(basic_prompts(unit.spec["class_name"], unit.spec["template"]), path)

    device = _device_of(artifact)

    @cache
    def load() -> SentenceModel:
        from pipeline_lib.sentences import SentenceModel

        return SentenceModel(**{**artifact.members[0].location, "device": device()})

    def enhanced(units: Sequence[Artifact]) -> None:
        from pipeline_lib.progress import Progress

        model = load()
        # As many classes at a time as fill a batch: each is written when its sentences are there.
        n_classes = max(1, units[0].location["batch_size"] // units[0].spec["asked"])
        with Progress("sentences", len(units), "classes") as progress:
            for group in (units[first : first + n_classes] for first in range(0, len(units), n_classes)):
                for unit, sentences in zip(group, enhance([unit.spec for unit in group], model.sample), strict=True):
                    kept = sentences.first(unit.spec["kept"])
                    table = enhanced_prompts(unit.spec["class_name"], unit.spec["template"], kept)
                    log.info("%s: %d sentences kept; %s", unit.spec["class_name"], len(kept), sentences.counts)
                    with store.making(unit, {**sentences.counts, "device": model.device}) as path:
                        write_prompts(table, path)
                progress.update(len(group))

    if artifact.members[0].spec["strategy"] == "basic":
        make_set(artifact, store, basic)
    else:
        make_set(artifact, store, enhanced, prepare=device)


def images(artifact: Artifact, store: Store) -> None:
    """The synthetic images of some classes of a data set."""
    from pipeline_lib.batches import Batches
    from pipeline_lib.generators import Generator, load_generator
    from pipeline_lib.images import make_shards

    location, spec = artifact.members[0].location, artifact.members[0].spec
    batches = Batches(location["batch_size"], "images")
    device = _device_of(artifact)

    @cache
    def load() -> Generator:
        model, revision, compile = location["model"], location["revision"], location["compile"]
        return load_generator(model, revision, spec, device=device(), compile=compile)

    per_round = -(-IMAGES_PER_ROUND // (spec["stop"] - spec["start"]))
    # Claims a device even where all images turn out to be in other shards: that is known only of locked units.
    make_set(artifact, store, lambda units: make_shards(units, store, load, batches), per_round, device)


def real_images(artifact: Artifact, store: Store) -> None:
    """The real images of a split, or those that were drawn from it, as shards."""
    from pipeline_lib.datasets.loaders import open_split
    from pipeline_lib.datasets.loaders.split import RealSplit
    from pipeline_lib.datasets.preparation import prepare, prepare_shots

    write = prepare_shots if "shots" in artifact.members[0].spec else prepare

    @cache
    def split() -> RealSplit:
        return open_split(artifact.members[0].spec, artifact.members[0].location)

    make_set(artifact, store, lambda units: write(split(), units, store))


def embeddings(artifact: Artifact, store: Store) -> None:
    """Features of every image of a set of shards."""
    from pipeline_lib.embeddings import make_embeddings

    workers, dtype = artifact.members[0].location["workers"], artifact.members[0].spec["dtype"]
    device = _device_of(artifact)
    load = _encoder_loader(artifact, dtype, device)
    make_set(artifact, store, lambda units: make_embeddings(units, store, load(), workers), prepare=device)


def heads(artifact: Artifact, store: Store) -> None:
    """The zero-shot heads: the class prompts are encoded once per data set."""
    from pipeline_lib.classifiers.head import save_head, zero_shot_head

    device = _device_of(artifact)
    load = _encoder_loader(artifact, "float32", device)

    def make(units: Sequence[Artifact]) -> None:
        encoder = load()
        for unit in units:
            names, templates = unit.spec["class_names"], unit.spec["templates"]
            text = encoder.text([template.replace("{}", name) for name in names for template in templates])
            head = zero_shot_head(text.reshape(len(names), len(templates), -1), encoder.logit_scale, names)
            with store.making(unit, {"device": encoder.device}) as path:
                save_head(path, head, {"key": unit.key})

    make_set(artifact, store, make, prepare=device)


def _device_of(artifact: Artifact) -> Callable[[], str]:
    """Claims the device of a set's units when it is first called, and says what it is."""
    return cache(lambda: claimed(artifact.members[0].location["device"]))


def _encoder_loader(artifact: Artifact, dtype: str, device: Callable[[], str]) -> Callable[[], Encoder]:
    """Loads the encoder of a set's units when it is first needed, once: a large set is made in several rounds."""

    @cache
    def load() -> Encoder:
        from pipeline_lib.encoders import Encoder

        location = artifact.members[0].location
        names = ("model", "pretrained", "revision", "batch_size")
        return Encoder(**{name: location[name] for name in names}, dtype=dtype, device=device())

    return load


def scores(artifact: Artifact, store: Store) -> None:
    """How sure the zero-shot head is that each synthetic image shows its class."""
    from pipeline_lib.classifiers.head import load_head
    from pipeline_lib.embeddings import read_embeddings
    from pipeline_lib.scores import score

    spec = artifact.spec
    head = load_head(store.path(spec["head"]), spec["class_names"])
    tables = []
    for shard in read_embeddings(store, member_paths(store, spec["embeddings"])):
        class_index = shard.class_index(spec["class_names"])
        result = score(shard.features, class_index, head)
        columns = {
            "image_id": shard.table["image_id"],
            "class_index": class_index,
            "prompt": shard.table["prompt"],
            "seed": shard.table["seed"],
            "valid": shard.table["valid"],
            "own_probability": result.own_probability,
            "predicted_class": result.predicted_class,
            "max_probability": result.max_probability,
        }
        tables.append(pa.table(columns, schema=SCORES))
    with store.making(artifact) as path:
        pq.write_table(pa.concat_tables(tables).unify_dictionaries().combine_chunks(), path, compression="zstd")


def manifests(artifact: Artifact, store: Store) -> None:
    """Which images are kept, and why. Reads scores, and for real filtering features: re-cutting encodes nothing."""
    from pipeline_lib.few_shot_data import real_filter_of
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
        real_filter=real_filter_of(store, spec, class_index) if "real_filter" in spec else None,
        min_left=spec["real_filter"]["min_per_class"] if "real_filter" in spec else 0,
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
    from pipeline_lib.embeddings import read_selected

    spec = artifact.spec
    initial = load_head(store.path(spec["head"]))
    manifest = pq.read_table(store.path(spec["manifest"]), columns=["image_id", "class_index", "kept"])
    features = read_selected(store, member_paths(store, spec["embeddings"]), manifest)
    labels = manifest["class_index"].to_numpy()[manifest["kept"].to_numpy()]
    settings = TuningSettings(
        epochs=spec["epochs"],
        learning_rate=spec["learning_rate"],
        weight_decay=spec["weight_decay"],
        batch_size=spec["batch_size"],
        soft_target_weight=spec.get("soft_target_weight", 0.0),
        temperature=spec.get("temperature", 1.0),
    )
    device = claimed(artifact.location["device"])
    with phase("tuning"):
        tuned = tune(features, labels, initial, settings, spec["seeds"], device)
    details = {
        "device": device,
        "n_images": len(labels),
        "steps": tuned[0].steps,
        "epoch_losses": [round(loss, 5) for loss in tuned[0].epoch_losses],
        "empty_classes": list(tuned[0].empty_classes),
    }
    log.info("%s: %d heads on %d images, %d steps each", artifact.folder, len(tuned), len(labels), tuned[0].steps)
    with store.making(artifact, details) as path:
        save_heads(path, {result.seed: result.head for result in tuned}, {"key": artifact.key})


def predictions(artifact: Artifact, store: Store) -> None:
    """What the zero-shot head and the fitted classifiers say of every real image."""
    from pipeline_lib.classifiers.head import load_head, load_heads
    from pipeline_lib.classifiers.runs import load_reason, load_runs
    from pipeline_lib.embeddings import read_embeddings

    spec = artifact.spec
    names = spec["class_names"]
    zero_shot = load_head(store.path(spec["head"]), names)
    fitted: list[Head | TipAdapter]
    runs, reason = [], None
    if "few_shot" in spec:
        file = store.path(spec["few_shot"])
        runs = load_runs(file, names)
        fitted, reason = [run.classifier for run in runs], None if runs else load_reason(file)
    else:
        fitted = [*load_heads(store.path(spec["classifier"]), names).values()]
    tables = []
    for shard in read_embeddings(store, member_paths(store, [spec["embeddings"]])):
        by_run = np.empty((len(shard.features), len(fitted)), np.int64)
        for column, classifier in enumerate(fitted):
            by_run[:, column] = classifier.logits(shard.features).argmax(axis=1)
        predicted = zero_shot.logits(shard.features).argmax(axis=1)
        tables.append(predictions_table(shard.table, shard.class_index(names), predicted, by_run))
    write_predictions(artifact, store, tables, [run.details for run in runs], reason)


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
    if spec["table"] not in TABLES:
        few_shot_table(artifact, store, out)
        return
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

    spec = artifact.spec
    sheet = guided_sheet(spec, store) if "shots" in spec else _sheet(spec, store)
    with store.making(artifact, path=out) as path:
        contact_sheet(sheet, f"{spec['dataset']}, {spec['strategy']}", path)


def _sheet(spec: Mapping[str, Any], store: Store) -> dict[str, list[Image.Image]]:
    """Per class the first images of its shards."""
    from pipeline_lib.shards import decode_image, read_rows

    sheet: dict[str, list[Image.Image]] = {}
    for name in spec["images"]:
        for row in read_rows(store.path(name), ["class_name", "image"]):
            column = sheet.setdefault(row["class_name"], [])
            if len(column) == spec["per_class"]:
                break
            column.append(decode_image(row["image"]["bytes"]))
    return sheet


STAGES: dict[str, Callable[[Artifact, Store], None]] = {
    stage.__name__: stage
    for stage in (
        prompts,
        images,
        real_images,
        embeddings,
        heads,
        scores,
        manifests,
        classifiers,
        predictions,
        metrics,
        *FEW_SHOT_STAGES,
    )
}
# Stages whose artifact lies where people look, not in the store.
RESULTS: dict[str, Callable[[Artifact, Store, Path], None]] = {"tables": tables, "samples": samples}
