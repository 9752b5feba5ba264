"""The 17 data sets of the paper's Table 1: the files that say what their classes are called.

The files are read here as text, so that a fault of the registry cannot hide a fault of theirs.
"""

import csv
import hashlib
import importlib.util
import re
from importlib import resources
from pathlib import Path
from typing import Any

import open_clip
import pytest
import yaml

from pipeline_lib.datasets.registry import fold, read_datasets
from pipeline_lib.prompts import enhanced_prompts

FOLDER = Path(str(resources.files("pipeline_lib.datasets")))
# Classes, test images, train images; None: as many as the web still has.
SIZES: dict[str, tuple[int, int | None, int | None]] = {
    "cifar10": (10, 10_000, 50_000),
    "cifar100": (100, 10_000, 50_000),
    "caltech101": (102, 9_144 - 102 * 30, 102 * 30),
    "caltech256": (257, 30_607 - 257 * 60, 257 * 60),
    "imagenet": (1000, 50_000, 1_281_167),
    "sun397": (397, 397 * 50, 397 * 50),
    "aircraft": (100, 3_333, 2 * 3_333 + 1),
    "birdsnap": (500, None, None),
    "cars": (196, 8_041, 16_185 - 8_041),
    "cub": (200, 5_794, 11_788 - 5_794),
    "flowers": (102, 6_149, 2 * 102 * 10),
    "food": (101, 101 * 250, 101 * 750),
    "pets": (37, 3_669, 3_680),
    "dtd": (47, 47 * 40, 47 * 80),
    "eurosat": (10, 27_000 * 30 // 100, 27_000 * 70 // 100),
    "imagenet_sketch": (1000, 50_889, None),
    "imagenet_r": (200, 30_000, None),
}
TEST_ONLY = {"imagenet_sketch", "imagenet_r"}
WNIDS = {"imagenet", "imagenet_sketch", "imagenet_r"}
# Where a name is not made of the words of its official label: label -> name.
REWORDED: dict[str, dict[str, str]] = {
    "caltech101": {
        "BACKGROUND_Google": "background",
        "Faces": "off-center face",
        "Faces_easy": "centered face",
        "Leopards": "leopard",
        "Motorbikes": "motorbike",
        "airplanes": "airplane",
        "car_side": "side of a car",
        "cougar_body": "body of a cougar cat",
        "cougar_face": "face of a cougar cat",
        "crocodile_head": "head of a crocodile",
        "flamingo_head": "head of a flamingo",
        "snoopy": "snoopy (cartoon beagle)",
        "water_lilly": "water lily",
        "yin_yang": "yin and yang symbol",
    },
    "caltech256": {
        "001.ak47": "AK-47",
        "061.dumb-bell": "dumbbell",
        "101.head-phones": "headphones",
        "111.house-fly": "housefly",
        "120.joy-stick": "joystick",
        "129.leopards-101": "leopard",
        "132.light-house": "lighthouse",
        "145.motorbikes-101": "motorbike",
        "197.speed-boat": "speedboat",
        "225.tower-pisa": "tower of Pisa",
        "234.tweezer": "tweezers",
        "251.airplanes-101": "airplane",
        "252.car-side-101": "side of a car",
        "253.faces-easy-101": "centered face",
    },
    "cub": {"022.Chuck_will_Widow": "Chuck wills Widow", "141.Artic_Tern": "Arctic Tern"},
    "eurosat": {
        "AnnualCrop": "Annual Crop Land",
        "HerbaceousVegetation": "Herbaceous Vegetation Land",
        "Highway": "Highway or Road",
        "Industrial": "Industrial Building",
        "Pasture": "Pasture Land",
        "PermanentCrop": "Permanent Crop Land",
        "Residential": "Residential Building",
        "SeaLake": "Sea or Lake",
    },
}
# OpenAI gave two pairs of classes one name each; these are told apart as in WordNet.
TOLD_APART = {"n04008634": "projectile", "n04355933": "sunglass"}

each_dataset = pytest.mark.parametrize("name", SIZES)


def read(kind: str, name: str) -> list[str]:
    """The lines below the header."""
    lines = (FOLDER / kind / f"{name}.txt").read_text(encoding="utf-8").splitlines()
    return [line for line in lines if not line.startswith("# ")]


def definition(name: str) -> dict[str, Any]:
    value = yaml.safe_load((FOLDER / "definitions" / f"{name}.yaml").read_text(encoding="utf-8"))
    assert isinstance(value, dict)
    return value


def name_of(name: str) -> dict[str, str]:
    """Official label -> class name."""
    return dict(zip(read("class_folders", name), read("class_names", name), strict=True))


def words(text: str) -> list[str]:
    """Words of a name or label in alphabetical order: the order of words is free ("indoor apse" for /a/apse/indoor)."""
    text = re.sub(r"^\d{3}\.|^/[a-z]/|-101$", "", text)  # 001.ak47, /a/abbey, bonsai-101
    return sorted(re.findall(r"[a-z0-9]+", re.sub(r"(?<=[a-z])(?=[A-Z])", " ", text).lower()))


def misnamed(name: str, names: list[str], labels: list[str]) -> list[tuple[str, str]]:
    """Pairs of label and name that have neither the same words nor a place in `REWORDED`."""
    return [
        (label, class_name)
        for label, class_name in zip(labels, names, strict=True)
        if words(label) != words(class_name) and REWORDED.get(name, {}).get(label) != class_name
    ]


def timm_list(file: str) -> list[str]:
    """A list of wnids that timm, a dependency of open_clip, brings along (read without importing timm)."""
    spec = importlib.util.find_spec("timm")
    assert spec is not None and spec.origin is not None
    return (Path(spec.origin).parent / "data" / "_info" / file).read_text(encoding="utf-8").split()


def test_data_sets_are_the_rows_of_table_1() -> None:
    with (FOLDER.parent / "paper_tables.csv").open(encoding="utf-8", newline="") as stream:
        rows = [row["row"] for row in csv.DictReader(stream) if row["table"] == "1"]
    assert set(rows) - {"average"} == set(SIZES)
    for kind in ("class_names", "class_folders"):
        assert {path.stem for path in (FOLDER / kind).glob("*.txt")} == set(SIZES), kind
    with_loader = {path.stem for path in (FOLDER / "definitions").glob("*.yaml") if "loader" in definition(path.stem)}
    assert with_loader == set(SIZES)


def test_there_are_4359_classes() -> None:
    assert {name: len(read("class_names", name)) for name in SIZES} == {name: size[0] for name, size in SIZES.items()}
    assert sum(len(read("class_names", name)) for name in SIZES) == 4359


@each_dataset
@pytest.mark.parametrize("kind", ["class_names", "class_folders"])
def test_lists_cite_their_source_and_hold_one_entry_a_line(kind: str, name: str) -> None:
    text = (FOLDER / kind / f"{name}.txt").read_text(encoding="utf-8")
    lines = text.splitlines()
    header = [line for line in lines if line.startswith("# ")]
    assert lines[0].startswith("# Source: ") and lines[: len(header)] == header
    assert text.endswith("\n") and not text.endswith("\n\n")
    for entry in lines[len(header) :]:
        assert entry and entry == " ".join(entry.split()), f"{entry!r} has blanks that nobody sees"
    assert len(lines) - len(header) == SIZES[name][0]


@each_dataset
def test_names_are_distinct_bare_names(name: str) -> None:
    names = read("class_names", name)
    assert len({fold(entry) for entry in names}) == len(names)
    assert len(set(read("class_folders", name))) == len(names)
    for entry in names:
        assert fold(entry).split()[0] not in {"a", "an", "the"}, f"{entry!r} has an article"
        assert "_" not in entry and len(entry) > 1, entry


@pytest.mark.parametrize("name", [name for name in SIZES if name not in WNIDS | {"flowers"}])
def test_each_name_stands_at_its_own_label(name: str) -> None:
    names, labels = read("class_names", name), read("class_folders", name)
    assert misnamed(name, names, labels) == []
    assert len(misnamed(name, [*names[1:], names[0]], labels)) == len(names), "a list out of step would not be seen"
    assert set(REWORDED.get(name, {})) <= set(labels)


def test_eurosat_is_spelled_out() -> None:
    # Names of the authors' generation script; their classifier cuts the first two letters off ("rest", "ver").
    assert name_of("eurosat") == REWORDED["eurosat"] | {"Forest": "Forest", "River": "River"}


def test_imagenet_has_the_usual_ids_and_openais_names() -> None:
    wnids = read("class_folders", "imagenet")
    assert wnids == timm_list("imagenet_synsets.txt") == sorted(wnids)
    openai = dict(zip(wnids, open_clip.IMAGENET_CLASSNAMES, strict=True))
    assert name_of("imagenet") == openai | TOLD_APART


@pytest.mark.parametrize(
    ("index", "wnid", "name"),
    [
        (0, "n01440764", "tench"),
        (134, "n02012849", "crane bird"),
        (207, "n02099601", "Golden Retriever"),
        (281, "n02123045", "tabby cat"),
        (517, "n03126707", "construction crane"),
        (638, "n03710637", "tights"),
        (657, "n03773504", "missile"),
        (817, "n04285008", "sports car"),
        (837, "n04356056", "sunglasses"),
        (999, "n15075141", "toilet paper"),
    ],
)
def test_known_classes_of_imagenet(index: int, wnid: str, name: str) -> None:
    assert read("class_folders", "imagenet")[index] == wnid
    assert fold(read("class_names", "imagenet")[index]) == fold(name)


def test_relatives_of_imagenet_have_its_names() -> None:
    imagenet, renditions = name_of("imagenet"), name_of("imagenet_r")
    assert name_of("imagenet_sketch") == imagenet
    assert list(renditions) == timm_list("imagenet_r_synsets.txt") == sorted(renditions)
    assert renditions == {wnid: imagenet[wnid] for wnid in renditions}


def test_flowers_follow_the_official_numbers() -> None:
    names = name_of("flowers")
    assert list(names) == [str(number) for number in range(1, 103)]
    # From the table of category numbers and names that goes round with the data set.
    known = {"1": "pink primrose", "12": "colt's foot", "21": "fire lily", "49": "oxeye daisy", "54": "sunflower"}
    known |= {"73": "water lily", "74": "rose", "83": "hibiscus", "100": "blanket flower", "102": "blackberry lily"}
    assert {number: names[number] for number in known} == known
    # All of them, as OpenAI has them in data/prompts.md: nothing in the download itself names the numbers.
    digest = hashlib.sha256("\n".join(names.values()).encode()).hexdigest()
    assert digest == "5429e1ef6e0e5aa3db2258257b28da08919bf32046a6854cf5f044ff1e8b79fd"


def test_official_order_of_the_classes() -> None:
    cifar10 = ["airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck"]
    assert read("class_folders", "cifar10") == cifar10
    for name in ("cifar100", "food", "dtd"):  # alphabetical; the others have an order of their own
        assert read("class_folders", name) == sorted(read("class_folders", name)), name
    for name in ("caltech256", "cub"):
        numbers = [int(label[:3]) for label in read("class_folders", name)]
        assert numbers == list(range(1, SIZES[name][0] + 1)), name
    pets = read("class_folders", "pets")
    assert pets == sorted(pets, key=str.casefold)
    assert sum(label[0].isupper() for label in pets) == 12, "cats have capitals"
    sun = read("class_folders", "sun397")
    assert all(re.fullmatch(r"/([a-y])/\1[a-z_]+(/[a-z_]+)?", label) for label in sun)


@each_dataset
def test_numbers_of_images(name: str) -> None:
    _, test, train = SIZES[name]
    assert definition(name)["n_images"] == {"test": test} | ({} if name in TEST_ONLY else {"train": train})


@each_dataset
def test_definition_says_where_to_get_the_data(name: str) -> None:
    value = definition(name)
    assert set(value) == {
        *("task", "loader", "head_templates", "prompt_template", "sentence_template", "keywords"),
        *("n_images", "source", "licence", "download"),
    }
    assert value["loader"] == name
    assert "https://" in value["source"] and "https://" in value["download"]
    assert f"DATA/{name}" in value["download"]
    assert value["licence"]


def test_tasks_are_those_of_table_1() -> None:
    tasks: dict[str, set[str]] = {}
    for name in SIZES:
        tasks.setdefault(definition(name)["task"], set()).add(name)
    assert tasks == {
        "object-level": {"cifar10", "cifar100", "caltech101", "caltech256", "imagenet"},
        "scene-level": {"sun397"},
        "fine-grained": {"aircraft", "birdsnap", "cars", "cub", "flowers", "food", "pets"},
        "textures": {"dtd"},
        "satellite images": {"eurosat"},
        "robustness": {"imagenet_sketch", "imagenet_r"},
    }


@each_dataset
def test_templates_have_one_placeholder(name: str) -> None:
    value = definition(name)
    for template in (*value["head_templates"], value["prompt_template"], value["sentence_template"]):
        assert template.count("{}") == 1 and re.sub(r"\{\}", "", template).isprintable()
        assert not set("{}") & set(template.replace("{}", "")), template
    assert len(set(value["head_templates"])) == len(value["head_templates"])
    assert value["keywords"] == []


def test_head_templates_are_those_of_the_authors() -> None:
    heads = {name: definition(name)["head_templates"] for name in SIZES}
    ensembles = {name: len(templates) for name, templates in heads.items() if len(templates) > 1}
    assert ensembles == {"imagenet": 7, "cifar10": 18, "cifar100": 18, "sun397": 2, "cars": 8}
    assert heads["imagenet"][0] == "itap of a {}." and heads["cifar10"] == heads["cifar100"]
    single = {name: templates[0] for name, templates in heads.items() if name not in ensembles}
    assert single == {
        "caltech101": "a photo of a {}.",
        "caltech256": "a photo of a {}.",
        "aircraft": "a photo of a {}, a type of aircraft.",
        "birdsnap": "a photo of a {}, a type of bird.",
        "cub": "a photo of a {}, a type of bird.",
        "flowers": "a photo of a {}, a type of flower.",
        "food": "a photo of a {}, a type of food.",
        "pets": "a photo of a {}, a type of pet.",
        "dtd": "{} texture.",
        "eurosat": "a centered satellite photo of {}.",
        "imagenet_sketch": "a photo of a {}.",
        "imagenet_r": "a photo of a {}.",
    }


def test_generation_templates() -> None:
    own = {
        "eurosat": ("a centered satellite photo of {}", "a centered satellite photo of {}"),
        "birdsnap": ("a photo of a {}, a type of bird", "a photo of {}, a type of bird"),
        "cub": ("a photo of a {}, a type of bird", "a photo of {}, a type of bird"),
        "imagenet_sketch": ("sketch of {}", "sketch of {}"),
    }
    for name in SIZES:
        value = definition(name)
        expected = own.get(name, ("a photo of a {}", "a photo of a {}"))
        assert (value["prompt_template"], value["sentence_template"]) == expected, name


@pytest.mark.parametrize(
    ("template", "of_sentence"),
    [
        ("a photo of a {}", "a photo of {}"),
        ("A {}", "{}"),
        ("a photo of the  {}, a type of bird", "a photo of {}, a type of bird"),
        ("a painting of an {}", "a painting of {}"),
        # No article, or words after it that are not for this to judge.
        ("a centered satellite photo of {}", "a centered satellite photo of {}"),
        ("pizza {}", "pizza {}"),
        ("a photo of a white {} on black", "a photo of a white {} on black"),
    ],
)
def test_one_template_leaves_the_article_to_the_sentence(template: str, of_sentence: str):
    """'a photo of a a sneaker on the floor' was what language enhancement made of 'a photo of a {}'."""
    own = {"class_names": ["sneaker", "bag"], "fashion_mnist": "objects", "template": template}
    dataset = read_datasets({"own": own}, "own_datasets")["own"]
    assert dataset.sentence_template == of_sentence
    assert dataset.head_templates == [template] and dataset.prompt_template == template
    prompts = enhanced_prompts("sneaker", dataset.sentence_template, ["a sneaker on the floor"])["prompt"].to_pylist()
    assert prompts == [of_sentence.replace("{}", "a sneaker on the floor")]
    as_written = read_datasets({"own": own | {"sentence_template": "one a {}"}}, "own_datasets")["own"]
    assert as_written.sentence_template == "one a {}"
