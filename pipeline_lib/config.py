"""The configuration: pydantic models of params.yaml, validated whole before anything runs."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from pipeline_lib.datasets.registry import Dataset, builtin_datasets, read_datasets
from pipeline_lib.errors import UserError
from pipeline_lib.paths import is_file, is_folder
from pipeline_lib.sections import (
    ClipFilter,
    Costs,
    Embeddings,
    Evaluation,
    FolderName,
    Images,
    Models,
    PathText,
    Prompts,
    Section,
    Seed,
    Tables,
    Tuning,
)
from pipeline_lib.sections_few_shot import FewShot
from pipeline_lib.yaml_files import misread, read_yaml, shortened, unprintable


class Config(Section):
    """params.yaml."""

    study: Annotated[str, Field(pattern=r"^[^\n`]{1,200}$")]
    """Name of the study; printed in the tables' notes: one line of at most 200 characters, without `."""
    seed: Seed
    """Run seed of prompts and images."""
    store: FolderName
    """Folder of the content-addressed artifacts; its name holds no { } * ? [ ]."""
    results: FolderName
    """Folder of tables and pictures; its name holds no { } * ? [ ]."""
    data: PathText
    """Folder of source data: DATA/<data set> holds what its download unpacks to."""
    device: Literal["auto", "cpu", "cuda"]
    """Where models run; auto: on a GPU where there is one; cuda: without a GPU nothing that needs one starts."""
    fashion_mnist: str | None = None
    """Folder with Fashion-MNIST's four .gz files; null: found or fetched."""
    datasets: Annotated[list[str], Field(min_length=1)]
    """Data sets to evaluate, in the order of the tables."""
    own_datasets: dict[str, Any] = Field(default_factory=dict)
    """Your own data sets, by name: see README, "Your own images"."""
    models: Models
    """Pretrained models."""
    prompts: Prompts
    """Prompts."""
    images: Images
    """Images."""
    embeddings: Embeddings
    """Embeddings."""
    clip_filter: ClipFilter
    """CLIP filter."""
    tuning: Tuning
    """Classifier tuning."""
    evaluation: Evaluation
    """Evaluation."""
    tables: Tables
    """Tables."""
    few_shot: FewShot
    """Few-shot recognition."""
    costs: Costs
    """Rates for the estimate of time and disk."""

    @field_validator("store", "results", "data")
    @classmethod
    def _no_file(cls, folder: str) -> str:
        if is_file(folder):
            raise ValueError(f"{folder!r} is a file; name a folder, which need not be there yet")
        return folder

    @model_validator(mode="after")
    def _known_datasets(self) -> "Config":
        own = read_datasets(self.own_datasets, "own_datasets")
        for name in own.keys() & builtin_datasets().keys():
            raise ValueError(f"own_datasets.{name}: this data set comes with the package; name yours otherwise")
        registry = builtin_datasets() | own
        few_shot = self.few_shot
        for key, names in (
            ("datasets", self.datasets),
            ("tables.table2_datasets", self.tables.table2_datasets),
            ("few_shot.datasets", few_shot.datasets),
            ("few_shot.ablation_dataset", [few_shot.ablation_dataset] if few_shot.ablation_dataset else []),
        ):
            for name in names:
                if name not in registry:
                    raise ValueError(f"{key}: unknown data set {name!r}; known are {', '.join(sorted(registry))}")
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: {names} names a data set twice")
        is_asked_for = any(name in self.datasets for name in few_shot.datasets)
        if is_asked_for and few_shot.images_per_class > self.images.per_class:
            raise ValueError(
                f"few_shot.images_per_class: {few_shot.images_per_class} is more than images.per_class "
                f"({self.images.per_class}), of which the basic strategy and real filtering choose; lower the one or "
                f"raise the other"
            )
        missing = [name for name in self.tables.table2_datasets if name not in self.datasets]
        if missing:
            raise ValueError(
                f"tables.table2_datasets: {', '.join(missing)} must also be listed in datasets; for Table 2 of those "
                f"that are, write tables: {{table2_datasets: [{', '.join(self.datasets)}]}}"
            )
        for name in self.datasets:
            if self.evaluation.split not in registry[name].splits:
                raise ValueError(
                    f"evaluation.split: {self.evaluation.split!r} is not there for {name}, whose images are "
                    f"{' and '.join(registry[name].splits)}; choose settings on a data set of other images, or write "
                    f"test"
                )
        if self.fashion_mnist is not None and not is_folder(self.fashion_mnist):
            folder = shortened(self.fashion_mnist)
            raise ValueError(f"fashion_mnist: the folder {folder} does not exist; name one or write null")
        return self

    def dataset(self, name: str) -> Dataset:
        """The definition of one of `datasets`."""
        return {**builtin_datasets(), **read_datasets(self.own_datasets, "own_datasets")}[name]


def load_config(values: Any, *, source: str = "params.yaml") -> Config:
    """Validate the parsed content of params.yaml (with any overlays already merged in).

    Raises `UserError` listing every fault: the key, the value, what is allowed.
    """
    if not isinstance(values, dict):
        raise UserError(f"{source}: expected a mapping of sections, found {type(values).__name__}")
    faults = list(unprintable(values))  # first: pydantic's own messages cannot hold half a character
    if not faults:
        try:
            return Config.model_validate(values)
        except ValidationError as error:
            faults = [_describe(fault, values) for fault in error.errors()]
    raise UserError("\n  ".join([f"{source} is not valid; nothing was run:", *faults]))


def read_config(path: Path, *overlays: Path) -> Config:
    """Read and validate a YAML file, with overlays merged into it as Snakemake's --configfile does: mappings are
    merged key by key, all else is replaced."""
    values = read_yaml(path)
    for overlay in overlays:
        values = _merge(values, read_yaml(overlay))
    return load_config(values, source=" + ".join(str(name) for name in (path, *overlays)))


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}


def _describe(fault: Any, values: dict[str, Any]) -> str:
    """One line for one fault, in the user's terms."""
    # Tagged unions add their branch to the location ("literal['1/N']"); the user wrote no such key.
    location = [part for part in fault["loc"] if isinstance(part, int) or _is_key(part)]
    if fault["type"] == "extra_forbidden":
        *section, unknown = fault["loc"]
        location = [*(part for part in location if part in section), unknown]
    key = ".".join(str(part) for part in location) or "(top level)"
    if fault["type"] == "extra_forbidden":
        return f"{key}: unknown key; allowed here: {', '.join(_allowed_keys(location[:-1]))}"
    if fault["type"] == "invalid_key":
        return f"{key}: {fault['input']!r} is no key: keys are text, and YAML reads this one otherwise"
    if fault["type"] == "missing":
        return f"{key}: missing; {_help(location)}"
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return message if key == "(top level)" else f"{key}: {message}"
    value = fault["input"]
    hint = misread(value, fault["type"])
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{key}: {shortened(value)} is not allowed: {message}{hint}. {_help(location)}"


def _is_key(part: str) -> bool:
    return part.isidentifier() and part not in ("constrained-int", "float", "int", "str")


def _section(location: list[Any]) -> type[BaseModel] | None:
    model: type[BaseModel] | None = Config
    for part in location:
        if isinstance(part, int):  # of a list, all entries are alike
            continue
        field = model.model_fields.get(part) if model and isinstance(part, str) else None
        if field is None:
            return None
        annotations = (field.annotation, *get_args(field.annotation))
        model = next((a for a in annotations if isinstance(a, type) and issubclass(a, BaseModel)), None)
    return model


def _allowed_keys(location: list[Any]) -> list[str]:
    model = _section(location)
    return sorted(model.model_fields) if model else []


def _help(location: list[Any]) -> str:
    """The documented meaning of a key."""
    names = [part for part in location if isinstance(part, str)]
    model = _section(names[:-1])
    field = model.model_fields.get(names[-1]) if model and names else None
    return (field.description or "").replace("\n", " ") if field else ""
