"""What a run needs is asked for before anything is made, and only what it needs."""

import shutil
from pathlib import Path
from typing import Any

import pytest
from raw_trees import draw_raw_tree
from small_project import changed, planned

from pipeline_lib import stages
from pipeline_lib.errors import UserError
from pipeline_lib.readiness import not_here_yet, require_program, require_ready

Params = dict[str, Any]


@pytest.fixture
def official(params: Params, tmp_path: Path) -> Params:
    """A study of an official download that is there."""
    tree = draw_raw_tree("dtd", tmp_path / "raw", 2)
    return changed(
        params,
        own_datasets={"textures": tree.definition()},
        datasets=["textures"],
        tables__table2_datasets=["textures"],
    )


def test_everything_is_there(official: Params):
    plan = planned(official)
    assert not_here_yet(plan) == []
    require_ready(plan, plan.jobs.values())


def test_raw_data_that_is_not_there_stops_what_needs_it(official: Params, tmp_path: Path):
    """Named with what to do; a run that draws images alone needs none."""
    shutil.rmtree(tmp_path / "raw")
    plan = planned(official)
    assert not_here_yet(plan) == ["raw data of textures (python -m pipeline_lib datasets says where to get it)"]
    with pytest.raises(UserError, match=r"nothing was run:\ntextures: the raw data is not there: .*raw is missing"):
        require_ready(plan, plan.jobs.values())
    require_ready(plan, plan.stage("prompts") + plan.stage("images"))


def test_shards_outlive_the_download(official: Params, tmp_path: Path):
    plan = planned(official)
    (real,) = plan.stage("real_images")
    stages.real_images(real, plan.store)
    shutil.rmtree(tmp_path / "raw")
    assert not_here_yet(plan) == []
    require_ready(plan, plan.jobs.values())


def test_all_that_is_missing_is_named_at_once(official: Params, tmp_path: Path):
    shutil.rmtree(tmp_path / "raw")
    plan = planned(changed(official, models__generator="./none", models__sentences="./neither"))
    with pytest.raises(UserError, match=r"(?s)models\.generator.*models\.sentences.*textures"):
        require_ready(plan, plan.jobs.values())


def test_damaged_fashion_mnist_is_named_before_a_run(params: Params, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Only where real images are to be made from it, and only where it cannot be fetched anew."""
    (tmp_path / "garments").mkdir()
    garments = changed(params, datasets=["objects"], tables__table2_datasets=["objects"])
    plan = planned(changed(garments, fashion_mnist=str(tmp_path / "garments")))
    with pytest.raises(UserError, match=r"nothing was run:\nfashion_mnist: .*garments/train-images.* is missing"):
        require_ready(plan, plan.jobs.values())
    require_ready(plan, plan.stage("images"))
    monkeypatch.setattr("pipeline_lib.datasets.fashion_mnist.DEBIAN_FOLDER", tmp_path / "not-installed")
    plan = planned(garments)
    require_ready(plan, plan.jobs.values())


def test_a_scheduler_that_is_not_here_is_named():
    """Each job would be submitted in vain, and tried again, and the reason stand between hundreds of lines."""
    require_program("python3 -c 'submit'", "cluster-generic-submit-cmd")
    with pytest.raises(UserError, match=r"cluster-generic-submit-cmd: there is no 'no-such-qsub' on this machine"):
        require_program("no-such-qsub -V\n -l select=1", "cluster-generic-submit-cmd")
