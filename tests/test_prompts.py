"""Prompts: the basic one, and sentences that are unique and hold the class name."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_project import SHAPES, changed, planned

from pipeline_lib import stages
from pipeline_lib.datasets.registry import fold
from pipeline_lib.errors import UserError
from pipeline_lib.prompts import (
    Request,
    Sentences,
    basic_prompts,
    enhance,
    enhanced_prompts,
    name_pattern,
    prompt_id,
    write_prompts,
)
from pipeline_lib.records import PROMPTS
from pipeline_lib.seeds import derive_seed

SPEC: dict[str, Any] = {
    "class_name": "Ankle boot",
    "keywords": [],
    "seed": 0,
    "asked": 4,
    "kept": 2,
    "at_least": 2,
    "rounds": 5,
    "top_p": 0.9,
    "top_k": 7,
    "temperature": 1.5,
    "require_class_name": True,
}


class FakeSampler:
    """Gives each class its listed rounds of sentences, then empty ones; notes what it was asked."""

    def __init__(self, **rounds: list[list[str]]):
        self._rounds = {name: iter(sampled) for name, sampled in rounds.items()}
        self.asked: list[list[str]] = []

    def __call__(self, requests: Any) -> list[list[str]]:
        self.asked.append([request.words[0] for request in requests])
        return [next(self._rounds[request.words[0].split()[-1]], []) for request in requests]


def sentences(*rounds: list[str], **changes: Any) -> tuple[Sentences, int]:
    """The sentences of an ankle boot whose model gives these rounds, and how often it was asked."""
    sampler = FakeSampler(boot=list(rounds))
    (found,) = enhance([SPEC | changes], sampler)
    return found, sum(bool(requests) for requests in sampler.asked)


# --- the basic prompt -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", ["cat", "a/b", '"quoted"', "{}", "{0}", "%s", "猫"])
def test_basic_prompt_is_the_template_with_the_class_name(name: str):
    """The class name goes in as it is: it is data, neither a path nor a format."""
    table = basic_prompts(name, "a photo of a {}, 100%")
    assert table.schema == PROMPTS
    assert table.to_pylist() == [
        {
            "prompt_id": prompt_id(name, f"a photo of a {name}, 100%"),
            "class_name": name,
            "prompt": f"a photo of a {name}, 100%",
            "sentence": None,
        }
    ]


def test_prompt_ids_tell_class_and_prompt_apart():
    """Two classes with one prompt, and one class with two, have different ids, hence different seeds."""
    ids = {prompt_id("a", "b c"), prompt_id("a b", "c"), prompt_id("a", "b"), prompt_id("b", "a")}
    assert len(ids) == 4
    assert all(len(name) == 16 for name in ids)


def test_enhanced_prompts_keep_their_sentence():
    """The prompt is the template with the sentence; the sentence stays beside it."""
    table = enhanced_prompts("cat", "a photo of {}", ["a cat sits", "a {} cat"])
    assert table.schema == PROMPTS
    assert table["prompt"].to_pylist() == ["a photo of a cat sits", "a photo of a {} cat"]
    assert table["sentence"].to_pylist() == ["a cat sits", "a {} cat"]


def test_prompts_are_the_same_bytes_every_time(tmp_path: Path):
    """Prompt files can be compared by digest."""
    for name in "ab":
        write_prompts(enhanced_prompts("cat", "{}", ["x", "y"]), tmp_path / name)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


# --- unique sentences -------------------------------------------------------------------------------------------------


def test_duplicates_are_found_after_folding_case_and_spaces():
    """The first form stays, white space collapsed; the others are counted."""
    found, n_asked = sentences(["An ankle  boot here", "an ANKLE boot here ", "an\tankle boot\nhere", "ankle boot"])
    assert found.first(9) == ("An ankle boot here", "ankle boot")
    assert found.counts == {"sampled": 4, "duplicates": 2, "without_class_name": 0}
    assert n_asked == 1


def test_sentences_that_lost_the_class_name_are_dropped_and_counted():
    """The class name is looked for after folding, so another case or spacing is not a loss."""
    found, _ = sentences(["a boot", "the ANKLE   Boot", "an ankle", "an ankle boot", ""])
    assert found.first(9) == ("the ANKLE Boot", "an ankle boot")
    assert found.counts["without_class_name"] == 3


def test_lost_class_names_are_counted_where_they_are_kept():
    """Without require_class_name they stay, but the record says how many they are; empty ones never stay."""
    found, _ = sentences(["a boot", "", "an ankle boot"], require_class_name=False)
    assert found.first(9) == ("a boot", "an ankle boot")
    assert found.counts["without_class_name"] == 2


def test_more_rounds_are_asked_for_until_there_are_enough():
    """A second round fills up; what came first stays first; no more than asked for are given."""
    found, n_asked = sentences(["ankle boot 1", "ankle boot 1"], ["ankle boot 2", "ankle boot 3"])
    assert found.first(2) == ("ankle boot 1", "ankle boot 2")
    assert (n_asked, found.counts["sampled"], len(found)) == (2, 4, 3)


@pytest.mark.parametrize("rounds", [1, 3])
def test_too_few_unique_sentences_end_in_a_user_error(rounds: int):
    """After the rounds that the specification allows the message gives the counts and the remedies."""
    sampler = FakeSampler(boot=[["ankle boot", "a boot"]] * 100)
    with pytest.raises(UserError) as caught:
        enhance([SPEC | {"kept": 3, "at_least": 3, "rounds": rounds}], sampler)
    assert len(sampler.asked) == rounds
    message = str(caught.value)
    for words in (
        f"{rounds} rounds of 4",
        "'Ankle boot'",
        "gave 1 unique",
        "at least 3 are needed",
        f"{rounds - 1} duplicates",
        f"{rounds} without the class name, dropped",
        "prompts.language_enhancement",
        "lower at_least",
    ):
        assert words in message


def test_asking_ends_when_a_round_brings_nothing_new():
    """With `at_least` there, a round of duplicates is the last; what is there is kept."""
    found, n_asked = sentences(["ankle boot 1", "ankle boot 2"], *[["ankle boot 1"]] * 100, kept=4)
    assert found.first(4) == ("ankle boot 1", "ankle boot 2")
    assert n_asked == 2


def test_classes_are_asked_for_together_and_only_while_they_need_it():
    """A round's requests are of the classes that still lack sentences; each gets its own answers."""
    sampler = FakeSampler(
        boot=[["boot 1", "boot 2"]], bag=[["bag 1"], ["bag 1"], ["bag 2", "bag 3"]], coat=[["coat 1"], ["coat 2"]]
    )
    found = enhance([SPEC | {"class_name": name} for name in ("boot", "bag", "coat")], sampler)
    assert [requests for requests in sampler.asked if requests] == [["boot", "bag", "coat"], ["bag", "coat"], ["bag"]]
    assert [each.first(2) for each in found] == [("boot 1", "boot 2"), ("bag 1", "bag 2"), ("coat 1", "coat 2")]


def test_each_class_is_asked_for_as_many_rounds_as_its_specification_allows():
    """One class in need does not cost the others more rounds than they may have."""
    sampler = FakeSampler(boot=[["boot 1"], ["boot 2"]], bag=[["bag 1"], ["bag 2"]])
    specs = [SPEC | {"class_name": "boot", "rounds": 1, "at_least": 1}, SPEC | {"class_name": "bag"}]
    enhance(specs, sampler)
    assert [requests for requests in sampler.asked if requests] == [["boot", "bag"], ["bag"]]


def test_a_request_says_all_that_a_sentence_depends_on():
    """Words, settings and a seed of run seed, class and round."""
    asked: list[Request] = []

    def sample(requests: Any) -> list[list[str]]:
        asked.extend(requests)
        return [[f"ankle boot {len(asked)}"] for _ in requests]

    enhance([SPEC | {"keywords": ["brown", "old"], "seed": 3}], sample)
    assert asked == [
        Request(
            words=("Ankle boot", "brown", "old"),
            n=4,
            top_p=0.9,
            top_k=7,
            temperature=1.5,
            seed=derive_seed(3, "sentences", "Ankle boot", number),
        )
        for number in (0, 1)
    ]


# --- the stage --------------------------------------------------------------------------------------------------------


def test_basic_prompts_of_a_dataset(params: dict[str, Any]):
    """One file per class, hostile names included; the model is not loaded."""
    plan = planned(params)
    for prompts in plan.prompts("basic"):
        stages.prompts(prompts, plan.store)
        assert plan.store.is_complete(prompts)
        tables = [pq.read_table(plan.store.path(unit)) for unit in prompts.members]
    assert [table["class_name"].to_pylist() for table in tables] == [[name] for name in SHAPES]


def test_enhanced_prompts_of_a_dataset(params: dict[str, Any], tiny_models: dict[str, Any]):
    """One file per class, a function of its spec; the record has the counts; the run seed changes the sentences."""
    pytest.importorskip("transformers")
    tables = []
    for store, batch_size, seed in (("a", 64, 0), ("b", 1, 0), ("c", 64, 1)):
        settings = {"prompts__language_enhancement__batch_size": batch_size, "seed": seed}
        plan = planned(changed(params, models=tiny_models, store=f"{params['store']}/{store}", **settings))
        (prompts,) = plan.prompts("language_enhancement")
        stages.prompts(prompts, plan.store)
        tables.append([pq.read_table(plan.store.path(unit)) for unit in prompts.members])
        record = plan.store.record(prompts.members[0])
        assert record is not None and record.details["sampled"] >= 4 and record.details["device"] == "cpu"
    assert [table["class_name"].to_pylist() for table in tables[0]] == [[name] * 2 for name in SHAPES]
    assert tables[0] == tables[1]
    assert tables[0] != tables[2]


@pytest.mark.parametrize(
    ("name", "sentence", "found"),
    [
        ("rat", "A man decorates a tree.", False),
        ("rat", "A strategy", False),
        ("rat", "Two rats eat.", True),
        ("T-shirt", "a t - shirt on a line", True),
        ("t-shirt", "T-shirts", True),
        ("dress", "three dresses", True),
        ("dress", "an address", False),
        ("2012 Ram C/V Cargo Van Minivan", "a 2012 ram c / v cargo van minivan", True),
        ("ankle boot", "boots and an ankle", False),
        ("707-320", "a 707-3200", False),
        ("猫", "桌子上的猫在睡觉", True),
        ("🐈", "a 🐈 sleeps", True),
        ("sea_or_lake", "the sea or lake", True),
    ],
)
def test_a_class_name_is_found_as_words(name: str, sentence: str, found: bool):
    """Whole words, the last in the plural or not; where a script writes words together, anywhere."""
    assert (name_pattern(name).search(fold(sentence)) is not None) == found
