"""Sets of units: only what is missing is made, once; the receipt names the units and always has the same bytes."""

import errno
import os
import threading
import time
from collections.abc import Sequence
from pathlib import Path

import pytest

from pipeline_lib import stages
from pipeline_lib.errors import UserError
from pipeline_lib.sets import make_set, member_paths, read_receipt
from pipeline_lib.store import Artifact, Store


def unit(number: int) -> Artifact:
    return Artifact(f"units/u{number}", {"stage": "units", "number": number}, ".json")


def set_of(*numbers: int) -> Artifact:
    units = tuple(unit(number) for number in numbers)
    spec = {"stage": "units", "set": "units", "members": [member.path for member in units]}
    return Artifact("units/sets/all", spec, ".json", members=units)


class Maker:
    """Writes units one by one and remembers which."""

    def __init__(self, store: Store, *, seconds: float = 0.0, fail_at: int | None = None):
        self.store, self.made, self._seconds, self._fail_at = store, [], seconds, fail_at  # type: ignore[var-annotated]

    def __call__(self, units: Sequence[Artifact]) -> None:
        for member in units:
            number = member.spec["number"]
            if number == self._fail_at:
                raise RuntimeError(f"unit {number} fails")
            time.sleep(self._seconds)
            with self.store.making(member) as path:
                path.write_text(str(number))
            self.made.append(number)


def test_only_missing_units_are_made(tmp_path: Path):
    """A set that shares units with another makes the rest; a set of the same units makes none."""
    store = Store(tmp_path)
    maker = Maker(store)
    assert make_set(set_of(1, 2), store, maker) == 2
    assert make_set(set_of(1, 2, 3), store, maker) == 1
    assert make_set(set_of(3, 1), store, maker) == 0
    assert maker.made == [1, 2, 3]


@pytest.mark.parametrize("damage", ["flipped bit", "deleted", "made anew"])
def test_units_are_read_only_if_they_are_those_of_the_receipt(tmp_path: Path, damage: str):
    """Damaged, lost, or other bytes with a record of their own: what was made before rests on others."""
    store, whole = Store(tmp_path), set_of(1, 2)
    make_set(whole, store, Maker(store))
    assert member_paths(store, [whole.path]) == [unit(1).path, unit(2).path]
    path = store.path(unit(2))
    if damage == "flipped bit":
        path.write_text("3")
        os.utime(path, ns=(0, 1))  # whatever the clock's steps are
    elif damage == "deleted":
        path.unlink()
    else:
        with store.making(unit(2)) as anew:
            anew.write_text("two")
    with pytest.raises(UserError, match=rf"(damaged|missing): {path}.*{store.path(whole)}.*verify .*--remove"):
        member_paths(store, [whole.path])


def test_receipt_lists_the_units_in_order_and_always_has_the_same_bytes(tmp_path: Path):
    """Whether units were made or found, in one go or two, the receipt is the same file."""
    contents = []
    for name, steps in (("a", [(1, 2, 3)]), ("b", [(3,), (1, 2), (1, 2, 3)])):
        store = Store(tmp_path / name)
        for numbers in steps:
            make_set(set_of(*numbers), store, Maker(store))
        contents.append(store.path(set_of(1, 2, 3)).read_bytes())
        receipt = read_receipt(store.path(set_of(1, 2, 3)))
        assert [member.path for member in receipt.members] == [unit(number).path for number in (1, 2, 3)]
        assert [member.sha256 for member in receipt.members] == [
            record.sha256 for number in (1, 2, 3) if (record := store.record(unit(number)))
        ]
    assert contents[0] == contents[1]


def test_member_paths_of_several_sets_in_order(tmp_path: Path):
    """What a stage reads is the units of its sets, one set after the other."""
    store = Store(tmp_path)
    sets = [set_of(2, 1), set_of(3)]
    for whole in sets:
        make_set(whole, store, Maker(store))
    assert member_paths(store, [whole.path for whole in sets]) == [unit(number).path for number in (2, 1, 3)]


def test_a_failure_keeps_finished_units_writes_no_receipt_and_leaves_no_lock(tmp_path: Path):
    """The next run makes the rest."""
    store = Store(tmp_path)
    with pytest.raises(RuntimeError, match="unit 2 fails"):
        make_set(set_of(1, 2, 3), store, Maker(store, fail_at=2))
    assert not store.path(set_of(1, 2, 3)).exists()
    maker = Maker(store)
    assert make_set(set_of(1, 2, 3), store, maker) == 2
    assert maker.made == [2, 3]


@pytest.mark.parametrize("damage", ["flipped", "truncated", "no record", "deleted"])
def test_a_damaged_unit_is_made_again(tmp_path: Path, damage: str):
    """The damaged one alone, whatever the damage."""
    store = Store(tmp_path)
    make_set(set_of(1, 2), store, Maker(store))
    path = store.path(unit(2))
    if damage == "flipped":
        path.write_text("3")
    elif damage == "truncated":
        path.write_text("")
    elif damage == "no record":
        path.with_name(path.name + ".record.json").unlink()
    else:
        path.unlink()
    maker = Maker(store)
    assert make_set(set_of(1, 2), store, maker) == 1
    assert maker.made == [2]
    assert path.read_text() == "2"


def test_jobs_side_by_side_make_each_unit_once_and_both_finish(tmp_path: Path):
    """Two jobs whose sets overlap crosswise neither wait for each other for ever nor do work twice."""
    store = Store(tmp_path)
    makers = [Maker(store, seconds=0.05), Maker(store, seconds=0.05)]
    sets = [set_of(1, 2, 3, 4), set_of(4, 3, 2, 5)]
    threads = [
        threading.Thread(target=make_set, args=(whole, store, maker)) for whole, maker in zip(sets, makers, strict=True)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(timeout=30)
        assert not thread.is_alive()
    assert sorted(makers[0].made + makers[1].made) == [1, 2, 3, 4, 5]
    assert all(store.is_complete(whole) for whole in sets)


def test_a_unit_that_another_job_fails_to_make_is_made_by_the_one_that_waits(tmp_path: Path):
    """Waiting ends when the other gives up, too."""
    store = Store(tmp_path)
    failing, working = Maker(store, seconds=0.2, fail_at=2), Maker(store)

    def fail() -> None:
        with pytest.raises(RuntimeError):
            make_set(set_of(1, 2), store, failing)

    thread = threading.Thread(target=fail)
    thread.start()
    time.sleep(0.05)
    make_set(set_of(1, 2), store, working)
    thread.join(timeout=30)
    assert not thread.is_alive()
    assert sorted(failing.made + working.made) == [1, 2]
    assert store.is_complete(set_of(1, 2))


# --- locks ------------------------------------------------------------------------------------------------------------


def lock_files(store: Store) -> list[tuple[str, ...]]:
    """Folder and name of every lock file there is; one is made when a unit is first locked."""
    return sorted(path.relative_to(store.root / ".locks").parts for path in store.root.rglob("*.lock"))


def test_what_may_wait_is_done_once_before_anything_is_locked_and_only_for_missing_units(tmp_path: Path):
    """Once for all rounds; a set of which nothing is missing needs no preparation."""
    store = Store(tmp_path)
    locks_seen = []

    def prepare() -> None:
        locks_seen.append(lock_files(store))

    assert make_set(set_of(1, 2, 3), store, Maker(store), units_per_round=1, prepare=prepare) == 3
    assert locks_seen == [[]]
    assert make_set(set_of(1, 2, 3), store, Maker(store), prepare=prepare) == 0
    assert locks_seen == [[]]


class ClaimedError(Exception):
    """Ends a stage where it claims its device."""


@pytest.mark.parametrize(
    ("stage", "spec"),
    [
        ("prompts", {"strategy": "language_enhancement"}),
        ("images", {"start": 0, "stop": 1}),
        ("embeddings", {"dtype": "float32"}),
        ("heads", {}),
    ],
)
def test_stages_claim_their_device_before_they_lock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, stage: str, spec: dict[str, str]
):
    """A job that waited for a GPU with units locked would keep those from getting on that have a GPU."""
    store = Store(tmp_path)
    location = {"device": "cuda", "batch_size": 1, "workers": 0, "model": "m", "pretrained": "", "revision": None}
    unit = Artifact("units/u", {"stage": stage, **spec}, ".parquet", location=location)
    whole = Artifact("units/sets/all", {"set": stage, "members": [unit.path]}, ".json", members=(unit,))

    def claimed(device: str) -> str:
        assert device == "cuda"
        assert not lock_files(store)
        raise ClaimedError

    monkeypatch.setattr(stages, "claimed", claimed)
    with pytest.raises(ClaimedError):
        stages.STAGES[stage](whole, store)


def test_a_store_without_locks_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """As on a network file system whose lock service is off."""

    def refuse(*_: object, **__: object) -> None:
        raise OSError(errno.ENOLCK, os.strerror(errno.ENOLCK))

    monkeypatch.setattr("filelock.FileLock.acquire", refuse)
    store = Store(tmp_path / "store")
    with pytest.raises(UserError, match=r"store/\S+\.lock cannot be locked: No locks available\. Name a store on"):
        make_set(set_of(1), store, Maker(store))


def test_lock_files_do_not_pile_up_in_one_folder(tmp_path: Path):
    """A file per unit, spread over the first two digits of the keys."""
    store = Store(tmp_path)
    locked: list[tuple[str, ...]] = []

    def make(units: Sequence[Artifact]) -> None:
        locked.extend(lock_files(store))
        Maker(store)(units)

    make_set(set_of(*range(20)), store, make)
    keys = sorted(unit(number).short_key for number in range(20))
    assert locked == [(key[:2], f"{key}.lock") for key in keys]
