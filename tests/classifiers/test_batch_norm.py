"""Tuning with batch norm in train mode against a float64 loop on the model's own modules, and against `tune`."""

import copy
import math

import numpy as np
import pytest
from PIL import Image
from tiny_clip import RESNET, VIT, build, write_folder

from pipeline_lib.classifiers.head import Head

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from pipeline_lib.classifiers.batch_norm import tune_with_batch_norm  # noqa: E402
from pipeline_lib.classifiers.tuning import TuningSettings, tune  # noqa: E402
from pipeline_lib.encoders import Encoder  # noqa: E402

D, C, N = 16, 3, 21
SETTINGS = TuningSettings(epochs=3, batch_size=8)


@pytest.fixture(scope="module")
def encoder(tmp_path_factory):
    """A ResNet whose last feature maps are one pixel."""
    model = build(RESNET)
    for layer in model.visual.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            torch.nn.init.normal_(layer.running_mean, std=0.3)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
            torch.nn.init.normal_(layer.weight, mean=1.0, std=0.2)
    name = write_folder(model, RESNET, tmp_path_factory.mktemp("models") / "resnet")
    return Encoder(name, None, 8, device="cpu")


def make(encoder, n=N):
    """Noise around one picture per class."""
    rng = np.random.default_rng(0)
    labels = np.arange(n) % C
    pictures = rng.integers(0, 200, (C, 32, 32, 3))[labels] + rng.integers(0, 56, (n, 32, 32, 3))
    images = [encoder.prepare(Image.fromarray(picture.astype(np.uint8))) for picture in pictures]
    weight = rng.normal(size=(C, D))
    return images, labels, Head(30 * weight / np.linalg.norm(weight, axis=1, keepdims=True), np.zeros(C), tuple("abc"))


def state_of(encoder):
    return {name: tensor.clone() for name, tensor in encoder._model.state_dict().items()}


@pytest.fixture
def batches(encoder, monkeypatch):
    """The batches that the encoder is given."""
    given, encode = [], encoder.encode_training

    def record(prepared):
        given.append(prepared)
        return encode(prepared)

    monkeypatch.setattr(encoder, "encode_training", record)
    return given


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
def test_agrees_with_a_float64_loop(encoder, batches, soft_target_weight):
    """The model in float64, its batch-norm layers in train mode, torch's optimiser; then in evaluation mode."""
    images, labels, head = make(encoder)
    soft = np.random.default_rng(1).normal(size=(N, C)) * 3  # an untrained model's would be nearly alike
    settings = TuningSettings(epochs=3, batch_size=8, learning_rate=0.01, soft_target_weight=soft_target_weight)
    with encoder.adapting():
        result = tune_with_batch_norm(images, labels, head, settings, 4, encoder, soft)
        adapted, adapted_state = encoder.encode(images), state_of(encoder)

    model = copy.deepcopy(encoder._model).double()  # its statistics are put back by now
    for layer in model.visual.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            layer.train()

    def features_of(prepared):
        pixels = torch.stack(list(prepared)).permute(0, 3, 1, 2).double() / 255
        with torch.no_grad():
            return model.encode_image((pixels - encoder._mean) / encoder._std, normalize=True)

    weight, bias = (torch.tensor(array, dtype=torch.float64, requires_grad=True) for array in (head.weight, head.bias))
    optimizer = torch.optim.AdamW([weight, bias], lr=0.01, weight_decay=0.1)
    position = {id(image): number for number, image in enumerate(images)}
    losses = []
    for step, batch in enumerate(batches):
        rows = [position[id(image)] for image in batch]
        targets = torch.eye(C, dtype=torch.float64)[labels[rows]]
        if soft_target_weight:
            targets = 0.5 * targets + 0.5 * torch.softmax(torch.from_numpy(soft[rows]) / 2, dim=1)
        logits = features_of(batch) @ weight.T + bias
        loss = -(targets * torch.log_softmax(logits, dim=1)).sum(dim=1).mean()
        losses.append(loss.item() * len(rows))
        optimizer.param_groups[0]["lr"] = 0.01 * 0.5 * (1 + math.cos(math.pi * step / 9))
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_([weight, bias], 1.0)
        optimizer.step()
    assert len(batches) == result.steps == 9
    np.testing.assert_allclose(result.head.weight, weight.detach().numpy(), atol=1e-3)
    np.testing.assert_allclose(result.epoch_losses, np.reshape(losses, (3, 3)).sum(axis=1) / N, rtol=1e-4)
    assert np.abs(result.head.weight - head.weight).max() > 0.03
    np.testing.assert_allclose(adapted, features_of_evaluated(model, encoder, images), atol=1e-4)
    for name, tensor in model.state_dict().items():
        torch.testing.assert_close(adapted_state[name].double(), tensor.double(), rtol=1e-4, atol=1e-4)


def features_of_evaluated(model, encoder, images):
    pixels = torch.stack(images).permute(0, 3, 1, 2).double() / 255
    with torch.no_grad():
        return model.eval().encode_image((pixels - encoder._mean) / encoder._std, normalize=True).numpy()


@pytest.mark.parametrize("soft_target_weight", [0.0, 0.5])
@pytest.mark.parametrize("dtype, tolerance", [(np.float32, 1e-4), (np.float16, 5e-3)])
def test_frozen_it_is_tuning_on_cached_features(encoder, monkeypatch, soft_target_weight, dtype, tolerance):
    """Same order, schedule and loss as `tune`."""
    images, labels, head = make(encoder)
    cached = encoder.encode(images).astype(dtype)
    settings = TuningSettings(epochs=3, batch_size=8, soft_target_weight=soft_target_weight)
    expected = tune(cached, labels, head, settings, [2])[0]
    monkeypatch.setattr(encoder, "encode_training", lambda prepared: torch.from_numpy(encoder.encode(prepared)))
    found = tune_with_batch_norm(images, labels, head, settings, 2, encoder, head.logits(cached))
    np.testing.assert_allclose(found.head.weight, expected.head.weight, atol=tolerance)
    assert found.epoch_losses == pytest.approx(expected.epoch_losses, rel=1e-2)
    assert (found.steps, found.seed, found.empty_classes) == (expected.steps, 2, ())
    assert np.abs(found.head.weight - head.weight).max() > 1e-3


def test_train_mode_is_another_method(encoder):
    images, labels, head = make(encoder)
    with encoder.adapting():
        trained = tune_with_batch_norm(images, labels, head, SETTINGS, 2, encoder)
    frozen = tune(encoder.encode(images), labels, head, SETTINGS, [2])[0]
    assert trained.epoch_losses[0] != pytest.approx(frozen.epoch_losses[0], rel=0.01)


# --- the encoder ------------------------------------------------------------------------------------------------------


def test_only_running_statistics_move_and_they_are_put_back(encoder):
    images, labels, head = make(encoder)
    before, features = state_of(encoder), encoder.encode(images)
    with encoder.adapting():
        tune_with_batch_norm(images, labels, head, SETTINGS, 0, encoder)
        during = state_of(encoder)
        assert np.abs(encoder.encode(images) - features).max() > 1e-3
    changed = {name for name in before if not torch.equal(before[name], during[name])}
    assert {name.rpartition(".")[2] for name in changed} == {"running_mean", "running_var", "num_batches_tracked"}
    assert all(torch.equal(before[name], tensor) for name, tensor in state_of(encoder).items())
    np.testing.assert_array_equal(encoder.encode(images), features)


def test_a_seed_depends_on_nothing_before_it(encoder):
    images, labels, head = make(encoder)
    with encoder.adapting():
        first = tune_with_batch_norm(images, labels, head, SETTINGS, 0, encoder)
        features = encoder.encode(images)
        other = tune_with_batch_norm(images, labels, head, SETTINGS, 1, encoder)
        again = tune_with_batch_norm(images, labels, head, SETTINGS, 0, encoder)
        np.testing.assert_array_equal(encoder.encode(images), features)
    np.testing.assert_array_equal(first.head.weight, again.head.weight)
    assert first.epoch_losses == again.epoch_losses
    assert np.abs(first.head.weight - other.head.weight).max() > 1e-5


@pytest.mark.parametrize("n, sizes", [(17, [8, 9]), (9, [9]), (18, [8, 8, 2]), (16, [8, 8]), (2, [2])])
def test_no_batch_is_a_single_image(encoder, batches, n, sizes):
    """Torch refuses a single image where the map is one pixel; all images take part all the same."""
    images, labels, head = make(encoder, n)
    with encoder.adapting():
        result = tune_with_batch_norm(images, labels, head, SETTINGS, 0, encoder)
    assert [len(batch) for batch in batches] == sizes * 3
    assert len({id(image) for batch in batches[: len(sizes)] for image in batch}) == n
    assert result.steps == 3 * len(sizes)


# --- bad input --------------------------------------------------------------------------------------------------------


def test_an_encoder_without_batch_norm_is_refused(tmp_path):
    vit = Encoder(write_folder(build(VIT), VIT, tmp_path / "vit"), None, 8, device="cpu")
    with pytest.raises(ValueError, match="no batch norm"), vit.adapting():
        tune_with_batch_norm(*make(vit), SETTINGS, 0, vit)


@pytest.mark.parametrize(
    "change, message",
    [
        ({"settings": TuningSettings(batch_size=1)}, "batch_size is 1; batch norm in train mode needs 2"),
        ({"images": 1, "labels": np.zeros(1, int)}, "number of images is 1"),
        ({"images": 0, "labels": np.zeros(0, int)}, "no training images"),
        ({"labels": np.zeros(N - 1, int)}, "one integer for each of 21 images"),
        ({"labels": np.full(N, C)}, "allowed is 0 to 2"),
        ({"soft_targets": None}, "soft_targets have shape None"),
        ({"soft_targets": np.zeros((N, C + 1))}, r"shape \(21, 4\); allowed is \(21, 3\)"),
        ({"seed": -1}, "seeds are"),
    ],
)
def test_bad_input_is_named(encoder, change, message):
    images, labels, head = make(encoder)
    arguments = {
        "images": images,
        "labels": labels,
        "settings": TuningSettings(soft_target_weight=0.5),
        "seed": 0,
        "soft_targets": np.zeros((N, C)),
        **change,
    }
    if "images" in change:
        arguments["images"] = images[: change["images"]]
    with pytest.raises(ValueError, match=message), encoder.adapting():
        tune_with_batch_norm(initial=head, encoder=encoder, **arguments)


def test_statistics_must_not_be_lost_by_mistake(encoder):
    """Outside of `adapting` they would stay changed for whoever uses the encoder next."""
    with pytest.raises(RuntimeError, match="adapting"):
        tune_with_batch_norm(*make(encoder), SETTINGS, 0, encoder)


def test_a_batch_that_is_too_large_says_what_to_do(encoder, monkeypatch):
    monkeypatch.setattr(encoder._model, "encode_image", lambda _: torch.empty(10**14))
    with pytest.raises(MemoryError, match=r"8 images at once .* lower the batch size"), encoder.adapting():
        tune_with_batch_norm(*make(encoder), SETTINGS, 0, encoder)
