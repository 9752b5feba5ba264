"""Configurations that are wrong: YAML's traps, types, ranges, unknown keys."""

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from cases import LONG, Case, Workplace, check, setting

from pipeline_lib.config import Config, read_config


def overlay(content: str | bytes, *words: str, reads: Callable[[Config], bool] | None = None) -> Case:
    """An overlay of this content is read; it is refused, or `reads` is true of the configuration."""

    def act(place: Workplace) -> None:
        path = place.folder / "overlay.yaml"
        path.write_bytes(content.encode() if isinstance(content, str) else content)
        config = read_config(place.config(), path)
        assert reads is not None and reads(config)

    return Case(act, words)


def no_file(make: Callable[[Path], Any], *words: str) -> Case:
    """An overlay that is no file which can be read to its end."""

    def act(place: Workplace) -> None:
        make(place.folder / "overlay.yaml")
        read_config(place.config(), place.folder / "overlay.yaml")

    return Case(act, ("overlay.yaml", *words))


def _listening(path: Path) -> None:
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(path.name)  # the whole path may be too long for a socket's


def multiplied(levels: int, merge: bool = False) -> str:
    """YAML whose aliases multiply to 9**levels values."""
    lines = ["a0: &a0 {k: 1}" if merge else "a0: &a0 [x, x, x, x, x, x, x, x, x]"]
    for level in range(1, levels):
        nine = ", ".join([f"*a{level - 1}"] * 9)
        lines.append(f"a{level}: &a{level} " + (f"{{<<: [{nine}]}}" if merge else f"[{nine}]"))
    return "\n".join(lines)


CONFIGURATION = {
    "yaml: 1e-3": overlay("tuning: {learning_rate: 1e-3}", "tuning.learning_rate", "'1e-3'", "write it as 0.001"),
    "yaml: on for a name": overlay("study: on", "study", "True", "put it in quotes"),
    "yaml: no for a class": overlay(
        "own_datasets: {shapes: {class_names: [a, no, c]}}", "own_datasets.shapes: class_names.1: False", "in quotes"
    ),
    "yaml: off for a key": overlay("off: 1", "False", "no key"),
    "yaml: null for a key": overlay("images: {null: 1}", "images", "None", "no key"),
    "yaml: octal number": overlay("seed: 010", "overlay.yaml, line 1", "010", "octal number 8", "write 8"),
    "yaml: number to base 60": overlay("seed: 1:30", "line 1", "1:30", "base 60", "quotes"),
    "yaml: date": overlay("study: 2024-01-31", "line 1", "2024-01-31", "date", "quotes"),
    "yaml: impossible date": overlay("study: 2024-13-45", "line 1", "2024-13-45", "date", "quotes"),
    "yaml: key twice": overlay("seed: 1\nstudy: x\nseed: 2", "overlay.yaml, line 3", "'seed'", "line 1", "remove"),
    "yaml: nested key twice": overlay("images: {steps: 1, steps: 2}", "line 1, column 20", "'steps'", "remove"),
    "yaml: tab": overlay("images:\n\tsteps: 3", "overlay.yaml", "line 2", "indent with blanks"),
    "yaml: empty file": overlay("", "overlay.yaml", "mapping of sections", "an empty file"),
    "yaml: nothing but a remark": overlay("# images: {steps: 3}", "overlay.yaml", "an empty file"),
    "yaml: list": overlay("- images", "overlay.yaml", "mapping of sections", "list"),
    "yaml: two documents": overlay("seed: 1\n---\nseed: 2", "overlay.yaml", "single document"),
    "yaml: Latin-1": overlay("study: café".encode("latin-1"), "overlay.yaml", "save it as UTF-8"),
    "yaml: UTF-16": overlay("study: x".encode("utf-16"), "overlay.yaml", "save it as UTF-8"),
    "yaml: byte order mark": overlay("\ufeffstudy: x", reads=lambda config: config.study == "x"),
    "yaml: NUL": overlay("study: a\0b", "overlay.yaml", "special characters"),
    "yaml: code": overlay(
        "study: !!python/object/apply:os.system [\"touch 'it ran'\"]", "overlay.yaml", "python/object"
    ),
    "yaml: alias": overlay(
        "models: {sentences: &x a/b, generator: *x}", reads=lambda config: config.models.generator == "a/b"
    ),
    "yaml: merge key": overlay(
        "images: {<<: &x {steps: 7}, per_class: 3}",
        reads=lambda config: (config.images.steps, config.images.per_class) == (7, 3),
    ),
    "yaml: what a merge key may bring": overlay("images: {<<: {stepps: 7}}", "images.stepps", "unknown key"),
    "yaml: yes for a boolean": overlay("images: {compile: yes}", reads=lambda config: config.images.compile is True),
    "yaml: quotes around a number": overlay("images: {steps: '3'}", "images.steps", "write it as 3"),
    "yaml: fraction for a whole number": overlay("images: {steps: 3.0}", "images.steps", "3.0", "integer"),
    "yaml: boolean for a whole number": overlay("images: {steps: true}", "images.steps", "True", "integer"),
    "yaml: boolean for a number": overlay("tuning: {temperature: on}", "tuning.temperature", "True", "number"),
    "yaml: infinity": overlay("tuning: {temperature: .inf}", "tuning.temperature", "inf", "finite"),
    "yaml: infinity in digits": overlay("tuning: {temperature: 1.0e+400}", "tuning.temperature", "inf", "finite"),
    "yaml: not a number": overlay("tuning: {temperature: .nan}", "tuning.temperature", "nan", "finite"),
    "yaml: hexadecimal number": overlay("seed: 0x10", reads=lambda config: config.seed == 16),
    "yaml: octal number of YAML 1.2": overlay("seed: 0o10", "seed", "'0o10'", "valid integer"),
    "yaml: binary number": overlay("seed: 0b11", "line 1", "0b11", "digits alone"),
    "yaml: digits in groups": overlay("seed: 1_000", "line 1", "1_000", "digits alone"),
    "yaml: fraction to base 60": overlay("tuning: {temperature: 1:30.5}", "line 1", "1:30.5", "base 60"),
    "yaml: tag of another type": overlay("images: {steps: !!str 3}", "images.steps", "'3'", "write it as 3"),
    "yaml: unknown tag": overlay("study: !secret x", "overlay.yaml", "!secret"),
    "yaml: list for a section": overlay("images: [1]", "images", "[1]"),
    "yaml: list for a key": overlay("? [a, b]\n: 1", "overlay.yaml", "unhashable key"),
    "yaml: a program for Snakemake": overlay(
        "__use_yte__: true\nstudy: ?open('it ran', 'w').name", "overlay.yaml", "__use_yte__", "without that key"
    ),
    "yaml: a program, switched off": overlay("__use_yte__: false", "__use_yte__", "without that key"),
    "yaml: a program by a merge key": overlay("<<: {'__use_yte__': true}", "__use_yte__", "without that key"),
    "yaml: half a character": overlay(r'study: "a\ud800"', "study", r"\ud800", "remove"),
    "yaml: half a character for a key": overlay(r'own_datasets: {"a\ud800": {}}', r"\ud800"),
    "yaml: half a character in a prompt": overlay(
        r'images: {negative_prompt: "a\ud800"}', "images.negative_prompt", r"\ud800"
    ),
    "yaml: a terminal's command": overlay(r'study: "\e[2Jx"', "study", r"\x1b[2Jx", "control character"),
    "yaml: a terminal's command for a key": overlay(r'"\e[2Jx": 1', r"\x1b[2Jx", "control character"),
    "yaml: unknown key of two words": overlay("images: {number of steps: 1}", "images.number of steps: unknown key"),
    "yaml: turned writing": overlay(r'study: "\u202Ex"', "study", r"\u202e", "control character"),
    "yaml: 11 MB": no_file(lambda path: path.write_text("# " + "x" * 11_000_000), "11,000,002 bytes", "at most"),
    "yaml: named pipe": no_file(os.mkfifo, "named pipe", "name a YAML file"),
    "yaml: socket": no_file(_listening, "socket", "name a YAML file"),
    "yaml: device": no_file(lambda path: path.symlink_to("/dev/zero"), "device", "name a YAML file"),
    "yaml: link to itself": no_file(lambda path: path.symlink_to(path), "leads nowhere", "name a YAML file"),
    "yaml: not there": no_file(lambda path: None, "does not exist", "name the file"),
    "yaml: unknown alias": overlay("study: *x", "overlay.yaml", "undefined alias 'x'"),
    "yaml: alias of itself": overlay("images: &x {steps: *x}", "line 1", "holds itself", "write it out"),
    "yaml: bomb of aliases": overlay(multiplied(8), "overlay.yaml, line", "1,000,000 values", "write it out"),
    "yaml: bomb of merges": overlay(multiplied(8, merge=True), "overlay.yaml, line", "1,000,000 values"),
    "yaml: small bomb": overlay("study: &x [1]\n" + multiplied(6), "a5: unknown key", "study: [1] is not allowed"),
    "yaml: a thousand brackets": overlay("a: " + "[" * 5000, "overlay.yaml", "nested too deeply"),
    "yaml: number of 5,000 digits": overlay("seed: " + "9" * 5000, "overlay.yaml", "correct the value"),
    "yaml: folder": Case(lambda place: read_config(place.folder), ("cannot be read", "name a YAML file")),
    "seed beyond 64 bits": setting("seed", "9223372036854775808", "less than", seed=2**63),
    "seed that is text": setting("seed", "'7'", "write it as 7", seed="7"),
    "a milliard images": setting("images.per_class", "1000000000", "1000000", images__per_class=10**9),
    "an image of a milliard pixels": setting("images.height", "less than or equal to 8192", images__height=8 * 10**6),
    "infinity as text": setting("tuning.weight_decay", "'1e400'", "valid number", tuning__weight_decay="1e400"),
    "negative prompt without end": setting("images.negative_prompt", "1000 char", images__negative_prompt="x" * LONG),
    "unknown key": setting("images.stepps", "unknown key", "steps", images__stepps=3),
    "store with NUL": setting("store", r"'a\x00b'", "control character", store="a\0b"),
    "store that is a file": Case(
        lambda place: place.plan(store=str(place.config())), ("store", "is a file", "a folder")
    ),
    "store of too long a name": setting("store", "5000 bytes", "shorten it", store="x" * 5000),
    "generator of too long a name": setting("models.generator", "shorten it", models__generator="./" + "x" * 5000),
    "Fashion-MNIST of too long a name": setting("fashion_mnist", "does not exist", fashion_mnist="x" * 5000),
    "image folder of too long a name": setting(
        "own_datasets.shapes.folder", "does not exist", own_datasets__shapes__folder="x" * 5000
    ),
    "class folder with NUL": setting(
        "class_folders.0", r"'a\x00'", "control", own_datasets__shapes__class_folders=["a\0", "blue", "green"]
    ),
    "class folder of 500 characters": setting(
        "own_datasets.shapes", "500 bytes", "shorten", own_datasets__shapes__class_folders=["x" * 500, "blue", "green"]
    ),
    "study of 10,000 characters": setting("study", "xxx", "match pattern", study="x" * LONG),
    "study of two lines": setting("study", r"'a\nb'", "match pattern", study="a\nb"),
    "formula for a task": setting("own_datasets.shapes", "'=1+1'", "pattern", own_datasets__shapes__task="=1+1"),
    "task that ends a table's cell": setting("own_datasets.shapes", "'a | b'", own_datasets__shapes__task="a | b"),
    "keyword of 10,000 characters": setting(
        "own_datasets.shapes", "keywords.0", "200 characters", own_datasets__shapes__keywords=["x" * LONG]
    ),
    "data set named by a path": Case(
        lambda place: place.plan(own_datasets={"../x": place.params["own_datasets"]["shapes"]}),
        ("own_datasets.../x: name", "'../x'", "match pattern"),
    ),
    "encoder of no name": setting(
        "models.encoders.0.name", "'a|b'", "match pattern", models__encoders=[{"name": "a|b", "model": "local-dir:x"}]
    ),
    "hub id without a commit": setting("models.generator", "pin it", models__generator="owner/name"),
    "branch for a commit": setting(
        "models.generator_revision", "'main'", models__generator="owner/name", models__generator_revision="main"
    ),
    "checkpoint file for a generator": Case(
        lambda place: place.plan(models__generator=str(place.config())), ("models.generator", "does not exist")
    ),
    "few-shot: one seed": setting("few_shot.seeds", "[1]", "at least 2", few_shot__seeds=[1]),
    "few-shot: seed that is a boolean": setting("few_shot.seeds.0", "True", few_shot__seeds=[True, 2]),
    "few-shot: shots in disorder": setting("few_shot.shots", "ascending order: [1, 2]", few_shot__shots=[2, 1]),
    "few-shot: no shots": setting("few_shot.shots", "[]", "at least 1", few_shot__shots=[]),
    "few-shot: a start for one of two": setting(
        "few_shot", "real_guidance.starts", "[0.5]", "one for each", few_shot__real_guidance__starts=[0.5]
    ),
    "few-shot: start above 1": setting(
        "few_shot.real_guidance.starts.0", "1.5", "equal to 1", few_shot__real_guidance__starts=[1.5, 0.5]
    ),
    "few-shot: quantile 0": setting(
        "few_shot.real_filter.quantile", "greater than 0", few_shot__real_filter__quantile=0
    ),
    "few-shot: unknown data set": setting("few_shot.datasets", "'x'", "known are", few_shot__datasets=["x"]),
    "few-shot: no training images": setting(
        "few_shot.datasets", "shapes", "train_folder", few_shot__datasets=["shapes"]
    ),
    "few-shot: list for a data set": setting("few_shot.datasets.0", "['x']", few_shot__datasets=[["x"]]),
    "few-shot: nothing": setting("few_shot", "None", few_shot=None),
    "few-shot: unknown key": setting("few_shot.coop.epoch", "unknown key", "epochs", few_shot__coop__epoch=3),
}


@pytest.mark.parametrize("name", CONFIGURATION)
def test_bad_configuration(place: Workplace, name: str):
    """The file is read as it was meant, or a message says what is wrong with which key or line."""
    check(CONFIGURATION[name], place)
