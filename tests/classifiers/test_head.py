"""The zero-shot head against open_clip and a closed form; its file; what it refuses."""

import json
import subprocess
import sys

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import save_file

from pipeline_lib.classifiers.head import Head, load_head, save_head, zero_shot_head

NAMES = ("a/b", 'qu"ote', "Ünïcode 猫")


def make_head(seed=0, d=5):
    rng = np.random.default_rng(seed)
    return Head(rng.normal(size=(3, d)), rng.normal(size=3), NAMES)


def test_zero_shot_head_of_two_templates_in_closed_form():
    # Lengths differ, so that a mean taken before normalising would point elsewhere than at 45 degrees.
    head = zero_shot_head(np.array([[[3.0, 0.0], [0.0, 0.5]], [[0.0, -2.0], [0.0, -1.0]]]), 100.0, ["x", "y"])
    np.testing.assert_allclose(head.weight, [[100 / np.sqrt(2), 100 / np.sqrt(2)], [0.0, -100.0]], rtol=1e-6)
    np.testing.assert_array_equal(head.bias, [0.0, 0.0])
    assert head.weight.dtype == head.bias.dtype == np.float32
    assert head.class_names == ("x", "y")


def test_zero_shot_head_equals_open_clip(tmp_path):
    torch = pytest.importorskip("torch")
    open_clip = pytest.importorskip("open_clip")
    torch.manual_seed(0)
    model = open_clip.CLIP(
        embed_dim=16,
        vision_cfg={"image_size": 32, "layers": 1, "width": 32, "patch_size": 16, "head_width": 16},
        text_cfg={"context_length": 77, "vocab_size": 49408, "width": 32, "heads": 2, "layers": 1},
    ).eval()
    tokenizer = open_clip.SimpleTokenizer()
    names, templates = ["cat", "dog", "fire truck"], ["a photo of a {}.", "itap of a {}.", "art of the {}."]
    expected = open_clip.build_zero_shot_classifier(model, tokenizer, names, templates).T.numpy()
    with torch.no_grad():
        texts = tokenizer([template.format(name) for name in names for template in templates])
        embeddings = model.encode_text(texts, normalize=False).reshape(3, 3, -1).numpy()
        scale = float(model.logit_scale.exp())
    head = zero_shot_head(embeddings, scale, names)
    np.testing.assert_allclose(head.weight / scale, expected, atol=1e-6)
    assert np.abs(expected[0] - expected[1]).max() > 1e-3  # the classes are told apart at all


def test_logits_are_affine_and_float32():
    head = make_head()
    features = np.random.default_rng(1).normal(size=(7, 5))
    for dtype, tolerance in ((np.float16, 1e-2), (np.float32, 1e-5), (np.float64, 1e-5)):
        logits = head.logits(features.astype(dtype))
        assert logits.dtype == np.float32
        np.testing.assert_allclose(logits, features @ head.weight.T.astype(float) + head.bias, atol=tolerance)


def test_file_round_trip_and_same_bytes_in_another_process(tmp_path):
    head, metadata = make_head(), {"seed": "3", "encoder": "RN50", "note": "ein Wörtchen", "a": "1", "b": "2"}
    save_head(tmp_path / "head.safetensors", head, metadata)
    read = load_head(tmp_path / "head.safetensors", NAMES)
    np.testing.assert_array_equal(read.weight, head.weight)
    np.testing.assert_array_equal(read.bias, head.bias)
    assert read.class_names == NAMES
    with safe_open(tmp_path / "head.safetensors", framework="np") as file:
        stored = file.metadata()
    assert {name: stored[name] for name in metadata} == metadata
    code = (
        "import json, sys; from pipeline_lib.classifiers.head import *\n"
        "save_head(sys.argv[2], load_head(sys.argv[1]), json.loads(sys.argv[3]))\n"
        "assert 'torch' not in sys.modules"
    )
    for name in ("again", "once more"):  # safetensors alone orders its metadata anew in each process
        arguments = [tmp_path / "head.safetensors", tmp_path / name, json.dumps(metadata)]
        subprocess.run([sys.executable, "-c", code, *arguments], check=True)
        assert (tmp_path / name).read_bytes() == (tmp_path / "head.safetensors").read_bytes()


def write(path, n_names=3, rows=3, bias=3, dtype=np.float32, names=None, **extra):
    tensors = {"weight": np.zeros((rows, 2), dtype), "bias": np.zeros(bias, dtype), **extra}
    save_file(tensors, path, {"class_names": names if names is not None else json.dumps(list("abcdef"[:n_names]))})


@pytest.mark.parametrize(
    "change, message",
    [
        ({"n_names": 4}, "4 class names for 3 classes"),
        ({"rows": 4}, "bias has shape"),
        ({"bias": 2}, "bias has shape"),
        ({"dtype": np.float64}, "a head is float32"),
        ({"names": '["a", "b", "a"]'}, "repeat"),
        ({"names": '["a", "b", ""]'}, "empty"),
        ({"names": "abc"}, "not a JSON list"),
        ({"names": "[1, 2, 3]"}, "not a JSON list"),
        ({"other": np.zeros(1, np.float32)}, "exactly bias and weight"),
    ],
)
def test_a_file_whose_parts_disagree_is_refused(tmp_path, change, message):
    write(tmp_path / "good")
    load_head(tmp_path / "good")
    write(tmp_path / "bad", **change)
    with pytest.raises(ValueError, match=message) as error:
        load_head(tmp_path / "bad")
    assert str(tmp_path / "bad") in str(error.value)


def test_other_classes_and_broken_files_are_refused(tmp_path):
    path = tmp_path / "head.safetensors"
    save_head(path, make_head())
    with pytest.raises(ValueError, match="class 1 is 'qu\"ote', 'other' is asked for"):
        load_head(path, ["a/b", "other", "third"])
    with pytest.raises(ValueError, match="3 classes, 2 are asked for"):
        load_head(path, NAMES[:2])
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(ValueError, match="not a readable safetensors file"):
        load_head(path)
    with pytest.raises(FileNotFoundError):
        load_head(tmp_path / "absent")


@pytest.mark.parametrize(
    "embeddings, scale, names, message",
    [
        (np.ones((2, 3)), 100.0, ["a", "b"], "n_templates"),
        (np.ones((2, 0, 3)), 100.0, ["a", "b"], "none of them 0"),
        (np.ones((2, 1, 3)), 0.0, ["a", "b"], "logit_scale is 0.0"),
        (np.ones((2, 1, 3)), np.nan, ["a", "b"], "logit_scale is nan"),
        (np.ones((2, 1, 3)), 100.0, ["a"], "1 class names for 2 classes"),
        (np.array([[[1.0]], [[0.0]]]), 100.0, ["a", "b"], "'b' is zero"),
        (np.array([[[1.0], [1.0]], [[1.0], [-1.0]]]), 100.0, ["a", "b"], "mean text embedding of class 'b'"),
        (np.array([[[1.0]], [[np.inf]]]), 100.0, ["a", "b"], "'b' is zero or not finite"),
    ],
)
def test_bad_text_embeddings_are_named(embeddings, scale, names, message):
    with pytest.raises(ValueError, match=message):
        zero_shot_head(embeddings, scale, names)


def test_bad_heads_features_and_metadata_are_named(tmp_path):
    with pytest.raises(ValueError, match="1 of 6 values of weight are not finite"):
        Head(np.array([[1, 2], [3, 4], [5, np.nan]]), np.zeros(3), NAMES)
    with pytest.raises(ValueError, match=r"shape \(4, 6\), the head takes \[N, 5\]"):
        make_head().logits(np.zeros((4, 6)))
    with pytest.raises(ValueError, match="'class_names' is reserved"):
        save_head(tmp_path / "head", make_head(), {"class_names": "[]"})
    with pytest.raises(TypeError, match="encode it"):
        save_head(tmp_path / "head", make_head(), {"seed": 3})
    assert not (tmp_path / "head").exists()
