"""What a plan costs: counted from the plan, subtracted what is there, and weighed against the disk."""

import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import pytest
from small_project import changed, draw_shapes, make_all, planned

from pipeline_lib.costs import Amount, Estimate, amounts, estimate, require_disk, summary
from pipeline_lib.errors import UserError
from pipeline_lib.sections import Costs

Params = dict[str, Any]


def test_amounts_are_those_of_the_configuration(params: Params):
    """3 classes x 4 images x 2 strategies in shards of 3 and 1; 6 real images; each encoded once per encoder."""
    found = amounts(planned(params))
    assert found["images"] == Amount(artifacts=12, artifacts_there=0, rows=24, rows_there=0, effort_missing=24)
    assert found["real_images"] == Amount(1, 0, 6, 0, 6)
    assert found["embeddings"] == Amount(13, 0, 30, 0, 30)
    two = [*params["models"]["encoders"], {"name": "other", "model": "RN50", "pretrained": "openai"}]
    # Table 1 alone is of every encoder: language enhancement and the real images once more.
    assert amounts(planned(changed(params, models__encoders=two)))["embeddings"] == Amount(20, 0, 48, 0, 48)


def test_what_is_there_costs_nothing(params: Params, tiny_models: dict[str, Any], tmp_path: Path):
    params = changed(params, models=tiny_models)
    make_all(planned(params), tmp_path / "results", ())
    found = amounts(planned(params))
    made = [amount for stage, amount in found.items() if stage not in ("tables", "samples")]
    assert all(amount.rows_missing == 0 and amount.artifacts_there == amount.artifacts for amount in made)
    more = amounts(planned(changed(params, images__per_class=6)))
    # 6 classes and strategies in shards of 3 and 3: the second is new, the first is there.
    assert more["images"] == Amount(12, 6, 36, 18, 18)
    assert amounts(planned(changed(params, seed=1)))["images"].rows_there == 0


def test_estimate_at_the_papers_scale():
    """The arithmetic by hand: 8.7 million images at 1 a second are 2,417 hours; at 45 kB, 391.5 GB."""
    found = {"images": Amount(1, 0, 8_700_000, 0, 8_700_000), "embeddings": Amount(1, 0, 17_400_000, 0, 17_400_000)}
    costs = Costs(images_per_second=1.0, encodes_per_second=1000.0, kilobytes_per_image=45, kilobytes_per_embedding=2)
    assert estimate(found, costs) == Estimate(
        n_drawn=8_700_000,
        n_encoded=17_400_000,
        drawing_hours=8_700_000 / 3600,
        encoding_hours=17_400 / 3600,
        n_bytes=391_500_000_000 + 34_800_000_000,
    )
    lines = "\n".join(summary(found, costs))
    for words in ("8,700,000 images, 2,416.7 hours", "17,400,000 images, 4.8 hours", "426.3 GB"):
        assert words in lines
    silent = Costs(kilobytes_per_image=45, kilobytes_per_embedding=2)
    assert estimate(found, silent).drawing_hours is None
    assert "hours" not in "\n".join(summary(found, silent))


def test_few_shot_encodes_its_shots_and_table_6_passes_images_through_the_encoder(params: Params, tmp_path: Path):
    """By hand: 2 seeds draw 16 shots and 1 validation image of 3 classes. Table 6: 2 seeds pass 6 shots in 2 epochs,
    2 seeds 12 synthetic images in 2 epochs; each of the two jobs is tested on 6 images, 1 + 2 times."""
    before = amounts(planned(params))
    own = params["own_datasets"]["shapes"] | {"train_folder": str(draw_shapes(tmp_path / "train", 5, seed=1))}
    few = changed(params, own_datasets={"shapes": own}, few_shot__datasets=["shapes"])
    found = amounts(planned(few))
    assert "batch_norm" not in before
    assert found["real_images"].rows - before["real_images"].rows == 2 * 3 * (16 + 1)
    guided = found["images"].rows - before["images"].rows
    assert guided == 2 * 2 * 3 * 4  # for each number of shots, seed and class
    assert found["embeddings"].rows - before["embeddings"].rows == 2 * 3 * (16 + 1) + guided
    passes = (2 * 2 * 6 + 3 * 6) + (2 * 2 * 12 + 3 * 6)
    assert found["batch_norm"] == Amount(artifacts=2, artifacts_there=0, rows=0, rows_there=0, effort_missing=passes)
    without = {stage: amount for stage, amount in found.items() if stage != "batch_norm"}
    costs = planned(few).config.costs
    whole, rest = estimate(found, costs), estimate(without, costs)
    assert whole.n_encoded - rest.n_encoded == passes and whole.n_bytes == rest.n_bytes
    assert whole.encoding_hours is not None and whole.encoding_hours * 3600 == pytest.approx(whole.n_encoded / 100)


def test_a_disk_too_small_is_told_before_anything_starts(params: Params, monkeypatch: pytest.MonkeyPatch):
    usage = namedtuple("usage", "total used free")
    plan = planned(params)
    needed = estimate(amounts(plan), plan.config.costs).n_bytes
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed))
    require_disk(plan, plan.jobs.values(), plan.config.costs)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(10**9, 0, needed - 1))
    with pytest.raises(UserError, match=r"store.*needs about .* GB .*images\.per_class.*costs\.kilobytes_per_image"):
        require_disk(plan, plan.jobs.values(), plan.config.costs)
    # What was not asked for needs no room.
    require_disk(plan, plan.stage("prompts") + plan.stage("images"), plan.config.costs)
    assert not plan.store.root.exists()  # the free space is that of the folder where the store will be
