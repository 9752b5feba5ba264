"""The data sets: definitions are data (`definitions/*.yaml`, or `own_datasets` in params.yaml), not code.

A definition says where the real images come from in one of five ways: a rendering of Fashion-MNIST, the layout of an
official download (`loader`), a folder with one sub-folder per class, Parquet files, or a Hugging Face data set.
"""

import re
import unicodedata
from functools import cache
from itertools import dropwhile
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline_lib import shipped
from pipeline_lib.datasets.layouts import LAYOUTS
from pipeline_lib.datasets.own_data import parquet_files, parquet_labels
from pipeline_lib.errors import UserError
from pipeline_lib.paths import check_path, is_folder, sub_folders
from pipeline_lib.yaml_files import misread, shortened

Rendering = Literal["objects", "fine_grained", "low_resolution", "sketch", "rendition", "scene"]
Split = Literal["test", "train", "validation"]
Kind = Literal["fashion_mnist", "loader", "folder", "parquet", "huggingface"]
# Loaders whose labels are codes (WordNet ids, numbers), which resemble no name.
CODED = frozenset({"flowers", "imagenet", "imagenet_r", "imagenet_sketch"})
# Text encoders cut what is longer (CLIP: 77 tokens, some 300 letters), and two classes may become one.
MAX_CLASS_NAME = 200
MAX_TEMPLATE = 300
_UNSEEN = frozenset({"Cc", "Zl", "Zp"})  # control characters and line breaks
KINDS: tuple[Kind, ...] = ("fashion_mnist", "loader", "folder", "parquet", "huggingface")


def fold(name: str) -> str:
    """A class name as it is compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


class HuggingFace(BaseModel):
    """A data set that Hugging Face's `datasets.load_dataset` loads."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    id: str
    """Hub id OWNER/NAME, or a local folder."""
    revision: Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")] | None = None
    """Commit (40 hexadecimal digits) of the hub repository; required for a hub id."""
    config: str | None = None
    """Configuration of the data set, where it has several."""
    split: str = "test"
    """The data set's own name of the split with the test images."""
    train_split: str | None = None
    """The data set's own name of the split with training images, for few-shot recognition."""

    @property
    def is_local(self) -> bool:
        return is_folder(self.id)

    @model_validator(mode="after")
    def _pinned(self) -> "HuggingFace":
        if self.is_local:
            return self
        if self.id.startswith((".", "/")) or self.id.count("/") != 1:
            raise ValueError(
                f"id: the folder {shortened(self.id)} does not exist; name a folder or a hub id OWNER/NAME"
            )
        if self.revision is None:
            raise ValueError(
                f"revision: {self.id!r} is no folder here, so it is read as a hub id; pin it with the commit (40 "
                f"hexadecimal digits) of the hub repository, so that the same images are used every time"
            )
        return self

    @model_validator(mode="after")
    def _apart(self) -> "HuggingFace":
        if self.train_split == self.split:
            raise ValueError(f"train_split: {self.train_split!r} is the split with the test images; name another one")
        return self


class Dataset(BaseModel):
    """A label space with real test images."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    """Lower-case letters, digits and underscores: it becomes a folder name."""
    task: Annotated[str, Field(pattern=r"^\w[\w -]{0,39}$")] = "own"
    """Kind of task, as in the paper's Table 1: a cell of the tables."""
    class_names: list[str]
    """Class names without articles, in the order of the class indices. Data, never paths."""
    class_folders: list[str] | None = None
    """What the raw data calls each class: the sub-folder or the official label; the class name where not given."""
    renamed: list[str] = []
    """Class names that are meant although another class's folder or label resembles them more."""
    subset: bool = False
    """Leave images of other classes out; without it, an image of a class that is not listed is an error."""
    head_templates: Annotated[list[str], Field(min_length=1)]
    """Prompts of the zero-shot head; `{}` is the class name. Several are averaged (prompt ensemble)."""
    prompt_template: str
    """Basic prompt of the generator; `{}` is the class name."""
    sentence_template: str
    """Language-enhancement prompt; `{}` is the generated sentence, which has its own article ("a sneaker on ...")."""
    keywords: list[Annotated[str, Field(max_length=MAX_CLASS_NAME)]] = []
    """Words handed to the word-to-sentence model with the class name (the concept set of CommonGen)."""
    fashion_mnist: Rendering | None = None
    """Images: a rendering of Fashion-MNIST."""
    loader: str | None = None
    """Images: an official download as it unpacks; one of `layouts.LAYOUTS`."""
    root: Annotated[str, AfterValidator(check_path)] | None = None
    """Folder of the official download, for `loader`; the configuration's `data`/NAME where not given."""
    folder: str | None = None
    """Images: a folder with one sub-folder of test images per class."""
    parquet: str | None = None
    """Images: a Parquet file, a pattern such as birds/*.parquet, or a folder of Parquet files."""
    huggingface: HuggingFace | None = None
    """Images: a Hugging Face data set."""
    train_folder: str | None = None
    """Training images for few-shot recognition, beside `folder`: the same sub-folders in another folder."""
    train_parquet: str | None = None
    """Training images for few-shot recognition, beside `parquet`: other files with the same columns."""
    image_column: str = "image"
    """Column of the encoded images, for `parquet` and `huggingface`."""
    label_column: str = "label"
    """Column of the labels, for `parquet` and `huggingface`."""
    test_pool: str | None = None
    """Data sets of one pool share test images: their gains are resampled together. None: a pool of its own."""
    n_images: dict[Split, Annotated[int, Field(ge=1)] | None] = {}
    """Expected number of images per split, another number is an error; null: whatever is there."""
    source: str = ""
    """Where images and names come from."""
    licence: str = ""
    """Licence of the images."""
    download: str = ""
    """What to get, and how it must lie below the data folder."""

    @field_validator("class_names")
    @classmethod
    def _class_names(cls, names: list[str]) -> list[str]:
        if len(names) < 2:
            raise ValueError(f"at least two classes are needed, found {names}")
        seen: dict[str, str] = {}
        for position, name in enumerate(names):
            if any(unicodedata.category(character) == "Cs" for character in name):
                raise ValueError(f"class name {name!a} is not Unicode text; rename the folder, or the label, in UTF-8")
            folded = fold(name)
            if not any(unicodedata.category(character)[0] in "LNPS" for character in folded):
                raise ValueError(f"class name number {position + 1}, {name!a}, is empty; name the class")
            if len(name) > MAX_CLASS_NAME:
                raise ValueError(
                    f"class name {name[:40]!r}... has {len(name)} characters, at most {MAX_CLASS_NAME} are allowed, "
                    f"because text encoders cut longer prompts; shorten it, and let class_folders say what the data "
                    f"calls the class"
                )
            if any(unicodedata.category(character) in _UNSEEN for character in name):
                raise ValueError(f"class name {name!r} holds a control character; remove it")
            if folded in seen:
                raise ValueError(
                    f"class names {seen[folded]!r} and {name!r} are the same after folding case and spaces"
                )
            seen[folded] = name
        return [unicodedata.normalize("NFC", name) for name in names]

    @field_validator("head_templates")
    @classmethod
    def _head_templates(cls, templates: list[str]) -> list[str]:
        return [_one_placeholder(template) for template in templates]

    @field_validator("prompt_template", "sentence_template")
    @classmethod
    def _template(cls, template: str) -> str:
        return _one_placeholder(template)

    @field_validator("loader")
    @classmethod
    def _known_loader(cls, loader: str | None) -> str | None:
        if loader is not None and loader not in LAYOUTS:
            raise ValueError(f"{loader!r} is not known; known are {', '.join(LAYOUTS)}")
        return loader

    @model_validator(mode="after")
    def _one_source(self) -> "Dataset":
        given = [kind for kind in KINDS if getattr(self, kind) is not None]
        if len(given) != 1:
            raise ValueError(
                f"exactly one of {', '.join(KINDS)} says where the test images are; given: {', '.join(given) or 'none'}"
            )
        if self.fashion_mnist is None and self.test_pool is not None:
            raise ValueError("test_pool: images of your own are numbered for themselves; leave it out")
        if self.root is not None and self.loader is None:
            raise ValueError("root: it belongs to loader; leave it out")
        for train, kind in (("train_folder", self.folder), ("train_parquet", self.parquet)):
            if getattr(self, train) is not None and kind is None:
                raise ValueError(f"{train}: it belongs to {train.removeprefix('train_')}; leave it out")
        labels = self.class_folders
        if labels is not None and len(labels) != len(self.class_names):
            raise ValueError(f"{len(labels)} class_folders for {len(self.class_names)} class_names")
        if labels is not None and len(set(labels)) != len(labels):
            twice = next(label for label in labels if labels.count(label) > 1)
            raise ValueError(f"class_folders: {twice!r} stands for more than one class")
        unknown = [name for name in self.renamed if fold(name) not in map(fold, self.class_names)]
        if unknown:
            raise ValueError(f"renamed: {unknown[0]!r} is not among class_names")
        absent = [split for split in self.n_images if split not in self.splits]
        if absent:
            raise ValueError(f"n_images: there is no split {absent[0]!r}; there are {', '.join(self.splits)}")
        return self

    @property
    def pool(self) -> str:
        return self.test_pool or self.name

    @property
    def kind(self) -> Kind:
        """Which of the five ways says where the images are."""
        return next(kind for kind in KINDS if getattr(self, kind) is not None)

    @property
    def splits(self) -> tuple[Split, ...]:
        """The splits that there are real images of."""
        if self.fashion_mnist is not None:
            return ("test", "train", "validation")
        if self.loader is not None:
            return ("test", "train") if "train" in LAYOUTS[self.loader].parts else ("test",)
        hub = self.huggingface
        return ("test", "train") if self.train_folder or self.train_parquet or (hub and hub.train_split) else ("test",)

    @property
    def labels(self) -> list[str]:
        """What the raw data calls each class, in the order of the class indices."""
        return self.class_folders or self.class_names

    def require_split(self, split: str, key: str) -> Split:
        """`split`, if there are real images of it. Raises `UserError` naming the configuration's `key` otherwise."""
        for known in self.splits:
            if known == split:
                return known
        raise UserError(
            f"{key}: data set {self.name} has no split {split!r}; there {'are' if len(self.splits) > 1 else 'is'} "
            f"{', '.join(self.splits)}"
        )

    def folders(self) -> list[Path]:
        """Sub-folder of each class, relative to `folder`. Raises `UserError` for one that would lie elsewhere, and for
        what cannot be a name."""
        paths = []
        for name in self.labels:
            path = Path(name)
            if path.is_absolute() or len(path.parts) != 1 or path.parts[0] == "..":
                raise UserError(
                    f"own_datasets.{self.name}: {name!r} cannot be the name of a sub-folder; give class_folders, one "
                    f"plain folder name for each of class_names"
                )
            try:
                check_path(name)
            except ValueError as error:
                raise UserError(f"own_datasets.{self.name}: class_folders: {error}") from None
            paths.append(path)
        return paths


def _one_placeholder(template: str) -> str:
    if len(template) > MAX_TEMPLATE:
        raise ValueError(
            f"{template[:40]!r}... has {len(template)} characters, at most {MAX_TEMPLATE} are allowed, because text "
            f"encoders cut longer prompts; shorten it"
        )
    if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
        raise ValueError(f"{template!r} must hold {{}} exactly once, and no other brace")
    return template


@cache
def builtin_datasets() -> dict[str, Dataset]:
    """The definitions that come with the package, by name."""
    names = shipped.names("datasets/definitions/*.yaml")
    files = {Path(name).stem: yaml.safe_load(shipped.read_text(name)) for name in names}
    return read_datasets(files, "pipeline_lib/datasets/definitions")


def read_datasets(values: dict[str, Any], where: str) -> dict[str, Dataset]:
    """Validate definitions by name. `template` stands for all three templates, for that of sentences without an article
    before the `{}`; class names that are not given come from the data: the sub-folders' names, the labels of Parquet
    files, the list that comes with a loader.

    Raises ValueError naming the definition, the key and the fault.
    """
    datasets = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise ValueError(f"{where}.{name}: expected a mapping with folder and template, found {shortened(value)}")
        try:
            datasets[name] = Dataset.model_validate({"name": name, **_with_defaults(value, f"{where}.{name}")})
        except ValidationError as error:
            faults = "; ".join(map(_describe, error.errors()))
            raise ValueError(f"{where}.{name}: {faults}") from None
    return datasets


def _describe(fault: Any) -> str:
    """A fault as pydantic reports it: key, value, what is allowed."""
    message = fault["msg"].removeprefix("Value error, ")
    if fault["type"] not in ("value_error", "missing", "extra_forbidden"):
        message = f"{shortened(fault['input'])} is not allowed: {message}{misread(fault['input'], fault['type'])}"
    return ": ".join(filter(None, (".".join(map(str, fault["loc"])), message)))


_TEMPLATES = ("head_templates", "prompt_template", "sentence_template")
_ARTICLE = re.compile(r"\b(?:an?|the)\s+(?=\{\})", re.IGNORECASE)


def _with_defaults(value: dict[str, Any], where: str) -> dict[str, Any]:
    value = dict(value)
    template = value.pop("template", None)
    if template is not None:
        # A sentence brings its own article: not "a photo of a a sneaker on the floor".
        of_sentence = _ARTICLE.sub("", template) if isinstance(template, str) else template
        value = {"head_templates": [template], "prompt_template": template, "sentence_template": of_sentence} | value
    for key, images in (("folder", "test"), ("train_folder", "training")):
        folder = value.get(key)  # a loader's root may be missing: official downloads are planned without their data
        if isinstance(folder, str) and not is_folder(folder):
            raise ValueError(
                f"{where}.{key}: the folder {shortened(folder)} does not exist; name the folder of the {images} images"
            )
    _refuse_same_files(value, where)
    if "class_names" not in value:
        names = _known_names(value, where)
        if names is not None:
            value["class_names"] = names
    if "class_folders" not in value and "class_names" in value:
        # Labels keep the form that the raw data has; class names are normalised.
        value["class_folders"] = _labels_of(value, where)
    if template is None and (missing := [key for key in _TEMPLATES if key not in value]):
        raise ValueError(
            f'{where}.template: missing; a prompt with {{}} for the class, such as "a photo of a {{}}" (or each of '
            f"{', '.join(missing)})"
        )
    return value


def _refuse_same_files(value: dict[str, Any], where: str) -> None:
    """Raises ValueError where training images are the test images: what is learned from must not be tested on."""
    test, train = value.get("folder"), value.get("train_folder")
    if isinstance(test, str) and isinstance(train, str) and Path(test).samefile(train):
        raise ValueError(
            f"{where}.train_folder: {train!r} is the folder of the test images, which must never be trained on; name "
            f"another one"
        )
    test, train = value.get("parquet"), value.get("train_parquet")
    if isinstance(test, str) and isinstance(train, str):
        files = {file.resolve() for file in parquet_files(test, where)}
        common = files.intersection(file.resolve() for file in parquet_files(train, where, "train_parquet"))
        if common:
            raise ValueError(
                f"{where}.train_parquet: {train!r} names files of test images, which must never be trained on: "
                f"{', '.join(sorted(map(str, common))[:5])}; name others"
            )


def _known_names(value: dict[str, Any], where: str) -> list[str] | None:
    """The class names that the data itself, or the package, gives; None where it gives none."""
    loader, folder, pattern = value.get("loader"), value.get("folder"), value.get("parquet")
    if isinstance(folder, str):
        return value.get("class_folders") or sub_folders(Path(folder))
    if isinstance(pattern, str):
        found = parquet_labels(parquet_files(pattern, where), value.get("label_column", "label"), where)
        if found.are_numbers:
            raise ValueError(
                f"{where}.class_names: missing; the labels of {pattern!r} are numbers without names: list the names "
                f"in the order of the numbers"
            )
        return list(found.names)
    if isinstance(loader, str) and loader in LAYOUTS:
        name_of: dict[Any, str] = dict(_packaged_names(loader))
        labels = value.setdefault("class_folders", list(name_of))
        return [name_of.get(label, str(label)) for label in labels] if isinstance(labels, list) else None
    return None


def _labels_of(value: dict[str, Any], where: str) -> Any:
    """What the raw data calls the classes, where the definition names them alone."""
    names, pattern = value["class_names"], value.get("parquet")
    if isinstance(pattern, str) and isinstance(names, list):
        found = parquet_labels(parquet_files(pattern, where), value.get("label_column", "label"), where)
        if found.are_numbers:
            return [str(number) for number in range(len(names))]
    return names


@cache
def official_names(loader: str | None) -> dict[str, str]:
    """What the package calls each label of a download whose labels are codes; of others nothing."""
    return _packaged_names(loader) if loader in CODED else {}


def _packaged_names(loader: str) -> dict[str, str]:
    """Label -> class name, from the two lists that come with the package and go line by line."""
    labels, names = (_packaged_list(kind, loader) for kind in ("class_folders", "class_names"))
    return dict(zip(labels, names, strict=True))


def _packaged_list(kind: str, loader: str) -> list[str]:
    """The lines of a list that comes with the package, without its header of lines that start with "# "."""
    lines = shipped.read_text(f"datasets/{kind}/{loader}.txt").splitlines()
    return list(dropwhile(lambda line: line.startswith("# "), lines))
