"""Features: normalised, the same whatever the batch, the same as open_clip's, and read back in order."""

from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from PIL import Image
from small_project import SHAPES, planned, small_params

from pipeline_lib import stages
from pipeline_lib.embeddings import COPIED, read_embeddings, write_embeddings
from pipeline_lib.errors import UserError
from pipeline_lib.records import embeddings_schema
from pipeline_lib.sets import member_paths
from pipeline_lib.store import Store

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")


def columns(names: list[str], valid: list[bool] | None = None) -> pa.Table:
    n = len(names)
    return pa.table(
        {
            "image_id": [f"i{number}" for number in range(n)],
            "class_name": names,
            "prompt": [None] * n,
            "seed": pa.array(range(n), pa.int64()),
            "source_id": pa.array([None] * n, pa.int64()),
            "valid": valid or [True] * n,
        }
    )


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(32, 32), (20, 40), (64, 64), (7, 9), (32, 32)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def encoder(tiny_models: dict[str, str]) -> Any:
    from pipeline_lib.encoders import Encoder

    return Encoder(tiny_models["encoder"], None, 250)


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_features_are_normalised(encoder: Any, pictures: list[Image.Image]):
    """Length 1, float32, one row per input, for images and for text."""
    for features in (encoder.images(pictures), encoder.text(["a red cat", "a dog", ""])):
        assert features.dtype == np.float32
        assert features.shape[1] == encoder.dimension
        np.testing.assert_allclose(np.linalg.norm(features, axis=1), 1, atol=1e-5)


def test_the_batch_is_irrelevant(encoder: Any, tiny_models: dict[str, str], pictures: list[Image.Image]):
    """One by one, in pairs or all at once: the same features to 1e-5, in the same order."""
    from pipeline_lib.encoders import Encoder

    together = encoder.images(pictures)
    for batch_size in (1, 2):
        other = Encoder(tiny_models["encoder"], None, batch_size).images(pictures)
        np.testing.assert_allclose(other, together, atol=1e-5)
    np.testing.assert_allclose(encoder.images(pictures[3:4])[0], together[3], atol=1e-5)
    assert np.abs(together[0] - together[1]).max() > 1e-4  # images are told apart at all


def test_more_text_than_a_batch(encoder: Any):
    """Many class prompts are encoded in blocks and come back in order."""
    prompts = [f"a photo of a {'red' if i % 3 else 'blue'} {'cat' if i % 2 else 'dog'}" for i in range(300)]
    features = encoder.text(prompts)
    assert features.shape == (300, encoder.dimension)
    np.testing.assert_allclose(features[258], encoder.text([prompts[258]])[0], atol=1e-5)


def test_equal_to_calling_open_clip(encoder: Any, tiny_models: dict[str, str], pictures: list[Image.Image]):
    """Nothing is added to open_clip's own preprocessing, encoding and scale."""
    name = tiny_models["encoder"]
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.no_grad():
        images = model.encode_image(torch.stack([preprocess(image) for image in pictures]))
        text = model.encode_text(open_clip.get_tokenizer(name)(["a red cat"]))
    images, text = (torch.nn.functional.normalize(features, dim=-1).numpy() for features in (images, text))
    np.testing.assert_allclose(encoder.images(pictures), images, atol=1e-5)
    np.testing.assert_allclose(encoder.text(["a red cat"]), text, atol=1e-5)
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path):
    """The message names the configuration key and the folder."""
    from pipeline_lib.encoders import Encoder

    with pytest.raises(UserError, match=r"models\.encoder.*cannot be loaded"):
        Encoder(f"local-dir:{tmp_path}", None, 1)


# --- the files --------------------------------------------------------------------------------------------------------


def test_files_read_back_in_order(tmp_path: Path):
    """Several files with different classes come back as one table, in order; features are float16."""
    store = Store(tmp_path)
    random = np.random.default_rng(0)
    parts = {"a.parquet": ["x", "y", "x"], "b.parquet": ["z"], "c.parquet": ["y", "y"]}
    features = {name: random.normal(size=(len(names), 5)).astype(np.float32) for name, names in parts.items()}
    for name, names in parts.items():
        write_embeddings(columns(names), features[name], tmp_path / name)
    found = read_embeddings(store, list(parts))
    assert found.features.dtype == np.float16
    np.testing.assert_array_equal(found.features, np.concatenate(list(features.values())).astype(np.float16))
    np.testing.assert_array_equal(found.class_index(["z", "y", "x"]), [2, 1, 2, 0, 1, 1])
    assert found.table.column_names == list(COPIED)


def test_classes_that_are_not_among_the_names_are_an_error(tmp_path: Path):
    """An image of an unknown class is not silently given another label."""
    write_embeddings(columns(["x", "y"]), np.ones((2, 3), np.float32), tmp_path / "a.parquet")
    with pytest.raises(ValueError, match="'y'"):
        read_embeddings(Store(tmp_path), ["a.parquet"]).class_index(["x", "z"])


def test_non_finite_features_of_valid_images_are_an_error(tmp_path: Path):
    """Damaged weights stop the run; an invalid image, never trained on, does not."""
    features = np.ones((2, 3), np.float32)
    features[1, 1] = np.nan
    with pytest.raises(ValueError, match="1 of 2 features are not finite"):
        write_embeddings(columns(["x", "y"]), features, tmp_path / "a.parquet")
    write_embeddings(columns(["x", "y"], [True, False]), features, tmp_path / "a.parquet")
    assert np.isfinite(read_embeddings(Store(tmp_path), ["a.parquet"]).features).all()


def test_schema(tmp_path: Path):
    """A fixed-size list of float16 beside the copied columns."""
    assert embeddings_schema(4).field("embedding").type == pa.list_(pa.float16(), 4)


# --- the stage --------------------------------------------------------------------------------------------------------


def test_real_images_are_embedded_once(
    params: dict[str, Any], tiny_models: dict[str, str], monkeypatch: pytest.MonkeyPatch
):
    """The features of a data set are those of its images, in their order; a second run encodes nothing."""
    from pipeline_lib.encoders import Encoder

    folder = Path(params["own_datasets"]["shapes"]["folder"])
    plan = planned(small_params(tiny_models, folder, params["store"]))
    test_images = plan.test_images("shapes")
    stages.datasets(test_images, plan.store)
    features = plan.embeddings(test_images)
    stages.embeddings(features, plan.store)
    found = read_embeddings(plan.store, member_paths(plan.store, [features.path]))
    files = [path for name in SHAPES.values() for path in sorted((folder / name).iterdir())]
    expected = Encoder(tiny_models["encoder"], None, 3).images([Image.open(path).convert("RGB") for path in files])
    np.testing.assert_allclose(found.features, expected, atol=1e-3)
    np.testing.assert_array_equal(found.class_index(list(SHAPES)), [0, 0, 1, 1, 2, 2])
    monkeypatch.setattr("pipeline_lib.encoders.Encoder.__init__", lambda *_: pytest.fail("the encoder was loaded"))
    stages.embeddings(features, plan.store)
