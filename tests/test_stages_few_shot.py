"""The few-shot stages on files made by hand: who is fitted to what, and what is counted of it."""

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from numpy.typing import NDArray
from test_few_shot_data import NAMES, RedReader, at, put_drawn, put_features, put_images, put_real_features, put_set

from pipeline_lib import stages, stages_few_shot
from pipeline_lib.classifiers.coop import CoOpSettings
from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.few_shot_tuning import FewShotSettings, tune_few_shot
from pipeline_lib.classifiers.head import Head, save_head
from pipeline_lib.classifiers.runs import Run, load_reason, load_runs
from pipeline_lib.classifiers.tip_adapter import TipAdapter
from pipeline_lib.classifiers.tuning import TunedHead
from pipeline_lib.errors import NotComputableError, UserError
from pipeline_lib.predictions import predictions_table, write_predictions
from pipeline_lib.records import FewShotCells
from pipeline_lib.sections_few_shot import TipAdapter as TipAdapterSettings
from pipeline_lib.store import Artifact, Store

HEAD = Head(10 * at([5, 15, 25]).astype(np.float32), np.zeros(3), tuple(NAMES))


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path)


# --- each way to fit --------------------------------------------------------------------------------------------------

REAL, VALIDATION, SYNTHETIC = (Examples(at([number]), np.array([0])) for number in (1, 2, 3))
FITTED = Head(2 * HEAD.weight, HEAD.bias, HEAD.class_names)
TUNED = TunedHead(FITTED, 0, (3.0, 0.1234567), 17, ())
ADAPTER = SimpleNamespace(alpha=1.25, beta=2.5)
TIP_ADAPTER_F = {"alpha": 1.5, "beta": 4.5, "epochs": 3, "learning_rate": 0.01, "batch_size": 8}
LOCATION = {"device": "cuda", "model": "RN50", "pretrained": "openai", "revision": "main", "batch_size": 9}


@dataclass(frozen=True)
class Case:
    """A way to fit. spec: its part of a job's; function: what it calls, in `pipeline_lib.classifiers`; gives: what that
    answers; expected: by its parameters, what it must be given for a run; fitted: what comes of it."""

    spec: Mapping[str, Any]
    function: str
    gives: Any
    expected: Callable[[Mapping[str, Any]], dict[str, Any]]
    fitted: tuple[Any, dict[str, Any]]


CASES = {
    "tuning": Case(
        {"training": "mix", "settings": {"epochs": 3, "mix_learning_rate": 0.5, "real_batch_size": 6}},
        "few_shot_tuning.tune_few_shot",
        TUNED,
        lambda run: {
            "real": REAL,
            "synthetic": SYNTHETIC,
            "initial": HEAD,
            "training": "mix",
            "settings": FewShotSettings(epochs=3, mix_learning_rate=0.5, real_batch_size=6),
            "seed": run["seed"],
            "device": "claimed cuda",
        },
        (FITTED, {"steps": 17, "last_loss": 0.12346}),
    ),
    "tuning_chosen": Case(
        {"settings": {"epochs": 3, "learning_rate": 0.5, "real_batch_size": 6}, "most_steps": 40},
        "few_shot_tuning.tune_with_chosen_epochs",
        (TUNED, 12),
        lambda run: {
            "real": REAL,
            "validation": VALIDATION,
            "initial": HEAD,
            "settings": FewShotSettings(epochs=3, learning_rate=0.5, real_batch_size=6),
            "most_steps": 40,
            "seed": run["seed"],
            "device": "claimed cuda",
        },
        (FITTED, {"epochs": 12, "steps": 17, "last_loss": 0.12346}),
    ),
    "tip_adapter": Case(
        {"settings": {}},
        "tip_adapter.tip_adapter",
        ADAPTER,
        lambda run: {"shots": REAL, "validation": VALIDATION, "head": HEAD},
        (ADAPTER, {"alpha": 1.25, "beta": 2.5}),
    ),
    "tip_adapter_f": Case(
        {"settings": TIP_ADAPTER_F},
        "tip_adapter.fine_tune",
        ADAPTER,
        lambda run: {
            "shots": REAL,
            "validation": VALIDATION,
            "head": HEAD,
            "settings": TipAdapterSettings(**TIP_ADAPTER_F),
            "seed": run["seed"],
            "device": "claimed cuda",
        },
        (ADAPTER, {"alpha": 1.25, "beta": 2.5}),
    ),
    "linear_probe": Case(
        {},
        "linear_probe.linear_probe",
        (FITTED, {"C": 0.25}),
        lambda run: {"shots": REAL, "validation": VALIDATION, "class_names": tuple(NAMES)},
        (FITTED, {"C": 0.25}),
    ),
    "coop": Case(
        {
            "settings": {"context_tokens": 2, "learning_rate": 0.5, "batch_size": 6}
            | {"epochs": {"1": 50, "2": 60, "16": 200}}
        },
        "coop.train_coop",
        (FITTED, {"steps": 17}),
        lambda run: {
            "shots": REAL,
            "tower": ("RN50", "openai", "main", "claimed cuda"),
            "class_names": tuple(NAMES),
            "settings": CoOpSettings(context_tokens=2, learning_rate=0.5, batch_size=6),
            "epochs": {1: 50, 2: 60, 16: 200}[run["shots"]],
            "seed": run["seed"],
        },
        (FITTED, {"steps": 17}),
    ),
}


@pytest.mark.parametrize("name", stages_few_shot._FITS)
def test_a_fit_is_given_what_it_asks_for(name: str, monkeypatch: pytest.MonkeyPatch):
    """Shots, validation and synthetic images each in their place, the settings, and what belongs to the run."""
    case = CASES[name]
    module_name, function_name = case.function.split(".")
    module = importlib.import_module(f"pipeline_lib.classifiers.{module_name}")
    parameters = inspect.signature(getattr(module, function_name))
    calls: list[dict[str, Any]] = []

    def spy(*args: Any, **kwargs: Any) -> Any:
        calls.append(dict(parameters.bind(*args, **kwargs).arguments))
        return case.gives

    monkeypatch.setattr(module, function_name, spy)
    monkeypatch.setattr("pipeline_lib.classifiers.text_tower.TextTower", lambda *model: model)
    monkeypatch.setattr(stages_few_shot, "claimed", lambda device: f"claimed {device}")
    artifact = Artifact("few_shot/x", {"fit": name, **case.spec}, ".safetensors", location=LOCATION)
    fit = stages_few_shot._FITS[name](artifact, HEAD)
    for run in ({"shots": 2, "seed": 5}, {"shots": 16, "seed": 5}, {"shots": 1, "seed": 7}):
        classifier, details = fit(run, REAL, VALIDATION, SYNTHETIC)
        # Examples and heads are equal only to themselves.
        assert calls.pop() == case.expected(run) and not calls
        assert (classifier, dict(details)) == case.fitted


# --- the stage --------------------------------------------------------------------------------------------------------

# By seed: its own numbers of the images drawn, of shots and for validation.
DRAWN = {
    3: {"oak": ([0, 1], [2, 3]), "elm": ([10, 11], [12, 13]), "ash": ([20, 21], [22, 23])},
    8: {"ash": ([24, 25], [26, 27]), "oak": ([4, 5], [6, 7]), "elm": ([14, 15], [16, 17])},
}
PAIRS = [(1, 3), (1, 8), (2, 3), (2, 8)]  # shots, seed
# By run: its synthetic images, of other numbers and of another number of them.
GUIDED = {
    (1, 3): [(31, "elm"), (32, "oak"), (33, "ash")],
    (1, 8): [(41, "ash"), (42, "ash"), (43, "elm"), (44, "oak")],
    (2, 3): [(51, "oak"), (52, "ash")],
    (2, 8): [(61, "elm"), (62, "oak"), (63, "ash"), (64, "elm"), (65, "oak")],
}


def real(shots: int, seed: int, part: int) -> Examples:
    """The shots (part 0) or validation images (part 1) that a run should be given."""
    numbers = [(index, n) for index, name in enumerate(NAMES) for n in DRAWN[seed][name][part][:shots]]
    return Examples(at([n for _, n in numbers]), np.array([index for index, _ in numbers]))


def fitted(store: Store, fit: str, synthetic: bool, **spec: Any) -> list[Run]:
    """What the stage writes for the runs PAIRS."""
    save_head(store.path("head.safetensors"), HEAD)
    drawn = {seed: put_drawn(store, f"shots/{seed}.json", images) for seed, images in DRAWN.items()}
    features = {}
    for seed, images in DRAWN.items():
        order = sorted((n for parts in images.values() for part in parts for n in part), key=lambda n: (-n % 10, n))
        features[seed] = put_real_features(store, f"embeddings/{seed}.parquet", images, order)
    runs: list[dict[str, Any]] = []
    for shots, seed in PAIRS:
        runs.append({"shots": shots, "seed": seed, "drawn": drawn[seed], "real": features[seed]})
        if synthetic:
            guided = [(number, name, True) for number, name in GUIDED[shots, seed]]
            runs[-1]["synthetic"] = [put_features(store, f"embeddings/{shots}.{seed}.parquet", guided)]
    spec |= {"method": "m", "fit": fit, "class_names": NAMES, "head": "head.safetensors", "validation_per_class": 2}
    artifact = Artifact("few_shot/m", spec | {"runs": runs}, ".safetensors", location={"device": "cpu"})
    stages_few_shot.few_shot(artifact, store)
    assert store.is_intact(artifact)
    return load_runs(store.path(artifact), NAMES)


def test_each_adapter_holds_its_own_shots(store: Store):
    runs = fitted(store, "tip_adapter", synthetic=False, settings={})
    assert [(run.shots, run.seed) for run in runs] == PAIRS
    for run in runs:
        expected, adapter = real(run.shots, run.seed, 0), run.classifier
        assert isinstance(adapter, TipAdapter)
        np.testing.assert_array_equal(adapter.keys, expected.features)
        np.testing.assert_array_equal(adapter.labels, expected.labels)
        counts = {"n_real": 3 * run.shots, "n_validation": 3 * run.shots}
        assert run.details == counts | {"alpha": adapter.alpha, "beta": adapter.beta}


def test_each_head_is_tuned_on_its_own_images(store: Store):
    """Bit for bit what tuning on these images, written down here, gives."""
    settings = {"epochs": 2, "mix_learning_rate": 0.1, "real_batch_size": 2, "synthetic_batch_size": 2}
    runs = fitted(store, "tuning", synthetic=True, training="mix", settings=settings)
    assert [(run.shots, run.seed) for run in runs] == PAIRS
    for run in runs:
        guided = GUIDED[run.shots, run.seed]
        synthetic = Examples(at([n for n, _ in guided]), np.array([NAMES.index(name) for _, name in guided]))
        shots = real(run.shots, run.seed, 0)
        tuned = tune_few_shot(shots, synthetic, HEAD, "mix", FewShotSettings(**settings), run.seed)
        assert isinstance(run.classifier, Head)
        np.testing.assert_array_equal(run.classifier.weight, tuned.head.weight)
        np.testing.assert_array_equal(run.classifier.bias, tuned.head.bias)
        assert run.details == {
            "n_real": 3 * run.shots,
            "n_validation": 3 * run.shots,
            "n_synthetic": len(guided),
            "steps": 2 * -(-len(guided) // 2),
            "last_loss": round(tuned.epoch_losses[-1], 5),
        }
    assert len({run.classifier.weight.tobytes() for run in runs if isinstance(run.classifier, Head)}) == len(PAIRS)


@pytest.mark.parametrize("at_start", [True, False])
def test_a_method_that_does_not_fit_says_why_all_the_way_to_its_cells(
    store: Store, monkeypatch: pytest.MonkeyPatch, at_start: bool
):
    """Whether the model or, later, a class name is found not to fit: no runs, and the reason instead."""

    def refuse(*_: Any) -> Any:
        raise NotComputableError("too long: 'ash'")

    monkeypatch.setitem(stages_few_shot._FITS, "coop", refuse if at_start else lambda *_: refuse)
    assert fitted(store, "coop", synthetic=False) == []
    (file,) = [path for path in store.path("few_shot/m").iterdir() if path.suffix == ".safetensors"]
    assert load_reason(file) == "too long: 'ash'"
    assert store.record(store.relative(file)).details == {"not_computed": "too long: 'ash'"}  # type: ignore[union-attr]

    units = [put_real_features(store, "embeddings/test.parquet", {"oak": ([1, 2], []), "elm": ([11], [])}, [1, 11, 2])]
    spec = {
        "class_names": NAMES,
        "head": "head.safetensors",
        "embeddings": put_set(store, "embeddings/set.json", units),
    }
    predictions = Artifact("predictions", spec | {"few_shot": store.relative(file)}, ".parquet")
    stages.predictions(predictions, store)
    found = gathered(store, predictions)
    assert (found.cells, found.n_test, found.not_computed) == ([], 3, "too long: 'ash'")


class WithoutBatchNorm(RedReader):
    """A vision transformer, as far as the stage can see."""

    has_batch_norm = False

    def __init__(self, **_: Any): ...

    def encode(self, prepared: Any) -> NDArray[np.float32]:
        return at(prepared).astype(np.float32)


def test_an_encoder_without_batch_norm_is_the_reason_why_there_are_no_cells(
    store: Store, monkeypatch: pytest.MonkeyPatch
):
    """Zero-shot CLIP is computed all the same."""
    monkeypatch.setattr("pipeline_lib.encoders.Encoder", WithoutBatchNorm)
    names = ["any", "other"]
    head = Head(10 * at([0, 90]).astype(np.float32), np.zeros(2), tuple(names))
    save_head(store.path("head.safetensors"), head)
    spec = {
        "class_names": names,
        "head": "head.safetensors",
        "dtype": "float32",
        "settings": {},
        "runs": [{"shots": 1, "seed": 0}],
        "tested": [put_images(store, "real_images/test.parquet", [5, 80, 30])],
    }
    tuned = Artifact("batch_norm", spec, ".parquet", location=LOCATION | {"device": "cpu", "workers": 0})
    stages_few_shot.batch_norm(tuned, store)
    found = gathered(store, tuned)
    assert (found.cells, found.n_test, found.not_computed) == ([], 3, "the encoder has no batch norm")
    assert found.n_encodes_test == 0
    assert found.zero_shot == pytest.approx(100 * 2 / 3)


def gathered(store: Store, predictions: Artifact) -> FewShotCells:
    cells = Artifact("few_shot_metrics", CELLS | {"predictions": predictions.path}, ".json")
    stages_few_shot.few_shot_metrics(cells, store)
    return FewShotCells.model_validate_json(store.path(cells).read_bytes())


def test_what_else_goes_wrong_stays_an_error(store: Store, monkeypatch: pytest.MonkeyPatch):
    """A model that cannot be loaded is no reason for an empty cell."""

    def fail(*_: Any) -> Any:
        raise UserError("models.encoders: no such file")

    monkeypatch.setitem(stages_few_shot._FITS, "coop", fail)
    with pytest.raises(UserError, match="no such file"):
        fitted(store, "coop", synthetic=False)


# --- cells ------------------------------------------------------------------------------------------------------------

CELLS = {
    "dataset": "trees",
    "pool": "objects",
    "method": "m",
    "n_classes": 3,
    "shots": [1, 4],
    "seeds": [3, 8, 5],
    "split": "test",
    "generator": "g",
    "encoder_name": "clip",
    "encoder": "open_clip:RN50:openai",
    "predictions": "predictions/x",
}


def cells_of(store: Store, n_correct: list[int], details: list[dict[str, Any]]) -> FewShotCells:
    """Of ten test images, of which the zero-shot head has the last four right and each run its first so many."""
    labels = np.arange(10) % 3
    wrong = (labels + 1) % 3
    images = pa.table({"image_id": [f"i{n}" for n in range(10)], "source_id": pa.array(range(10), pa.int64())})
    by_run = np.where(np.arange(10)[:, None] < np.array(n_correct, int), labels[:, None], wrong[:, None])
    zero_shot = np.where(np.arange(10) >= 6, labels, wrong)
    predictions = Artifact("predictions", {"stage": "predictions"}, ".parquet")
    write_predictions(predictions, store, [predictions_table(images, labels, zero_shot, by_run)], details)
    spec = CELLS | {"predictions": predictions.path}
    artifact = Artifact("few_shot_metrics", spec, ".json", inputs=(predictions.path,))
    stages_few_shot.few_shot_metrics(artifact, store)
    assert b"not_computed" not in store.path(artifact).read_bytes()
    found = FewShotCells.model_validate_json(store.path(artifact).read_bytes())
    names = FewShotCells.model_fields.keys() & CELLS
    assert {name: getattr(found, name) for name in names} == {name: spec[name] for name in names}
    assert found.n_test == 10 and found.zero_shot == 40.0
    return found


def test_columns_are_the_seeds_of_a_number_of_shots(store: Store):
    details: list[dict[str, Any]] = [
        {"n_real": 3 * shots, "n_validation": 3, "n_synthetic": n, "steps": 100, "seed": seed}
        for n, (shots, seed) in enumerate((shots, seed) for shots in (1, 4) for seed in (3, 8, 5))
    ]
    del details[0]["n_synthetic"]
    found = cells_of(store, [1, 2, 6, 10, 9, 5], details)
    assert [cell.shots for cell in found.cells] == [1, 4]
    assert [cell.top1_per_seed for cell in found.cells] == [[10, 20, 60], [100, 90, 50]]
    assert [cell.top1 for cell in found.cells] == pytest.approx([30, 80])
    assert [cell.runs for cell in found.cells] == [details[:3], details[3:]]
    assert found.n_encodes_test == 6 * 10
