"""The encoder: open_clip's own features and zero-shot weights, in every precision and for every family."""

import copy
import pickle
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image
from tiny_clip import FAMILIES, RESNET, VIT, build, write_folder

from pipeline_lib.classifiers.head import zero_shot_head
from pipeline_lib.errors import UserError
from pipeline_lib.scores import score

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from pipeline_lib.clip_models import load_clip  # noqa: E402
from pipeline_lib.encoders import Encoder  # noqa: E402

NAMES = ["cat", "dog", "oak tree"]
TEMPLATES = ["a photo of a {}.", "itap of a {}.", "a bad photo of the {}."]


@pytest.fixture(scope="module")
def pictures() -> list[Image.Image]:
    random = np.random.default_rng(0)
    sizes = [(32, 32), (20, 40), (64, 64), (7, 9)]
    return [Image.fromarray(random.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in sizes]


@pytest.fixture(scope="module")
def vit(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_folder(build(VIT), VIT, tmp_path_factory.mktemp("models") / "vit")


def features_of(encoder: Encoder, pictures: list[Image.Image]) -> Any:
    return encoder.encode([encoder.prepare(picture) for picture in pictures])


def reference(name: str, pictures: list[Image.Image], texts: list[str]) -> tuple[Any, Any, Any]:
    """open_clip's own model, image features and text features."""
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    model.eval()
    with torch.no_grad():
        image = model.encode_image(torch.stack([preprocess(picture) for picture in pictures]), normalize=True)
        text = model.encode_text(open_clip.get_tokenizer(name)(texts), normalize=True)
    return model, image.numpy(), text.numpy()


# --- the numbers ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_gives_open_clips_own_features(family: str, tmp_path: Path, pictures: list[Image.Image]):
    """Resampling, normalisation, encoding and scale are those of open_clip; features have length 1."""
    name = write_folder(build(FAMILIES[family]), FAMILIES[family], tmp_path / family, mean=[0.5, 0.4, 0.3])
    model, image, text = reference(name, pictures, ["a cat", "a dog"])
    encoder = Encoder(name, None, 8, device="cpu")
    found = features_of(encoder, pictures)
    np.testing.assert_allclose(found, image, atol=1e-6)
    np.testing.assert_allclose(encoder.text(["a cat", "a dog"]), text, atol=1e-6)
    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    assert found.dtype == np.float32
    assert encoder.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)
    assert np.abs(found[0] - found[1]).max() > 1e-4  # images are told apart at all


@pytest.mark.parametrize("resize_mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
def test_preparing_and_normalising_is_open_clips_transform(
    resize_mode: str, interpolation: str, tmp_path: Path, pictures: list[Image.Image]
):
    """Splitting the transform between threads and device changes no pixel."""
    settings = {"resize_mode": resize_mode, "interpolation": interpolation, "std": [0.2, 0.3, 0.4]}
    name = write_folder(build(VIT), VIT, tmp_path / "model", **settings)
    np.testing.assert_allclose(
        features_of(Encoder(name, None, 8, device="cpu"), pictures), reference(name, pictures, ["a"])[1], atol=1e-6
    )


@pytest.mark.parametrize("family", ["resnet", "siglip"])
def test_the_head_is_open_clips_zero_shot_classifier(family: str, tmp_path: Path):
    """Several templates: averaged, normalised, times the scale; equal to 1e-6 of a unit vector."""
    name = write_folder(build(FAMILIES[family]), FAMILIES[family], tmp_path / family)
    encoder = Encoder(name, None, 8, device="cpu")
    text = encoder.text([template.replace("{}", word) for word in NAMES for template in TEMPLATES])
    head = zero_shot_head(text.reshape(len(NAMES), len(TEMPLATES), -1), encoder.logit_scale, NAMES)
    model = open_clip.create_model(name).eval()
    weights = open_clip.build_zero_shot_classifier(model, open_clip.get_tokenizer(name), NAMES, TEMPLATES)
    np.testing.assert_allclose(head.weight / encoder.logit_scale, weights.numpy().T, atol=1e-6)
    assert np.linalg.norm(head.weight, axis=1) == pytest.approx(encoder.logit_scale, rel=1e-6)


def test_siglips_bias_changes_neither_scores_nor_predictions(tmp_path: Path, pictures: list[Image.Image]):
    """A sigmoid's bias is the same for all classes, so it cancels in the softmax that filter and tuning work with."""
    name = write_folder(build(FAMILIES["siglip"]), FAMILIES["siglip"], tmp_path / "siglip")
    encoder = Encoder(name, None, 8, device="cpu")
    head = zero_shot_head(encoder.text(NAMES)[:, None], encoder.logit_scale, NAMES)
    model, _, preprocess = open_clip.create_model_and_transforms(name)
    with torch.no_grad():
        images = torch.stack([preprocess(picture) for picture in pictures])
        logits, _ = model.eval().get_logits(images, open_clip.get_tokenizer(name)(NAMES))
    assert model.logit_bias.item() == -10
    probability = torch.softmax(logits.double(), dim=1).numpy()
    found = score(features_of(encoder, pictures), np.zeros(len(pictures), np.int32), head)
    np.testing.assert_allclose(found.own_probability, probability[:, 0], rtol=1e-4)
    np.testing.assert_array_equal(found.predicted_class, probability.argmax(axis=1))


@pytest.mark.parametrize("family", FAMILIES)
def test_half_precision_is_near_and_leaves_text_alone(family: str, tmp_path: Path, pictures: list[Image.Image]):
    """bfloat16 has 8 bits: features within a few percent, still float32 of length 1; text is the same to the bit."""
    name = write_folder(build(FAMILIES[family]), FAMILIES[family], tmp_path / family)
    full, half = (Encoder(name, None, 8, dtype=dtype, device="cpu") for dtype in ("float32", "bfloat16"))
    difference = np.abs(features_of(half, pictures) - features_of(full, pictures)).max()
    assert 0 < difference < 0.05
    np.testing.assert_allclose(np.linalg.norm(features_of(half, pictures), axis=1), 1, atol=1e-6)
    np.testing.assert_array_equal(half.text(NAMES), full.text(NAMES))
    assert (half.dtype, full.dtype) == ("bfloat16", "float32")


def test_automatic_precision_is_full_on_a_cpu(vit: str):
    """What was resolved is there for the record."""
    encoder = Encoder(vit, None, 8, device="cpu")
    assert (encoder.device, encoder.dtype) == ("cpu", "float32")


# --- batch norm -------------------------------------------------------------------------------------------------------

WITH_BATCH_NORM = ["resnet", "timm"]


@pytest.fixture(params=WITH_BATCH_NORM)
def moved_statistics(request: pytest.FixtureRequest, tmp_path: Path) -> str:
    """A model whose statistics are not those of an untrained one."""
    model = build(FAMILIES[request.param])
    for layer in model.visual.modules():
        if isinstance(layer, torch.nn.BatchNorm2d):
            for tensor in (layer.weight, layer.bias, layer.running_mean):
                torch.nn.init.normal_(tensor, mean=0.3, std=0.2)
            torch.nn.init.uniform_(layer.running_var, 0.5, 2.0)
    return write_folder(model, FAMILIES[request.param], tmp_path / "model")


@pytest.fixture
def with_batch_norm(moved_statistics: str) -> Encoder:
    """Its encoder."""
    return Encoder(moved_statistics, None, 8, device="cpu")


def images_of(encoder: Encoder, n: int = 6) -> Any:
    pixels = np.random.default_rng(1).integers(0, 256, (n, 32, 32, 3), dtype=np.uint8)
    return [encoder.prepare(Image.fromarray(image)) for image in pixels]


def batch_norms(encoder: Encoder) -> Any:
    return [layer for layer in encoder._model.visual.modules() if isinstance(layer, torch.nn.BatchNorm2d)]


def statistics(encoder: Encoder) -> Any:
    return [layer.running_mean.clone() for layer in batch_norms(encoder)]


@pytest.mark.parametrize("family", FAMILIES)
def test_which_encoders_have_batch_norm(family: str, tmp_path: Path):
    """ResNets have, transformers have not."""
    name = write_folder(build(FAMILIES[family]), FAMILIES[family], tmp_path / family)
    assert Encoder(name, None, 8, device="cpu").has_batch_norm == (family in WITH_BATCH_NORM)


def test_a_layer_in_train_mode_in_float64(with_batch_norm: Encoder):
    """The first layer, by hand: normalised by the batch's mean and (biased) variance; running statistics move a tenth
    of the way to the batch's, the variance unbiased (Ioffe and Szegedy, algorithm 1; torch's momentum)."""
    layer = batch_norms(with_batch_norm)[0]
    weight, bias, mean, variance = (
        tensor.detach().double().numpy()
        for tensor in (layer.weight, layer.bias, layer.running_mean.clone(), layer.running_var.clone())
    )
    seen = []
    normalise = torch.nn.functional.batch_norm  # timm's layers apply their activation too: look inside

    def record(x: Any, *arguments: Any, **keywords: Any) -> Any:
        result = normalise(x, *arguments, **keywords)
        seen.append((x.double().numpy(), result.double().numpy()))
        return result

    with pytest.MonkeyPatch.context() as patch, with_batch_norm.adapting():
        patch.setattr(torch.nn.functional, "batch_norm", record)
        with_batch_norm.encode_training(images_of(with_batch_norm))
        moved = layer.running_mean.double().numpy(), layer.running_var.double().numpy()
        x, result = seen[0]
        axes, shape = (0, 2, 3), (1, -1, 1, 1)
        centred = x - x.mean(axes, keepdims=True)
        expected = centred / np.sqrt((centred**2).mean(axes, keepdims=True) + layer.eps)
        np.testing.assert_allclose(result, expected * weight.reshape(shape) + bias.reshape(shape), atol=1e-5)
        np.testing.assert_allclose(moved[0], 0.9 * mean + 0.1 * x.mean(axes), atol=1e-6)
        np.testing.assert_allclose(moved[1], 0.9 * variance + 0.1 * x.var(axes, ddof=1), rtol=1e-5)
    assert len(seen) == len(batch_norms(with_batch_norm)) > 5


def test_features_in_train_mode_are_the_models_own(with_batch_norm: Encoder):
    """All layers, on open_clip's own modules in float64; afterwards `encode` uses the statistics as they became."""
    images = images_of(with_batch_norm)
    model = copy.deepcopy(with_batch_norm._model).double()
    pixels = torch.stack(images).permute(0, 3, 1, 2).double() / 255
    pixels = (pixels - with_batch_norm._mean) / with_batch_norm._std
    before = with_batch_norm.encode(images)
    with torch.no_grad(), with_batch_norm.adapting():
        for layer in model.visual.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.train()
        expected = [model.encode_image(pixels, normalize=True).numpy() for _ in range(3)][-1]
        found = [with_batch_norm.encode_training(images).numpy() for _ in range(3)][-1]
        np.testing.assert_allclose(found, expected, atol=1e-5)
        adapted = with_batch_norm.encode(images)
        np.testing.assert_allclose(adapted, model.eval().encode_image(pixels, normalize=True).numpy(), atol=1e-5)
    assert np.abs(found - before).max() > 1e-3 and np.abs(adapted - before).max() > 1e-3


def test_statistics_are_put_back(with_batch_norm: Encoder):
    """At the end, after an error too; and in between where it is asked for. No weight changes."""
    images = images_of(with_batch_norm)
    before = {name: tensor.clone() for name, tensor in with_batch_norm._model.state_dict().items()}
    features, means = with_batch_norm.encode(images), statistics(with_batch_norm)
    with pytest.raises(ZeroDivisionError), with_batch_norm.adapting():
        first = with_batch_norm.encode_training(images)
        assert not any(map(torch.equal, statistics(with_batch_norm), means))
        with_batch_norm.encode_training(images[:3])
        with_batch_norm.reset_batch_norm()
        assert torch.equal(with_batch_norm.encode_training(images), first)
        raise ZeroDivisionError
    after = with_batch_norm._model.state_dict()
    assert after.keys() == before.keys() and all(torch.equal(after[name], before[name]) for name in before)
    np.testing.assert_array_equal(with_batch_norm.encode(images), features)


def test_only_batch_norm_of_the_image_tower_is_in_train_mode(moved_statistics: str, monkeypatch: pytest.MonkeyPatch):
    """Dropout, and whatever the text tower has, are not."""

    def load_with_more(*arguments: Any) -> Any:
        model, *others = load_clip(*arguments)
        model.text_norm, model.visual.dropout = torch.nn.BatchNorm1d(4), torch.nn.Dropout(0.5)
        return model.eval(), *others

    monkeypatch.setattr("pipeline_lib.encoders.load_clip", load_with_more)
    encoder = Encoder(moved_statistics, None, 8, device="cpu")
    model, training = encoder._model, set()
    model.visual.register_forward_hook(lambda *_: training.update(one for one in model.modules() if one.training))
    with encoder.adapting():
        encoder.encode_training(images_of(encoder))
        assert training == set(batch_norms(encoder))
        assert not any(layer.training for layer in model.modules())


def test_a_head_can_be_trained_on_features_in_train_mode(with_batch_norm: Encoder):
    """They are tensors that autograd takes, without a graph of their own: the encoder gets no gradient."""
    with with_batch_norm.adapting():
        features = with_batch_norm.encode_training(images_of(with_batch_norm))
    assert features.dtype == torch.float32 and not features.requires_grad
    torch.testing.assert_close(features.norm(dim=1), torch.ones(6))
    weight = torch.zeros(3, features.shape[1], requires_grad=True)
    torch.nn.functional.linear(features, weight).sum().backward()
    assert weight.grad is not None and weight.grad.abs().max() > 0
    assert all(parameter.grad is None for parameter in with_batch_norm._model.parameters())


def test_statistics_do_not_move_by_mistake(with_batch_norm: Encoder):
    """Neither outside of `adapting`, nor by `encode`."""
    images, before = images_of(with_batch_norm), statistics(with_batch_norm)
    with pytest.raises(RuntimeError, match=r"with encoder\.adapting"):
        with_batch_norm.encode_training(images)
    with with_batch_norm.adapting():
        with_batch_norm.encode(images)
        assert all(map(torch.equal, statistics(with_batch_norm), before))


def test_a_batch_in_train_mode_that_is_too_large_is_a_memory_error(
    with_batch_norm: Encoder, monkeypatch: pytest.MonkeyPatch
):
    """And leaves evaluation mode behind."""
    monkeypatch.setattr(with_batch_norm._model, "encode_image", lambda _: torch.empty(10**14))
    with with_batch_norm.adapting(), pytest.raises(MemoryError):
        with_batch_norm.encode_training(images_of(with_batch_norm))
    assert not any(layer.training for layer in with_batch_norm._model.modules())


# --- memory and devices -----------------------------------------------------------------------------------------------


def test_text_is_halved_when_memory_runs_out(vit: str, monkeypatch: pytest.MonkeyPatch):
    """More prompts than fit are encoded in smaller batches, in order."""
    encoder = Encoder(vit, None, 8, device="cpu")
    prompts = [f"a {colour} {noun}" for colour in ("red", "blue") for noun in NAMES] * 50
    expected, encode, sizes = encoder.text(prompts), encoder._model.encode_text, []

    def too_much(tokens: Any) -> Any:
        sizes.append(len(tokens))
        if len(tokens) > 100:
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(tokens)

    monkeypatch.setattr(encoder._model, "encode_text", too_much)
    np.testing.assert_allclose(encoder.text(prompts), expected, atol=1e-6)
    assert sizes == [256, 128, 64, 64, 64, 64, 44]


def test_too_many_images_are_a_memory_error(vit: str, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch):
    """Torch's own errors become the one that halves a batch."""
    encoder = Encoder(vit, None, 8, device="cpu")

    def full(_: Any) -> Any:
        return torch.empty(10**14)

    monkeypatch.setattr(encoder._model, "encode_image", full)
    with pytest.raises(MemoryError):
        features_of(encoder, pictures)


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_asked_for_and_absent_is_a_user_error(vit: str):
    """Nothing runs on the CPU by mistake."""
    with pytest.raises(UserError, match=r"device: 'cuda'"):
        Encoder(vit, None, 8, device="cuda")


# --- QuickGELU --------------------------------------------------------------------------------------------------------


@pytest.fixture
def registered(monkeypatch: pytest.MonkeyPatch) -> None:
    """Tiny architectures among open_clip's own, with a pretrained tag each, on a hub that no test reaches."""
    for name, config in {"tiny": VIT, "tiny-quickgelu": {**VIT, "quick_gelu": True}, "tiny-resnet": RESNET}.items():
        monkeypatch.setitem(open_clip.factory._MODEL_CONFIGS, name, config)
    tag = {"hf_hub": "someone/tiny/", "quick_gelu": True, "mean": (0.1, 0.2, 0.3), "interpolation": "bilinear"}
    monkeypatch.setitem(open_clip.pretrained._PRETRAINED, "tiny", {"openai": tag})


def test_a_tag_brings_its_activation_and_pixels(
    registered: None, vit: str, tmp_path: Path, pictures: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    """ "tiny" with a tag that was trained with QuickGELU computes with it; the tag's mean is subtracted; the commit of
    its repository can be named."""
    asked = []

    def fake_hub(repository: str, revision: str | None, weights: Any, **_: Any) -> Path:
        asked.append((repository, revision))
        return Path(vit.removeprefix("local-dir:"))

    monkeypatch.setattr("pipeline_lib.clip_models.hub_folder", fake_hub)
    found = features_of(Encoder("tiny", "openai", 8, revision="a" * 40, device="cpu"), pictures)
    quick = {**VIT, "quick_gelu": True}
    settings = {"mean": [0.1, 0.2, 0.3], "interpolation": "bilinear"}
    name = write_folder(build(quick), quick, tmp_path / "quick", **settings)
    plain = write_folder(build(VIT), VIT, tmp_path / "plain", **settings)
    np.testing.assert_allclose(found, reference(name, pictures, ["a"])[1], atol=1e-6)
    assert np.abs(found - reference(plain, pictures, ["a"])[1]).max() > 1e-4
    assert asked == [("someone/tiny", "a" * 40)]


@pytest.mark.parametrize("architecture, config", [("tiny", VIT), ("tiny-resnet", RESNET)])
def test_a_state_dict_of_openai_turns_quickgelu_on(
    registered: None, architecture: str, config: dict[str, Any], tmp_path: Path, pictures: list[Image.Image]
):
    """Its three entries beside the weights tell it; weights in float16, as OpenAI's are, are widened."""
    quick = {**config, "quick_gelu": True}
    state = {name: tensor.half() for name, tensor in build(config).state_dict().items()}
    sizes = {name: torch.tensor(1) for name in ("input_resolution", "context_length", "vocab_size")}
    torch.save(state | sizes, tmp_path / "openai.pt")
    found = features_of(Encoder(architecture, str(tmp_path / "openai.pt"), 8, device="cpu"), pictures)
    model = build(quick)
    model.load_state_dict({name: tensor.float() for name, tensor in state.items()})
    expected = reference(write_folder(model, quick, tmp_path / "quick"), pictures, ["a"])[1]
    np.testing.assert_allclose(found, expected, atol=1e-6)


def test_another_file_has_the_activation_of_its_architecture(
    registered: None, tmp_path: Path, pictures: list[Image.Image], caplog: pytest.LogCaptureFixture
):
    """A plain state dict says nothing of it, which is said."""
    torch.save(build(VIT).state_dict(), tmp_path / "weights.pt")
    features = {}
    for name in ("tiny", "tiny-quickgelu"):
        features[name] = features_of(Encoder(name, str(tmp_path / "weights.pt"), 8, device="cpu"), pictures)
    expected = reference(write_folder(build(VIT), VIT, tmp_path / "plain"), pictures, ["a"])[1]
    np.testing.assert_allclose(features["tiny"], expected, atol=1e-6)
    assert np.abs(features["tiny"] - features["tiny-quickgelu"]).max() > 1e-4
    warnings = [record.message for record in caplog.records if "says nothing" in record.message]
    assert [" GELU " in warning for warning in warnings] == [True, False]


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def problem(model: str, pretrained: str | None) -> str:
    """The message for a model that is refused: it begins with the key of the configuration."""
    with pytest.raises(UserError, match=r"^models\.encoders: ") as caught:
        Encoder(model, pretrained, 8, device="cpu")
    return str(caught.value)


class Payload:
    """Code in a pickle: unpickling writes a file."""

    def __init__(self, path: Path):
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.parametrize("save", ["torch", "pickle"])
def test_a_pickle_that_would_run_code_is_refused_unread(registered: None, tmp_path: Path, save: str):
    """The weights-only reader stops at it."""
    content = {"state_dict": Payload(tmp_path / "it ran")}
    if save == "torch":
        torch.save(content, tmp_path / "evil.pt")
    else:
        (tmp_path / "evil.pt").write_bytes(pickle.dumps(content))
    assert "could run code" in problem("tiny", str(tmp_path / "evil.pt"))
    assert not (tmp_path / "it ran").exists()


def test_a_torchscript_archive_is_refused(registered: None, tmp_path: Path):
    """OpenAI's own files are programs; the message says where the same weights are to be had without."""
    torch.jit.script(torch.nn.Linear(2, 2)).save(str(tmp_path / "RN50.pt"))
    message = problem("tiny", str(tmp_path / "RN50.pt"))
    assert "TorchScript" in message and "timm/resnet50_clip.openai" in message


def test_weights_of_another_architecture_are_named(registered: None, tmp_path: Path):
    """One line with the first misfit, not torch's list of all."""
    torch.save(build(RESNET).state_dict(), tmp_path / "weights.pt")
    message = problem("tiny", str(tmp_path / "weights.pt"))
    assert "another architecture" in message and "Missing key(s)" in message and len(message) < 600
    wider = {**VIT, "embed_dim": 8}
    torch.save(build(wider).state_dict(), tmp_path / "wider.pt")
    assert "size mismatch" in problem("tiny", str(tmp_path / "wider.pt"))


def test_weights_that_are_not_finite_are_refused(tmp_path: Path):
    """Damaged files are found before anything is encoded with them."""
    model = build(RESNET)
    model.visual.bn1.running_var[0] = torch.nan
    message = problem(write_folder(model, RESNET, tmp_path / "model"), None)
    assert "1 weights are not finite, the first is visual.bn1.running_var" in message


def test_names_that_lead_nowhere(registered: None, tmp_path: Path):
    """Each message gives the name and says what there is instead."""
    (tmp_path / "junk.pt").write_bytes(b"hello")
    for model, pretrained, words in (
        ("ViT-B16", "openai", ("'ViT-B16'", "close are ViT-B-16")),
        ("RN50", "opnai", ("'opnai'", "openai, yfcc15m")),
        ("RN50", None, ("'RN50'", "needs pretrained weights")),
        (f"local-dir:{tmp_path}", None, (str(tmp_path), "config file missing")),
        ("tiny", str(tmp_path / "junk.pt"), ("junk.pt", "cannot be loaded")),
    ):
        message = problem(model, pretrained)
        assert all(word in message for word in words), message


def test_a_folder_without_weights_is_refused(tmp_path: Path):
    """A random model would give random numbers."""
    name = write_folder(build(VIT), VIT, tmp_path / "model")
    (tmp_path / "model" / "open_clip_model.safetensors").unlink()
    assert "cannot be loaded" in problem(name, None)


def test_an_unreachable_hub_is_said_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command that downloads, and what to write then."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no way")))
    for model in (("hf-hub:someone/clip", None), ("RN50", "openai")):
        with pytest.raises(UserError, match=r"no way.*hf download \S+ .*--local-dir FOLDER.*local-dir:FOLDER"):
            Encoder(*model, 8, device="cpu")
