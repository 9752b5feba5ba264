"""CoOp against the original implementation (tests/data/coop_reference.py), and its promises."""

from pathlib import Path

import numpy as np
import pytest
import yaml
from coop_models import CONFIG, REFERENCE, write_clip
from tiny_clip import VIT, build, write_folder

torch = pytest.importorskip("torch")
pytest.importorskip("open_clip")

from pipeline_lib.classifiers import coop  # noqa: E402
from pipeline_lib.classifiers.coop import CoOpSettings, train_coop  # noqa: E402
from pipeline_lib.classifiers.examples import Examples  # noqa: E402
from pipeline_lib.classifiers.text_tower import TextTower  # noqa: E402
from pipeline_lib.errors import NotComputableError  # noqa: E402

torch.set_num_threads(1)
MINIATURE = "local-dir:pipeline_lib/miniature/weights/clip"
NAMES = ["cat", "dog", "oak tree"]


@pytest.fixture(scope="module")
def reference() -> dict[str, np.ndarray]:
    return dict(np.load(REFERENCE))


@pytest.fixture(scope="module")
def original(tmp_path_factory) -> TextTower:
    """The text tower whose weights the original was given."""
    return TextTower(write_clip(tmp_path_factory.mktemp("original") / "clip"), None, device="cpu")


@pytest.fixture(scope="module")
def tower(tmp_path_factory) -> TextTower:
    """16 positions."""
    return TextTower(write_folder(build(VIT), VIT, tmp_path_factory.mktemp("tiny") / "clip"), None, device="cpu")


def shots_of(n, n_classes=3, seed=0):
    """`n` unit vectors near one direction for each class."""
    rng = np.random.default_rng(seed)
    labels = np.arange(n) % n_classes
    features = rng.normal(size=(n_classes, 16))[labels] + 0.3 * rng.normal(size=(n, 16))
    return Examples((features / np.linalg.norm(features, axis=1, keepdims=True)).astype(np.float32), labels)


# --- the original's numbers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize("sharing", [True, False])
def test_forward_pass_is_the_originals(sharing, reference, original, monkeypatch):
    """Prompt construction to the token; text features and logits to 1e-5."""
    monkeypatch.setattr(original, "_shares_start", sharing)
    context = torch.tensor(reference["context"])
    texts = [name.replace("_", " ") + "." for name in reference["class_names"]]
    prompts = original.prompts(texts, len(context))
    np.testing.assert_array_equal(prompts.tokens.numpy(), reference["tokens"])
    features = original.features(prompts, context).numpy()
    expected = reference["text_features"] / np.linalg.norm(reference["text_features"], axis=1, keepdims=True)
    np.testing.assert_allclose(features, expected, atol=1e-6)
    logits = original.logit_scale * reference["features"] @ features.T
    np.testing.assert_allclose(logits, reference["logits"], rtol=1e-5, atol=1e-5)


def test_the_learning_rate_is_the_originals(reference):
    """One epoch of warm-up, then a cosine that is not shortened for it."""
    rates = reference["rates"]
    found = [coop._rate(epoch, len(rates), float(reference["rate"])) for epoch in range(len(rates))]
    np.testing.assert_allclose(found, rates, rtol=1e-9)
    assert found[0] == 1e-5 < found[-1]


def test_training_is_the_originals(reference, original, monkeypatch):
    """Momentum, weight decay, schedule and loss: after 40 steps from the same context the logits agree to 1e-4, while
    they moved by more than 1."""
    monkeypatch.setattr(coop, "_initial_context", lambda *_: torch.tensor(reference["context"]))
    names = [str(name) for name in reference["class_names"]]
    shots = Examples(reference["features"], reference["labels"])
    epochs = len(reference["rates"])
    head, details = train_coop(shots, original, names, CoOpSettings(), epochs, seed=0)
    np.testing.assert_allclose(head.logits(shots.features), reference["trained_logits"], rtol=1e-4, atol=1e-4)
    assert np.abs(reference["trained_logits"] - reference["logits"]).max() > 1
    assert details == {"epochs": epochs, "steps": epochs, "last_loss": pytest.approx(reference["losses"][-1], abs=1e-4)}
    assert head.class_names == tuple(names)  # the name with an underscore as it was given


def test_defaults_are_the_originals(reference):
    """Of its configuration rn50.yaml."""
    settings = CoOpSettings()
    assert settings.context_tokens == len(reference["context"])
    assert settings.learning_rate == float(reference["rate"])
    assert settings.batch_size == int(reference["batch_size"])
    assert abs(reference["context"].std() / coop._INITIAL_STD - 1) < 0.1
    assert CONFIG["quick_gelu"]


# --- training ---------------------------------------------------------------------------------------------------------


def test_it_learns_and_the_head_is_a_text_classifier(tower):
    """The loss falls; rows have the length of the logit scale, as any text features of the tower."""
    shots = shots_of(24)
    settings = CoOpSettings(4, learning_rate=0.05, batch_size=8)
    head, first = train_coop(shots, tower, NAMES, settings, 1, seed=0)
    _, last = train_coop(shots, tower, NAMES, settings, 30, seed=0)
    assert last["last_loss"] < 0.5 * first["last_loss"]
    np.testing.assert_allclose(np.linalg.norm(head.weight, axis=1), tower.logit_scale, rtol=1e-5)
    assert not head.bias.any()


def test_the_seed_decides_everything(tower):
    """The same seed gives the same bits, another one another head; the state of torch's own generator is of no account
    and stays."""
    shots, settings = shots_of(24), CoOpSettings(4, batch_size=8)
    torch.manual_seed(1)
    first, _ = train_coop(shots, tower, NAMES, settings, 3, seed=0)
    torch.manual_seed(2)
    state = torch.get_rng_state()
    again, _ = train_coop(shots, tower, NAMES, settings, 3, seed=0)
    assert torch.equal(torch.get_rng_state(), state)
    other, _ = train_coop(shots, tower, NAMES, settings, 3, seed=1)
    np.testing.assert_array_equal(first.weight, again.weight)
    assert np.abs(first.weight - other.weight).max() > 1e-3


def test_the_initial_context_is_drawn_with_the_papers_deviation():
    context = coop._initial_context(16, 512, torch.Generator().manual_seed(0))
    assert context.shape == (16, 512)
    assert float(context.std()) == pytest.approx(0.02, rel=0.05)
    assert abs(float(context.mean())) < 0.001


@pytest.mark.parametrize("n, per_epoch", [(3, 1), (8, 1), (9, 1), (16, 2), (23, 2)])
def test_a_last_partial_batch_is_left_out_unless_it_is_the_only_one(n, per_epoch, tower):
    _, details = train_coop(shots_of(n), tower, NAMES, CoOpSettings(2, batch_size=8), 2, seed=0)
    assert details["steps"] == 2 * per_epoch


def test_each_epoch_sees_the_shots_in_another_order(tower, monkeypatch):
    """Batches of an epoch do not overlap; what is left out differs between epochs."""
    seen = []
    original = torch.nn.functional.cross_entropy
    monkeypatch.setattr(coop.F, "cross_entropy", lambda x, labels: seen.append(labels.tolist()) or original(x, labels))
    shots = Examples(shots_of(20).features, np.arange(20))
    train_coop(shots, tower, [f"thing {number}" for number in range(20)], CoOpSettings(2, batch_size=8), 3, seed=0)
    epochs = [seen[start] + seen[start + 1] for start in (0, 2, 4)]
    assert all(len(set(epoch)) == 16 for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 3
    assert len({frozenset(epoch) for epoch in epochs}) > 1


def test_threads_are_given_back(tower, monkeypatch):
    asked = []
    monkeypatch.setattr(torch, "set_num_threads", asked.append)
    before = torch.get_num_threads()
    train_coop(shots_of(6), tower, NAMES, CoOpSettings(2), 1, seed=0, threads=3)
    assert asked == [3, before]


def test_features_may_be_float16(tower):
    """As they are stored."""
    shots, settings = shots_of(24), CoOpSettings(4, learning_rate=0.02)
    half = Examples(shots.features.astype(np.float16), shots.labels)
    heads = [train_coop(examples, tower, NAMES, settings, 3, seed=0)[0] for examples in (shots, half)]
    np.testing.assert_allclose(heads[0].weight, heads[1].weight, atol=0.05)


# --- what is refused --------------------------------------------------------------------------------------------------


def test_a_context_that_does_not_fit_names_the_key_and_the_largest(tower):
    """16 positions; "oak tree." takes 5 with start and end, so 11 are left."""
    train_coop(shots_of(6), tower, NAMES, CoOpSettings(11), 1, seed=0)
    message = (
        r"^few_shot\.coop\.context_tokens: 12 tokens and the class name 'oak tree', 5 with start, full stop and end, "
        r"do not fit into the 16 positions of the text encoder; write 11 at the most$"
    )
    with pytest.raises(NotComputableError, match=message):
        train_coop(shots_of(6), tower, NAMES, CoOpSettings(12), 1, seed=0)
    with pytest.raises(NotComputableError, match="no value fits: give the class a shorter name"):
        train_coop(shots_of(6), tower, ["cat", "cat " * 14, "dog"], CoOpSettings(1), 1, seed=0)


def test_what_params_yaml_asks_for_fits_the_miniature():
    """The default study's context fits every data set of it; 14 is the most."""
    miniature = TextTower(MINIATURE, None, device="cpu")
    params = yaml.safe_load(Path("params.yaml").read_text())
    definitions = Path("pipeline_lib/datasets/definitions")
    for dataset in params["few_shot"]["datasets"]:
        names = yaml.safe_load((definitions / f"{dataset}.yaml").read_text())["class_names"]
        texts = [name + "." for name in names]
        coop._check_room(miniature, names, texts, params["few_shot"]["coop"]["context_tokens"])
        coop._check_room(miniature, names, texts, 14)
        with pytest.raises(NotComputableError, match="write 14 at the most"):
            coop._check_room(miniature, names, texts, 15)


@pytest.mark.parametrize(
    "shots, epochs, message",
    [
        (Examples(np.ones((0, 16), np.float32), np.zeros(0, int)), 1, "0 shots"),
        (Examples(shots_of(6).features, np.full(6, 3)), 1, "labels below 3"),
        (Examples(shots_of(6).features, np.full(6, -1)), 1, "labels below 3"),
        (shots_of(6), 0, "0 epochs"),
    ],
)
def test_bad_input_is_named(shots, epochs, message, tower):
    with pytest.raises(ValueError, match=message):
        train_coop(shots, tower, NAMES, CoOpSettings(2), epochs, seed=0)


@pytest.mark.parametrize("setting", [{"context_tokens": 0}, {"learning_rate": 0.0}, {"batch_size": 0}])
def test_bad_settings_are_named(setting):
    with pytest.raises(ValueError, match=f"{next(iter(setting))} is "):
        CoOpSettings(**setting)


def test_divergence_stops_with_its_epoch_and_remedy(tower):
    """Features that are no numbers make a loss that is none."""
    shots = shots_of(6)
    shots.features[0] = np.nan
    with pytest.raises(FloatingPointError, match="seed 5: the loss of epoch 0 is nan; lower the learning rate"):
        train_coop(shots, tower, NAMES, CoOpSettings(2), 2, seed=5)
