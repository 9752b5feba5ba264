"""The few-shot stages: shots -> (images, embeddings: see `stages`) -> few_shot -> predictions -> few_shot_metrics.

A job of `few_shot` fits one method on one data set for all numbers of shots and all seeds, on cached features. Only
`batch_norm`, where the features themselves change with training, passes images through the encoder.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray
from PIL import Image

from pipeline_lib.devices import claimed
from pipeline_lib.errors import NotComputableError
from pipeline_lib.few_shot_data import batch_norm_data
from pipeline_lib.files import atomic_path, write_json
from pipeline_lib.predictions import by_run as predictions_by_run
from pipeline_lib.predictions import predictions_table, read_reason, read_runs, write_predictions
from pipeline_lib.progress import Progress
from pipeline_lib.records import FewShotCell, FewShotCells
from pipeline_lib.sets import make_set
from pipeline_lib.store import Artifact, Store
from pipeline_lib.timings import phase

if TYPE_CHECKING:
    from pipeline_lib.classifiers.examples import Examples
    from pipeline_lib.classifiers.head import Head
    from pipeline_lib.classifiers.runs import Run
    from pipeline_lib.classifiers.tip_adapter import TipAdapter

log = logging.getLogger(__name__)


def shots(artifact: Artifact, store: Store) -> None:
    """Which real training images each seed draws."""
    from pipeline_lib.datasets.loaders import open_split
    from pipeline_lib.datasets.shots import draw_shots, refuse_test_images

    def make(units: Sequence[Artifact]) -> None:
        spec, location = units[0].spec, units[0].location
        split = open_split(spec, location)
        draws = [draw_shots(split, unit.spec, at_least=location["at_least"]) for unit in units]
        refuse_test_images(draws, split, spec, location)
        for unit, drawn in zip(units, draws, strict=True):
            with store.making(unit) as path:
                path.write_text(drawn.model_dump_json(indent=1) + "\n", encoding="utf-8")

    make_set(artifact, store, make)


def few_shot(artifact: Artifact, store: Store) -> None:
    """What one method fits, for every number of shots and every seed; or why it cannot."""
    from pipeline_lib.classifiers.runs import save_reason, save_runs

    names, metadata = artifact.spec["class_names"], {"key": artifact.key}
    try:
        fitted = _fitted(artifact, store)
    except NotComputableError as error:
        reason = str(error)
        log.warning("%s: not computed: %s", artifact.folder, reason)
        with store.making(artifact, {"not_computed": reason}) as path:
            save_reason(path, reason, names, metadata)
        return
    log.info("%s: %d classifiers", artifact.folder, len(fitted))
    with store.making(artifact) as path:
        save_runs(path, fitted, metadata)


def _fitted(artifact: Artifact, store: Store) -> list[Run]:
    from pipeline_lib.classifiers.head import load_head
    from pipeline_lib.classifiers.runs import Run
    from pipeline_lib.few_shot_data import real_examples, synthetic_examples

    spec = artifact.spec
    names = spec["class_names"]
    head = load_head(store.path(spec["head"]), names)
    fit = _FITS[spec["fit"]](artifact, head)
    fitted = []
    with Progress(f"{spec['method']}", len(spec["runs"]), "runs") as progress, phase("fitting"):
        for run in spec["runs"]:
            real, validation = real_examples(store, run, names, spec["validation_per_class"])
            synthetic = synthetic_examples(store, run, names)
            classifier, details = fit(run, real, validation, synthetic)
            counts = {"n_real": len(real), "n_validation": len(validation)}
            if synthetic is not None:
                counts["n_synthetic"] = len(synthetic)
            fitted.append(Run(run["shots"], run["seed"], classifier, {**counts, **details}))
            progress.update(1)
    return fitted


class Fit(Protocol):
    """Fits one run to its shots, its validation images and its synthetic ones: gives the classifier, and what was
    chosen or counted."""

    def __call__(
        self, run: Mapping[str, Any], real: Examples, validation: Examples, synthetic: Examples | None, /
    ) -> tuple[Head | TipAdapter, Mapping[str, Any]]: ...


def _tuning(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.few_shot_tuning import FewShotSettings, tune_few_shot

    settings, training = FewShotSettings(**artifact.spec["settings"]), artifact.spec["training"]
    device = claimed(artifact.location["device"])

    def fit(
        run: Mapping[str, Any], real: Examples, _: Examples, synthetic: Examples | None
    ) -> tuple[Head, dict[str, Any]]:
        tuned = tune_few_shot(real, synthetic, head, training, settings, run["seed"], device)
        return tuned.head, {"steps": tuned.steps, "last_loss": round(tuned.epoch_losses[-1], 5)}

    return fit


def _tuning_chosen(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.few_shot_tuning import FewShotSettings, tune_with_chosen_epochs

    settings, most_steps = FewShotSettings(**artifact.spec["settings"]), artifact.spec["most_steps"]
    device = claimed(artifact.location["device"])

    def fit(
        run: Mapping[str, Any], real: Examples, validation: Examples, _: Examples | None
    ) -> tuple[Head, dict[str, Any]]:
        tuned, epochs = tune_with_chosen_epochs(real, validation, head, settings, most_steps, run["seed"], device)
        return tuned.head, {"epochs": epochs, "steps": tuned.steps, "last_loss": round(tuned.epoch_losses[-1], 5)}

    return fit


def _tip_adapter(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.tip_adapter import tip_adapter

    def fit(
        _: Mapping[str, Any], real: Examples, validation: Examples, __: Examples | None
    ) -> tuple[TipAdapter, dict[str, Any]]:
        adapter = tip_adapter(real, validation, head)
        return adapter, {"alpha": adapter.alpha, "beta": adapter.beta}

    return fit


def _tip_adapter_f(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.tip_adapter import fine_tune
    from pipeline_lib.sections_few_shot import TipAdapter as Settings

    settings = Settings(**artifact.spec["settings"])
    device = claimed(artifact.location["device"])

    def fit(
        run: Mapping[str, Any], real: Examples, validation: Examples, _: Examples | None
    ) -> tuple[TipAdapter, dict[str, Any]]:
        adapter = fine_tune(real, validation, head, settings, run["seed"], device)
        return adapter, {"alpha": adapter.alpha, "beta": adapter.beta}

    return fit


def _linear_probe(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.linear_probe import linear_probe

    def fit(
        _: Mapping[str, Any], real: Examples, validation: Examples, __: Examples | None
    ) -> tuple[Head, Mapping[str, Any]]:
        return linear_probe(real, validation, head.class_names)

    return fit


def _coop(artifact: Artifact, head: Head) -> Fit:
    from pipeline_lib.classifiers.coop import CoOpSettings, train_coop
    from pipeline_lib.classifiers.text_tower import TextTower

    spec, location = artifact.spec, artifact.location
    device = claimed(location["device"])
    tower = TextTower(location["model"], location["pretrained"], location["revision"], device)
    values = dict(spec["settings"])
    epochs = values.pop("epochs")
    settings = CoOpSettings(**values)

    def fit(run: Mapping[str, Any], real: Examples, _: Examples, __: Examples | None) -> tuple[Head, Mapping[str, Any]]:
        return train_coop(real, tower, head.class_names, settings, epochs[str(run["shots"])], run["seed"])

    return fit


# From a job and the zero-shot head to what fits a run of it.
_FITS: dict[str, Callable[[Artifact, Head], Fit]] = {
    "tuning": _tuning,
    "tuning_chosen": _tuning_chosen,
    "tip_adapter": _tip_adapter,
    "tip_adapter_f": _tip_adapter_f,
    "linear_probe": _linear_probe,
    "coop": _coop,
}


def batch_norm(artifact: Artifact, store: Store) -> None:
    """Heads tuned with the encoder's batch norm in train mode, and what they say of every real image: both here, as the
    features of the real images change too. Of an encoder without batch norm: a table without runs, and that reason."""
    from pipeline_lib.classifiers.batch_norm import tune_with_batch_norm
    from pipeline_lib.classifiers.head import load_head
    from pipeline_lib.classifiers.tuning import TuningSettings
    from pipeline_lib.embeddings import encode_images, prepared_images
    from pipeline_lib.encoders import Encoder

    spec, location = artifact.spec, artifact.location
    names, workers = spec["class_names"], location["workers"]
    head = load_head(store.path(spec["head"]), names)
    model = {name: location[name] for name in ("model", "pretrained", "revision", "batch_size")}
    encoder = Encoder(**model, dtype=spec["dtype"], device=claimed(location["device"]))
    settings = TuningSettings(**spec["settings"])
    tested = [store.path(path) for path in spec["tested"]]
    columns = pa.concat_tables(
        [pq.read_table(path, columns=["image_id", "source_id", "class_name"]) for path in tested]
    )
    labels = np.array([names.index(name) for name in columns["class_name"].to_pylist()], np.int64)

    def predicted(head: Any) -> NDArray[np.int64]:
        found: NDArray[np.int64] = head.logits(
            encode_images(prepared_images(tested, encoder, workers), encoder)
        ).argmax(axis=1)
        return found

    zero_shot = predicted(head)  # of the untouched encoder
    by_run, details = [], []
    for run in spec["runs"] if encoder.has_batch_norm else []:
        images, classes, soft_targets = batch_norm_data(store, spec, run, encoder, head, workers)
        with encoder.adapting(), phase("batch norm"):
            tuned = tune_with_batch_norm(images, classes, head, settings, run["seed"], encoder, soft_targets)
            by_run.append(predicted(tuned.head))
        n = len(images)
        details.append({"n_images": n, "steps": tuned.steps, "encodes_made": n * settings.epochs + len(labels)})
        log.info("%s: seed %d, %d steps", artifact.folder, run["seed"], tuned.steps)
    reason = None if encoder.has_batch_norm else "the encoder has no batch norm"
    if reason is not None:
        log.warning("%s: not computed: %s", artifact.folder, reason)
    runs = np.stack(by_run, axis=1) if by_run else np.empty((len(labels), 0), np.int64)
    write_predictions(artifact, store, [predictions_table(columns, labels, zero_shot, runs)], details, reason)


def few_shot_metrics(artifact: Artifact, store: Store) -> None:
    """A method's accuracies on a data set: a cell for each number of shots."""
    spec = artifact.spec
    table = pq.read_table(store.path(spec["predictions"]))
    details = read_runs(table)
    labels = table["label"].to_numpy()
    n_seeds = len(spec["seeds"])
    cells = []
    for number, n_shots in enumerate(spec["shots"] if len(predicted := predictions_by_run(table)) else []):
        columns = slice(number * n_seeds, (number + 1) * n_seeds)
        correct = predicted[columns] == labels
        per_seed = [100.0 * float(one.mean()) for one in correct]
        cells.append(
            FewShotCell(shots=n_shots, top1=float(np.mean(per_seed)), top1_per_seed=per_seed, runs=details[columns])
        )
    result = FewShotCells(
        **{name: spec[name] for name in FewShotCells.model_fields if name in spec},
        n_test=len(labels),
        zero_shot=100.0 * float((table["zero_shot"].to_numpy() == labels).mean()),
        cells=cells,
        n_encodes_test=len(labels) * len(details),
        not_computed=read_reason(table),
    )
    with store.making(artifact) as path:
        # Without the reason where there is none, as in cells of before there could be one.
        path.write_text(result.model_dump_json(indent=1, exclude_defaults=True) + "\n", encoding="utf-8")


def few_shot_table(artifact: Artifact, store: Store, out: Path) -> None:
    """Figure 1 or a table of the few-shot study, gathered from its cells."""
    from pipeline_lib import charts, few_shot_tables
    from pipeline_lib.findings import findings

    spec = artifact.spec
    name = spec["table"]
    cells = [FewShotCells.model_validate_json(store.path(path).read_bytes()) for path in spec["cells"]]

    def read(path: str) -> pa.Table:
        return pq.read_table(store.path(path))

    encodes = None
    if name == "findings":
        rows = findings(cells, read, spec["ablation_dataset"])
    else:
        rows = few_shot_tables.TABLES[name](cells, read)
    if name == "figure1":
        encodes = few_shot_tables.Encodes(
            made_training=_n_images(store, spec["embeddings"]),
            made_test=_n_images(store, spec["embeddings_tested"]),
            independent_training=sum(map(few_shot_tables.learned_from, cells)),
            independent_test=sum(one.n_encodes_test for one in cells),
        )
        log.info("%s", encodes)
        with atomic_path(out.with_suffix(".png")) as png, atomic_path(out.with_suffix(".svg")) as svg:
            charts.figure1(rows, png, svg, study=spec["study"], split=cells[0].split)
    with atomic_path(out.with_suffix(".md")) as path:
        path.write_text(
            few_shot_tables.as_markdown(name, rows, spec["study"], cells, encodes=encodes), encoding="utf-8"
        )
    write_json(out.with_suffix(".json"), few_shot_tables.as_metrics(name, rows))
    with store.making(artifact, path=out) as path:
        path.write_text(few_shot_tables.as_csv(name, rows), encoding="utf-8")


def _n_images(store: Store, sets: Sequence[str]) -> int:
    """Images in some sets of embeddings, each counted once."""
    from pipeline_lib.sets import read_receipt

    members = {member.path: member.n_rows or 0 for made in sets for member in read_receipt(store.path(made)).members}
    return sum(members.values())


def guided_sheet(spec: Mapping[str, Any], store: Store) -> dict[str, list[Image.Image]]:
    """Per class its first shot, then what was drawn from it for each number of shots, the freest first."""
    from pipeline_lib.datasets.shots import read_shots
    from pipeline_lib.shards import decode_image, read_rows

    first = {images[0].image_id: name for name, images in read_shots(store.path(spec["shots"])).shots.items()}
    real = {
        first[row["image_id"]]: decode_image(row["image"]["bytes"])
        for row in read_rows(store.path(spec["real_images"]), ["image_id", "image"])
        if row["image_id"] in first
    }
    sheet: dict[str, list[Image.Image]] = {}
    for names in spec["images"]:
        for name in names:
            rows = (
                row
                for row in read_rows(store.path(name), ["class_name", "reference_id", "image"])
                if row["reference_id"] in first
            )
            for row in islice(rows, spec["per_class"]):
                column = sheet.setdefault(row["class_name"], [real[row["class_name"]]])
                column.append(decode_image(row["image"]["bytes"]))
    return sheet


FEW_SHOT_STAGES = (shots, few_shot, batch_norm, few_shot_metrics)
