"""The sections of params.yaml as pydantic models: what each key means, and what it may be."""

from typing import Annotated, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field, field_validator, model_validator

from pipeline_lib.paths import check_path
from pipeline_lib.records import Loss, Strategy

# Upper bounds keep a slip of the keyboard from filling memory before anything is drawn; no study comes near them.
Positive = Annotated[int, Field(ge=1, le=1_000_000)]
Seed = Annotated[int, Field(ge=0, lt=2**63)]  # what torch and an Arrow int64 column hold
Commit = Annotated[str, Field(pattern=r"^[0-9a-f]{40}$")]  # a branch or tag moves, a commit does not
Dtype = Literal["auto", "float32", "float16", "bfloat16"]
PathText = Annotated[str, AfterValidator(check_path)]
# Snakemake reads those as wildcards.
FolderName = Annotated[str, Field(pattern=r"^[^{}*?\[\]\n]+$"), AfterValidator(check_path)]
Pixels = Annotated[int, Field(ge=8, le=8192, multiple_of=8)]
Fraction = Annotated[float, Field(gt=0, lt=1)]
# What open_clip's names of models start with where they are no architectures: a folder, or a hub id.
LOCAL, HUB = "local-dir:", "hf-hub:"


class Section(BaseModel):
    """What all sections have in common."""

    # strict: YAML 1.1 reads 1e-3 as a string and `on` as a boolean; neither may slip through as a number or a name.
    model_config = ConfigDict(
        extra="forbid", strict=True, frozen=True, use_attribute_docstrings=True, allow_inf_nan=False
    )


class EncoderModel(Section):
    """A CLIP model that open_clip loads."""

    name: Annotated[str, Field(pattern=r"^[a-z0-9_]{1,40}$")]
    """What the tables call it: lower-case letters, digits and underscores."""
    model: PathText
    """`local-dir:FOLDER`, `hf-hub:OWNER/NAME` with `revision`, or an architecture name with `pretrained`."""
    pretrained: PathText | None = None
    """open_clip pretrained tag, for example `openai`, or a checkpoint file."""
    revision: Commit | None = None
    """Commit (40 hexadecimal digits) of the hub repository."""


class Models(Section):
    """The pretrained models, each a hub id or a local folder."""

    generator: PathText
    """Text-to-image model: one that diffusers' AutoPipeline loads, or GLIDE as `convert-glide` writes it."""
    generator_revision: Commit | None = None
    """Commit (40 hexadecimal digits) of the hub repository; required for a hub id, so that the run can be repeated."""
    encoders: Annotated[list[EncoderModel], Field(min_length=1)]
    """CLIP models; Table 1 has a block of rows for each, Table 2 is of the first."""
    sentences: PathText
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


class LanguageEnhancement(Section):
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
    top_k: Annotated[int, Field(ge=0, le=1_000_000)]
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


class Prompts(Section):
    """What the generator is asked to draw."""

    strategy: Strategy
    """The strategy of Table 1; Table 2 compares both."""
    classes_per_job: Positive
    """Classes whose prompts one job writes: the model is loaded once per job."""
    language_enhancement: LanguageEnhancement
    """Settings of the word-to-sentence model."""


class Images(Section):
    """Text-to-image generation."""

    per_class: Positive
    """Images per class and strategy. Raising it generates only the difference."""
    batch_size: Positive
    """Images sampled together; halved, and the run goes on, when memory runs out."""
    steps: Positive
    """Sampling steps."""
    guidance_scale: Annotated[float, Field(ge=1)]
    """Classifier-free guidance scale s (paper, Equation 8); 1 turns guidance off."""
    negative_prompt: Annotated[str, Field(max_length=1000)] = ""
    """Guidance leads away from this prompt; empty: from no prompt, as in the paper."""
    scheduler: str | None = None
    """Name of a diffusers scheduler class that the model allows; null: the model's own."""
    height: Pixels | None = None
    """Height in pixels; null: the model's own."""
    width: Pixels | None = None
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


class Embeddings(Section):
    """Image encoder passes."""

    batch_size: Positive
    """Images encoded together; halved, and the run goes on, when memory runs out."""
    dtype: Dtype
    """Precision of the image encoder; auto: float16 on a GPU, float32 on a CPU. Text is always encoded in float32."""
    workers: Annotated[int, Field(ge=0, le=1024)]
    """Threads that decode images while the encoder works; 0: none, one after the other."""
    shards_per_job: Positive
    """Shards of synthetic images that one job encodes: the model is loaded once per job."""


class ClipFilter(Section):
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


class Tuning(Section):
    """Classifier tuning, CT (paper A.7)."""

    epochs: Positive
    """Passes over the kept images; the last epoch is the result."""
    learning_rate: Annotated[float, Field(gt=0, le=1)]
    """AdamW's initial learning rate, decayed to 0 by a cosine."""
    weight_decay: Annotated[float, Field(ge=0)]
    """AdamW's decoupled weight decay."""
    batch_size: Positive
    """Images per step."""
    seeds: Annotated[list[Seed], Field(min_length=1)]
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


class Evaluation(Section):
    """What the tables are computed on."""

    split: Literal["test", "validation"]
    """`validation` is for choosing settings, `test` for the result; nothing is ever chosen on test."""
    bootstrap_resamples: Annotated[int, Field(ge=100, le=1_000_000)]
    """Resamples of the test images behind each 95% interval."""


class Tables(Section):
    """What the tables show."""

    table2_datasets: Annotated[list[str], Field(min_length=1)]
    """Data sets of Table 2, a subset of `datasets`."""


class Costs(Section):
    """What `python -m pipeline_lib plan` reckons with. Determines no number of a table."""

    images_per_second: Annotated[float, Field(gt=0)] | None = None
    """Images that one GPU (or this CPU) draws in a second; null: no time is estimated."""
    encodes_per_second: Annotated[float, Field(gt=0)] | None = None
    """Images that one GPU (or this CPU) encodes in a second; null: no time is estimated."""
    kilobytes_per_image: Annotated[float, Field(gt=0)]
    """Size of a stored image, in units of 1,000 bytes. Before a run starts, the disk must have room for the plan."""
    kilobytes_per_embedding: Annotated[float, Field(gt=0)]
    """Size of a stored feature: about 2 bytes for each of its dimensions."""
