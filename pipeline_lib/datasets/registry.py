"""The data sets: definitions are data (`definitions/*.yaml`, or `own_datasets` in params.yaml), not code."""

import unicodedata
from functools import cache
from importlib import resources
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline_lib.errors import UserError

IMAGE_SUFFIXES = frozenset({".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff"})
Rendering = Literal["objects", "fine_grained", "low_resolution", "sketch", "rendition", "scene"]
Split = Literal["test", "validation"]


def fold(name: str) -> str:
    """A class name as it is compared: NFKC, case folded, white space collapsed."""
    return " ".join(unicodedata.normalize("NFKC", name).casefold().split())


class Dataset(BaseModel):
    """A label space with real test images."""

    model_config = ConfigDict(extra="forbid", frozen=True, strict=True)

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    """Lower-case letters, digits and underscores: it becomes a folder name."""
    task: str = "own"
    """Kind of task, as in the paper's Table 1."""
    class_names: list[str]
    """Class names without articles, in the order of the class indices. Data, never paths."""
    class_folders: list[str] | None = None
    """Sub-folder of each class, for `folder`; the class names themselves where not given."""
    head_templates: Annotated[list[str], Field(min_length=1)]
    """Prompts of the zero-shot head; `{}` is the class name. Several are averaged (prompt ensemble)."""
    prompt_template: str
    """Basic prompt of the generator; `{}` is the class name."""
    sentence_template: str
    """Language-enhancement prompt; `{}` is the generated sentence."""
    keywords: list[str] = []
    """Words handed to the word-to-sentence model with the class name (the concept set of CommonGen)."""
    fashion_mnist: Rendering | None = None
    """Test images: a rendering of Fashion-MNIST."""
    folder: str | None = None
    """Test images: a folder with one sub-folder per class."""
    test_pool: str | None = None
    """Data sets of one pool share test images: their gains are resampled together. None: a pool of its own."""
    n_images: dict[Split, int] = {}
    """Expected number of images per split; another number is an error."""
    source: str = ""
    """Where images and names come from."""
    licence: str = ""
    """Licence of the images."""

    @field_validator("class_names")
    @classmethod
    def _class_names(cls, names: list[str]) -> list[str]:
        if len(names) < 2:
            raise ValueError(f"at least two classes are needed, found {names}")
        seen: dict[str, str] = {}
        for position, name in enumerate(names):
            folded = fold(name)
            if not folded:
                raise ValueError(f"class name number {position + 1} is empty")
            if any(unicodedata.category(character) == "Cc" for character in name):
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

    @model_validator(mode="after")
    def _one_source(self) -> "Dataset":
        if (self.fashion_mnist is None) == (self.folder is None):
            raise ValueError("exactly one of folder and fashion_mnist says where the test images are")
        if self.folder is not None and self.test_pool is not None:
            raise ValueError("test_pool: images of a folder are numbered for themselves; leave it out")
        if self.class_folders is not None and len(self.class_folders) != len(self.class_names):
            raise ValueError(f"{len(self.class_folders)} class_folders for {len(self.class_names)} class_names")
        return self

    @property
    def pool(self) -> str:
        return self.test_pool or self.name

    def folders(self) -> list[Path]:
        """Sub-folder of each class, relative to `folder`; refuses one that would lie elsewhere."""
        paths = []
        for name in self.class_folders or self.class_names:
            path = Path(name)
            if path.is_absolute() or len(path.parts) != 1 or path.parts[0] == "..":
                raise UserError(
                    f"own_datasets.{self.name}: {name!r} cannot be the name of a sub-folder; give class_folders, one "
                    f"plain folder name for each of class_names"
                )
            paths.append(path)
        return paths


def _one_placeholder(template: str) -> str:
    if template.count("{}") != 1 or template.replace("{}", "").count("{") or template.replace("{}", "").count("}"):
        raise ValueError(f"{template!r} must hold {{}} exactly once, and no other brace")
    return template


@cache
def builtin_datasets() -> dict[str, Dataset]:
    """The definitions that come with the package, by name."""
    folder = resources.files("pipeline_lib.datasets") / "definitions"
    files = {
        Path(entry.name).stem: yaml.safe_load(entry.read_text(encoding="utf-8"))
        for entry in sorted(folder.iterdir(), key=lambda entry: entry.name)
        if entry.name.endswith(".yaml")
    }
    return read_datasets(files, "pipeline_lib/datasets/definitions")


def read_datasets(values: dict[str, Any], where: str) -> dict[str, Dataset]:
    """Validate definitions by name. For a `folder`, `template` stands for all three templates, and the class names
    default to the sub-folders' names in alphabetical order.

    Raises ValueError naming the definition, the key and the fault.
    """
    datasets = {}
    for name, value in values.items():
        if not isinstance(value, dict):
            raise ValueError(f"{where}.{name}: expected a mapping with folder and template, found {value!r}")
        try:
            datasets[name] = Dataset.model_validate({"name": name, **_with_defaults(value, f"{where}.{name}")})
        except ValidationError as error:
            faults = [
                ": ".join(filter(None, (".".join(map(str, fault["loc"])), fault["msg"].removeprefix("Value error, "))))
                for fault in error.errors()
            ]
            raise ValueError(f"{where}.{name}: {'; '.join(faults)}") from None
    return datasets


def _with_defaults(value: dict[str, Any], where: str) -> dict[str, Any]:
    value = dict(value)
    template = value.pop("template", None)
    if template is not None:
        value.setdefault("head_templates", [template])
        value.setdefault("prompt_template", template)
        value.setdefault("sentence_template", template)
    folder = value.get("folder")
    if isinstance(folder, str):
        if not Path(folder).is_dir():
            raise ValueError(
                f"{where}.folder: the folder {folder!r} does not exist; name the folder of the test images"
            )
        if "class_names" not in value:
            value["class_names"] = sorted(
                entry.name for entry in Path(folder).iterdir() if entry.is_dir() and not entry.name.startswith(".")
            )
        # The folders keep the form that the file system knows; class names are normalised.
        value.setdefault("class_folders", value["class_names"])
    return value
