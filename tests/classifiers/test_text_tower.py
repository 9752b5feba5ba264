"""The text tower on embeddings: open_clip's own text features, for every family of text towers, and their gradients."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tiny_clip import FAMILIES, VIT, build, write_folder

torch = pytest.importorskip("torch")
open_clip = pytest.importorskip("open_clip")

from pipeline_lib.classifiers import text_tower  # noqa: E402
from pipeline_lib.classifiers.text_tower import TextTower  # noqa: E402
from pipeline_lib.errors import NotComputableError  # noqa: E402

torch.set_num_threads(1)
MINIATURE = "local-dir:pipeline_lib/miniature/weights/clip"
WORDS = "a photo of a"
TEXTS = ["cat.", "oak tree.", "t-shirt, size 7."]


def text_variant(custom_text: bool = False, quick_gelu: bool = False, **text: Any) -> dict[str, Any]:
    config = {**VIT, "quick_gelu": quick_gelu, "text_cfg": {**VIT["text_cfg"], "layers": 2, **text}}
    return config | ({"custom_text": True} if custom_text else {})


# Text towers by how they pool, mask, scale and project.
VARIANTS = {
    **FAMILIES,
    "two_layers_quickgelu": text_variant(quick_gelu=True),
    "eos": text_variant(pool_type="eos", eos_id=269),  # the full stop, not the highest number
    "custom_eos": text_variant(custom_text=True, pool_type="eos", eos_id=49407),
    "last": text_variant(custom_text=True, pool_type="last", no_causal_mask=True),
    "first": text_variant(custom_text=True, pool_type="first", no_causal_mask=True),
    "padding_masked": text_variant(custom_text=True, no_causal_mask=True, use_pad_mask=True),
    "causal_last": text_variant(pool_type="last"),
    "layer_scale": text_variant(ls_init_value=0.3),
    "projection_bias": text_variant(custom_text=True, proj_bias=True),
    "no_projection": {**text_variant(proj_type="none"), "embed_dim": 32},
    "other_blocks": text_variant(qk_norm=True),
}
SHARING = {"resnet", "vit", "vit_quickgelu", "siglip", "timm", "two_layers_quickgelu", "eos", "custom_eos"}
SHARING |= {"layer_scale", "projection_bias", "no_projection"}


def make(config: dict[str, Any], folder: Path) -> tuple[TextTower, Any]:
    """The tower, and the model itself. Weights are far from their small initial values, so that positions matter."""
    config = dict(config, text_cfg=dict(config["text_cfg"]))
    masked = config["text_cfg"].pop("use_pad_mask", False)  # no key of a model's configuration
    model = build(config)
    with torch.no_grad():
        for name, value in model.named_parameters():
            if not name.startswith("visual.") and name != "logit_scale":
                value.add_(torch.randn(value.shape, generator=torch.Generator().manual_seed(len(name))) * 0.3)
    tower = TextTower(write_folder(model, config, folder), None, device="cpu")
    for text in (model, tower._model) if masked else ():
        text.text.use_pad_mask = True
    return tower, model


def expected(model: Any, tokenizer: Any, texts: list[str]) -> Any:
    with torch.no_grad():
        return model.encode_text(tokenizer([f"{WORDS} {text}" for text in texts]), normalize=True)


def word_vectors(tower: TextTower) -> Any:
    """Embeddings of the four tokens of WORDS."""
    return tower._text.token_embedding(tower._tokenizer([WORDS])[0, 1:5])


@pytest.mark.parametrize("variant", VARIANTS)
def test_vectors_of_words_give_the_features_of_the_words(variant: str, tmp_path: Path):
    """ "cat." after the embeddings of "a photo of a" is "a photo of a cat.": the same as model.encode_text to 1e-5."""
    tower, model = make(VARIANTS[variant], tmp_path / "model")
    prompts = tower.prompts(TEXTS, 4)
    assert (prompts.last is not None) == (variant in SHARING)
    found = tower.features(prompts, word_vectors(tower))
    reference = expected(model, tower._tokenizer, TEXTS)
    torch.testing.assert_close(found, reference, atol=1e-5, rtol=0)
    assert (reference[0] - reference[1]).abs().max() > 1e-2  # texts are told apart
    others = tower.features(prompts, torch.zeros(4, tower.width))
    assert (others - reference).abs().max() > 1e-3  # the vectors matter
    again = tower.features(tower.prompts(TEXTS, 4), word_vectors(tower))
    torch.testing.assert_close(again, found, atol=1e-6, rtol=0)  # and leave nothing behind


def test_the_shipped_miniature_agrees():
    """The same with its own tokenizer, whose padding is the end token."""
    tower = TextTower(MINIATURE, None, device="cpu")
    model = open_clip.create_model(MINIATURE).eval()
    texts = ["t-shirt.", "ankle boot.", "bag."]
    prompts = tower.prompts(texts, 4)
    torch.testing.assert_close(
        tower.features(prompts, word_vectors(tower)), expected(model, tower._tokenizer, texts), atol=1e-5, rtol=0
    )
    assert prompts.last is not None
    assert tower.logit_scale == pytest.approx(float(model.logit_scale.detach().exp()), rel=1e-6)


@pytest.mark.parametrize("variant", ["two_layers_quickgelu", "custom_eos", "layer_scale"])
def test_sharing_the_start_changes_no_gradient(variant: str, tmp_path: Path):
    """The gradient with respect to the vectors is that of open_clip's own pass over whole prompts."""
    tower, _ = make(VARIANTS[variant], tmp_path / "model")
    shared = tower.prompts(TEXTS, 5)
    tower._shares_start = False
    whole = tower.prompts(TEXTS, 5)
    direction = torch.randn(3, 16, generator=torch.Generator().manual_seed(1))
    gradients = []
    for prompts in (shared, whole):
        vectors = torch.randn(5, tower.width, generator=torch.Generator().manual_seed(2)).requires_grad_()
        (tower.features(prompts, vectors) * direction).sum().backward()
        gradients.append(vectors.grad)
    assert (shared.last is None, whole.last is None) == (False, True)
    torch.testing.assert_close(*gradients, atol=1e-6, rtol=1e-4)
    assert gradients[0].abs().max() > 1e-2
    assert all(value.grad is None for value in tower._model.parameters())


def test_the_start_is_computed_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """For 40 classes the blocks see one start and 40 short ends, not 40 whole prompts."""
    tower, _ = make(VARIANTS["vit"], tmp_path / "model")
    rows = []
    block = tower._text.transformer.resblocks[0]
    block.ln_1.register_forward_hook(lambda _, inputs, __: rows.append(inputs[0].numel() // tower.width))
    tower.features(tower.prompts(["cat."] * 40, 8), torch.zeros(8, tower.width))
    assert rows == [1 + 8 + 40 * 3]  # start and vectors; "cat", ".", end


def test_lengths_count_start_and_end(tmp_path: Path):
    """Padding with zeros or with the end token; as long as the positions and longer."""
    texts = ["cat.", "t-shirt, size 7.", "cat " * 13 + ".", "cat " * 30 + "."]
    assert make(VIT, tmp_path / "model")[0].lengths(texts) == [4, 9, 16, 33]
    miniature = TextTower(MINIATURE, None, device="cpu")
    assert miniature.lengths(["bag.", "t-shirt.", "bag " * 17 + ".", "bag " * 18 + "."]) == [4, 6, 20, 21]
    assert miniature.lengths(["bag."]) == [4]
    assert (miniature.context_length, miniature.width) == (20, 128)


def test_too_many_vectors_for_the_positions_are_refused(tmp_path: Path):
    """Nothing is cut off silently."""
    tower, _ = make(VIT, tmp_path / "model")
    tower.prompts(TEXTS, 7)
    with pytest.raises(ValueError, match="8 vectors and 9 tokens; there are 16 positions"):
        tower.prompts(TEXTS, 8)


class WithoutStart:
    """A tokenizer as SigLIP's: no start token; the end token, 1, is the padding."""

    def __call__(self, texts: list[str], context_length: int = 12) -> Any:
        words = [[2 + sum(map(ord, word)) % 500 for word in text.split()] for text in texts]
        return torch.tensor([(ids[: context_length - 1] + [1] * context_length)[:context_length] for ids in words])


def test_a_tokenizer_without_start_token(monkeypatch: pytest.MonkeyPatch):
    """The vectors come first."""
    config = text_variant(custom_text=True, context_length=12, pool_type="last", no_causal_mask=True)
    model, reference = build(config), build(config)
    monkeypatch.setattr(text_tower, "load_clip", lambda *_: (model, None, WithoutStart()))
    tower = TextTower("siglip", None, device="cpu")
    vectors = tower._text.token_embedding(WithoutStart()([WORDS])[0, :4])
    assert tower.lengths(["cat", "oak tree"]) == [2, 3]
    torch.testing.assert_close(
        tower.features(tower.prompts(["cat", "oak tree"], 4), vectors),
        expected(reference, WithoutStart(), ["cat", "oak tree"]),
        atol=1e-5,
        rtol=0,
    )


# --- what cannot be used ----------------------------------------------------------------------------------------------


def test_text_encoders_of_other_libraries_are_refused(monkeypatch: pytest.MonkeyPatch):
    """One that transformers made has embeddings, masks and pooling of its own."""
    transformers = pytest.importorskip("transformers")
    from open_clip.hf_model import HFTextEncoder

    sizes = {"hidden_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2, "intermediate_size": 16}
    bert = transformers.BertConfig(vocab_size=50, **sizes)
    model = build({**VIT, "custom_text": True})
    model.text = HFTextEncoder("bert", 16, config=bert, pooler_type="mean_pooler", proj_type="linear", pretrained=False)
    monkeypatch.setattr(text_tower, "load_clip", lambda *_: (model, None, None))
    with pytest.raises(
        NotComputableError, match=r"^models\.encoders: 'some/model' has a text encoder of .*HFTextEncoder"
    ):
        TextTower("some/model", None, device="cpu")


def test_tokenizers_that_write_behind_the_padding_are_refused(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(text_tower, "load_clip", lambda *_: (build(VIT), None, SimpleNamespace(tokenizer_mode="clips")))
    with pytest.raises(
        NotComputableError, match=r"^models\.encoders: 'some/model' has a tokenizer of the mode 'clips'"
    ):
        TextTower("some/model", None, device="cpu")
