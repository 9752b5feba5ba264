"""The configuration: pydantic models of params.yaml, validated whole before anything runs."""

from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator

from pipeline_lib.datasets.registry import Dataset, builtin_datasets, read_datasets
from pipeline_lib.errors import UserError
from pipeline_lib.records import Loss, Strategy

Positive = Annotated[int, Field(ge=1)]
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # a branch or tag moves, a commit does not
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
FolderName = Annotated[str, Field(pattern=r"^[^{}*?\[\]\n]+$")]  # Snakemake reads those as wildcards
Fraction = Annotated[float, Field(gt=0, lt=1)]


class _Section(BaseModel):
    # strict: YAML 1.1 reads 1e-3 as a string and `on` as a boolean; neither may slip through as a number or a name.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class EncoderModel(_Section):
    """A CLIP model that open_clip loads."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    """What the tables call it: lower-case letters, digits and underscores."""
    model: str
    """`local-dir:FOLDER`, `hf-hub:OWNER/NAME` with `revision`, or an architecture name with `pretrained`."""
    pretrained: str | None = None
    """open_clip pretrained tag, for example `openai`, or a checkpoint file."""
    revision: Commit | None = None
    """Commit (40 hexadecimal digits) of the hub repository."""


class Models(_Section):
    """The pretrained models, each a hub id or a local folder."""

    generator: str
    """Text-to-image model: one that diffusers' AutoPipeline loads, or GLIDE as `convert-glide` writes it."""
    generator_revision: Commit | None = None
    """Commit (40 hexadecimal digits) of the hub repository; required for a hub id, so that the run can be repeated."""
    encoders: Annotated[list[EncoderModel], Field(min_length=1)]
    """CLIP models; Table 1 has a block of rows for each, Table 2 is of the first."""
    sentences: str
    """Word-to-sentence model (T5-style) that transformers loads."""
    sentences_revision: Commit | None = None
    """Commit (40 hexadecimal digits) of the hub repository of the word-to-sentence model."""

    @field_validator("encoders")
    @classmethod
    def _distinct(cls, encoders: list[EncoderModel]) -> list[EncoderModel]:
        names = [encoder.name for encoder in encoders]
        if len(set(names)) != len(names):
            raise ValueError(f"encoders must have different names, {', '.join(names)} do not")
        return encoders


class LanguageEnhancement(_Section):
    """Word-to-sentence prompts (paper A.7.1)."""

    asked: Positive
    """Sentences sampled per class."""
    kept: Positive
    """Unique sentences kept per class at the most; images cycle through them."""
    at_least: Positive
    """Fewer unique sentences than this, after all rounds of asking, are an error."""
    rounds: Positive
    """How often `asked` sentences are asked for, at the most, until `kept` unique ones are there."""
    top_p: Annotated[float, Field(gt=0, le=1)]
    """Nucleus sampling: the probability mass sampled from; 1: all of it."""
    top_k: Annotated[int, Field(ge=0)]
    """Only the k most probable next tokens are sampled from; 0: all of them."""
    temperature: Annotated[float, Field(gt=0)]
    """Softmax temperature of sampling."""
    require_class_name: bool
    """Drop sentences that do not contain the class name (folded); dropped ones are counted."""
    batch_size: Positive
    """Sentences sampled together; halved, and the run goes on, when memory runs out."""

    @model_validator(mode="after")
    def _enough(self) -> "LanguageEnhancement":
        if self.kept > self.asked:
            raise ValueError(f"kept ({self.kept}) must be at most asked ({self.asked})")
        if self.at_least > self.kept:
            raise ValueError(f"at_least ({self.at_least}) must be at most kept ({self.kept})")
        return self


class Prompts(_Section):
    """What the generator is asked to draw."""

    strategy: Strategy
    """The strategy of Table 1; Table 2 compares both."""
    classes_per_job: Positive
    """Classes whose prompts one job writes: the model is loaded once per job."""
    language_enhancement: LanguageEnhancement
    """Settings of the word-to-sentence model."""


class Images(_Section):
    """Text-to-image generation."""

    per_class: Positive
    """Images per class and strategy. Raising it generates only the difference."""
    batch_size: Positive
    """Images sampled together; halved, and the run goes on, when memory runs out."""
    steps: Positive
    """Sampling steps."""
    guidance_scale: Annotated[float, Field(ge=1)]
    """Classifier-free guidance scale s (paper, Equation 8); 1 turns guidance off."""
    negative_prompt: str = ""
    """Guidance leads away from this prompt; empty: from no prompt, as in the paper."""
    scheduler: str | None = None
    """Name of a diffusers scheduler class that the model allows; null: the model's own."""
    height: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """Height in pixels; null: the model's own."""
    width: Annotated[int, Field(ge=8, multiple_of=8)] | None = None
    """Width in pixels; null: the model's own."""
    format: Literal["png", "jpeg", "webp"]
    """Encoding of the stored images."""
    dtype: Dtype
    """Precision of the generator; auto: float16 on a GPU, bfloat16 on a CPU that has it, else float32."""
    compile: bool = False
    """Compile the model with torch.compile: minutes at the start of a job, then faster sampling."""
    per_shard: Positive
    """Images in one Parquet shard: a range of one class's image indices."""
    classes_per_job: Positive
    """Classes whose shards one job makes: the model is loaded once per job."""


class Embeddings(_Section):
    """Image encoder passes."""

    batch_size: Positive
    """Images encoded together; halved, and the run goes on, when memory runs out."""
    dtype: Dtype
    """Precision of the image encoder; auto: float16 on a GPU, float32 on a CPU. Text is always encoded in float32."""
    workers: Annotated[int, Field(ge=0)]
    """Threads that decode images while the encoder works; 0: none, one after the other."""
    shards_per_job: Positive
    """Shards of synthetic images that one job encodes: the model is loaded once per job."""


class ClipFilter(_Section):
    """CLIP filter, CF (paper 3.1)."""

    threshold: Literal["1/N"] | Fraction
    """Keep an image whose own-class probability is above this; 1/N: N is the number of classes, as in the paper."""
    per_class: Positive | None = None
    """At most this many kept images per class, drawn at random from those that passed; null: all of them."""
    min_per_class: Positive
    """If fewer pass, the most confident images of the class fill up to this many (the fallback of the paper's code)."""

    @model_validator(mode="after")
    def _room(self) -> "ClipFilter":
        if self.per_class is not None and self.min_per_class > self.per_class:
            raise ValueError(f"min_per_class ({self.min_per_class}) must be at most per_class ({self.per_class})")
        return self


class Tuning(_Section):
    """Classifier tuning, CT (paper A.7)."""

    epochs: Positive
    """Passes over the kept images; the last epoch is the result."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """AdamW's initial learning rate, decayed to 0 by a cosine."""
    weight_decay: Annotated[float, Field(ge=0)]
    """AdamW's decoupled weight decay."""
    batch_size: Positive
    """Images per step."""
    seeds: Annotated[list[Annotated[int, Field(ge=0)]], Field(min_length=1)]
    """One classifier is tuned per seed; tables give the mean."""
    loss: Loss
    """Loss of Table 1: ce, or sce (soft-target cross-entropy, paper A.5). Table 2 compares both."""
    soft_target_weight: Annotated[float, Field(ge=0, le=1)]
    """Weight of the soft targets in sce."""
    temperature: Annotated[float, Field(gt=0)]
    """Temperature T of the soft targets."""

    @field_validator("seeds")
    @classmethod
    def _distinct(cls, seeds: list[int]) -> list[int]:
        if len(set(seeds)) != len(seeds):
            raise ValueError(f"seeds must differ from each other, {seeds} do not")
        return seeds


class Evaluation(_Section):
    """What the tables are computed on."""

    split: Literal["test", "validation"]
    """`validation` is for choosing settings, `test` for the result; nothing is ever chosen on test."""
    bootstrap_resamples: Annotated[int, Field(ge=100)]
    """Resamples of the test images behind each 95% interval."""


class Tables(_Section):
    """What the tables show."""

    table2_datasets: Annotated[list[str], Field(min_length=1)]
    """Data sets of Table 2, a subset of `datasets`."""


class Costs(_Section):
    """What `python -m pipeline_lib plan` reckons with. Determines no number of a table."""

    images_per_second: Annotated[float, Field(gt=0)] | None = None
    """Images that one GPU (or this CPU) draws in a second; null: no time is estimated."""
    encodes_per_second: Annotated[float, Field(gt=0)] | None = None
    """Images that one GPU (or this CPU) encodes in a second; null: no time is estimated."""
    kilobytes_per_image: Annotated[float, Field(gt=0)]
    """Size of a stored image, in units of 1,000 bytes. Before a run starts, the disk must have room for the plan."""
    kilobytes_per_embedding: Annotated[float, Field(gt=0)]
    """Size of a stored feature: about 2 bytes for each of its dimensions."""


class Config(_Section):
    """params.yaml."""

    study: str
    """Name of the study; printed in the tables' notes."""
    seed: Annotated[int, Field(ge=0)]
    """Run seed of prompts and images."""
    store: FolderName
    """Folder of the content-addressed artifacts; its name holds no { } * ? [ ]."""
    results: FolderName
    """Folder of tables and pictures; its name holds no { } * ? [ ]."""
    data: str
    """Folder of source data: DATA/<data set> holds what its download unpacks to."""
    device: Literal["auto", "cpu", "cuda"]
    """Where models run; auto: on a GPU where there is one; cuda: without a GPU nothing that needs one starts."""
    fashion_mnist: str | None = None
    """Folder with Fashion-MNIST's four .gz files; null: found or fetched."""
    datasets: Annotated[list[str], Field(min_length=1)]
    """Data sets to evaluate, in the order of the tables."""
    own_datasets: dict[str, Any] = {}
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
    costs: Costs
    """Rates for the estimate of time and disk."""

    @model_validator(mode="after")
    def _known_datasets(self) -> "Config":
        own = read_datasets(self.own_datasets, "own_datasets")
        for name in own.keys() & builtin_datasets().keys():
            raise ValueError(f"own_datasets.{name}: this data set comes with the package; name yours otherwise")
        registry = builtin_datasets() | own
        for key, names in (("datasets", self.datasets), ("tables.table2_datasets", self.tables.table2_datasets)):
            for name in names:
                if name not in registry:
                    raise ValueError(f"{key}: unknown data set {name!r}; known are {', '.join(sorted(registry))}")
            if len(set(names)) != len(names):
                raise ValueError(f"{key}: {names} names a data set twice")
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
        if self.fashion_mnist is not None and not Path(self.fashion_mnist).is_dir():
            raise ValueError(f"fashion_mnist: the folder {self.fashion_mnist!r} does not exist; name one or write null")
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
    try:
        return Config.model_validate(values)
    except ValidationError as error:
        faults = "\n".join(f"  {_describe(fault, values)}" for fault in error.errors())
        raise UserError(f"{source} is not valid; nothing was run:\n{faults}") from None


def read_config(path: Path, *overlays: Path) -> Config:
    """Read and validate a YAML file, with overlays merged into it as Snakemake's --configfile does: mappings are
    merged key by key, all else is replaced."""
    values = _read_yaml(path)
    for overlay in overlays:
        values = _merge(values, _read_yaml(overlay))
    return load_config(values, source=" + ".join(str(name) for name in (path, *overlays)))


def _read_yaml(path: Path) -> Any:
    try:
        return yaml.safe_load(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path} does not exist; run in the project's folder, or name the file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not YAML: {error}") from None


def _merge(base: Any, over: Any) -> Any:
    if not (isinstance(base, dict) and isinstance(over, dict)):
        return over
    return base | {key: _merge(base[key], value) if key in base else value for key, value in over.items()}


def _describe(fault: Any, values: dict[str, Any]) -> str:
    """One line for one fault, in the user's terms."""
    # Tagged unions add their branch to the location ("literal['1/N']"); the user wrote no such key.
    location = [part for part in fault["loc"] if isinstance(part, int) or _is_key(part)]
    key = ".".join(str(part) for part in location) or "(top level)"
    if fault["type"] == "extra_forbidden":
        allowed = _allowed_keys(location[:-1])
        return f"{key}: unknown key; allowed here: {', '.join(allowed)}"
    if fault["type"] == "missing":
        return f"{key}: missing; {_help(location)}"
    if fault["type"] == "value_error":
        message = str(fault["ctx"]["error"])
        return message if key == "(top level)" else f"{key}: {message}"
    hint = ""
    value = fault["input"]
    if isinstance(value, str) and _looks_like_number(value):
        number = float(value)
        written = repr(int(number)) if number.is_integer() else repr(number)
        hint = f" (YAML reads {value} as text: write it as {written})"
    message = fault["msg"][:1].lower() + fault["msg"][1:]
    return f"{key}: {value!r} is not allowed: {message}{hint}. {_help(location)}"


def _is_key(part: str) -> bool:
    return part.isidentifier() and part not in ("constrained-int", "float", "int", "str")


def _looks_like_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


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
