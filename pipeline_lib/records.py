"""Arrow schemas of the Parquet artifacts and typed records of the JSON artifacts. Imports nothing of the package."""

import json
from typing import Any, Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict

# --- Parquet ----------------------------------------------------------------------------------------------------------

PROMPTS = pa.schema(
    [
        pa.field("prompt_id", pa.string(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("prompt", pa.string(), nullable=False),
        pa.field("sentence", pa.string()),  # what the word-to-sentence model wrote; null for basic prompts
    ]
)

_IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])

IMAGES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("class_name", pa.string(), nullable=False),
        pa.field("prompt_id", pa.string()),  # null, like prompt and seed, for a real image
        pa.field("prompt", pa.string()),
        pa.field("seed", pa.int64()),
        pa.field("source_id", pa.int64()),  # the real image's number in its source; null for a synthetic image
        pa.field("reference_id", pa.string()),  # the real image that a synthetic one started from (real guidance)
        pa.field("image", _IMAGE),  # nullable: else Hugging Face `datasets` takes it for a plain struct
        pa.field("width", pa.int32(), nullable=False),
        pa.field("height", pa.int32(), nullable=False),
        pa.field("valid", pa.bool_(), nullable=False),  # false: non-finite or blank; counted, never trained on
    ],
    # With this, Hugging Face `datasets` decodes the column `image`.
    metadata={
        "huggingface": json.dumps(
            {
                "info": {
                    "features": {
                        **{
                            name: {"dtype": dtype, "_type": "Value"}
                            for name, dtype in {
                                "image_id": "string",
                                "class_name": "string",
                                "prompt_id": "string",
                                "prompt": "string",
                                "seed": "int64",
                                "source_id": "int64",
                                "reference_id": "string",
                            }.items()
                        },
                        "image": {"_type": "Image"},
                        "width": {"dtype": "int32", "_type": "Value"},
                        "height": {"dtype": "int32", "_type": "Value"},
                        "valid": {"dtype": "bool", "_type": "Value"},
                    }
                }
            }
        )
    },
)

IMAGES_PER_ROW_GROUP = 100  # Hugging Face's own choice: one row is cheap to read


def embeddings_schema(dimension: int) -> pa.Schema:
    """Frozen, L2-normalised features of one image encoder, in the order of the shard they were made from."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("class_name", pa.dictionary(pa.int32(), pa.string()), nullable=False),
            pa.field("prompt", pa.dictionary(pa.int32(), pa.string())),
            pa.field("seed", pa.int64()),
            pa.field("source_id", pa.int64()),
            pa.field("valid", pa.bool_(), nullable=False),
            pa.field("embedding", pa.list_(pa.float16(), dimension), nullable=False),
        ]
    )


SCORES = pa.schema(
    [
        pa.field("image_id", pa.string(), nullable=False),
        pa.field("class_index", pa.int32(), nullable=False),
        pa.field("prompt", pa.dictionary(pa.int32(), pa.string())),
        pa.field("seed", pa.int64()),
        pa.field("valid", pa.bool_(), nullable=False),
        pa.field("own_probability", pa.float32(), nullable=False),  # softmax(logit scale x cosine)[own class]
        pa.field("predicted_class", pa.int32(), nullable=False),
        pa.field("max_probability", pa.float32(), nullable=False),
    ]
)

MANIFEST = pa.schema(
    [
        *SCORES,
        pa.field("kept", pa.bool_(), nullable=False),
        pa.field("reason", pa.dictionary(pa.int8(), pa.string()), nullable=False),
        pa.field("soft_target", pa.dictionary(pa.int8(), pa.string())),  # path of the head that gives soft targets
    ]
)


def predictions_schema(n_runs: int) -> pa.Schema:
    """Predicted classes of one test split: by the zero-shot head and by each run's classifier (of which there may be
    none)."""
    return pa.schema(
        [
            pa.field("image_id", pa.string(), nullable=False),
            pa.field("source_id", pa.int64(), nullable=False),
            pa.field("label", pa.int32(), nullable=False),
            pa.field("zero_shot", pa.int32(), nullable=False),
            # Arrow has no fixed-size lists of size 0.
            pa.field("tuned", pa.list_(pa.int32(), n_runs) if n_runs else pa.list_(pa.int32()), nullable=False),
        ]
    )


# --- JSON -------------------------------------------------------------------------------------------------------------


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Input(_Record):
    """One artifact that another was made from."""

    path: str
    key: str
    sha256: str


class Record(_Record):
    """How an artifact was made and what it must hash to: the side file that makes it complete."""

    key: str
    path: str
    spec: dict[str, Any]
    inputs: list[Input]
    sha256: str
    n_bytes: int
    versions: dict[str, str]
    wall_time_s: float
    created: str
    details: dict[str, Any] = {}
    check: str | None = None  # SHA-256 of all other fields (`store.checked`); None in records of the first versions


class Member(_Record):
    """One unit of a set: a prompt file of one class, an image shard, the embeddings of one shard."""

    path: str
    sha256: str
    n_rows: int | None  # of a Parquet file


class SetReceipt(_Record):
    """The units that make up a set, in order. The same units always give the same bytes."""

    stage: str
    members: list[Member]


Loss = Literal["ce", "sce"]
Strategy = Literal["basic", "language_enhancement"]


class Cell(_Record):
    """One number of a table, with all that is needed to print it and to judge it. Accuracies are top-1 in percent."""

    dataset: str
    task: str
    pool: str
    strategy: Strategy
    clip_filter: bool
    loss: Loss
    n_classes: int
    n_test: int
    images_per_class: int
    n_kept: int
    seeds: list[int]
    clip: float
    clip_syn: float
    clip_syn_per_seed: list[float]
    gain: float
    gain_low: float
    gain_high: float
    zero_shot_per_class: dict[str, float | None]  # None: there is no test image of the class
    tuned_per_class: dict[str, float | None]
    generator: str
    encoder_name: str
    encoder: str
    split: str
    predictions: str


class DrawnImage(_Record):
    """A real image that was drawn from the training images."""

    image_id: str
    source_id: int
    path: str


class Shots(_Record):
    """The real training images that one seed draws, by class: shots in their order (M shots are the first M), and the
    images for validation, disjoint from them, likewise."""

    dataset: str
    split: str
    seed: int
    shots: dict[str, list[DrawnImage]]
    validation: dict[str, list[DrawnImage]]


class FewShotCell(_Record):
    """One method at one number of shots: a point of Figure 1. Accuracies are top-1 in percent."""

    shots: int
    top1: float
    top1_per_seed: list[float]
    runs: list[dict[str, Any]]  # per seed: what it was trained on, and what was chosen on validation images


class FewShotCells(_Record):
    """One method on one data set, at each number of shots. `predictions` has a column of predictions for each
    (shots, seed), shots in the outer loop. Of a method that could not be run there are no cells."""

    dataset: str
    pool: str
    method: str
    n_classes: int
    n_test: int
    seeds: list[int]
    zero_shot: float
    cells: list[FewShotCell]
    n_encodes_test: int  # images that its runs were tested on
    generator: str
    encoder_name: str
    encoder: str
    split: str
    predictions: str
    not_computed: str | None = None  # why there are no cells
