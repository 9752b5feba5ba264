"""The web corpus: scenes and captions are pure functions of (seed, index), and say what they show."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline_lib.datasets.fashion_mnist import CLASS_NAMES
from pipeline_lib.miniature import captions, imaging, scenes


def make(garments: np.ndarray, first: int, last: int, **changes: float) -> np.ndarray:
    planned = scenes.plan(3, np.arange(first, last), len(garments), **{"plain_share": 0.3, **changes})
    return scenes.compose(garments, planned)


def test_uniforms_look_uniform_and_depend_on_seed_index_and_column() -> None:
    u = scenes.uniforms(1, np.arange(20000), 6)
    assert u.min() >= 0
    assert u.max() < 1
    assert np.allclose(u.mean(0), 0.5, atol=0.01)
    assert np.abs(np.corrcoef(u.T) - np.eye(6)).max() < 0.03
    assert abs(np.corrcoef(u[:-1, 0], u[1:, 0])[0, 1]) < 0.03
    assert not np.allclose(u, scenes.uniforms(2, np.arange(20000), 6))


def test_any_part_of_the_corpus_can_be_made_alone(garments: tuple) -> None:
    whole = make(garments[0], 0, 60)
    assert np.array_equal(whole[37:45], make(garments[0], 37, 45))
    assert whole.dtype == np.uint8
    assert whole.shape == (60, 32, 32, 3)


def test_plain_photos_in_place_are_the_original_photographs(garments: tuple) -> None:
    planned = scenes.plan(3, np.arange(300), 200, plain_share=1.0, photo_share=1.0)
    images = scenes.compose(garments[0], planned)
    still = np.flatnonzero((planned.dx == 0) & (planned.dy == 0))
    assert len(still) > 150
    padded = imaging.grey_to_rgb(imaging.pad(garments[0][planned.garment[still]]))
    assert np.array_equal(images[still], padded)


def test_shares_are_kept() -> None:
    planned = scenes.plan(5, np.arange(20000), 10, plain_share=0.3, photo_share=0.61)
    assert abs(planned.plain.mean() - 0.3) < 0.02
    assert abs((planned.medium == 0).mean() - 0.61) < 0.02
    assert not np.any(planned.colour == planned.background)


def test_mirroring_mirrors(garments: tuple) -> None:
    one, zero = np.ones(1, np.float32), np.zeros(1, np.float32)
    image = garments[0][:1].copy()
    image[0, 5:8, 3:9] = 255
    straight = imaging.place(image, one, zero, zero, np.array([False]))
    mirrored = imaging.place(image, one, zero, zero, np.array([True]))
    assert np.allclose(straight[0][:, ::-1], mirrored[0], atol=1e-3)


def test_unknown_medium_names_the_choices() -> None:
    with pytest.raises(ValueError, match="'oil'; choose from photo, sketch, low_resolution, negative"):
        scenes.apply_medium("oil", np.zeros((1, 32, 32, 3), np.float32))


def write(garments: tuple, noise: float, count: int = 2000) -> tuple[list, list, np.ndarray, scenes.Scenes]:
    planned = scenes.plan(3, np.arange(count), 200, plain_share=0.3)
    texts, bodies = captions.write(3, np.arange(count), planned, garments[1], noise)
    return texts, bodies, garments[1][planned.garment], planned


def knows(text: str, label: int) -> bool:
    """Whether a caption has the class's name or one of its synonyms."""
    name = CLASS_NAMES[label]
    return any(noun in text for noun in (name, *captions.SYNONYMS[name]))


def test_clean_captions_name_the_garment(garments: tuple) -> None:
    texts, _, labels, _ = write(garments, 0.0)
    assert all(knows(text, label) for text, label in zip(texts, labels, strict=True))


def test_noise_is_the_share_of_wrong_or_missing_nouns(garments: tuple) -> None:
    texts, bodies, labels, _ = write(garments, 0.4, 6000)
    nouns = [concepts[0] for _, concepts in bodies]
    own = [
        noun in (CLASS_NAMES[label], *captions.SYNONYMS[CLASS_NAMES[label]])
        for noun, label in zip(nouns, labels, strict=True)
    ]
    vague = np.mean([noun in captions.VAGUE for noun in nouns])
    assert abs(np.mean(own) - 0.6) < 0.03
    assert abs(vague - 0.2) < 0.03
    assert len(texts) == 6000


def test_concepts_are_in_the_body_and_body_in_the_caption(garments: tuple) -> None:
    texts, bodies, _, _ = write(garments, 0.2)
    for text, (body, concepts) in zip(texts, bodies, strict=True):
        assert text.endswith(body)
        assert all(word in body for word in concepts)


def test_colour_words_are_true(garments: tuple) -> None:
    _, bodies, _, planned = write(garments, 0.0)
    for row, (_, concepts) in enumerate(bodies):
        if scenes.MEDIA[planned.medium[row]] in ("photo", "low_resolution"):
            allowed = {imaging.COLOUR_NAMES[planned.colour[row]], imaging.COLOUR_NAMES[planned.background[row]]}
            assert {word for word in concepts if word in imaging.COLOURS} <= allowed


def test_articles() -> None:
    assert captions.with_article("ankle boot") == "an ankle boot"
    assert captions.with_article("bag") == "a bag"
    assert captions.with_article("red trousers") == "red trousers"
