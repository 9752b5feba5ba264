"""The configuration is validated whole before anything runs; messages name the key, the value and what is allowed."""

import json
import unicodedata
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import REPOSITORY, changed, configured, draw_shapes, own_dataset

from pipeline_lib.config import Config, load_config, read_config
from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan

YAML_FILES = sorted([REPOSITORY / "params.yaml", *(REPOSITORY / "workflow" / "studies").glob("*.yaml")])


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*")}


BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    # changes, words of the message
    "text for a number": ({"images__per_class": "many"}, ["images.per_class", "'many'", "integer"]),
    "fraction for a whole number": ({"images__steps": 2.5}, ["images.steps", "2.5", "integer"]),
    "boolean for a number": ({"images__per_class": True}, ["images.per_class", "True", "integer"]),
    "boolean for a fraction": ({"tuning__weight_decay": False}, ["tuning.weight_decay", "False", "number"]),
    "number for a boolean": (
        {"prompts__language_enhancement__require_class_name": 1},
        ["prompts.language_enhancement.require_class_name", "1", "boolean"],
    ),
    "YAML's 1e-3 as text": (
        {"tuning__learning_rate": "1e-3"},
        ["tuning.learning_rate", "'1e-3'", "write it as 0.001"],
    ),
    "null for a number": ({"images__batch_size": None}, ["images.batch_size", "None", "integer"]),
    "number for a name": ({"study": 3}, ["study", "3", "string"]),
    "list for a section": ({"images": [1]}, ["images", "[1]"]),
    "zero images": ({"images__per_class": 0}, ["images.per_class", "0", "greater than or equal to 1"]),
    "negative seed": ({"seed": -1}, ["seed", "-1", "greater than or equal to 0"]),
    "guidance below 1": ({"images__guidance_scale": 0.5}, ["images.guidance_scale", "0.5", "equal to 1"]),
    "infinite guidance": ({"images__guidance_scale": float("inf")}, ["images.guidance_scale", "inf", "finite"]),
    "not a number": ({"tuning__weight_decay": float("nan")}, ["tuning.weight_decay", "nan", "finite"]),
    "learning rate above 1": (
        {"tuning__learning_rate": 2.0},
        ["tuning.learning_rate", "2.0", "less than or equal to 1"],
    ),
    "height not a multiple of 8": ({"images__height": 30}, ["images.height", "30", "multiple of 8"]),
    "unknown image format": ({"images__format": "tiff"}, ["images.format", "'tiff'", "png", "jpeg", "webp"]),
    "unknown strategy": ({"prompts__strategy": "best"}, ["prompts.strategy", "'best'", "language_enhancement"]),
    "unknown loss": ({"tuning__loss": "mse"}, ["tuning.loss", "'mse'", "'ce'", "'sce'"]),
    "unknown split": ({"evaluation__split": "train"}, ["evaluation.split", "'train'", "test", "validation"]),
    "validation images of a folder": ({"evaluation__split": "validation"}, ["evaluation.split", "shapes", "test"]),
    "threshold 0": ({"clip_filter__threshold": 0}, ["clip_filter.threshold", "0", "greater than 0", "1/N"]),
    "threshold 1": ({"clip_filter__threshold": 1}, ["clip_filter.threshold", "1", "less than 1"]),
    "threshold 1.5": ({"clip_filter__threshold": 1.5}, ["clip_filter.threshold", "1.5", "less than 1"]),
    "threshold 1/M": ({"clip_filter__threshold": "1/M"}, ["clip_filter.threshold", "'1/M'", "'1/N'"]),
    "fallback above the cap": (
        {"clip_filter__per_class": 3, "clip_filter__min_per_class": 4},
        ["clip_filter", "min_per_class (4)", "at most per_class (3)"],
    ),
    "more sentences kept than asked": (
        {"prompts__language_enhancement__kept": 9},
        ["prompts.language_enhancement", "kept (9)", "asked (4)"],
    ),
    "equal seeds": ({"tuning__seeds": [1, 2, 1]}, ["tuning.seeds", "[1, 2, 1]", "differ"]),
    "no seeds": ({"tuning__seeds": []}, ["tuning.seeds", "[]", "at least 1"]),
    "unknown key": ({"imagse": {}}, ["imagse", "unknown key", "images"]),
    "unknown nested key": (
        {"prompts__language_enhancement__top_q": 5},
        ["prompts.language_enhancement.top_q", "unknown key", "top_p"],
    ),
    "unknown key in a list": (
        {"models__encoders": [{"name": "a", "model": "RN50", "weights": "openai"}]},
        ["models.encoders.0.weights", "unknown key", "pretrained"],
    ),
    "encoders of one name": (
        {"models__encoders": [{"name": "a", "model": "RN50"}, {"name": "a", "model": "RN101"}]},
        ["models.encoders", "different names", "a, a"],
    ),
    "revision that moves": (
        {"models__generator": "owner/name", "models__generator_revision": "main"},
        ["models.generator_revision", "'main'", "40 hexadecimal digits"],
    ),
    "unknown device": ({"device": "gpu"}, ["device", "'gpu'", "'cuda'"]),
    "own data set under the name of a built-in one": (
        {"own_datasets__pets": {"folder": ".", "class_names": ["a", "b"], "template": "a {}"}},
        ["own_datasets.pets", "comes with the package"],
    ),
    "data set without a template": (
        {"own_datasets__shapes__template": ...},
        ["own_datasets.shapes.template", "missing", "a photo of a {}"],
    ),
    "missing section": ({"images": ...}, ["images", "missing"]),
    "missing key": ({"images__per_class": ...}, ["images.per_class", "missing", "Images per class"]),
    "no data set": ({"datasets": []}, ["datasets", "[]", "at least 1"]),
    "unknown data set": ({"datasets": ["shapes", "cifar"]}, ["datasets", "'cifar'", "known are", "objects", "shapes"]),
    "data set twice": ({"datasets": ["shapes", "shapes"]}, ["datasets", "shapes", "twice"]),
    "table 2 of another data set": (
        {"tables__table2_datasets": ["sketch"]},
        ["tables.table2_datasets", "sketch", "listed in datasets"],
    ),
    "unknown data set in table 2": ({"tables__table2_datasets": ["x"]}, ["tables.table2_datasets", "'x'", "known are"]),
    "missing Fashion-MNIST folder": ({"fashion_mnist": "/no/such"}, ["fashion_mnist", "'/no/such'", "does not exist"]),
    "empty store name": ({"store": ""}, ["store", "''"]),
    "store name with braces": ({"store": "a{b}"}, ["store", "'a{b}'"]),
    "class twice": (
        {"own_datasets__shapes__class_names": ["a", "b", "a"]},
        ["own_datasets.shapes", "class_names", "'a'"],
    ),
    "class twice after folding": (
        {"own_datasets__shapes__class_names": ["Ankle  boot", "x", "ankle boot"]},
        ["own_datasets.shapes", "class_names", "'Ankle  boot'", "'ankle boot'", "folding"],
    ),
    "class twice in Unicode forms": (
        {"own_datasets__shapes__class_names": ["é", "x", unicodedata.normalize("NFD", "é")]},
        ["own_datasets.shapes", "class_names", "same"],
    ),
    "empty class name": (
        {"own_datasets__shapes__class_names": ["a", " ", "b"]},
        ["own_datasets.shapes", "class_names", "number 2", "empty"],
    ),
    "control character": (
        {"own_datasets__shapes__class_names": ["a", "b\x07", "c"]},
        ["own_datasets.shapes", "class_names", "b\\x07", "control character"],
    ),
    "one class": (
        {"own_datasets__shapes__class_names": ["a"], "own_datasets__shapes__class_folders": ["red"]},
        ["own_datasets.shapes", "class_names", "two classes"],
    ),
    "number as a class name": (
        {"own_datasets__shapes__class_names": ["a", 1, "b"]},
        ["own_datasets.shapes", "class_names"],
    ),
    "folders and classes do not match": (
        {"own_datasets__shapes__class_folders": ["red"]},
        ["own_datasets.shapes", "1 class_folders", "3 class_names"],
    ),
    "missing image folder": (
        {"own_datasets__shapes__folder": "/no/such"},
        ["own_datasets.shapes.folder", "'/no/such'", "does not exist"],
    ),
    "template without a place for the class": (
        {"own_datasets__shapes__template": "a photo"},
        ["own_datasets.shapes", "'a photo'", "{} exactly once"],
    ),
    "template with two places": (
        {"own_datasets__shapes__template": "a {} and a {}"},
        ["own_datasets.shapes", "'a {} and a {}'", "{} exactly once"],
    ),
    "template with a named place": (
        {"own_datasets__shapes__template": "a {name} {}"},
        ["own_datasets.shapes", "'a {name} {}'", "no other brace"],
    ),
    "unknown key of a data set": ({"own_datasets__shapes__colour": "red"}, ["own_datasets.shapes", "colour"]),
    "text for a data set": ({"own_datasets__shapes": "folder"}, ["own_datasets.shapes", "'folder'", "mapping"]),
    "data set name that is a path": ({"own_datasets__../x": {}}, ["own_datasets.../x"]),
}


@pytest.mark.parametrize("name", BAD)
def test_bad_value_is_named(params: dict[str, Any], tmp_path: Path, name: str):
    """A bad value is a `UserError` that says where it is, what it is and what is allowed; nothing is written."""
    changes, words = BAD[name]
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        configured(changed(params, **changes))
    message = str(caught.value)
    assert "nothing was run" in message
    missing = [word for word in words if word not in message]
    assert not missing, f"{missing} not in: {message}"
    assert files(tmp_path) == before


PLANNED_BAD: dict[str, tuple[dict[str, Any], list[str]]] = {
    "missing generator": ({"models__generator": "./none"}, ["models.generator", "'./none'", "does not exist"]),
    "hub id that is not pinned": (
        {"models__generator": "owner/name"},
        ["models.generator", "'owner/name'", "models.generator_revision"],
    ),
    "missing sentence model": ({"models__sentences": "/none"}, ["models.sentences", "'/none'", "does not exist"]),
    "missing encoder": (
        {"models__encoders": [{"name": "a", "model": "local-dir:none/x"}]},
        ["models.encoders.a", "none/x", "does not exist"],
    ),
    "encoder without weights": (
        {"models__encoders": [{"name": "a", "model": "RN50"}]},
        ["models.encoders.a", "'RN50'", "models.encoders.a.pretrained"],
    ),
    "checkpoint that is not there": (
        {"models__encoders": [{"name": "a", "model": "RN50", "pretrained": "weights/RN50.pt"}]},
        ["models.encoders.a.pretrained", "'weights/RN50.pt'", "does not exist"],
    ),
    "hub encoder that is not pinned": (
        {"models__encoders": [{"name": "a", "model": "hf-hub:owner/name"}]},
        ["models.encoders.a", "'hf-hub:owner/name'", "models.encoders.a.revision"],
    ),
    "class name used as a path": (
        {"own_datasets__shapes__class_folders": ["red", "../blue", "green"]},
        ["own_datasets.shapes", "'../blue'", "sub-folder"],
    ),
    "sub-folder that no class names": (
        {
            "own_datasets__shapes__class_names": ["red/square", "grüne Fläche"],
            "own_datasets__shapes__class_folders": ["red", "green"],
            "own_datasets__shapes__subset": False,
        },
        ["own_datasets.shapes", "'blue'", "1 in all", "subset: true"],
    ),
    "absolute class folder": (
        {"own_datasets__shapes__class_folders": ["red", "/etc", "green"]},
        ["own_datasets.shapes", "'/etc'", "sub-folder"],
    ),
}


@pytest.mark.parametrize("name", PLANNED_BAD)
def test_bad_model_or_folder_is_named_when_planned(params: dict[str, Any], tmp_path: Path, name: str):
    """What only the file system can tell is told before anything runs, too."""
    changes, words = PLANNED_BAD[name]
    before = files(tmp_path)
    with pytest.raises(UserError) as caught:
        Plan(configured(changed(params, **changes))).require_models()
    missing = [word for word in words if word not in str(caught.value)]
    assert not missing, f"{missing} not in: {caught.value}"
    assert files(tmp_path) == before


def test_every_fault_is_listed(params: dict[str, Any]):
    """One run tells all faults, not the first."""
    with pytest.raises(UserError) as caught:
        configured(changed(params, images__per_class=0, tuning__epochs="x", seed=-1))
    message = str(caught.value)
    assert all(key in message for key in ("images.per_class", "tuning.epochs", "seed"))


@pytest.mark.parametrize("values", [None, [], "text", 3])
def test_not_a_mapping(values: Any):
    """A file that is empty, a list or plain text is refused."""
    with pytest.raises(UserError, match="expected a mapping of sections"):
        load_config(values)


def test_files_that_cannot_be_read(tmp_path: Path):
    """A missing file, a file that is not YAML and one that is not text are user errors."""
    with pytest.raises(UserError, match="does not exist"):
        read_config(tmp_path / "params.yaml")
    for content in (b"a: [1", b"\xff\xfe\x00"):
        (tmp_path / "params.yaml").write_bytes(content)
        with pytest.raises(UserError, match="is not YAML"):
            read_config(tmp_path / "params.yaml")


def test_overlays_are_merged_key_by_key(params: dict[str, Any], tmp_path: Path):
    """An overlay replaces what it names and nothing else; a later one wins."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    (tmp_path / "a.yaml").write_text("images: {per_class: 7}\ntuning: {seeds: [5]}\n")
    (tmp_path / "b.yaml").write_text("images: {per_class: 9}\n")
    config = read_config(*(tmp_path / name for name in ("params.yaml", "a.yaml", "b.yaml")))
    assert config == configured(changed(params, images__per_class=9, tuning__seeds=[5]))


def test_class_names_are_data(params: dict[str, Any], tmp_path: Path):
    """Separators, quotes, dots and any script are allowed in class names, and reach the data set as they are."""
    names = ["a/b", "../..", "\"quoted\" 'name'", "猫 & 犬", "{braces}", "$(rm -rf ~)", "C:\\", ".hidden"]
    folders = tuple(f"c{i}" for i in range(len(names)))
    images = draw_shapes(tmp_path / "hard", 1, folders=folders)
    own = {"hard": own_dataset(images, dict(zip(names, folders, strict=True)))}
    plan = Plan(configured(changed(params, own_datasets=own, datasets=["hard"], tables__table2_datasets=["hard"])))
    assert plan.dataset("hard").class_names == names
    for job in plan.jobs.values():
        for artifact in (job, *job.members):
            assert ".." not in Path(artifact.path).parts
            assert not set(artifact.path) - set("abcdefghijklmnopqrstuvwxyz0123456789_./-")


def test_class_names_default_to_the_sub_folders(params: dict[str, Any], tmp_path: Path):
    """Without class_names the visible sub-folders name the classes, in alphabetical order."""
    decomposed = unicodedata.normalize("NFD", "über")
    images = draw_shapes(tmp_path / "more", 1, folders=("b", "a", decomposed))
    (images / ".ipynb_checkpoints").mkdir()
    (images / "notes.txt").touch()
    own = {"shapes": {"folder": str(images), "template": "a {}"}}
    dataset = configured(changed(params, own_datasets=own)).dataset("shapes")
    assert dataset.class_names == ["a", "b", "über"]
    assert [path.as_posix() for path in dataset.folders()] == ["a", "b", decomposed]


# --- the files that come with the repository --------------------------------------------------------------------------


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_shipped_configuration_is_valid(path: Path):
    """params.yaml validates, and with each study's overlay too."""
    overlays = [] if path.name == "params.yaml" else [path]
    read_config(REPOSITORY / "params.yaml", *overlays)


@pytest.mark.parametrize("path", YAML_FILES, ids=lambda path: path.name)
def test_yaml_1_1_and_1_2_agree(path: Path):
    """Snakemake reads YAML 1.1 and DVC 1.2: the shipped files mean the same to both."""
    ruamel = pytest.importorskip("ruamel.yaml")
    text = path.read_text(encoding="utf-8")
    values = yaml.safe_load(text)
    other = ruamel.YAML(typ="safe", pure=True).load(text)
    assert _typed(values) == _typed(other)


def _typed(value: Any) -> Any:
    """The value with the type of each leaf: 1 and 1.0 and True are equal to Python."""
    if isinstance(value, dict):
        return {key: _typed(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_typed(item) for item in value]
    return type(value).__name__, value


def test_schema_file_is_fresh():
    """workflow/schemas/params.schema.json is what the models of the configuration say."""
    path = REPOSITORY / "workflow" / "schemas" / "params.schema.json"
    refresh = f"python -m pipeline_lib schema > {path.relative_to(REPOSITORY)}"
    assert path.exists(), f"make it: {refresh}"
    assert json.loads(path.read_text()) == Config.model_json_schema(), f"stale; refresh it: {refresh}"
