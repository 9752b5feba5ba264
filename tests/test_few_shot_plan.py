"""Which artifacts Figure 1 and Tables 5 to 7 ask for, and what a change of the few-shot settings changes."""

from pathlib import Path
from typing import Any

import pytest
from small_project import SHAPES, changed, draw_shapes, planned

from pipeline_lib.config import load_config, read_config
from pipeline_lib.errors import UserError
from pipeline_lib.methods import CT_INIT, CT_SYN, CT_SYN_B, CT_SYN_RF

Params = dict[str, Any]
ROOT = Path(__file__).resolve().parents[1]
SHOTS, SEEDS = [1, 2], [0, 1]


@pytest.fixture
def few(params: Params, tmp_path: Path) -> Params:
    """The small project with training images."""
    train = draw_shapes(tmp_path / "train", 5, seed=1)
    own = params["own_datasets"]["shapes"] | {"train_folder": str(train)}
    return changed(params, own_datasets={"shapes": own}, few_shot__datasets=["shapes"])


def units(params: Params) -> set[str]:
    """Paths of all artifacts but sets and tables: units where there are any, else jobs."""
    jobs = planned(params).jobs.values()
    return {one.path for job in jobs for one in (job.members or (job,)) if one.spec["stage"] != "tables"}


def stages(paths: set[str]) -> set[str]:
    return {path.split("/")[0] for path in paths}


def test_without_data_sets_there_is_nothing_of_it(params: Params, few: Params):
    plan = planned(changed(few, few_shot__datasets=[]))
    assert plan.tables.keys() == {"table1", "table2"}
    assert units(params) == units(changed(few, few_shot__datasets=[]))
    elsewhere = changed(few, few_shot__datasets=["objects"])  # known, but not in this study
    assert planned(elsewhere).tables.keys() == {"table1", "table2"}


def test_a_data_set_without_training_images_is_refused(params: Params):
    with pytest.raises(UserError, match=r"few_shot\.datasets.*train_folder"):
        planned(changed(params, few_shot__datasets=["shapes"]))


def test_runs_go_by_shots_and_then_by_seed(few: Params):
    """The order that predictions and cells rely on, and each run's own draw."""
    plan = planned(few).few_shot
    spec = plan.classifiers("shapes", CT_SYN.name).spec
    assert [(run["shots"], run["seed"]) for run in spec["runs"]] == [(n, seed) for n in SHOTS for seed in SEEDS]
    cells = plan.cells("shapes", CT_SYN).spec
    assert (cells["shots"], cells["seeds"]) == (SHOTS, SEEDS)
    drawn = {member.spec["seed"]: member.path for member in plan.shots("shapes").members}
    assert all(run["drawn"] == drawn[run["seed"]] for run in spec["runs"])


def test_guided_images_are_of_the_run_s_own_shots(few: Params):
    plan = planned(few)
    by_path = {unit.path: unit for job in plan.jobs.values() for unit in job.members}
    starts = dict(zip(SHOTS, few["few_shot"]["real_guidance"]["starts"], strict=True))
    seen: set[str] = set()
    for run in plan.few_shot.classifiers("shapes", CT_SYN.name).spec["runs"]:
        images = [by_path[by_path[path].spec["images"]] for path in run["synthetic"]]
        assert {image.spec["class_name"] for image in images} == set(SHAPES)
        for image in images:
            guidance = image.spec["real_guidance"]
            assert (guidance["n_shots"], guidance["start"]) == (run["shots"], starts[run["shots"]])
            assert guidance["shots"] == run["drawn"]
            references = by_path[guidance["images"]].spec
            assert references["shots"] == run["drawn"] and references["split"] == "train"
        assert seen.isdisjoint(run["synthetic"])
        seen.update(run["synthetic"])


def test_the_basic_strategy_draws_no_image_of_its_own(few: Params):
    """B and RF choose from Table 1's images; RF by the run's own shots."""
    plan = planned(few)
    table1 = {path for job in plan.embeddings("shapes", "language_enhancement", "clip") for path in [job.path]}
    for method in (CT_SYN_B, CT_SYN_RF):
        spec = plan.few_shot.classifiers("shapes", method.name).spec
        assert all(set(run["synthetic"]) == table1 for run in spec["runs"])
    manifests = [run["manifest"] for run in plan.few_shot.classifiers("shapes", CT_SYN_RF.name).spec["runs"]]
    assert len(set(manifests)) == len(SEEDS)
    jobs = {job.path: job for job in plan.jobs.values()}
    drawn = [member.path for member in plan.few_shot.shots("shapes").members]
    assert [jobs[path].spec["real_filter"]["shots"] for path in manifests] == drawn
    assert {jobs[path].spec["real_filter"]["n_shots"] for path in manifests} == {max(SHOTS)}


FITTED = {"few_shot", "predictions", "few_shot_metrics"}
CHANGES: dict[str, tuple[dict[str, Any], set[str]]] = {
    "learning rate": ({"few_shot__tuning__learning_rate": 0.01}, FITTED | {"batch_norm"}),
    "mix learning rate": ({"few_shot__tuning__mix_learning_rate": 0.01}, FITTED),
    "quantile": ({"few_shot__real_filter__quantile": 0.9}, FITTED | {"manifests"}),
    "coop": ({"few_shot__coop__learning_rate": 0.01}, FITTED),
    "starts": ({"few_shot__real_guidance__starts": [0.5, 0.75]}, FITTED | {"images", "embeddings"}),
    "batch size": ({"images__batch_size": 2}, set()),
    "embedding batch size": ({"embeddings__batch_size": 2}, set()),
}


def test_settings_of_mix_training_leave_what_has_none_of_it(few: Params):
    def path(params: Params, method: str) -> str:
        return planned(params).few_shot.classifiers("shapes", method).path

    for key in ("mix_learning_rate", "synthetic_batch_size"):
        more = changed(few, **{f"few_shot__tuning__{key}": 1 if key.endswith("size") else 0.01})
        assert path(few, CT_INIT.name) == path(more, CT_INIT.name)
        assert path(few, CT_SYN.name) != path(more, CT_SYN.name)


def test_b_cannot_have_more_images_than_there_are(few: Params):
    with pytest.raises(UserError, match=r"few_shot\.images_per_class: 5 is more than images\.per_class \(4\)"):
        load_config(changed(few, few_shot__images_per_class=5))


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_reaches_what_depends_on_it_and_nothing_else(few: Params, name: str):
    change, expected = CHANGES[name]
    assert stages(units(changed(few, **change)) - units(few)) == expected


def test_more_shots_and_seeds_keep_what_is_there(few: Params):
    """No draw, no image and no feature of the smaller study is made anew."""
    more = changed(
        few,
        few_shot__shots=[1, 2, 4],
        few_shot__seeds=[0, 1, 2],
        few_shot__real_guidance={"starts": [0.5, 0.25, 0.2]},
        few_shot__coop__epochs=[2, 2, 2],
    )
    kept = {path for path in units(few) if path.split("/")[0] in ("shots", "real_images", "images", "embeddings")}
    assert kept <= units(more)


def test_a_plan_orders_what_is_made(few: Params):
    """Each job comes after all that it reads: `jobs` is an order in which they can be made."""
    plan = planned(few)
    made: set[str] = set()
    for job in plan.jobs.values():
        made |= {job.path} | {member.path for member in job.members}
        for member in job.members or (job,):
            assert set(member.inputs) <= made, job.path
        assert set(job.after) <= made, job.path


def test_settings_that_do_not_go_together_are_refused(few: Params):
    for change, message in (
        ({"few_shot__shots": [1, 2, 4]}, r"real_guidance\.starts has 2 entries"),
        ({"few_shot__coop__epochs": [1]}, r"coop\.epochs has 1 entries"),
        ({"few_shot__shots": [2, 1]}, "ascending"),
        ({"few_shot__seeds": [0, 0]}, "twice"),
        ({"few_shot__datasets": ["shape"]}, "few_shot.datasets: unknown data set 'shape'"),
    ):
        with pytest.raises(UserError, match=message):
            load_config(changed(few, **change))


def test_ct_init_needs_no_synthetic_image(few: Params):
    spec = planned(few).few_shot.classifiers("shapes", CT_INIT.name).spec
    assert all(run.keys() == {"shots", "seed", "drawn", "real"} for run in spec["runs"])


def test_the_encodes_that_figure_1_counts_are_those_of_params_yaml():
    """Counted by hand: what runs that each encode their own would learn from, and be tested on."""
    config = read_config(ROOT / "params.yaml")
    few = config.few_shot
    n_classes = {name: len(config.dataset(name).class_names) for name in few.datasets}
    n_tested = sum(config.dataset(name).n_images["test"] or 0 for name in few.datasets)
    n_runs, n_methods = len(few.shots) * len(few.seeds), 8
    per_seed = {
        "real": n_methods * sum(few.shots),
        # The steps, alpha and beta of Tip-Adapter and Tip-Adapter-F, the C of the linear probe. CoOp chooses nothing.
        "validation": 4 * sum(min(n, few.validation_per_class) for n in few.shots),
        "synthetic": 2 * len(few.shots) * few.images_per_class,  # RG and B
    }
    learned_from = sum(n_classes.values()) * len(few.seeds) * sum(per_seed.values())
    independent = learned_from + n_methods * n_runs * n_tested
    shown = (ROOT / "results/figure1.md").read_text(encoding="utf-8")
    assert f"independent runs would make {independent:,} " in shown
    assert f", {learned_from:,} of them to learn from.\n" in shown
    # Made: what each seed draws (16 shots at least), RG's own images for each run, Table 1's of each class once.
    shot_images = sum(n_classes.values()) * len(few.seeds) * (max(few.shots) + few.validation_per_class)
    guided = sum(n_classes.values()) * n_runs * few.images_per_class
    assert n_classes["fine_grained"] == 5  # which are among the classes of `objects`, drawn alike
    from_text = (sum(n_classes.values()) - 5) * config.images.per_class
    made = shot_images + guided + from_text
    assert f"Encodes made: {made + n_tested:,}, {made:,} of them to learn from; " in shown
