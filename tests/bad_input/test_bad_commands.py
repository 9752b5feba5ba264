"""Of each kind of bad input some, as a person meets them: on the command line."""

import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import pytest
from bad_models import CLIP_FILE, encoder_folder, pickled
from cases import Workplace
from glide_models import TOKENIZER
from pictures import PICTURE, encoded
from small_project import REPOSITORY, changed, planned

from pipeline_lib import cli


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


def of_snakemake_file(name: str, text: str) -> Callable[[Workplace], list[str]]:
    """Snakemake with an overlay of this text."""

    def command(place: Workplace) -> list[str]:
        (place.folder / name).write_text(text, encoding="utf-8")
        return [*of_snakemake()(place), "--configfile", name]

    return command


def of_template(place: Workplace) -> list[str]:
    """A params.yaml that would run Python when Snakemake reads it."""
    command = of_snakemake()(place)
    with (place.folder / "params.yaml").open("a", encoding="utf-8") as file:
        file.write("__use_yte__: true\n__definitions__: [\"open('it ran', 'w')\"]\n")
    return command


def of_terminal_command(place: Workplace) -> list[str]:
    """A file whose name would clear the screen, and which is no image."""
    (place.folder / "shapes" / "blue" / "\x1b[2J.png").write_bytes(b"no image")
    return stage("real_images")(place)


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
    "template that runs Python": (of_template, ("params.yaml", "__use_yte__", "without that key")),
    "overlay that is a template": (  # Snakemake has run it by then
        of_snakemake_file("overlay.yaml", "__use_yte__: true\nseed: ?1 + 1\n"),
        ("overlay.yaml", "__use_yte__", "without that key"),
    ),
    "key twice": (
        of_snakemake_file("overlay.yaml", "seed: 1\nseed: 2\n"),
        ("overlay.yaml, line 2", "'seed'", "remove"),
    ),
    "folder for a spec": (
        lambda place: ["-m", "pipeline_lib", "heads", "--spec", ".", "--out", "x"],
        (".: Is a directory", "name another path"),
    ),
    "folder for a log": (
        lambda place: [*stage("heads")(place), "--log", str(place.folder)],
        ("Is a directory", "name another path"),
    ),
    "terminal's command": (of_terminal_command, (r"blue/\x1b[2J.png", "none of PNG")),
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
    assert "\x1b[2J" not in printed
    assert not place.canary.exists()
    assert _outside(place) == before


def _outside(place: Workplace) -> set[str]:
    """All there is but the store, and Snakemake's bookkeeping."""
    return {
        path.relative_to(place.folder).as_posix()
        for path in place.folder.rglob("*")
        if not {"store", ".snakemake"}.intersection(path.relative_to(place.folder).parts)
    }


NAMED = "nope", "a\x1b[2Jb", "-x", "caf\udce9"
ARGUMENTS: dict[str, tuple[list[str], str]] = {
    **{f"show {name[:9]!a}": (["show", "--", name], "has no record") for name in NAMED},
    **{f"plan {name[:9]!a}": (["plan", f"--params={name}"], name[:1]) for name in NAMED},
    **{f"verify {name[:9]!a}": (["verify", f"--store={name}"], "does not exist") for name in NAMED},
    "show a name of 300 characters": (["show", "x" * 300], "File name too long"),
    "plan of a name of 300 characters": (["plan", "--params", "x" * 300], "File name too long"),
    "verify a name of 300 characters": (["verify", "--store", "x" * 300], "File name too long"),
    "show a folder": (["show", "shapes"], "shapes has no record"),
    "show a device": (["show", "/dev/zero"], "/dev/zero has no record"),
    "plan of a folder": (["plan", "--params", "shapes"], "shapes cannot be read"),
    "plan of a device": (["plan", "--params", "/dev/zero"], "a device"),
    "plan of a picture": (["plan", "--params", "shapes/red/000.png"], "no UTF-8 text"),
    "overlay that is not there": (["plan", "--overlay", "nope.yaml"], "nope.yaml does not exist"),
    "overlay below a file": (["plan", "--overlay", "params.yaml/x"], "params.yaml/x"),
    "data sets of a folder": (["datasets", "--params", "shapes"], "shapes cannot be read"),
    "clear out with a folder": (["gc", "--params", "shapes", "--delete"], "shapes cannot be read"),
    "store that is a file": (["verify", "--store", "params.yaml"], "params.yaml does not exist"),
    "store that is a pipe": (["verify", "--store", "pipe"], "pipe does not exist"),
    "depth below 0": (["show", "--depth", "-1", "x"], "greater than or equal to 0"),
    "depth that is text": (["show", "--depth", "x", "x"], "valid integer"),
    "option without its value": (["plan", "--params"], "requires an argument"),
    "unknown option": (["plan", "--parmas", "x"], "No such option"),
    "unknown command": (["plan9"], "No such command"),
    "one argument too many": (["plan", "x"], "unexpected extra argument"),
    "GLIDE from folders": (["convert-glide", "shapes", "shapes", "out", "--tokenizer", TOKENIZER], "shapes cannot"),
    "GLIDE from text": (["convert-glide", "params.yaml", "x", "out", "--tokenizer", TOKENIZER], "params.yaml"),
    "GLIDE into a folder that is there": (["convert-glide", "x", "x", "shapes"], "exists already"),
    "GLIDE with a branch of a tokenizer": (
        ["convert-glide", "x", "x", "out", "--tokenizer", "a/b", "--tokenizer-revision", "main"],
        "40 hexadecimal digits",
    ),
}


@pytest.mark.parametrize("name", ARGUMENTS)
def test_bad_arguments(
    place: Workplace,
    name: str,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
):
    """The command, in this process, ends with a message and a status that is not 0, and writes nothing."""
    arguments, words = ARGUMENTS[name]
    place.config()
    os.mkfifo(place.folder / "pipe")
    before = set(place.folder.rglob("*"))
    monkeypatch.setattr("sys.argv", ["pipeline_lib", *arguments])
    monkeypatch.setenv("COLUMNS", "200")
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert ended.value.code in (1, 2)
    printed = "".join(capsys.readouterr()) + caplog.text
    assert words in printed, printed
    assert "\x1b[2J" not in printed
    assert set(place.folder.rglob("*")) == before
