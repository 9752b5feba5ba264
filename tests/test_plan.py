"""What a change of the configuration changes and what it leaves alone: the promises of content addressing."""

import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import FOLDERS, REPOSITORY, SHAPES, changed, draw_shapes, fake_models, own_dataset, planned

from pipeline_lib.config import read_config
from pipeline_lib.errors import UserError
from pipeline_lib.plan import Plan

Params = dict[str, Any]


def paths(params: Params, stage: str | None = None) -> set[str]:
    """Paths of all artifacts, of one stage: units where there are any, else jobs."""
    artifacts = [artifact for job in planned(params).jobs.values() for artifact in (job.members or (job,))]
    return {artifact.path for artifact in artifacts if stage in (None, artifact.spec["stage"])}


def shards(plan: Plan, dataset: str, strategy: str = "basic") -> dict[str, list[str]]:
    """Paths of the image shards by class."""
    by_class: dict[str, list[str]] = {}
    for images in plan.images(dataset, strategy):  # type: ignore[arg-type]
        for shard in images.members:
            by_class.setdefault(shard.spec["class_name"], []).append(shard.path)
    return by_class


def shipped(folder: Path, *overlays: Path) -> Plan:
    """The plan of params.yaml, with models that can be planned with."""
    overlay = {"models": fake_models(folder), "store": str(folder / "store")}
    (folder / "models.yaml").write_text(yaml.safe_dump(overlay))
    return Plan(read_config(REPOSITORY / "params.yaml", folder / "models.yaml", *overlays))


@pytest.fixture
def two(params: Params, tmp_path: Path) -> Params:
    """Two data sets that have two classes in common, named in another order."""
    names = dict(reversed(list(SHAPES.items())[1:])) | {"extra": "extra"}
    images = draw_shapes(tmp_path / "others", 2, folders=tuple(names.values()))
    own = params["own_datasets"] | {"others": own_dataset(images, names)}
    return changed(params, own_datasets=own, datasets=["shapes", "others"])


# --- planning ---------------------------------------------------------------------------------------------------------


def test_planning_imports_nothing_that_computes(params: Params, tmp_path: Path):
    """A plan is made in well under a second because torch and its kin stay out."""
    (tmp_path / "params.yaml").write_text(yaml.safe_dump(params, allow_unicode=True))
    program = (
        "import sys; from pathlib import Path\n"
        "from pipeline_lib.plan import Plan; from pipeline_lib.config import read_config\n"
        "assert Plan(read_config(Path('params.yaml'))).jobs\n"
        "heavy = {'torch', 'torchvision', 'diffusers', 'transformers', 'open_clip', 'pandas', 'scipy', 'snakemake'}\n"
        "print(sorted(heavy & sys.modules.keys()))"
    )
    done = subprocess.run(
        [sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.strip() == "[]"


def test_planning_writes_nothing(params: Params, tmp_path: Path):
    """A plan, and so a dry run, leaves the disk as it was."""
    before = sorted(tmp_path.rglob("*"))
    planned(params)
    assert sorted(tmp_path.rglob("*")) == before


def test_plan_is_a_function_of_the_configuration(two: Params):
    """The same configuration gives the same artifacts, whatever was planned before."""
    assert paths(two) == paths(two)
    assert {key: job.as_json() for key, job in planned(two).jobs.items()} == {
        key: job.as_json() for key, job in planned(changed(two)).jobs.items()
    }


def test_every_input_is_made_by_a_job_or_is_a_unit_of_one(two: Params):
    """The graph is closed: nothing is read that nothing makes."""
    plan = planned(two)
    made = plan.reached()
    read = {name for job in plan.jobs.values() for artifact in (job, *job.members) for name in artifact.inputs}
    assert read <= made


def test_units_are_made_from_units_of_the_jobs_inputs(two: Params):
    """When a job starts, the sets that hold its units' inputs are there: each is an input of the job."""
    plan = planned(two)
    holders: dict[str, set[str]] = {}
    for job in plan.jobs.values():
        for unit in job.members:
            holders.setdefault(unit.path, set()).add(job.path)
    for job in plan.jobs.values():
        for unit in job.members:
            for name in unit.inputs:
                assert holders[name].intersection(job.after or job.inputs), f"{unit.path} reads {name}"


def test_paths_differ_where_specs_differ(two: Params):
    """No two artifacts share a path."""
    plan = planned(two)
    by_path: dict[str, str] = {}
    for job in plan.jobs.values():
        for artifact in (job, *job.members):
            assert by_path.setdefault(artifact.path, artifact.key) == artifact.key


def test_shipped_study_plans(tmp_path: Path):
    """params.yaml plans as it is, weights aside: six data sets, 60 images per class and strategy."""
    plan = shipped(tmp_path)
    assert len(plan.tables["table1"].spec["cells"]) == len(plan.config.datasets)
    per_class = plan.config.images.per_class
    for dataset in plan.config.datasets:
        for of_class in (
            [shard for shard in images.members if shard.spec["class_name"] == name]
            for images in plan.images(dataset, "language_enhancement")
            for name in plan.dataset(dataset).class_names
        ):
            spans = [(shard.spec["start"], shard.spec["stop"]) for shard in of_class]
            assert not spans or (spans[0][0], spans[-1][1]) == (0, per_class)


def test_objects_and_fine_grained_share_the_shards_of_common_classes(tmp_path: Path):
    """A class of two data sets with the same words is drawn once: fine_grained costs no image of its own."""
    plan = shipped(tmp_path)
    for strategy in ("basic", "language_enhancement"):
        objects, fine = shards(plan, "objects", strategy), shards(plan, "fine_grained", strategy)
        assert len(fine) == 5
        assert fine == {name: objects[name] for name in fine}


# --- asking for more --------------------------------------------------------------------------------------------------


def test_more_images_keep_existing_shards(params: Params):
    """Raising per_class adds shards; every whole shard of the smaller request is one of the larger."""
    few, many = (paths(changed(params, images__per_class=n), "images") for n in (6, 11))
    assert few < many


def test_a_partial_shard_lies_beside_the_one_that_takes_over_from_it(params: Params):
    """Where the smaller request ends inside a shard, the longer shard has the same recipe, hence the same folder."""
    few, many = (shards(planned(changed(params, images__per_class=n)), "shapes") for n in (4, 6))
    for name in SHAPES:
        assert few[name][0] == many[name][0]
        assert [Path(path).name for path in few[name]] == ["000000-000003.parquet", "000003-000004.parquet"]
        assert [Path(path).name for path in many[name]] == ["000000-000003.parquet", "000003-000006.parquet"]
        assert {Path(path).parent for path in few[name]} == {Path(path).parent for path in many[name]}


def test_one_more_class_changes_no_other_classes_images(params: Params, tmp_path: Path):
    """Prompts, images and features of the other classes stay; the new class alone is drawn."""
    draw_shapes(tmp_path / "shapes", 2, folders=("yellow",))
    more = changed(params, own_datasets={"shapes": own_dataset(tmp_path / "shapes", {**SHAPES, "yellow": "yellow"})})
    for stage, per_class in (("prompts", 2), ("images", 4)):
        added = paths(more, stage) - paths(params, stage)
        assert paths(params, stage) < paths(more, stage)
        assert len(added) == per_class
        assert all("/yellow." in path for path in added)
    synthetic = {path for path in paths(params, "embeddings") if path.startswith("embeddings/images/")}
    assert synthetic < paths(more, "embeddings")


def test_one_more_dataset_changes_nothing_of_the_others(params: Params, two: Params):
    """Everything but prompt and head sets, which list all data sets, and the tables stays as it is."""
    gone = paths(params) - paths(two)
    assert {path.split("/")[0] for path in gone} <= {"tables"}
    assert shards(planned(params), "shapes") == shards(planned(two), "shapes")


def test_the_order_of_classes_changes_no_image(params: Params):
    """Classes in another order, and another data set with the same classes, have the same shards."""
    folders = dict(reversed(SHAPES.items()))
    other = changed(
        params, own_datasets={"shapes": own_dataset(Path(params["own_datasets"]["shapes"]["folder"]), folders)}
    )
    assert list(folders.values()) == list(reversed(FOLDERS))
    assert paths(params, "images") == paths(other, "images")
    assert paths(params, "scores").isdisjoint(paths(other, "scores"))


def test_datasets_share_the_images_of_common_classes(two: Params):
    """A class that two data sets have in common, with one template, is drawn once."""
    plan = planned(two)
    first, second = shards(plan, "shapes"), shards(plan, "others")
    common = first.keys() & second.keys()
    assert len(common) == 2
    assert {name: first[name] for name in common} == {name: second[name] for name in common}


def test_tables_share_image_sets(params: Params):
    """Table 1 and Table 2 rest on the same language-enhancement images, embeddings and scores."""
    plan = planned(params)
    assert len(plan.stage("scores")) == 2  # basic and language enhancement, not three
    assert plan.tables["table1"].spec["cells"][0] in plan.tables["table2"].spec["cells"]


# --- changing parameters ----------------------------------------------------------------------------------------------

ALL = {
    "prompts",
    "images",
    "real_images",
    "embeddings",
    "heads",
    "scores",
    "manifests",
    "classifiers",
    "predictions",
    "metrics",
    "tables",
}
AFTER_MANIFESTS = {"classifiers", "predictions", "metrics", "tables"}
AFTER_IMAGES = {"embeddings", "scores", "manifests", *AFTER_MANIFESTS}
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    # change, stages that get new artifacts
    "threshold": ({"clip_filter__threshold": 0.4}, {"manifests", *AFTER_MANIFESTS}),
    "cap": ({"clip_filter__per_class": 3}, {"manifests", *AFTER_MANIFESTS}),
    "fallback": ({"clip_filter__min_per_class": 1}, {"manifests", *AFTER_MANIFESTS}),
    "epochs": ({"tuning__epochs": 3}, AFTER_MANIFESTS),
    "tuning seeds": ({"tuning__seeds": [0, 1, 2]}, AFTER_MANIFESTS),
    "soft target temperature": ({"tuning__temperature": 3.0}, AFTER_MANIFESTS),
    "resamples": ({"evaluation__bootstrap_resamples": 200}, {"metrics", "tables"}),
    "study": ({"study": "other"}, {"tables"}),
    "run seed": ({"seed": 1}, {"prompts", "images", *AFTER_IMAGES}),
    "guidance": ({"images__guidance_scale": 1.0}, {"images", *AFTER_IMAGES}),
    "steps": ({"images__steps": 3}, {"images", *AFTER_IMAGES}),
    "negative prompt": ({"images__negative_prompt": "blurred"}, {"images", *AFTER_IMAGES}),
    "scheduler": ({"images__scheduler": "DDIMScheduler"}, {"images", *AFTER_IMAGES}),
    "precision of the generator": ({"images__dtype": "float32"}, {"images", *AFTER_IMAGES}),
    "precision of the encoder": ({"embeddings__dtype": "float32"}, set(AFTER_IMAGES)),
    "rounds of sentences": ({"prompts__language_enhancement__rounds": 9}, {"prompts", "images", *AFTER_IMAGES}),
    "top k": ({"prompts__language_enhancement__top_k": 50}, {"prompts", "images", *AFTER_IMAGES}),
    "format": ({"images__format": "webp"}, {"images", *AFTER_IMAGES}),
    "sentences kept": ({"prompts__language_enhancement__kept": 3}, {"prompts", "images", *AFTER_IMAGES}),
    "template": ({"own_datasets__shapes__template": "a sketch of a {}"}, ALL - {"real_images"}),
    # how and where, not what
    "image batch": ({"images__batch_size": 77}, set()),
    "sentence batch": ({"prompts__language_enhancement__batch_size": 77}, set()),
    "compilation": ({"images__compile": True}, set()),
    "decoding threads": ({"embeddings__workers": 0}, set()),
    "device": ({"device": "auto"}, set()),
    "rates": ({"costs__images_per_second": 1.0}, set()),
    "embedding batch": ({"embeddings__batch_size": 77}, set()),
    "data folder": ({"data": "elsewhere"}, set()),
}


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(params: Params, name: str):
    """New artifacts appear in exactly the stages downstream of a parameter; changed back, all paths are as before."""
    change, stages = CHANGES[name]
    before, after = paths(params), paths(changed(params, **change))
    assert {path.split("/")[0] for path in after - before} == stages
    assert paths(changed(params)) == before


def test_another_split_changes_what_is_computed_on_it(tmp_path: Path):
    """Validation images are other images; everything up to the tuned heads stays."""
    plans = []
    for split in ("test", "validation"):
        (tmp_path / "split.yaml").write_text(f"evaluation: {{split: {split}}}\n")
        plans.append(shipped(tmp_path, tmp_path / "split.yaml"))
    added = plans[1].reached() - plans[0].reached()
    assert {path.split("/")[0] for path in added} == {
        *("real_images", "embeddings", "predictions", "metrics", "tables"),
        *("batch_norm", "few_shot_metrics"),  # the former tunes and predicts in one
    }


@pytest.mark.parametrize("name", ["run seed", "template", "guidance", "steps", "format"])
def test_a_change_of_the_recipe_keeps_no_image(params: Params, name: str):
    """With another recipe there is not one old shard among the new."""
    assert paths(params, "images").isdisjoint(paths(changed(params, **CHANGES[name][0]), "images"))


def test_another_encoder_draws_nothing_and_adds_rows_of_its_own(params: Params):
    """Table 1 gets a block per encoder, on the same images; Table 2 stays with the first. Names are only names."""
    other = {"name": "rn50", "model": "RN50", "pretrained": "openai"}
    clip = params["models"]["encoders"][0]
    both = planned(changed(params, models__encoders=[clip, other]))
    added = both.reached() - planned(params).reached()
    assert {path.split("/")[0] for path in added} == {"heads", *AFTER_IMAGES}
    cells = [both.store.relative(both.store.path(name)) for name in both.tables["table1"].spec["cells"]]
    assert [name.split("/")[1].split(".")[-1] for name in cells] == ["clip", "rn50"]
    assert both.tables["table2"].path == planned(params).tables["table2"].path
    renamed = planned(changed(params, models__encoders=[{**clip, "name": "mine"}]))
    assert {path for path in renamed.reached() if path.endswith(".parquet")} >= {
        path
        for path in planned(params).reached()
        if path.startswith(("images/", "embeddings/")) and "/sets/" not in path
    }


def test_a_commit_is_part_of_what_an_encoder_is(params: Params):
    """The weights behind open_clip's tag lie in a hub repository, which moves on."""
    tag = {"name": "clip", "model": "RN50", "pretrained": "openai"}
    unpinned, first, second = (
        planned(changed(params, models__encoders=[tag | pin])).head("shapes", "clip").path
        for pin in ({}, {"revision": "0" * 40}, {"revision": "1" * 40})
    )
    assert len({unpinned, first, second}) == 3


def test_a_contact_sheet_reads_a_few_images_of_a_few_classes(params: Params):
    """Of 2,000 images per class and a thousand classes a person looks at some; only their shards are read."""
    sheet = planned(changed(params, images__per_class=40, images__per_shard=10)).samples("shapes", "basic")
    assert sorted(Path(path).stem for path in sheet.spec["images"]) == sorted(["000000-000010", "000010-000020"] * 3)
    names = [f"class {number}" for number in range(50)]
    own = {"shapes": {**params["own_datasets"]["shapes"], "class_names": names, "class_folders": None}}
    own["shapes"] |= {"loader": "dtd", "root": "raw"}
    del own["shapes"]["folder"], own["shapes"]["class_folders"]
    many = planned(changed(params, own_datasets=own)).samples("shapes", "basic")
    shown = [Path(path).parts[1] for path in many.spec["images"]]
    assert 10 <= len(set(shown)) <= 20 and "class_0.basic" in shown and "class_48.basic" in shown


def test_a_model_that_is_not_here_can_be_planned_with_and_nothing_more(params: Params):
    """What a study costs can be asked before its models are downloaded; to make something they must be there."""
    plan = planned(changed(params, models__generator="./none"))
    assert len(plan.stage("images")) == 2
    assert plan.paths(plan.stage("images")) != planned(params).paths(planned(params).stage("images"))
    with pytest.raises(UserError, match=r"models\.generator.*'./none' does not exist"):
        plan.require_models()
    planned(params).require_models()


def test_temperature_of_soft_targets_is_no_part_of_hard_label_tuning(params: Params):
    """Cells with cross-entropy do not change with a setting that they do not use."""
    before, after = paths(params, "classifiers"), paths(changed(params, tuning__temperature=3.0), "classifiers")
    assert {path for path in before if "_ce." in path} == {path for path in after if "_ce." in path}
    assert any("_ce." in path for path in before)


def test_how_work_is_cut_into_jobs_changes_no_unit(params: Params):
    """classes_per_job is about jobs: prompts, images and features are the same files."""
    cut = changed(params, images__classes_per_job=1, prompts__classes_per_job=2)
    for stage in ("prompts", "images", "embeddings"):
        assert paths(params, stage) == paths(cut, stage)
    assert len(planned(cut).stage("images")) == 6
    fine = changed(params, embeddings__shards_per_job=1)
    assert paths(params, "embeddings") == paths(fine, "embeddings")
    assert len(planned(fine).embeddings("shapes", "basic", "clip")) == 6


def test_features_wait_for_all_the_images_that_they_are_of(params: Params):
    """A job that encodes several sets of images comes after each of them, and of no other."""
    plan = planned(changed(params, images__classes_per_job=1, embeddings__shards_per_job=4))
    images = [artifact.path for artifact in plan.images("shapes", "basic")]
    first, second = plan.embeddings("shapes", "basic", "clip")
    assert list(first.after) == images[:2] and list(second.after) == images[2:]  # 2 shards a class


def test_a_moved_model_is_the_same_model_and_other_weights_are_another(params: Params, tmp_path: Path):
    """Weights are named by content, not by folder; one changed byte changes what is made with them, and only that."""
    moved = changed(params, models=fake_models(tmp_path / "elsewhere"))
    without_names = [path for path in paths(moved) if path.split("/")[0] not in ("metrics", "tables")]
    assert set(without_names) <= paths(params)
    before = paths(params)
    (tmp_path / "models" / "encoder" / "model.safetensors").write_bytes(b"encoder!")
    after = paths(params)
    assert {path.split("/")[0] for path in after - before} == {"heads", *AFTER_IMAGES}
    (tmp_path / "models" / "generator" / "model.safetensors").write_bytes(b"generator!")
    assert paths(params, "images").isdisjoint(path for path in before if path.startswith("images/"))


def test_changed_test_images_change_what_is_computed_on_them(params: Params, tmp_path: Path):
    """A replaced image, not a hidden file beside it, makes another data set."""
    before = paths(params)
    (tmp_path / "shapes" / "red" / ".DS_Store").write_bytes(b"x")
    assert paths(params) == before
    image = tmp_path / "shapes" / "red" / "000.png"
    image.write_bytes((tmp_path / "shapes" / "red" / "001.png").read_bytes())
    assert {path.split("/")[0] for path in paths(params) - before} == {
        "real_images",
        "embeddings",
        "predictions",
        "metrics",
        "tables",
    }
    assert paths(params, "images") <= before
