"""`show` prints the chain of an artifact: what it was made from, with what, and what of it is not here."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, dependants_of, planned

from pipeline_lib import stages
from pipeline_lib.errors import UserError
from pipeline_lib.maintenance import remove_all
from pipeline_lib.plan import Plan
from pipeline_lib.provenance import provenance
from pipeline_lib.store import Store

RESULTS = Path("results")
Params = dict[str, Any]


@pytest.fixture
def params(finished: Params) -> Params:
    """Of a project that is finished, in the working folder."""
    return finished


def show(path: str | Path, depth: int = 20, *, is_whole: bool = False) -> list[str]:
    return list(provenance(Path(path), Store(Path("store")), depth, is_whole=is_whole))


@pytest.mark.parametrize("is_whole", [False, True])
def test_show_prints_the_chain_of_a_table(params: Params, is_whole: bool):
    """From the table through every stage to class names, templates, seeds and the digests of three models."""
    plan = planned(params)
    lines = show("results/table2.csv", is_whole=is_whole)
    text = "\n".join(lines)
    assert lines[0] == "results/table2.csv"
    shown = {line.strip() for line in lines}
    for path in dependants_of(plan.prompts("basic")[0].members[0].path, plan) - set(show_results(plan)):
        if "/sets/" not in path and (is_whole or path.split("/")[0] not in ("images", "embeddings")):
            assert path in shown, path
    digests = {plan.generator, plan._sentences, *plan.encoders.values()}
    assert len(digests) == 3
    for words in (*digests, '"red/square"', '"grüne Fläche"', '"a photo of a {}"', "seed: 0", "top_p: 0.95"):
        assert words in text, words


def show_results(plan: Plan) -> Iterator[str]:
    return (f"results/{name}.csv" for name in plan.tables)


def test_show_describes_one_of_many_units(params: Params):
    """How many there are, between which keys, and one whose chain goes on; all of them where that is asked for."""
    plan = planned(params)
    features = plan.embeddings("shapes", "basic", "clip")[0]
    keys = sorted(unit.short_key for unit in features.members)
    assert len(keys) == 3 * 2
    lines = show(features.path)
    assert lines[3] == f"  6 of embeddings/images (keys {keys[0]} to {keys[-1]}), such as:"
    assert lines[4] == f"  {features.members[0].path}"
    for stage, n_all in (("embeddings", 6), ("images", 6), ("prompts", 3)):
        assert len([line for line in lines if line.strip().startswith(f"{stage}/")]) == 1 + (stage == "embeddings")
        whole = {line.strip() for line in show(features.path, is_whole=True)}
        assert len([line for line in whole if line.startswith(f"{stage}/") and "/sets/" not in line]) == n_all


@pytest.mark.parametrize("is_whole", [False, True])
def test_show_prints_each_artifact_once(params: Params, is_whole: bool):
    """What two methods share is described at its first place; later it is named."""
    lines = show("results/table2.csv", is_whole=is_whole)
    described = [line for line in lines if "  key " in line]
    assert len(described) == len(set(described)) > 10
    assert any("  shown above: embeddings/sets/" in line for line in lines)


def test_show_cuts_long_lists(params: Params):
    """Unless all is asked for."""
    plan = planned(changed(params, own_datasets__shapes__template="a photo of a {}, " + "very " * 50))
    prompts = plan.prompts("basic")[0]
    stages.prompts(prompts, plan.store)
    unit = prompts.members[0].path
    assert " ve... (267 characters)" in "\n".join(show(unit))
    assert 'very very very "' in "\n".join(show(unit, is_whole=True))


def test_show_takes_artifacts_and_a_depth(params: Params):
    """A path of the store, with or without the store's folder; as many steps as asked for."""
    path = planned(params).stage("scores")[0].path
    assert show(path) == show(f"store/{path}")
    assert len([line for line in show(path, 0) if "key " in line]) == 1
    assert len(show(path, 0)) < len(show(path, 1)) < len(show(path))


@pytest.mark.parametrize("path", ["no/such/file", "shapes/red/000.png", "store", "."])
def test_show_of_something_else_is_a_user_error(params: Params, path: str):
    """The message says what to give."""
    with pytest.raises(UserError, match=r"has no record.*give a table"):
        show(path)


def test_show_says_that_the_inputs_are_not_in_this_store(params: Params, tmp_path: Path):
    """As in a clone: the record of the result is all there is."""
    lines = list(provenance(RESULTS / "table1.csv", Store(tmp_path / "none"), 20))
    n_inputs = len(planned(params).tables["table1"].inputs)
    assert lines[0] == "results/table1.csv"
    assert f"None of the {n_inputs} artifacts that it was made from is in {tmp_path / 'none'}" in lines[-1]


def test_show_names_the_input_that_is_missing(params: Params):
    """The others are described as ever."""
    plan = planned(params)
    cell = plan.stage("metrics")[0].path
    whole = show("results/table2.csv")
    remove_all([cell], plan.store)
    lines = show("results/table2.csv")
    assert lines[lines.index(f"  {cell}") + 1] == "    (not in store)"
    assert len(lines) > len(whole) // 2
