"""Class names and templates, which are anyone's text."""

import shutil
from typing import Any

import pytest
from cases import LONG, Case, Workplace, check, setting

from pipeline_lib import stages
from pipeline_lib.shards import read_rows

SAFE = set("abcdefghijklmnopqrstuvwxyz0123456789_./-")


def class_name(name: Any, *words: str) -> Case:
    """A class of this name: its prompt is written and its images carry the name, or it is refused."""

    def act(place: Workplace) -> None:
        names = [name, "b", "c"]
        found = place.real_rows(own_datasets__shapes__class_names=names, prompts__strategy="basic")
        plan = place.plan(own_datasets__shapes__class_names=names, prompts__strategy="basic")
        assert [row["class_name"] for row in found] == [name, name, "b", "b", "c", "c"]
        prompts = next(job for job in plan.jobs.values() if job.spec["stage"] == "prompts")
        stages.STAGES["prompts"](prompts, plan.store)
        texts = [row["prompt"] for unit in prompts.members for row in read_rows(plan.store.path(unit))]
        assert texts == [f"a photo of a {name}", "a photo of a b", "a photo of a c"]
        assert not {character for job in plan.jobs.values() for character in job.path} - SAFE

    return Case(act, words)


def class_names(*words: str, names: list[str]) -> Case:
    return setting("own_datasets.shapes", "class_names", *words, own_datasets__shapes__class_names=names)


def template(text: str, *words: str) -> Case:
    return setting("own_datasets.shapes", *words, own_datasets__shapes__template=text)


def folder_of_bytes(place: Workplace) -> None:
    images = place.folder / "named"
    for name in ("caf\udce9", "tea"):  # the byte E9 alone
        shutil.copytree(place.folder / "shapes" / "red", images / name)
    place.plan(own_datasets__shapes={"folder": str(images), "template": "a {}"})


def accents_apart(place: Workplace) -> None:
    """A folder's name of letters and combining accents gives the name with accented letters, and is found."""
    (place.folder / "shapes" / "blue").rename(place.folder / "shapes" / "bleu fonce\u0301")
    own = {"folder": str(place.folder / "shapes"), "template": "a {}"}
    names = [row["class_name"] for row in place.real_rows(own_datasets__shapes=own)]
    assert names == ["bleu foncé"] * 2 + ["green"] * 2 + ["red"] * 2


def folder_named(name: str, *words: str) -> Case:
    """The sub-folder of a class has this name, and names the class."""

    def act(place: Workplace) -> None:
        (place.folder / "shapes" / "blue").rename(place.folder / "shapes" / name)
        place.plan(own_datasets__shapes={"folder": str(place.folder / "shapes"), "template": "a {}"})

    return Case(act, words)


NAMES = {
    "name: Chinese": class_name("猫 & 犬"),
    "name: right to left": class_name("قطة שלום"),
    "name: emoji": class_name("👩‍👩‍👧 🏳️‍🌈"),
    "name: slash": class_name("a/b"),
    "name: the folder above": class_name("../../.."),
    "name: quotes": class_name('"it\'s" `a`'),
    "name: leading dash": class_name("-rf --force"),
    "name: shell": class_name("$(touch 'it ran'); touch 'it ran'"),
    "name: braces": class_name("{name} {{}} %s"),
    "name: percent and backslash": class_name("C:\\%TEMP%|<b>"),
    "name: 200 characters": class_name("x" * 200),
    "name: 500 characters": class_name("x" * 500, "500 characters", "at most 200", "shorten it"),
    "name: NUL": class_name("a\0b", r"'a\x00b'", "control character", "remove it"),
    "name: new line": class_name("a\nb", r"'a\nb'", "control character"),
    "name: line separator": class_name("a\u2028b", r"'a\u2028b'", "control character"),
    "name: empty": class_name("", "number 1", "is empty", "name the class"),
    "name: blank": class_name(" \t ", "number 1"),
    "name: invisible": class_name("\u200b\u2060", r"\u200b", "is empty"),
    "name: half a character": class_name("caf\udce9", r"'caf\udce9'", "half a character", "remove it"),
    "name: turned writing": class_name("a\u202eb", r"'a\u202eb'", "control character", "remove it"),
    "name: a terminal's command": class_name("\x1b[2J", r"'\x1b[2J'", "control character", "remove it"),
    "name: the start of a formula": class_name("=1+1"),
    "name: the end of a table's cell": class_name("a | b"),
    "name: accents apart": Case(accents_apart),
    "name: number": class_name(7, "own_datasets.shapes: class_names.0: 7", "put it in quotes"),
    "name: twice after folding case": class_names("'Straße'", "'STRASSE'", names=["Straße", "b", "STRASSE"]),
    "name: twice after folding width": class_names("'ａｂ'", "'ab'", names=["ａｂ", "x", "ab"]),
    "name: folder that is no UTF-8": Case(folder_of_bytes, ("caf", "not Unicode", "rename the folder")),
    "name: folder with a new line": folder_named("a\nb", r"'a\nb'", "control character", "remove it"),
    "name: folder with a terminal's command": folder_named("\x1b[2J", r"'\x1b[2J'", "control character", "remove it"),
    "name: folder of 250 characters": folder_named("x" * 250, "250 characters", "at most 200", "class_folders"),
    "name: folder that is invisible": folder_named("\u200b", r"\u200b", "is empty", "name the class"),
    "template: half a character": template("a {} \ud800", r"'a {} \ud800'", "half a character"),
    "template: 10,000 characters": template("a {}" + "x" * LONG, "10004 characters", "at most 300", "shorten it"),
    "template: nothing": template("", "''", "{} exactly once"),
    "template: twice": template("a {} and a {}", "'a {} and a {}'", "{} exactly once"),
    "template: number": template("a {0}", "'a {0}'", "{} exactly once"),
    "template: attribute": template("a {} {a.__class__}", "no other brace"),
    "template: braces in braces": template("a {{}}", "'a {{}}'", "no other brace"),
    "template: one brace": template("a {} }", "'a {} }'", "no other brace"),
}


@pytest.mark.parametrize("name", NAMES)
def test_bad_name(place: Workplace, name: str):
    """The name goes through prompts and shards as it is, or it is refused."""
    check(NAMES[name], place)
