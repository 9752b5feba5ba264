"""The word-to-sentence model: what it draws, that nothing but the request decides it, and what is refused."""

import shutil
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pipeline_lib.errors import UserError
from pipeline_lib.prompts import Request

torch = pytest.importorskip("torch")
transformers = pytest.importorskip("transformers")

from pipeline_lib.sentences import SentenceModel, draw_tokens  # noqa: E402

CAT = Request(words=("red", "cat"), n=6, top_p=0.95, top_k=0, temperature=1.0, seed=0)
OTHERS = [
    Request(words=("blue", "fish", "bird", "dog"), n=9, top_p=0.5, top_k=5, temperature=2.0, seed=1),
    Request(words=("dog",), n=3, top_p=1.0, top_k=0, temperature=0.5, seed=0),
]


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, Any]) -> SentenceModel:
    return SentenceModel(tiny_models["sentences"], None, 64, "cpu")


# --- drawing ----------------------------------------------------------------------------------------------------------


def draw(logits: Any, uniforms: Any, temperature: float = 1.0, top_k: int = 0, top_p: float = 1.0) -> Any:
    n = len(uniforms)
    settings = {"temperature": torch.full((n, 1), temperature).double(), "top_k": torch.full((n, 1), top_k)}
    settings["top_p"] = torch.full((n, 1), top_p, dtype=torch.float64)
    return draw_tokens(logits.expand(n, -1), uniforms[:, None], **settings)[:, 0].numpy()


@pytest.mark.parametrize(
    "temperature, top_k, top_p", [(1.0, 0, 1.0), (0.7, 0, 0.9), (1.0, 5, 1.0), (2.0, 12, 0.6), (1.0, 99, 0.999)]
)
def test_the_distribution_is_that_of_the_reference_warpers(temperature: float, top_k: int, top_p: float):
    """An even grid of random numbers draws each token as often as its probability says: softmax in float64 of what
    transformers' own temperature, top-k and top-p leave, in the order in which `generate` applies them."""
    generator = torch.Generator().manual_seed(0)
    logits = 3 * torch.randn(1, 40, generator=generator)
    warped = transformers.TemperatureLogitsWarper(temperature)(None, logits.double())
    if top_k:
        warped = transformers.TopKLogitsWarper(top_k)(None, warped)
    if top_p < 1:
        warped = transformers.TopPLogitsWarper(top_p)(None, warped)
    expected = torch.softmax(warped, dim=1)[0].numpy()
    n = 20_000
    tokens = draw(logits, (torch.arange(n, dtype=torch.float64) + 0.5) / n, temperature, top_k, top_p)
    frequency = np.bincount(tokens, minlength=40) / n
    np.testing.assert_allclose(frequency, expected, atol=1.01 / n)


def test_the_ends_of_the_random_numbers_are_tokens_of_the_nucleus():
    """0 draws the most probable token, the number just below 1 the least probable one that is left, never another."""
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.0, 0.3]]))  # one token is impossible
    ends = torch.tensor([0.0, 1 - 2**-53], dtype=torch.float64)
    assert draw(logits, ends).tolist() == [1, 0]
    assert draw(logits, ends, top_p=0.6).tolist() == [1, 1]
    assert draw(logits, ends, top_p=0.7).tolist() == [1, 3]
    assert draw(logits, ends, top_k=2).tolist() == [1, 3]
    assert draw(logits, ends, top_k=1, top_p=0.1).tolist() == [1, 1]
    assert draw(torch.zeros(1, 4), ends, top_p=0.5).tolist() == [0, 1]  # two quarters reach a half, exactly


def test_settings_are_of_each_row():
    """Classes of different settings share a batch."""
    logits = torch.log(torch.tensor([[0.1, 0.6, 0.3]])).expand(2, -1)
    uniforms = torch.tensor([[0.99], [0.99]], dtype=torch.float64)
    settings = {"temperature": torch.ones(2, 1).double(), "top_k": torch.tensor([[0], [2]])}
    assert draw_tokens(logits, uniforms, top_p=torch.ones(2, 1).double(), **settings)[:, 0].tolist() == [0, 2]
    top_p = torch.tensor([[0.5], [1.0]], dtype=torch.float64)
    assert draw_tokens(logits, uniforms, top_p=top_p, **settings)[:, 0].tolist() == [1, 2]


# --- sampling ---------------------------------------------------------------------------------------------------------


def test_a_request_alone_decides_its_sentences(model: SentenceModel, tiny_models: dict[str, Any]):
    """Not its neighbours, their order, the batch size or torch's random state, which is left alone."""
    torch.manual_seed(123)
    expected_next = torch.rand(3)
    torch.manual_seed(123)
    (alone,) = model.sample([CAT])
    assert torch.equal(torch.rand(3), expected_next)
    assert model.sample([CAT, *OTHERS])[0] == alone
    assert model.sample([*OTHERS, CAT])[-1] == alone
    for batch_size in (1, 4, 7):
        other = SentenceModel(tiny_models["sentences"], None, batch_size, "cpu")
        assert other.sample([OTHERS[0], CAT, OTHERS[1]])[1] == alone
    assert [len(sentences) for sentences in model.sample([CAT, *OTHERS])] == [6, 9, 3]


def test_the_first_sentences_do_not_depend_on_how_many_are_asked_for(model: SentenceModel):
    """More of them is a continuation."""
    assert model.sample([replace(CAT, n=9)])[0][:6] == model.sample([CAT])[0]


def test_every_field_of_a_request_matters(model: SentenceModel):
    """Other words, another seed, another cut or temperature give other sentences."""
    (first,) = model.sample([CAT])
    assert len(set(first)) > 1
    for change in ({"words": ("blue", "fish")}, {"seed": 1}, {"top_p": 0.2}, {"top_k": 2}, {"temperature": 5.0}):
        assert model.sample([replace(CAT, **change)])[0] != first, change
    for certain in ({"temperature": 1e-4}, {"top_k": 1}, {"top_p": 1e-6}):
        assert len(set(model.sample([replace(CAT, **certain)])[0])) == 1, certain


def test_every_token_has_a_random_number_of_its_own(model: SentenceModel, monkeypatch: pytest.MonkeyPatch):
    """Row by row those of the request's generator, one for each step."""
    steps = []

    def spy(logits: Any, uniforms: Any, **settings: Any) -> Any:
        steps.append(uniforms[:, 0])
        return draw_tokens(logits, uniforms, **settings)

    monkeypatch.setattr("pipeline_lib.sentences.draw_tokens", spy)
    model.sample([CAT])
    generator = torch.Generator().manual_seed(CAT.seed)
    expected = torch.rand(CAT.n, 48, dtype=torch.float64, generator=generator)
    assert len(steps) > 3
    assert torch.equal(torch.stack(steps, dim=1), expected[:, : len(steps)])


def test_sentences_are_as_likely_as_the_model_says(model: SentenceModel):
    """First tokens of many sentences against the model's own probabilities: within four standard errors."""
    n = 2000
    inner, tokenizer = model._model, model._tokenizer
    inputs = tokenizer(["red, cat"], return_tensors="pt")
    start = torch.tensor([[inner.config.decoder_start_token_id]])
    with torch.no_grad():
        probability = torch.softmax(inner(**inputs, decoder_input_ids=start).logits[0, -1].double(), 0).numpy()
    drawn: Counter[int] = Counter()
    original = inner.generate

    def spy(**arguments: Any) -> Any:
        outputs = original(**arguments | {"max_new_tokens": 1})
        drawn.update(outputs[:, 1].tolist())
        return outputs

    inner.generate = spy
    try:
        model.sample([replace(CAT, n=n, top_p=1.0)])
    finally:
        del inner.generate
    frequency = np.array([drawn[token] / n for token in range(len(probability))])
    assert (np.abs(frequency - probability) < 4 * np.sqrt(probability / n) + 1 / n).all()


def test_batches_are_halved_when_memory_runs_out(model: SentenceModel, monkeypatch: pytest.MonkeyPatch):
    """The sentences are the same."""
    expected, original, sizes = model.sample([CAT, *OTHERS]), model._model.generate, []

    def limited(**arguments: Any) -> Any:
        sizes.append(len(arguments["attention_mask"]))
        if sizes[-1] > 5:
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB")
        return original(**arguments)

    monkeypatch.setattr(model._model, "generate", limited)
    monkeypatch.setattr(model._batches, "size", 64)
    assert model.sample([CAT, *OTHERS]) == expected
    assert sizes == [18, 9, 4, 4, 4, 4, 2]


# --- what cannot be loaded --------------------------------------------------------------------------------------------


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path):
    """The message names the configuration key and the folder."""
    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=rf"models\.sentences: '{tmp_path}' cannot be loaded"):
        SentenceModel(str(tmp_path), None, 8, "cpu")


def test_missing_weights_are_not_made_up(tiny_models: dict[str, Any], tmp_path: Path):
    """transformers fills them with random numbers and goes on."""
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_models["sentences"], folder)
    state = load_file(folder / "model.safetensors")
    lost = next(name for name in state if "decoder" in name and name.endswith("wo.weight"))
    del state[lost]
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"1 weights are not in its files, the first is .*wo\.weight"):
        SentenceModel(str(folder), None, 8, "cpu")


def test_weights_that_are_not_finite_are_refused(tiny_models: dict[str, Any], tmp_path: Path):
    from safetensors.torch import load_file, save_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_models["sentences"], folder)
    state = load_file(folder / "model.safetensors")
    state["shared.weight"][0, 0] = float("nan")
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(UserError, match=r"weights are not finite, the first is shared\.weight"):
        SentenceModel(str(folder), None, 8, "cpu")


def test_weights_of_another_size_are_a_user_error(tiny_models: dict[str, Any], tmp_path: Path):
    """Configuration and weights must be of one model."""
    folder = tmp_path / "model"
    shutil.copytree(tiny_models["sentences"], folder)
    config = (folder / "config.json").read_text()
    (folder / "config.json").write_text(config.replace('"d_ff": 32', '"d_ff": 48'))
    assert config != (folder / "config.json").read_text()
    with pytest.raises(UserError, match=r"models\.sentences"):
        SentenceModel(str(folder), None, 8, "cpu")


def test_a_pickle_of_weights_is_read_without_running_code(tiny_models: dict[str, Any], tmp_path: Path):
    """Older repositories have no safetensors: weights alone are read, anything else is refused."""
    from safetensors.torch import load_file

    folder = tmp_path / "model"
    shutil.copytree(tiny_models["sentences"], folder)
    state = load_file(folder / "model.safetensors")
    (folder / "model.safetensors").unlink()
    torch.save(state, folder / "pytorch_model.bin")
    expected = SentenceModel(tiny_models["sentences"], None, 64, "cpu").sample([CAT])
    assert SentenceModel(str(folder), None, 64, "cpu").sample([CAT]) == expected

    class Payload:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "it ran",)

    torch.save({"weights": Payload()}, folder / "pytorch_model.bin")
    with pytest.raises(
        UserError, match=r"models\.sentences.*could run code, so it was not read; use a safetensors file"
    ):
        SentenceModel(str(folder), None, 64, "cpu")
    assert not (tmp_path / "it ran").exists()


def test_repositories_of_2020_hold_a_sentencepiece_model(tmp_path: Path):
    """T5 as it was first published: no tokenizer.json, no tokenizer_config.json, no safetensors. Its tokens are those
    of sentencepiece itself, its sentences those words."""
    sentencepiece = pytest.importorskip("sentencepiece")
    n_pieces, n_sentinels = 22, 100  # <extra_id_0> to <extra_id_99> follow the vocabulary
    captions = [f"a photo of a {adjective}, {noun}" for adjective in ("red", "blue") for noun in ("cat", "dog", "bird")]
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(captions * 10),
        model_prefix=str(tmp_path / "spiece"),
        vocab_size=n_pieces,
        pad_id=0,  # T5's own numbers; it has no token that begins a text
        eos_id=1,
        unk_id=2,
        bos_id=-1,
        minloglevel=2,
    )
    (tmp_path / "spiece.vocab").unlink()
    torch.manual_seed(0)
    config = transformers.T5Config(
        vocab_size=n_pieces + n_sentinels,
        d_model=16,
        d_kv=8,
        d_ff=32,
        num_layers=1,
        num_heads=2,
        decoder_start_token_id=0,
    )
    config.save_pretrained(tmp_path)
    torch.save(transformers.T5ForConditionalGeneration(config).state_dict(), tmp_path / "pytorch_model.bin")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["config.json", "pytorch_model.bin", "spiece.model"]

    model = SentenceModel(str(tmp_path), None, 64, "cpu")
    pieces = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "spiece.model"))
    for text in ("red, cat", "a photo of a blue, dog"):
        tokens = model._tokenizer(text)["input_ids"]
        assert tokens == [*pieces.encode(text), pieces.eos_id()]
        assert model._tokenizer.decode(pieces.encode(text)) == pieces.decode(pieces.encode(text))
    (sentences,) = model.sample([replace(CAT, top_p=1.0)])
    assert len(sentences) == CAT.n
    assert len(set(sentences)) > 1
    assert not any("<" in sentence and "extra_id" not in sentence for sentence in sentences)


def test_an_unreachable_hub_is_said_with_the_way_around_it(monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
    """The command that downloads, and where to name the folder."""
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.HfApi.model_info", lambda *_, **__: (_ for _ in ()).throw(OSError("no way")))
    with pytest.raises(UserError, match=r"models\.sentences: 'someone/t5'.*no way.*hf download someone/t5"):
        SentenceModel("someone/t5", "a" * 40, 8, "cpu")
