"""DVC's remotes: what is pushed comes back whole in a clone, from a folder and from S3, whatever breaks on the way.

The repository's dvc.yaml, Makefile and workflow, on a project of random bytes (dvc_project.py).
"""

import hashlib
import os
import shutil
import signal
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import dvc_project
import pytest
import yaml
from dvc_project import LARGE, Clone, finish, made_from, make_project
from s3_server import S3Server, Wire, s3_server

from pipeline_lib.store import RECORD_SUFFIX

pytest.importorskip("dvc")
pytest.importorskip("snakemake")
NOTHING_TO_DO = "Nothing to be done (all requested files are present and up to date)."
DEADLINE = 120  # seconds, for what takes one
IMAGES = "store/images"


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Clone:
    """The finished project, pushed to the folder that .dvc/config names. Tests work on copies."""
    project = make_project(tmp_path_factory.mktemp("dvc") / "project")
    project.do("dvc", "push")
    return project


@pytest.fixture
def project(finished: Clone, tmp_path: Path) -> Clone:
    """A copy of the finished project and its remote."""
    shutil.copytree(finished.folder.parent, tmp_path / "copy", symlinks=True)
    return Clone(tmp_path / "copy" / finished.folder.name)


@pytest.fixture(scope="module")
def server() -> Iterator[S3Server]:
    with s3_server() as running:
        yield running


@pytest.fixture
def wire(server: S3Server) -> Iterator[Wire]:
    wire = Wire(server.port)
    yield wire
    wire.close()


def use_bucket(clone: Clone, bucket: str, port: int) -> None:
    """A bucket as default remote of this clone alone."""
    (clone.folder / ".dvc" / "config.local").write_text(
        f"[core]\n    remote = bucket\n"
        f"['remote \"bucket\"']\n    url = s3://{bucket}/images\n    endpointurl = http://127.0.0.1:{port}\n"
    )


def restored(clone: Clone, tracked: dict[str, bytes]) -> None:
    """`make restore`, which must end well, bring just these files and say that they are whole."""
    done = clone.make("restore")
    assert done.returncode == 0, done.stdout[-5000:]
    assert clone.tracked() == tracked
    assert " 0 damaged, 0 made from them" in done.stdout


def pulled(clone: Clone, tracked: dict[str, bytes]) -> None:
    """`dvc pull`, which must end well and bring just these files."""
    clone.do("dvc", "pull")
    assert clone.tracked() == tracked


def wait_until(condition: Callable[[], bool], process: subprocess.Popen[str]) -> None:
    """Until the condition holds or the process has ended: either may come first."""
    deadline = time.monotonic() + DEADLINE
    while process.poll() is None and not condition():
        assert time.monotonic() < deadline, "neither has come"
        time.sleep(0.002)


def kill(process: subprocess.Popen[str]) -> int:
    """kill -9 of the whole process group, if it is still there; returns how it ended."""
    if process.poll() is None:
        os.killpg(process.pid, signal.SIGKILL)
    process.communicate()
    return process.returncode


def n_files(folder: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(folder))


# --- whole ------------------------------------------------------------------------------------------------------------


def test_a_clone_is_restored_from_a_folder(finished: Clone, tmp_path: Path):
    """All files are there, and neither Snakemake nor DVC has anything to do; git sees no change."""
    clone = finished.clone("restored")
    restored(clone, finished.tracked())
    assert NOTHING_TO_DO in clone.do("snakemake", "--dry-run")
    assert clone.do("dvc", "repro").endswith("Data and pipelines are up to date.\n")
    assert clone.do("git", "status", "--short") == ""


def test_a_clone_is_restored_from_s3(project: Clone, server: S3Server):
    """The same from a bucket, with the README's commands; a clone has the remote from git."""
    server.create_bucket("whole")
    project.do("dvc", "remote", "add", "--default", "bucket", "s3://whole/images")
    project.do("dvc", "remote", "modify", "bucket", "endpointurl", f"http://127.0.0.1:{server.port}")
    project.commit("images in a bucket")
    shutil.rmtree(project.remote)
    project.do("dvc", "push")
    assert server.damaged("whole") == []
    clone = project.clone("clone")
    restored(clone, project.tracked())


# --- a part -----------------------------------------------------------------------------------------------------------


def artifacts(clone: Clone) -> set[str]:
    """Paths of the artifacts that are there, each with its record."""
    names = {path.removeprefix("store/") for path in clone.tracked() if path.startswith("store/")}
    found = {name for name in names if not name.endswith(RECORD_SUFFIX)}
    assert names == found | {f"{name}{RECORD_SUFFIX}" for name in found}
    return found


def test_the_images_of_one_table(finished: Clone):
    """What `files` prints is pulled, and it is what the records say that the table was made from."""
    clone = finished.clone("images")
    pull = "python -m pipeline_lib files results/table1.csv --stage images | xargs --no-run-if-empty dvc pull"
    clone.do("bash", "-o", "pipefail", "-c", pull)
    wanted = {path for path in made_from(finished.folder, "results/table1.csv") if path.startswith("images/")}
    assert 0 < len(wanted) < len([path for path in artifacts(finished) if path.startswith("images/")]) / 2
    assert {path for path in artifacts(clone) if "/sets/" not in path} == wanted
    assert all(clone.tracked()[name] == finished.tracked()[name] for name in clone.tracked())


def test_all_that_one_table_rests_on(finished: Clone):
    """With it Snakemake has nothing to do for the table."""
    clone = finished.clone("table")
    listed = clone.do("python", "-m", "pipeline_lib", "files", "results/table1.csv").splitlines()
    clone.do("dvc", "pull", *listed)
    assert artifacts(clone) < artifacts(finished)
    clone.do("snakemake", "--touch", "--quiet", "all", "--", "results/table1.csv")
    assert NOTHING_TO_DO in clone.do("snakemake", "--dry-run", "--", "results/table1.csv")


# --- broken on the way ------------------------------------------------------------------------------------------------


def push_again(project: Clone) -> None:
    """The same command after a push that was killed.

    In a folder the kill may have met DVC just as it tried to link a listing: an empty one is left, which DVC names and
    `objects --remove` takes away.
    """
    done = project.try_("dvc", "push")
    if done.returncode:
        assert ".dir is corrupted" in done.stdout
        project.do("python", "-m", "pipeline_lib", "objects", "--remove", str(project.remote))
        project.do("dvc", "push")


def test_killed_transfers_to_and_from_a_folder_go_on(project: Clone):
    """A push and a pull are killed at two moments each; the same commands then end with all files whole."""
    shutil.rmtree(project.remote)
    ends = []
    for n in (1, 100):
        push = project.start("dvc", "push")
        wait_until(lambda n=n: n_files(project.remote) >= n, push)
        ends.append(kill(push))
    push_again(project)
    clone = project.clone("clone")
    for folder, n in ((".dvc/cache", 100), ("store", 1)):
        pull = clone.start("dvc", "pull")
        wait_until(lambda folder=folder, n=n: n_files(clone.folder / folder) >= n, pull)
        ends.append(kill(pull))
    assert -signal.SIGKILL in ends
    pulled(clone, project.tracked())


def test_transfers_to_and_from_s3_that_stop_inside_an_object_go_on(project: Clone, server: S3Server, wire: Wire):
    """The process is killed there, then the connection is closed; the same command goes on to the end."""
    server.create_bucket("stopped")
    use_bucket(project, "stopped", wire.port)
    shutil.rmtree(project.remote)
    for hang_up in (False, True):
        stop_inside_an_object(project, "push", wire, hang_up=hang_up)
        assert server.damaged("stopped") == []
    project.do("dvc", "push", IMAGES)
    assert server.damaged("stopped") == []
    clone = project.clone("clone")
    use_bucket(clone, "stopped", wire.port)
    for hang_up in (False, True):
        stop_inside_an_object(clone, "pull", wire, hang_up=hang_up)
    clone.do("dvc", "pull", IMAGES)
    images = {path: content for path, content in project.tracked().items() if path.startswith(IMAGES)}
    assert {path: content for path, content in clone.tracked().items() if path.startswith(IMAGES)} == images


def stop_inside_an_object(clone: Clone, command: str, wire: Wire, *, hang_up: bool) -> None:
    """`dvc push` or `dvc pull` over a wire that stops inside a large object: the process is killed, or it is cut off.

    One that is cut off may end well all the same: the S3 client asks for the rest of an object.
    """
    wire.break_after(LARGE // 2, hang_up=hang_up)  # all that is small together is less
    process = clone.start("dvc", command, IMAGES)
    wait_until(wire.broken.is_set, process)
    assert wire.broken.is_set()
    if hang_up:
        process.communicate(timeout=DEADLINE)
    kill(process)
    wire.mend()


def test_two_clones_push_to_one_folder_at_once(project: Clone):
    """Both, and afterwards all is there."""
    other = Clone(project.folder.with_name("other"))
    shutil.copytree(project.folder, other.folder, symlinks=True)
    shutil.rmtree(project.remote)
    for push in [clone.start("dvc", "push") for clone in (project, other)]:
        printed, _ = push.communicate(timeout=DEADLINE)
        assert push.returncode == 0, printed
    pulled(project.clone("clone"), project.tracked())


# --- damaged ----------------------------------------------------------------------------------------------------------


def test_a_file_that_the_remote_holds_in_part_is_found_and_mended(project: Clone):
    """DVC takes it for whole; `make restore` does not, names it, and the README's commands bring it whole."""
    shard = next(name for name, content in project.tracked().items() if len(content) == LARGE)
    object_ = object_of(project, shard)
    object_.chmod(0o644)
    os.truncate(object_, 1000)
    object_.chmod(0o444)
    clone = project.clone("clone")
    done = clone.make("restore")
    assert done.returncode != 0
    assert f"damaged: {shard} has 1000 bytes" in done.stdout
    assert "README" in done.stdout
    printed = clone.do("python", "-m", "pipeline_lib", "objects", "--remove", "../synthetic-images-dvc", ".dvc/cache")
    assert f"damaged: ../synthetic-images-dvc/{object_.relative_to(clone.remote)}" in printed
    project.do("dvc", "push")  # this one has the images
    clone.do("python", "-m", "pipeline_lib", "verify", "--remove")
    clone.do("git", "checkout", "--", "results")
    pulled(clone, project.tracked())


def test_an_empty_listing_in_the_remote_is_mended(project: Clone):
    """What a push to a folder can leave that is killed as it tries to link a listing: no push works then."""
    listing = next(project.remote.glob("files/md5/*/*.dir"))
    listing.unlink()
    listing.touch()
    done = project.try_("dvc", "push")
    assert done.returncode != 0
    assert f"{listing.parent.name}{listing.name} is corrupted" in done.stdout
    push_again(project)
    pulled(project.clone("clone"), project.tracked())


def object_of(project: Clone, name: str) -> Path:
    """DVC's object of a tracked file in the folder remote."""
    md5 = hashlib.md5((project.folder / name).read_bytes()).hexdigest()
    return project.remote / "files" / "md5" / md5[:2] / md5[2:]


# --- not there --------------------------------------------------------------------------------------------------------


def test_a_remote_that_is_not_there_is_named(project: Clone):
    """`make restore` says which folder it looked into."""
    shutil.rmtree(project.remote)
    done = project.clone("clone").make("restore")
    assert done.returncode != 0
    assert str(project.remote) in done.stdout
    assert "README" in done.stdout


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("no server", "Could not connect to the endpoint URL"),
        ("no credentials", "Unable to locate credentials"),
    ],
)
def test_a_bucket_that_cannot_be_used(
    finished: Clone, server: S3Server, fault: str, message: str, monkeypatch: pytest.MonkeyPatch
):
    """DVC's message comes through, the remote is named, and the run ends there."""
    clone = finished.clone(fault.replace(" ", "_"))
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # the port is taken, and nobody listens
        use_bucket(clone, "none", nobody.getsockname()[1] if fault == "no server" else server.port)
        if fault == "no credentials":
            monkeypatch.setattr(dvc_project, "CREDENTIALS", {})
        done = clone.make("restore")
    assert done.returncode != 0
    assert message in done.stdout
    assert "s3://none/images" in done.stdout
    assert "README" in done.stdout
    assert not (clone.folder / "store" / "images").exists()


# --- versions ---------------------------------------------------------------------------------------------------------


def test_an_older_commit_is_restored_and_the_newer_one_again(project: Clone):
    """Each with what it had, and for the older one nothing to do either."""
    older = project.tracked()
    params = yaml.safe_load((project.folder / "params.yaml").read_text(encoding="utf-8"))
    finish(project.folder, params | {"seed": 1})
    project.do("dvc", "commit", "--force", "--quiet")
    project.commit("another seed")
    project.do("dvc", "push")
    newer = project.tracked()
    clone = project.clone("clone")
    clone.do("git", "checkout", "--quiet", "HEAD~1")
    restored(clone, older)
    assert NOTHING_TO_DO in clone.do("snakemake", "--dry-run")
    clone.do("git", "checkout", "--quiet", "main")
    restored(clone, newer)
