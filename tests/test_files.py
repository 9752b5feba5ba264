"""Whole files or none, whoever dies while writing them; and what is said where there is no room."""

import errno
import fcntl
import os
import signal
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline_lib.files import StorageError, atomic_path, remove_abandoned, storage_errors, write_json


def files(folder: Path) -> set[str]:
    return {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}


# --- atomic writing ---------------------------------------------------------------------------------------------------


def test_atomic_path_replaces_whole_files(tmp_path: Path):
    """Until the block ends a reader sees the old file, then the new one, and nothing is left over."""
    target = tmp_path / "deep" / "file.txt"
    for content in ("old", "new"):
        with atomic_path(target) as temporary:
            temporary.write_text(content)
            assert temporary.parent == target.parent
            assert not target.exists() or target.read_text() == "old"
        assert target.read_text() == content
    assert files(tmp_path) == {"deep/file.txt"}


@pytest.mark.parametrize("error", [RuntimeError("x"), KeyboardInterrupt(), OSError(errno.ENOSPC, "No space left")])
def test_atomic_path_failure_leaves_nothing_and_keeps_the_old_file(tmp_path: Path, error: BaseException):
    """A failed write, a full disk or an interrupt changes nothing."""
    target = tmp_path / "file.txt"
    target.write_text("old")
    with pytest.raises(type(error)), atomic_path(target) as temporary:
        temporary.write_text("half")
        raise error
    assert target.read_text() == "old"
    assert files(tmp_path) == {"file.txt"}


def test_atomic_path_takes_a_name_as_long_as_the_file_system_allows(tmp_path: Path):
    """The temporary name is not longer than the name itself may be."""
    target = tmp_path / ("x" * 255)
    with atomic_path(target) as temporary:
        temporary.write_text("content")
    assert files(tmp_path) == {target.name}


def test_written_files_are_readable_by_others(tmp_path: Path):
    """Files have the permissions of the umask, not the private ones of a temporary file."""
    plain = tmp_path / "plain"
    plain.touch()
    write_json(tmp_path / "a.json", {})
    assert (tmp_path / "a.json").stat().st_mode == plain.stat().st_mode


# Writes half a file at the path of its argument, says so, and waits.
WRITER = """
import sys, time
from pathlib import Path
from pipeline_lib.files import atomic_path
with atomic_path(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    print("written", flush=True)
    time.sleep(60)
"""


def test_content_is_on_the_disk_before_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """After a power cut a name stands for the whole content; and once it is made it is still there after one."""
    events = []
    replace, fsync = Path.replace, os.fsync

    def noted_fsync(handle: int) -> None:
        status = os.fstat(handle)
        events.append("folder synced" if stat.S_ISDIR(status.st_mode) else f"{status.st_size} bytes synced")
        fsync(handle)

    def noted_replace(self: Path, target: Path) -> Path:
        events.append("renamed")
        return replace(self, target)

    monkeypatch.setattr(os, "fsync", noted_fsync)
    monkeypatch.setattr(Path, "replace", noted_replace)
    with atomic_path(tmp_path / "artifact") as path:
        path.write_bytes(b"content")
    assert events == ["7 bytes synced", "renamed", "folder synced"]


def test_what_a_killed_process_left_is_removed_and_what_a_living_one_writes_is_not(tmp_path: Path):
    """In every folder, links to other disks included; files of other origin stay."""
    folder, disk = tmp_path / "store", tmp_path / "disk"
    (folder / "stage").mkdir(parents=True)
    disk.mkdir()
    (folder / "linked").symlink_to(disk)
    others = [folder / "notes.tmp", folder / "stage" / ".hidden"]
    for path in others:
        path.write_text("mine")
    places = [folder / "top.json", folder / "stage" / "a.json", folder / "linked" / "b.json"]
    processes = [
        subprocess.Popen([sys.executable, "-c", WRITER, str(place)], stdout=subprocess.PIPE) for place in places
    ]
    try:
        for process in processes:
            assert process.stdout is not None
            assert process.stdout.readline() == b"written\n"
        assert len(list(tmp_path.rglob(".*.tmp"))) == 3
        assert remove_abandoned(folder) == []
        for process, place in zip(processes, places, strict=True):
            process.send_signal(signal.SIGKILL)
            process.wait()
            assert [path.parent for path in remove_abandoned(folder)] == [place.parent]
    finally:
        for process in processes:
            process.kill()
            process.communicate()
    assert all(path.exists() for path in others)
    assert files(folder) | files(disk) == {"notes.tmp", "stage/.hidden"}


def test_abandoned_files_of_no_folder_are_none(tmp_path: Path):
    """Before the first run there is no store."""
    assert remove_abandoned(tmp_path / "none") == []


def test_a_file_taken_for_abandoned_before_it_was_locked_is_made_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Between its making and its locking another process may remove it: nothing is lost."""
    taken = []
    lock = fcntl.flock

    def late(handle: int, how: int) -> None:
        if not taken:
            taken.extend(tmp_path.glob(".*.tmp"))
            taken[0].unlink()
        lock(handle, how)

    monkeypatch.setattr("fcntl.flock", late)
    with atomic_path(tmp_path / "file.txt") as temporary:
        assert temporary.exists()
        temporary.write_text("content")
    assert len(taken) == 1
    assert (tmp_path / "file.txt").read_text() == "content"


# --- places that cannot be written to ---------------------------------------------------------------------------------


def test_the_disk_that_is_full_is_named(tmp_path: Path):
    """Not always the store's: a temporary folder may be full, too."""
    other = tmp_path / "other"
    other.mkdir()
    with pytest.raises(StorageError, match=f"No space left in {other}"), storage_errors(tmp_path / "store"):
        raise OSError(errno.ENOSPC, "No space left on device", str(other / "deep" / "file"))


def test_only_what_cannot_be_written_below_the_folder_is_reported_so(tmp_path: Path):
    """An image of a data set that may not be read, or a file that is not there, is another matter."""
    store = tmp_path / "store"
    with pytest.raises(StorageError, match="cannot be written: Read-only"), storage_errors(store):
        raise OSError(errno.EROFS, "Read-only file system", str(store / "a"))
    for error in (
        PermissionError(errno.EACCES, "Permission denied", str(tmp_path / "image.png")),
        FileNotFoundError(errno.ENOENT, "No such file", str(store / "a")),
        OSError(errno.EIO, "Input/output error"),
    ):
        with pytest.raises(type(error)) as found, storage_errors(store):
            raise error
        assert not isinstance(found.value, StorageError)
