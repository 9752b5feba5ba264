"""The store's promises: one key per content, no record that vouches for other bytes."""

import errno
import hashlib
import json
import os
import unicodedata
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline_lib.errors import UserError
from pipeline_lib.files import file_sha256, write_json
from pipeline_lib.store import (
    BESIDE,
    KEY_CHARACTERS,
    Artifact,
    Store,
    canonical_json,
    key_of,
    read_record,
    read_spec,
    record_path,
    result_record_path,
    slug,
)

json_values = st.recursive(
    st.none()
    | st.booleans()
    | st.integers(-(10**9), 10**9)
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(),
    lambda children: st.lists(children, max_size=3) | st.dictionaries(st.text(), children, max_size=3),
    max_leaves=8,
)


def artifact(spec: dict | None = None, *, name: str = "a", inputs: tuple[str, ...] = ()) -> Artifact:
    return Artifact(f"stage/{name}", {"stage": "stage", "version": 1, **(spec or {})}, ".json", inputs)


def make(store: Store, what: Artifact, text: str = "content") -> Path:
    with store.making(what, {"device": "cpu"}) as path:
        path.write_text(text)
    return store.path(what)


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- keys -------------------------------------------------------------------------------------------------------------


def test_key_is_the_sha256_of_the_canonical_json():
    """A key can be computed by anyone, without this package."""
    spec = {"b": [1, 2.5, None, True], "a": "é"}
    assert canonical_json(spec) == '{"a":"é","b":[1,2.5,null,true]}'
    assert key_of(spec) == hashlib.sha256('{"a":"é","b":[1,2.5,null,true]}'.encode()).hexdigest()


@given(st.dictionaries(st.text(), json_values, max_size=5))
def test_key_does_not_depend_on_the_order_of_keys(spec: dict):
    """Two specs with the same content have one key."""
    assert key_of(spec) == key_of(dict(reversed(spec.items())))


@given(json_values, json_values)
def test_key_changes_with_any_value(first: object, second: object):
    """Two specs have one key exactly if they have one JSON after Unicode normalisation."""
    texts = [json.dumps(value, sort_keys=True, ensure_ascii=False) for value in (first, second)]
    same = unicodedata.normalize("NFC", texts[0]) == unicodedata.normalize("NFC", texts[1])
    assert (key_of({"x": first}) == key_of({"x": second})) == same


def test_key_tells_types_and_nesting_apart():
    """1, 1.0, "1", true and [1] are five values."""
    values = [1, 1.0, "1", True, [1], {"1": 1}, None, "", 0, False]
    assert len({key_of({"x": value}) for value in values}) == len(values)


def test_key_is_one_for_all_unicode_forms():
    """A class name typed on another system (NFD) is the same class."""
    name = "Grüne Fläche é"
    forms = [unicodedata.normalize(form, name) for form in ("NFC", "NFD")]
    assert forms[0] != forms[1]
    assert key_of({"class_name": forms[0]}) == key_of({"class_name": forms[1]})


def test_not_a_number_has_no_key():
    """NaN equals nothing, so nothing can be addressed by it."""
    with pytest.raises(ValueError, match="not JSON compliant"):
        key_of({"x": float("nan")})


@given(st.text())
def test_slug_is_a_harmless_path_component(text: str):
    """Any text gives a short lower-case name: no separators, no dots, no shell characters, never empty."""
    assert 1 <= len(slug(text)) <= 40
    assert set(slug(text)) <= set("abcdefghijklmnopqrstuvwxyz0123456789_")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("../../etc/passwd", "etc_passwd"),
        ("Ankle Boot", "ankle_boot"),
        ("Fläche", "flache"),
        ("猫", "unnamed"),
        ("", "unnamed"),
    ],
)
def test_slug_is_readable(text: str, expected: str):
    """The slug keeps what a person recognises."""
    assert slug(text) == expected


def test_location_and_inputs_are_not_part_of_the_key():
    """Only the spec is addressed; where models lie and how large batches are is not."""
    spec = {"stage": "images", "seed": 1}
    plain = Artifact("images/a", spec, ".parquet")
    other = Artifact("images/a", spec, ".parquet", inputs=("x",), location={"batch_size": 7})
    assert plain.key == other.key
    assert plain.path == other.path == f"images/a/{plain.key[:KEY_CHARACTERS]}.parquet"


def test_spec_file_round_trip():
    """A spec file gives back the artifact with its units, path and location."""
    spec = {"stage": "images", "start": 0}
    unit = Artifact("images/c/recipe", spec, ".parquet", ("p",), location={"batch_size": 2}, file_name="000-002")
    whole = Artifact("images/sets/c", {"set": "images", "members": [unit.path]}, ".json", ("q",), members=(unit,))
    again = Artifact.from_json(json.loads(json.dumps(whole.as_json())))
    assert again.as_json() == whole.as_json()
    assert again.members[0].path == unit.path == "images/c/recipe/000-002.parquet"


def test_altered_spec_file_is_refused():
    """A spec whose content does not hash to its key is not made."""
    value = artifact({"seed": 1}).as_json()
    value["spec"]["seed"] = 2
    with pytest.raises(UserError, match=r"altered.*Delete it"):
        Artifact.from_json(value)


def test_altered_unit_in_a_spec_file_is_refused():
    """The same for a unit of a set."""
    unit = artifact({"seed": 1}, name="unit")
    whole = Artifact("stage/sets", {"set": "stage", "members": [unit.path]}, ".json", members=(unit,)).as_json()
    whole["members"][0]["spec"]["seed"] = 2
    with pytest.raises(UserError, match="altered"):
        Artifact.from_json(whole)


# --- records ----------------------------------------------------------------------------------------------------------


def test_record_holds_what_made_the_artifact(tmp_path: Path):
    """Spec, key, digest, size, inputs with their digests, versions, time and details."""
    store = Store(tmp_path)
    source = artifact({"a": 1}, name="source")
    make(store, source, "source")
    target = artifact({"b": 1}, inputs=(source.path,))
    path = make(store, target, "target")
    record = store.record(target)
    assert record is not None
    assert (record.key, record.path, record.spec) == (target.key, target.path, target.spec)
    assert (record.sha256, record.n_bytes) == (hashlib.sha256(b"target").hexdigest(), 6)
    assert file_sha256(path) == record.sha256
    assert [(i.path, i.key, i.sha256) for i in record.inputs] == [
        (source.path, source.key, hashlib.sha256(b"source").hexdigest())
    ]
    assert record.versions["python"]
    assert record.details == {"device": "cpu"}
    assert record.wall_time_s >= 0


def test_completeness_needs_the_record(tmp_path: Path):
    """Bytes without a record are not finished, whatever they are."""
    store, target = Store(tmp_path), artifact()
    path = make(store, target)
    assert store.is_complete(target)
    assert store.is_intact(target)
    record_path(path).unlink()
    assert path.exists()
    assert not store.is_complete(target)
    assert not store.is_intact(target)


@pytest.mark.parametrize("damage", ["", "{", '{"key": "x"}', "[]"])
def test_unreadable_record_is_no_record(tmp_path: Path, damage: str):
    """A damaged record vouches for nothing."""
    store, target = Store(tmp_path), artifact()
    record_path(make(store, target)).write_text(damage)
    assert store.record(target) is None
    assert not store.is_complete(target)


def test_a_bit_that_flips_anywhere_in_a_record_is_noticed(tmp_path: Path):
    """A record with another letter is still JSON; its own digest says that it is not the one that was written."""
    store, target = Store(tmp_path), artifact({"name": "é", "numbers": [0.1, 1e-7]})
    with store.making(target, {"by_number": {2: "a", 10: "b"}}) as path:
        path.write_text("content")
    file = record_path(store.path(target))
    whole = file.read_bytes()
    assert store.record(target) is not None
    for at in range(len(whole)):
        file.write_bytes(whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        found = store.record(target)
        assert found is None or whole[at : at + 1].isspace(), whole[:at]
    old = {name: value for name, value in json.loads(whole).items() if name != "check"}
    file.write_text(json.dumps(old))
    assert store.is_intact(target)  # records of the first versions have no digest


def test_a_record_at_another_place_is_not_of_the_store(tmp_path: Path):
    """A copy does not vouch for the original."""
    store, target = Store(tmp_path), artifact()
    make(store, target)
    copy = store.path(target).with_name("copy.json")
    copy.write_bytes(store.path(target).read_bytes())
    record_path(copy).write_bytes(record_path(store.path(target)).read_bytes())
    assert [record.path for record in store.records()] == [target.path]


def test_completeness_needs_size_and_key_and_intactness_the_digest(tmp_path: Path):
    """A truncated file is not complete; a flipped bit shows when hashed; another spec is not this one."""
    store, target = Store(tmp_path), artifact({"x": 1})
    path = make(store, target, "content")
    path.write_text("cOntent")
    assert store.is_complete(target)
    assert not store.is_intact(target)
    path.write_text("conten")
    assert not store.is_complete(target)
    make(store, target, "content")
    other = Artifact(target.folder, {**target.spec, "x": 2}, target.suffix, file_name=target.short_key)
    assert other.path == target.path
    assert not store.is_complete(other)
    path.unlink()
    assert not store.is_complete(target)


@pytest.mark.parametrize("at", ["write_json", "Path.replace"])
@pytest.mark.parametrize("old", [None, "old bytes", "new bytes"])
def test_wherever_making_ends_a_record_vouches_for_its_own_bytes_alone(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: str, old: str | None
):
    """Where the process dies before, or between record and content: no file without a record, none with another's."""
    store, target = Store(tmp_path), artifact()
    if old is not None:
        make(store, target, old)

    def die(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    if at == "write_json":
        monkeypatch.setattr("pipeline_lib.store.write_json", die)
    else:
        replace = Path.replace

        def die_at_content(self: Path, to: Path) -> None:
            if to == store.path(target):
                raise KeyboardInterrupt
            replace(self, to)

        monkeypatch.setattr(Path, "replace", die_at_content)
    with pytest.raises(KeyboardInterrupt):
        make(store, target, "new bytes")
    if old == "new bytes":  # made again as it was: never away
        assert store.is_intact(target)
    else:
        assert not store.path(target).exists()
        assert not store.is_complete(target)
    monkeypatch.undo()
    make(store, target, "new bytes")
    assert store.is_intact(target)


def test_failed_making_keeps_the_finished_artifact(tmp_path: Path):
    """An exception while making again leaves content and record as they were."""
    store, target = Store(tmp_path), artifact()
    make(store, target, "old")
    before = files(tmp_path)
    with pytest.raises(RuntimeError), store.making(target) as path:
        path.write_text("half")
        raise RuntimeError
    assert store.is_intact(target)
    assert store.path(target).read_text() == "old"
    assert files(tmp_path) == before


@pytest.mark.parametrize(("number", "words"), [(errno.ENOSPC, "MB are free"), (errno.EDQUOT, "the quota is used up")])
def test_a_full_disk_is_a_message_for_people(tmp_path: Path, number: int, words: str):
    """Where, how much is left, that nothing finished is lost, and how to go on; it is still an OSError."""
    store, target = Store(tmp_path / "store"), artifact()
    with pytest.raises(OSError, match=words) as found, store.making(target):
        raise OSError(number, os.strerror(number))
    assert isinstance(found.value, UserError)
    for text in (str(store.root), "What was finished stays", "pipeline_lib gc", "same command again"):
        assert text in str(found.value)
    assert not store.is_complete(target)


@pytest.mark.parametrize("fault", ["never made", "no record", "truncated"])
def test_making_from_an_unfinished_input_is_a_user_error(tmp_path: Path, fault: str):
    """The message names the input and the remedy; nothing is written."""
    store, source = Store(tmp_path), artifact(name="source")
    if fault != "never made":
        path = make(store, source)
        if fault == "no record":
            record_path(path).unlink()
        else:
            path.write_text("c")
    before = files(tmp_path)
    target = artifact({"x": 1}, inputs=(source.path,))
    with pytest.raises(UserError, match=r"stage/source/.*verify .*--remove"), store.making(target):
        pytest.fail("the block must not run")
    assert files(tmp_path) == before


@pytest.mark.parametrize("damage", ["flipped bit", "record damaged", "another's record"])
def test_making_from_a_damaged_input_is_a_user_error(tmp_path: Path, damage: str):
    """Of the same size, with whatever record: what is read is hashed first. The message has the one command."""
    store, source, other = Store(tmp_path / "my store"), artifact(name="source"), artifact(name="other")
    path = make(store, source)
    make(store, other, "another")
    target = artifact({"x": 1}, inputs=(source.path,))
    assert [entry.sha256 for entry in store.require(target)] == [file_sha256(path)]
    if damage == "flipped bit":
        path.write_text("contenT")
        os.utime(path, ns=(0, 1))  # whatever the clock's steps are
    elif damage == "record damaged":
        record_path(path).write_text(record_path(path).read_text().replace('"cpu"', '"gpu"'))
    else:
        path.write_text("another")
        record_path(path).write_bytes(record_path(store.path(other)).read_bytes())
    before = files(tmp_path)
    command = rf"python -m pipeline_lib verify --store '{store.root}' --remove"
    with pytest.raises(UserError, match=rf"(damaged|unfinished): {path} .*{command}"):
        store.require(target)
    with pytest.raises(UserError, match=command), store.making(target):
        raise AssertionError("not reached")
    assert files(tmp_path) == before


def test_an_input_is_hashed_once_by_a_process(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """However many artifacts are made from it; again when it has changed."""
    store, source = Store(tmp_path), artifact(name="source")
    path = make(store, source)
    hashed: list[Path] = []
    monkeypatch.setattr("pipeline_lib.files.file_sha256", lambda path: (hashed.append(path), file_sha256(path))[1])
    for number in range(3):
        store.require(artifact({"x": number}, inputs=(source.path,)))
    assert hashed == [path]
    os.utime(path, ns=(0, 1))
    store.require(artifact(inputs=(source.path,)))
    assert hashed == [path, path]


def test_a_result_is_current_while_it_is_whole(tmp_path: Path):
    """With all that comes with it; else it is made again with no `verify`."""
    store, out = Store(tmp_path / "store"), tmp_path / "results" / "table1.csv"
    table = artifact()
    assert not store.is_current(out, table)
    write_json(out.with_name("table1.md"), "text")
    with store.making(table, path=out) as path:
        path.write_text("a,b\n")
    assert store.is_current(out, table)
    assert not store.is_current(out, artifact({"x": 1}))
    for name in ("table1.csv", "table1.md"):
        content = out.with_name(name).read_bytes()
        for damaged in (content[:-1] + b"x", content[:-1], b""):
            out.with_name(name).write_bytes(damaged)
            assert not store.is_current(out, table)
        out.with_name(name).unlink()
        assert not store.is_current(out, table)
        out.with_name(name).write_bytes(content)
    assert store.is_current(out, table)


def test_results_keep_their_record_out_of_the_way(tmp_path: Path):
    """A table lies in results/, its record in results/.records/, and neither in the store."""
    store, table = Store(tmp_path / "store"), artifact()
    out = tmp_path / "results" / "table1.csv"
    with store.making(table, path=out) as path:
        path.write_text("a,b\n")
    assert files(tmp_path) == {"results/table1.csv", "results/.records/table1.csv.record.json"}
    assert json.loads(result_record_path(out).read_text())["sha256"] == file_sha256(out)


def test_the_record_of_a_result_vouches_for_what_comes_with_it(tmp_path: Path):
    """The Markdown, numbers and pictures of the same name; not other files, and nothing beside artifacts."""
    store, table = Store(tmp_path / "store"), artifact()
    out = tmp_path / "results" / "table1.csv"
    for name in ("table1.md", "table1.svg", "table1.txt", "table2.md"):
        write_json(out.with_name(name), {"name": name})
    with store.making(table, {"n": 1}, path=out) as path:
        path.write_text("a,b\n")
    expected = {name: file_sha256(out.with_name(name)) for name in ("table1.md", "table1.svg")}
    assert json.loads(result_record_path(out).read_text())["details"] == {"n": 1, BESIDE: expected}
    store.path(table).parent.mkdir(parents=True)
    store.path(table).with_suffix(".md").write_text("not of this artifact")
    make(store, table)
    assert store.record(table).details == {"device": "cpu"}


def test_a_result_that_comes_out_as_it_was_keeps_its_record(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Made again at another time, with another version of a library: nothing that git would show."""
    store, source = Store(tmp_path / "store"), artifact(name="source")
    table, out = artifact({"b": 2, "a": 1}, inputs=(source.path,)), tmp_path / "results" / "table1.csv"
    out.parent.mkdir()

    def result(content: str = "1\n", beside: str = "| 1 |", source_content: str = "content", table: Artifact = table):
        make(store, source, source_content)
        out.with_suffix(".md").write_text(beside)
        with store.making(table, {"n": 1}, path=out) as path:
            path.write_text(content)
        record = read_record(out)
        assert record is not None and record.sha256 == file_sha256(out)
        assert [entry.sha256 for entry in record.inputs] == [file_sha256(store.path(source))]
        assert record.details[BESIDE] == {"table1.md": file_sha256(out.with_suffix(".md"))}
        return result_record_path(out).read_bytes()

    first = result()
    monkeypatch.setattr("pipeline_lib.store.time.strftime", lambda *_: "2030-01-01T00:00:00Z")
    monkeypatch.setattr("pipeline_lib.store.library_versions", lambda: {"python": "4.0"})
    assert result() == first
    for change in ({"content": "2\n"}, {"beside": "| 2 |"}, {"source_content": "other"}):
        assert b"2030" in (changed := result(**change)), change
        assert result() != changed  # and back: it tells of this making
        result_record_path(out).write_bytes(first)
    other = artifact({"a": 2}, inputs=(source.path,))
    assert json.loads(result(table=other))["key"] == other.key
    result_record_path(out).write_bytes(first.replace(b'"n": 1', b'"n": 3'))  # damaged
    assert b"2030" in result()


def test_specs_are_written_again_only_when_they_differ(tmp_path: Path):
    """Planning does not touch spec files that are right; a new batch size reaches them although the key is the same."""
    store = Store(tmp_path)
    first = Artifact("images/a", {"stage": "images"}, ".parquet", location={"batch_size": 1})
    store.write_specs([first])
    before = store.spec_path(first).stat().st_mtime_ns
    store.write_specs([first])
    assert store.spec_path(first).stat().st_mtime_ns == before
    store.write_specs([Artifact("images/a", {"stage": "images"}, ".parquet", location={"batch_size": 2})])
    assert json.loads(store.spec_path(first).read_text())["location"] == {"batch_size": 2}


def test_damaged_spec_file_is_written_again(tmp_path: Path):
    """Half a spec file, left by a power cut, does not stop the next run."""
    store, target = Store(tmp_path), artifact()
    store.write_specs([target])
    store.spec_path(target).write_text('{"key": ')
    with pytest.raises(UserError, match=r"is damaged.*next `snakemake` run writes it again"):
        read_spec(store.spec_path(target))
    store.write_specs([target])
    assert read_spec(store.spec_path(target)).as_json() == target.as_json()


def test_any_flipped_bit_in_a_spec_file_is_noticed(tmp_path: Path):
    """Also where it is in no key: an input, a model's place, how large batches are."""
    store = Store(tmp_path)
    target = Artifact("images/a", {"stage": "images"}, ".parquet", ("x",), location={"batch_size": 1})
    store.write_specs([target])
    path = store.spec_path(target)
    content = path.read_bytes()
    for position in range(len(content) - 1):
        flipped = bytearray(content)
        flipped[position] ^= 1 << position % 8
        path.write_bytes(bytes(flipped))
        try:
            read = read_spec(path)
        except UserError:
            continue
        assert read.as_json() == target.as_json(), position  # white space


def test_remove_takes_the_record_too(tmp_path: Path):
    """After a removal there is neither content nor record; removing what is not there is no error."""
    store, target = Store(tmp_path), artifact()
    make(store, target)
    store.remove(target.path)
    store.remove(target.path)
    assert files(tmp_path) == set()


def test_records_lists_every_artifact_of_the_store(tmp_path: Path):
    """What was made can be listed, damaged records left out."""
    store = Store(tmp_path)
    made = [artifact({"i": i}, name=f"n{i}") for i in range(3)]
    for what in made:
        make(store, what)
    record_path(store.path(made[0])).write_text("damaged")
    assert {record.path for record in store.records()} == {what.path for what in made[1:]}
