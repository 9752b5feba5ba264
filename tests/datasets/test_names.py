"""Names that stand at other classes' folders are caught; names that are worded otherwise are not."""

import random

import pytest

from pipeline_lib.datasets.layouts import LAYOUTS
from pipeline_lib.datasets.names import check_names, misplaced
from pipeline_lib.datasets.registry import builtin_datasets, official_names
from pipeline_lib.errors import UserError

# Labels that are codes resemble no name: there is nothing to compare without the raw data's own words.
CODES = {"imagenet", "imagenet_sketch", "imagenet_r", "flowers"}
WORDS = [name for name in LAYOUTS if name not in CODES]


@pytest.mark.parametrize("name", LAYOUTS)
def test_packaged_lists_are_in_step(name: str):
    """No name of the 17 data sets resembles another class's label more than its own."""
    definition = builtin_datasets()[name]
    check_names(name, definition.class_names, definition.labels, definition.renamed)


@pytest.mark.parametrize("name", WORDS)
def test_shuffled_and_shifted_lists_are_caught(name: str):
    """Shuffled, reversed and off by one: nearly every name is seen to be at the wrong place."""
    definition = builtin_datasets()[name]
    labels = definition.labels
    shuffled = random.Random(0).sample(labels, len(labels))
    for disordered in (shuffled, labels[::-1], labels[1:] + labels[:1]):
        wrong = misplaced(definition.class_names, disordered)
        moved = sum(before != after for before, after in zip(labels, disordered, strict=True))
        assert len(wrong) > 0.9 * moved
        with pytest.raises(UserError, match=f"{len(wrong)} of {len(labels)} class names"):
            check_names(name, definition.class_names, disordered)


@pytest.mark.parametrize("name", WORDS)
def test_two_swapped_neighbours_are_caught(name: str):
    """Even a single swap of neighbours, which are alike in alphabetical lists, is caught nearly always."""
    definition = builtin_datasets()[name]
    caught = []
    for position in range(0, len(definition.labels) - 1, max(1, len(definition.labels) // 60)):
        swapped = list(definition.labels)
        swapped[position : position + 2] = swapped[position + 1], swapped[position]
        caught.append(bool(misplaced(definition.class_names, swapped)))
    assert sum(caught) >= 0.9 * len(caught)


def test_imagenets_names_against_wordnets_words():
    """Curated names differ from WordNet's words in some classes, a shifted list in nearly all: only that is caught."""
    timm_data = pytest.importorskip("timm.data")
    info = timm_data.ImageNetInfo("imagenet-1k")
    definition = builtin_datasets()["imagenet"]
    words = {info.index_to_label_name(index): info.index_to_description(index) for index in range(1000)}
    words = {wnid: description.split(": ")[0] for wnid, description in words.items()}
    check_names("imagenet", definition.class_names, definition.labels, official_names=words)
    shifted = definition.class_names[1:] + definition.class_names[:1]
    with pytest.raises(UserError, match=r"9[0-9][0-9] of 1000 class names"):
        check_names("imagenet", shifted, definition.labels, official_names=words)


@pytest.mark.parametrize("name", sorted(CODES))
def test_the_package_knows_names_of_codes(name: str):
    """Codes are compared by the package's own names of them: a rotated list is caught in every class."""
    definition, official = builtin_datasets()[name], official_names(name)
    check_names(name, definition.class_names, definition.labels, (), official)
    rotated = definition.class_names[1:] + definition.class_names[:1]
    with pytest.raises(UserError, match=f"{len(rotated)} of {len(rotated)} class names"):
        check_names(name, rotated, definition.labels, (), official)


def test_codes_of_the_package_are_those_that_resemble_no_name():
    """Only downloads whose labels are codes have official names of the package's."""
    assert {name for name in LAYOUTS if official_names(name)} == CODES
    assert official_names(None) == {}


def test_no_name_of_another_code_is_tolerated():
    """A block of ImageNet's classes that is one off is caught, however small; other wording is tolerated there."""
    definition, official = builtin_datasets()["imagenet"], official_names("imagenet")
    for size in (2, 90):
        names = list(definition.class_names)
        names[100 : 100 + size] = names[101 : 100 + size] + names[100:101]
        with pytest.raises(UserError, match=rf"{size} of 1000 .* stands at 'black swan' but is the name of 'n0"):
            check_names("imagenet", names, definition.labels, (), official)
        check_names("imagenet", names, definition.labels, names[100 : 100 + size], official)
    names = list(definition.class_names)
    names[100] = "rooster bird"  # resembles another class, but is the name of none
    assert misplaced(names, definition.class_names)
    check_names("imagenet", names, definition.labels, (), official)


def test_the_name_of_a_code_outside_the_data_set_is_caught():
    """The goldfish's name at the tench's code is a mistake although the data set has no goldfish."""
    official = official_names("imagenet")
    with pytest.raises(UserError, match="'goldfish' stands at 'tench' but is the name of 'n01443537'"):
        check_names("fish", ["goldfish", "great white shark"], ["n01440764", "n01484850"], (), official)
    check_names("fish", ["freshwater fish", "great white shark"], ["n01440764", "n01484850"], (), official)


@pytest.mark.parametrize(
    ("names", "labels"),
    [
        (["apple pie", "hot dog"], ["apple_pie", "hotdog"]),
        (["AK-47", "T-shirt"], ["001.ak47", "232.t-shirt"]),
        (["annual crop land", "sea or lake"], ["AnnualCrop", "SeaLake"]),
        (["outdoor cabin", "indoor cabin"], ["/c/cabin/outdoor", "/c/cabin/indoor"]),
        (["black footed albatross", "laysan albatross"], ["001.Black_footed_Albatross", "002.Laysan_Albatross"]),
        (["cat", "dog"], ["0", "1"]),
        (["tench", "goldfish"], ["n01440764", "n01443537"]),
        (["猫", "犬"], ["neko", "inu"]),
        (["ÉPÉE", "straße"], ["épée", "STRASSE"]),
        (["off-centre face", "centred face"], ["Faces", "Faces_easy"]),
    ],
)
def test_wording_and_codes_are_no_mistakes(names: list[str], labels: list[str]):
    """Other spellings, plurals, word order, class numbers and codes are not taken for a disorder."""
    assert misplaced(names, labels) == {}


def test_class_numbers_do_not_hide_a_swap():
    """Names that differ by little are compared without the numbers that CUB and Caltech put before their folders."""
    assert misplaced(["Bank Swallow", "Barn Swallow"], ["136.Barn_Swallow", "135.Bank_Swallow"]) == {0: 1, 1: 0}


def test_message_names_the_pairs_and_the_remedy():
    """The first disagreeing pairs are shown, with what each name resembles."""
    with pytest.raises(UserError) as caught:
        check_names("birds", ["robin", "wren", "owl"], ["wren", "robin", "owl"])
    message = str(caught.value)
    assert "birds: 2 of 3 class names" in message
    assert "'robin' stands at 'wren' but resembles 'robin'" in message
    assert "renamed" in message


def test_names_that_are_meant_are_passed_over():
    """A name listed as meant is compared no more, whatever its case; the others still are."""
    names, labels = ["robin", "wren", "owl"], ["wren", "robin", "owl"]
    assert misplaced(names, labels, ["Robin"]) == {1: 0}
    check_names("birds", names, labels, ["Robin", "wren"])
