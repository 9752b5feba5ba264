"""Of each kind of bad input some, as a person meets them: on the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from bad_models import CLIP_FILE, encoder_folder, pickled
from cases import Workplace
from pictures import PICTURE, encoded
from small_project import REPOSITORY, changed, planned


def python(place: Workplace, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    return subprocess.run(
        [sys.executable, *arguments], cwd=place.folder, env=environment, capture_output=True, text=True, check=False
    )


def stage(name: str, **changes: Any) -> Callable[[Workplace], list[str]]:
    """The command of a stage of the project with these changes, as a rule runs it."""

    def command(place: Workplace) -> list[str]:
        plan = planned(changed(place.params, **changes))
        plan.store.write_specs(plan.jobs.values())
        job = next(job for job in plan.jobs.values() if job.spec["stage"] == name)
        spec = plan.store.root / "specs" / f"{job.short_key}.json"
        out = str(plan.store.path(job))
        return ["-m", "pipeline_lib", name, "--spec", str(spec), "--out", out, "--store", str(plan.store.root)]

    return command


def of_configuration(text: str) -> Callable[[Workplace], list[str]]:
    def command(place: Workplace) -> list[str]:
        (place.folder / "overlay.yaml").write_text(text, encoding="utf-8")
        return ["-m", "pipeline_lib", "plan", "--params", str(place.config()), "--overlay", "overlay.yaml"]

    return command


def of_snakemake(**changes: Any) -> Callable[[Workplace], list[str]]:
    def command(place: Workplace) -> list[str]:
        place.config(**changes)
        snakefile = str(REPOSITORY / "Snakefile")
        return ["-m", "snakemake", "-n", "-s", snakefile, "--directory", str(place.folder), "--cores", "1"]

    return command


def of_image(place: Workplace) -> list[str]:
    (place.folder / "shapes" / "blue" / "000.png").write_bytes(encoded(PICTURE, "EPS"))
    return stage("real_images")(place)


def of_parquet(place: Workplace) -> list[str]:
    (place.folder / "x.parquet").write_bytes(b"PAR1")
    return of_configuration('own_datasets: {birds: {parquet: x.parquet, template: "a {}"}}')(place)


def of_encoder(place: Workplace) -> list[str]:
    edit = pickled("open_clip_pytorch_model.bin", CLIP_FILE)
    model = encoder_folder(place, lambda folder: edit(folder, place))
    return stage("heads", models__encoders=[{"name": "clip", "model": model}])(place)


def of_long_prompt(place: Workplace) -> list[str]:
    encoders, names = place.models["encoders"], ["猫" * 200, "b", "c"]
    return stage("heads", models__encoders=encoders, own_datasets__shapes__class_names=names)(place)


COMMANDS: dict[str, tuple[Callable[[Workplace], list[str]], tuple[str, ...]]] = {
    "configuration": (of_configuration("seed: 1\nseed: 2\n"), ("overlay.yaml, line 2", "'seed'", "remove")),
    "class name": (
        of_configuration('own_datasets: {shapes: {class_names: ["a\\0", b, c]}}'),
        ("own_datasets.shapes.class_names.0", r"'a\x00'", "remove it"),
    ),
    "template": (
        of_configuration('own_datasets: {shapes: {template: "a {x}"}}'),
        ("own_datasets.shapes", "'a {x}'", "{} exactly once"),
    ),
    "workflow": (
        of_snakemake(few_shot__shots=[2, 1], seed=2**64, store="a{b}"),
        ("few_shot.shots", "ascending", "seed: 18446744073709551616", "store: 'a{b}'"),
    ),
    "image": (of_image, ("blue/000.png", "none of PNG", "replace or remove")),
    "parquet": (of_parquet, ("own_datasets.birds.parquet", "x.parquet", "no Parquet file")),
    "checkpoint": (of_encoder, ("models.encoders", "could run code", "safetensors")),
    "prompt": (of_long_prompt, ("models.encoders", "a photo of a 猫", "shorten the class name")),
}


@pytest.mark.parametrize("family", COMMANDS)
def test_commands_end_in_a_message(place: Workplace, family: str):
    """Of each family one, as a person meets it: status 1, culprit and remedy, no traceback, nothing written outside of
    the store."""
    make, words = COMMANDS[family]
    command = make(place)
    before = _outside(place)
    done = python(place, *command)
    assert done.returncode == 1, done.stderr
    printed = done.stdout + done.stderr  # a dry run of Snakemake prints errors to stdout
    missing = [word for word in words if word not in printed]
    assert not missing, f"{missing} not in: {printed}"
    assert "Traceback" not in printed
    assert not place.canary.exists()
    assert _outside(place) == before


def _outside(place: Workplace) -> set[str]:
    """All there is but the store, and Snakemake's bookkeeping."""
    return {
        path.relative_to(place.folder).as_posix()
        for path in place.folder.rglob("*")
        if not {"store", ".snakemake"}.intersection(path.relative_to(place.folder).parts)
    }
