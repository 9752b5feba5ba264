"""Prompts: the basic one, sentences that are unique and hold the class name, and the model that writes them."""

from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from small_project import SHAPES, changed, planned

from pipeline_lib import stages
from pipeline_lib.errors import UserError
from pipeline_lib.prompts import (
    MAX_ROUNDS,
    basic_prompts,
    class_prompts,
    enhanced_prompts,
    prompt_id,
    unique_sentences,
    write_prompts,
)
from pipeline_lib.records import PROMPTS


class FakeSampler:
    """Gives the listed rounds of sentences, then empty ones; counts how often it was asked."""

    def __init__(self, *rounds: list[str]):
        self.rounds, self.asked = rounds, 0

    def __call__(self, number: int) -> list[str]:
        assert number == self.asked
        self.asked += 1
        return self.rounds[number] if number < len(self.rounds) else []


def sentences(*rounds: list[str], kept: int = 2, require_class_name: bool = True, name: str = "Ankle boot") -> Any:
    sampler = FakeSampler(*rounds)
    return unique_sentences(
        sampler, name, asked=4, kept=kept, at_least=kept, require_class_name=require_class_name
    ), sampler


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
    found, sampler = sentences(["An ankle  boot here", "an ANKLE boot here ", "an\tankle boot\nhere", "ankle boot"])
    assert found.kept == ("An ankle boot here", "ankle boot")
    assert (found.n_sampled, found.n_duplicates, found.n_without_class_name) == (4, 2, 0)
    assert sampler.asked == 1


def test_sentences_that_lost_the_class_name_are_dropped_and_counted():
    """The class name is looked for after folding, so another case or spacing is not a loss."""
    found, _ = sentences(["a boot", "the ANKLE   Boot", "an ankle", "an ankle boot", ""], kept=2)
    assert found.kept == ("the ANKLE Boot", "an ankle boot")
    assert found.n_without_class_name == 3


def test_lost_class_names_are_counted_where_they_are_kept():
    """Without require_class_name they stay, but the record says how many they are; empty ones never stay."""
    found, _ = sentences(["a boot", "", "an ankle boot"], require_class_name=False)
    assert found.kept == ("a boot", "an ankle boot")
    assert found.n_without_class_name == 2


def test_more_rounds_are_asked_for_until_there_are_enough():
    """A second round fills up; what came first stays first; no more than `kept` are given."""
    found, sampler = sentences(["ankle boot 1", "ankle boot 1"], ["ankle boot 2", "ankle boot 3"], kept=2)
    assert found.kept == ("ankle boot 1", "ankle boot 2")
    assert (sampler.asked, found.n_sampled) == (2, 4)


def test_too_few_unique_sentences_end_in_a_user_error():
    """After a bounded number of rounds the message gives the counts and the remedy."""
    sampler = FakeSampler(*[["ankle boot", "a boot"]] * 100)
    with pytest.raises(UserError) as caught:
        unique_sentences(sampler, "Ankle boot", asked=2, kept=3, at_least=3, require_class_name=True)
    assert sampler.asked == MAX_ROUNDS
    message = str(caught.value)
    for word in (
        "'Ankle boot'",
        "gave 1 unique",
        "at least 3 are needed",
        "4 duplicates",
        "5 without",
        "dropped",
        "at_least",
    ):
        assert word in message


def test_asking_ends_when_a_round_brings_nothing_new():
    """With `at_least` there, a round of duplicates is the last; what is there is kept."""
    sampler = FakeSampler(["ankle boot 1", "ankle boot 2"], *[["ankle boot 1", "ankle boot 2"]] * 100)
    found = unique_sentences(sampler, "Ankle boot", asked=2, kept=9, at_least=2, require_class_name=True)
    assert found.kept == ("ankle boot 1", "ankle boot 2")
    assert sampler.asked == 2


# --- the stage --------------------------------------------------------------------------------------------------------


def test_basic_prompts_of_a_dataset(params: dict[str, Any]):
    """One file per class, hostile names included; the model is not loaded."""
    plan = planned(params)
    for prompts in plan.prompts("basic"):
        stages.prompts(prompts, plan.store)
        assert plan.store.is_complete(prompts)
        tables = [pq.read_table(plan.store.path(unit)) for unit in prompts.members]
    assert [table["class_name"].to_pylist() for table in tables] == [[name] for name in SHAPES]


# --- the model --------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def model(tiny_models: dict[str, str]) -> Any:
    from pipeline_lib.prompts import SentenceModel

    return SentenceModel(tiny_models["sentences"], None)


def test_sampling_is_a_function_of_its_arguments(model: Any):
    """The same seed gives the same sentences, another seed others, and the caller's random state is left alone."""
    import torch

    def sample(seed: int) -> list[str]:
        return model.sample(["red", "cat"], 6, top_p=0.95, temperature=1.0, seed=seed)

    torch.manual_seed(123)
    expected_next = torch.rand(3)
    torch.manual_seed(123)
    first = sample(0)
    assert torch.equal(torch.rand(3), expected_next)
    torch.manual_seed(456)
    assert sample(0) == first
    assert sample(1) != first
    assert len(first) == 6
    assert len(set(first)) > 1


def test_words_and_temperature_matter(model: Any):
    """Another concept gives other sentences; near zero temperature they are all alike."""

    def sample(words: list[str], temperature: float) -> list[str]:
        return model.sample(words, 4, top_p=1.0, temperature=temperature, seed=0)

    assert sample(["red", "cat"], 1.0) != sample(["blue", "fish"], 1.0)
    assert len(set(sample(["red", "cat"], 1e-4))) == 1


def test_enhanced_prompts_of_a_class(params: dict[str, Any], tiny_models: dict[str, str], model: Any):
    """The prompts of a class are a function of its spec; the run seed changes them."""
    plans = [planned(changed(params, models=tiny_models, seed=seed)) for seed in (0, 0, 1)]
    tables = []
    for plan in plans:
        table, counts = class_prompts(plan.prompts("language_enhancement")[0].members[0].spec, model)
        assert counts["sampled"] >= 4
        assert len(table) == 2
        tables.append(table)
    assert tables[0].equals(tables[1])
    assert not tables[0].equals(tables[2])


def test_a_folder_that_is_no_model_is_a_user_error(tmp_path: Path):
    """The message names the configuration key and the folder."""
    pytest.importorskip("transformers")
    from pipeline_lib.prompts import SentenceModel

    (tmp_path / "config.json").write_text("{}")
    with pytest.raises(UserError, match=r"models\.sentences.*cannot be loaded"):
        SentenceModel(str(tmp_path), None)
