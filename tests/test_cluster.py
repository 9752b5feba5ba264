"""The profiles for clusters, in front of a real Slurm on this machine: what is queued, killed and preempted there ends
with the same bytes as a run without a queue.

The profiles are used as they stand, with the changes that a cluster of one node and no accounting database needs.
"""

import contextlib
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import cluster
import pytest
import yaml
from missing import missing
from small_project import FOLDERS, REPOSITORY, changed, draw_shapes, planned, small_params
from workflow_project import STORE, Project

from pipeline_lib.plan import Plan

pytest.importorskip("snakemake")
PROFILES = REPOSITORY / "workflow" / "profiles"
IMPATIENT = REPOSITORY / "tests" / "impatient_snakemake.py"
TABLE1 = "results/table1.csv"
TABLE6 = "results/table6.csv"  # of images that pass through an encoder with batch norm
STATUS = PROFILES / "cluster-generic" / "status.sh"


def profile(name: str) -> dict[str, Any]:
    """The content of a profile's config.yaml."""
    content: dict[str, Any] = yaml.safe_load((PROFILES / name / "config.yaml").read_text(encoding="utf-8"))
    return content


# --- what the profiles say --------------------------------------------------------------------------------------------


def rules() -> dict[str, str]:
    """The text of each rule that makes an artifact or a result, by name."""
    found = {}
    for path in (REPOSITORY / "workflow" / "rules").glob("*.smk"):
        if path.stem == "miniature":  # trains the small models that come with the repository: not a study's
            continue
        for text in re.split(r"\n(?=rule )", path.read_text(encoding="utf-8"))[1:]:
            if "shell:" in text:
                found[text.split(":")[0].removeprefix("rule ")] = text
    return found


@pytest.mark.parametrize("name", ["slurm", "cluster-generic"])
def test_each_rule_that_loads_a_model_says_what_it_needs(name: str):
    """Memory and time of their own, more on each attempt; the small ones are grouped, those with models never."""
    content = profile(name)
    with_model = {rule for rule, text in rules().items() if "gpu=GPU" in text}
    assert with_model == {"prompts", "images", "embeddings", "heads", "classifiers", "few_shot", "batch_norm"}
    assert set(content["set-resources"]) == with_model | {"real_images"}
    for needs in (content["default-resources"], *content["set-resources"].values()):
        for key in ("mem_mb", "runtime"):
            assert re.fullmatch(r"[1-9]\d* \* attempt", needs[key])
    assert content["retries"] >= 2
    assert set(content["groups"]) <= set(rules()) - with_model
    assert set(content["group-components"]) == set(content["groups"].values())


def test_the_cluster_profiles_ask_for_the_same():
    """What both profiles can say they say alike."""
    slurm, generic = profile("slurm"), profile("cluster-generic")
    generic["default-resources"].pop("gpu")  # for {resources.gpu} of rules that have none
    shared = slurm.keys() & generic.keys() - {"executor"}
    assert {"jobs", "retries", "default-resources", "set-resources", "groups", "latency-wait"} <= shared
    assert {key: slurm[key] for key in shared} == {key: generic[key] for key in shared}


@pytest.mark.parametrize("name", ["slurm", "cluster-generic", "gpu"])
def test_the_default_profile_takes_nothing_from_another(name: str):
    """It is read besides every other profile and wins, key by key: it must not say something else."""
    default, other = profile("default"), profile(name)
    assert {key: other[key] for key in default.keys() & other.keys()} == {
        key: default[key] for key in default.keys() & other.keys()
    }
    assert (
        default.keys() & {"cores", "executor", "jobs", "retries", "resources", "default-resources", "set-resources"}
        == set()
    )


# --- how a job ended, for schedulers in general -----------------------------------------------------------------------

QSTAT = """\
Job id              Name             Username        Time Use S Queue
------------------- ---------------- --------------- -------- - ---------------
11.server           snakejob         somebody        00:00:00 Q main
112.server          snakejob         somebody        00:00:00 R main
13.server           snakejob         somebody        00:00:00 C main
14.server           snakejob         somebody        00:00:00 F main
"""


@pytest.mark.parametrize(
    ("number", "ended", "listed", "answer"),
    [
        ("11.server", None, QSTAT, "running"),
        ("112.server", None, QSTAT, "running"),
        ("12.server", None, QSTAT, "failed"),  # not 112
        ("13.server", None, QSTAT, "failed"),  # completed, and said nothing: killed
        ("14.server", None, QSTAT, "failed"),
        ("11.server", "0", QSTAT, "success"),  # its own word is the last
        ("15.server", "0", QSTAT, "success"),
        ("15.server", "1", QSTAT, "failed"),
        ("15", "", "15\n", "running"),  # half-written
        ("15", None, "11\n15\n", "running"),  # squeue
        ("15", None, "", "failed"),
    ],
)
def test_how_a_job_ended(tmp_path: Path, number: str, ended: str | None, listed: str, answer: str):
    """From the exit status that the job left, else from the scheduler's list."""
    folder = tmp_path / ".snakemake" / "cluster"
    folder.mkdir(parents=True)
    (tmp_path / "listed").write_text(listed)
    if ended is not None:
        (folder / f"{number.removesuffix('.server')}.ended").write_text(f"{ended}\n" if ended else "")
    assert asked(tmp_path, number, "cat listed") == answer


def test_a_scheduler_that_does_not_answer_has_not_lost_a_job(tmp_path: Path):
    """An error of the listing command is not the end of the job."""
    assert asked(tmp_path, "11", "echo 12; false") == "running"


def asked(folder: Path, number: str, listing: str) -> str:
    """What status.sh prints, where `listing` is the command that lists jobs."""
    environment = os.environ | {"CLUSTER_JOBS": listing, "CLUSTER_SECONDS": "0"}
    done = subprocess.run(
        ["sh", str(STATUS), number], cwd=folder, env=environment, capture_output=True, text=True, check=True
    )
    return done.stdout.strip()


# --- a real cluster ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("says", "tries"), [("E: Could not get lock /var/lib/apt/lists/lock.", 3), ("E: Unable to fetch some archives", 1)]
)
def test_the_installation_waits_for_its_turn(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, says: str, tries: int):
    """Another apt-get is waited for; what will not pass is said at once."""
    program = tmp_path / "apt-get"
    program.write_text(
        f"#!/bin/sh\necho \"$@\" >> {tmp_path}/calls\n[ -e {tmp_path}/free ] || {{ echo '{says}' >&2; exit 100; }}"
    )
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.defpath}")
    waits: list[float] = []

    def wait(seconds: float) -> None:
        waits.append(seconds)
        if len(waits) == 2:
            (tmp_path / "free").touch()

    monkeypatch.setattr(time, "sleep", wait)
    with contextlib.nullcontext() if tries > 1 else pytest.raises(cluster.NoClusterError, match=says):
        cluster.apt_get("update")
    assert (tmp_path / "calls").read_text() == tries * "update\n"


@pytest.fixture(scope="module")
def slurm() -> Iterator[None]:
    """A running Slurm. Where CI is set there must be one."""
    with contextlib.ExitStack() as running:
        try:
            running.enter_context(cluster.slurm())
        except cluster.NoClusterError as error:
            missing(str(error))
        yield


def site_profile(name: str, folder: Path, **changes: str) -> Path:
    """A copy of a profile, changed as its notes say: lines that begin with #: taken in, settings written anew."""
    copy = Path(shutil.copytree(PROFILES / name, folder / name))
    text = (copy / "config.yaml").read_text(encoding="utf-8")
    for key, value in changes.items():
        setting = key.replace("__", "-")
        text, found = re.subn(rf"^( *)(?:#: )?{setting}: .*", rf"\g<1>{setting}: {value}", text, flags=re.MULTILINE)
        assert found == 1, key
    (copy / "config.yaml").write_text(text, encoding="utf-8")
    return copy


@pytest.fixture(scope="module")
def slurm_profile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return site_profile(
        "slurm",
        tmp_path_factory.mktemp("site"),
        slurm_partition="main",
        slurm__status__command="squeue",
        slurm__init__seconds__before__status__checks="1",
        seconds__between__status__checks="1",
    )


@pytest.fixture(scope="module")
def params(tiny_models: dict[str, Any]) -> dict[str, Any]:
    """Table 1 and few-shot recognition with small settings."""
    params = small_params(tiny_models, Path("shapes"), STORE)
    params["own_datasets"]["shapes"]["train_folder"] = "train"
    one_shot = {"shots": [1], "real_guidance__starts": [0.5], "coop__epochs": [2], "datasets": ["shapes"]}
    few_shot = {f"few_shot__{key}": value for key, value in one_shot.items()}
    return changed(params, prompts__strategy="basic", embeddings__shards_per_job=100, **few_shot)


def new_project(folder: Path, params: dict[str, Any]) -> Project:
    draw_shapes(folder / "shapes", 5, folders=FOLDERS)
    draw_shapes(folder / "train", 5, seed=1, folders=FOLDERS)
    return Project(folder, params, program=(str(IMPATIENT),))


def plan_of(project: Project) -> Plan:
    """The plan of a project, made from another folder than its own."""
    own = project.params["own_datasets"]["shapes"]
    folders = {name: str(project.folder / own[name]) for name in ("folder", "train_folder")}
    return planned(changed(project.params, own_datasets__shapes=own | folders))


def figure1_cell(project: Project) -> str:
    """The cell of Figure 1 whose images start from real shots."""
    (cell,) = (job for job in plan_of(project).stage("few_shot_metrics") if "/shapes.ct_syn." in job.path)
    return f"{STORE}/{cell.path}"


@dataclass(frozen=True)
class Queued:
    """What was made in spite of the queue, and what was made without one."""

    project: Project
    here: Project
    printed: str


@pytest.fixture(scope="module")
def queued(
    slurm: None, slurm_profile: Path, params: dict[str, Any], tmp_path_factory: pytest.TempPathFactory
) -> Queued:
    """Table 1, a cell of Figure 1 and Table 6 made here, and meanwhile through a queue in which jobs are preempted,
    cancelled and killed, while params.yaml is changed, spoilt and taken away."""
    here, there = (new_project(tmp_path_factory.mktemp(name), params) for name in ("here", "there"))
    targets = (TABLE1, TABLE6, figure1_cell(there))
    stop = threading.Event()
    with ThreadPoolExecutor(2) as threads:
        without_queue = threads.submit(here.run, *targets)
        accidents = threads.submit(disturb, there.folder, stop)
        try:
            done = there.snakemake("--profile", str(slurm_profile), "--", *targets)
        finally:
            stop.set()
        assert accidents.result() == ["heads", "real_images", "batch_norm"], done.stderr[-5000:]
        without_queue.result()
    assert done.returncode == 0, done.stderr[-5000:]
    return Queued(there, here, done.stderr)


def disturb(folder: Path, stop: threading.Event) -> list[str]:
    """Do something to a job of each of three rules when it runs, and to params.yaml; returns the rules, in turn."""
    accidents: dict[str, tuple[Callable[[int], bool], Callable[[], object]]] = {
        "heads": (preempt, lambda: edit(folder, "seed", 1)),
        "real_images": (cancel, lambda: (folder / "params.yaml").write_text("images: [\n\t")),
        "batch_norm": (kill_stage(folder, "batch_norm"), (folder / "params.yaml").unlink),
    }
    happened: list[str] = []
    while not stop.wait(0.1) and len(happened) < len(accidents):
        rule = list(accidents)[len(happened)]
        befall, change = accidents[rule]
        for number in list(cluster.jobs("RUNNING", rule=rule))[:1]:
            if befall(number):
                change()
                happened.append(rule)
    return happened


def edit(folder: Path, key: str, value: Any) -> None:
    """Another value in params.yaml: other keys, other paths."""
    params = yaml.safe_load((folder / "params.yaml").read_text(encoding="utf-8"))
    assert params[key] != value
    (folder / "params.yaml").write_text(yaml.safe_dump(params | {key: value}), encoding="utf-8")


def preempt(_: int) -> bool:
    """A job that may take the node from others, and needs all of it."""
    command = ["sbatch", "--partition=urgent", "--exclusive", "--output=/dev/null", "--wrap=true"]
    return subprocess.run(command, capture_output=True, check=True, cwd="/").returncode == 0


def cancel(number: int) -> bool:
    return subprocess.run(["scancel", str(number)], check=True).returncode == 0


def kill_stage(folder: Path, stage: str) -> Callable[[int], bool]:
    """kill -9 of the process that computes, if it is there yet."""

    def kill(_: int) -> bool:
        for process in Path("/proc").glob("[0-9]*"):
            try:
                words = (process / "cmdline").read_bytes().split(b"\0")
                if b"pipeline_lib" in words and stage.encode() in words and (process / "cwd").readlink() == folder:
                    os.kill(int(process.name), 9)
                    return True
            except (OSError, ProcessLookupError):  # it ended meanwhile
                continue
        return False

    return kill


def artifacts(project: Project) -> dict[str, bytes]:
    """The bytes of everything in the store except records (they hold times) and logs."""
    return {
        path.relative_to(project.store).as_posix(): path.read_bytes()
        for path in project.store.rglob("*")
        if path.is_file() and not path.name.endswith((".record.json", ".lock")) and path.name != "timings.jsonl"
    }


def memory_mb(job: dict[str, str]) -> float:
    """What a job asked for, which scontrol writes as 4000M or 62.50G."""
    asked = job["MinMemoryNode"]
    return float(asked[:-1]) * {"M": 1, "G": 1024}[asked[-1]]


def test_through_the_queue_all_is_as_without(queued: Queued):
    """Byte for byte: tables, pictures, and every artifact of the store, in spite of all that happened."""
    there, here = queued.project, queued.here
    assert there.results() == here.results()
    assert {"table1.csv", "table6.csv"} <= there.results().keys()
    assert artifacts(there) == artifacts(here)
    folders = {name.split("/")[0] for name in artifacts(here)}
    assert folders >= {"images", "embeddings", "classifiers", "shots", "few_shot", "batch_norm", "few_shot_metrics"}


def test_every_job_goes_through_the_queue(queued: Queued):
    """With the memory and time of its rule; the small ones in groups; no GPU where the configuration asks for none."""
    jobs = cluster.jobs("COMPLETED")
    names = [job["Comment"].split("_wildcards_")[0].removeprefix("rule_") for job in jobs.values() if "Comment" in job]
    single = Counter(name for name in names if name in rules())
    assert single == {
        "prompts": 1,
        "images": 2,
        "shots": 1,
        "real_images": 2,
        "heads": 1,
        "embeddings": 4,
        "classifiers": 1,
        "few_shot": 2,
        "batch_norm": 2,
        "samples": 2,
        "tables": 2,
    }
    assert {name.split("_")[0] for name in names if name not in single} == {"selection", "evaluation"}
    for job in jobs.values():
        assert "TresPerJob" not in job
        assert job["Requeue"] == ("1" if "Comment" in job else "0")  # off on this cluster unless asked for


@pytest.mark.parametrize(
    ("rule", "memory", "limit", "cpus"),
    [("tables", 4000, "00:30:00", "1"), ("images", 24000, "04:00:00", "1"), ("real_images", 8000, "02:00:00", "8")],
)
def test_a_job_asks_for_what_its_rule_needs(queued: Queued, rule: str, memory: int, limit: str, cpus: str):
    """The profile's numbers, and as many CPUs as the rule has threads, whatever the machine that submits has."""
    job = next(iter(cluster.jobs(rule=rule).values()))
    assert (memory_mb(job), job["TimeLimit"], job["NumCPUs"]) == (memory, limit, cpus)
    assert job["Partition"] == "main"


@pytest.mark.parametrize(
    ("rule", "end", "memory", "limits"),
    [
        ("real_images", "CANCELLED", [8000, 16000], ["02:00:00", "04:00:00"]),
        ("batch_norm", "FAILED", [24000, 48000], ["08:00:00", "16:00:00"]),
    ],
)
def test_a_killed_job_is_tried_again_with_more(
    queued: Queued, rule: str, end: str, memory: list[int], limits: list[str]
):
    """A job that was cancelled in the queue, and one whose process was killed: another with twice of all."""
    jobs = [job for _, job in sorted(cluster.jobs(rule=rule).items())]
    ((comment, first),) = [(job["Comment"], job["JobState"]) for job in jobs if job["JobState"] != "COMPLETED"]
    attempts = [job for job in jobs if job["Comment"] == comment]
    assert (first, attempts[1]["JobState"], len(attempts)) == (end, "COMPLETED", 2)
    assert [memory_mb(job) for job in attempts] == memory
    assert [job["TimeLimit"] for job in attempts] == limits


def test_a_preempted_job_goes_back_into_the_queue(queued: Queued):
    """The same job, started again by Slurm; for Snakemake nothing has failed."""
    (job,) = cluster.jobs(rule="heads").values()
    assert (job["JobState"], job["Restarts"]) == ("COMPLETED", "1")
    assert set(re.findall(r"Error in rule (\w+)", queued.printed)) == {"real_images", "batch_norm"}


def test_afterwards_there_is_nothing_to_do(queued: Queued, slurm_profile: Path):
    """No job is left half-done or unfinished in Snakemake's eyes."""
    done = queued.project.snakemake("--profile", str(slurm_profile), "--", TABLE1)
    assert "Nothing to be done" in done.stderr


def test_a_job_gets_a_gpu_where_the_configuration_says_cuda(
    slurm: None, slurm_profile: Path, params: dict[str, Any], tmp_path: Path
):
    """The machine that submits needs none; the job sees the one it was given (a GPU in name only: it cannot use it)."""
    project = new_project(tmp_path, changed(params, device="cuda"))
    (head,) = plan_of(project).stage("heads")
    before = cluster.jobs(rule="heads")
    done = project.snakemake("--profile", str(slurm_profile), "--retries", "0", "--", f"{STORE}/{head.path}")
    (job,) = (job for number, job in cluster.jobs(rule="heads").items() if number not in before)
    assert (job["TresPerJob"], job["JobState"]) == ("gres:gpu:1", "FAILED")
    assert done.returncode != 0
    assert "device: 'cuda' is asked for" in done.stderr  # the job's log is shown
    assert "CUDA_VISIBLE_DEVICES is '0'" in done.stderr


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, "write slurm-status-command: squeue in the config.yaml"),  # it keeps no account of jobs
        ({"slurm__status__command": "squeue", "slurm_partition": "long"}, "'long' is no partition of this cluster"),
    ],
)
def test_a_setting_that_does_not_suit_the_cluster_is_named(
    slurm: None, params: dict[str, Any], tmp_path: Path, changes: dict[str, str], message: str
):
    """Before anything is submitted: the run would wait for ever, or each job fail."""
    project = new_project(tmp_path, params)
    before = cluster.jobs()
    done = project.snakemake("--profile", str(site_profile("slurm", tmp_path, **changes)), "--", TABLE1)
    assert done.returncode != 0
    assert message in done.stderr
    assert "Traceback" not in done.stderr
    assert cluster.jobs() == before
    assert not project.store.exists()


def test_dvc_runs_its_stages_through_the_queue(queued: Queued, slurm_profile: Path):
    """`SNAKEMAKE_PROFILE=... dvc repro`: the commands of dvc.yaml need no change."""
    pytest.importorskip("dvc")
    project = queued.project
    first = (project.folder / TABLE1).read_bytes()
    (project.folder / TABLE1).unlink()
    for name in ("Snakefile", "pipeline_lib", "profiles", "workflow"):
        (project.folder / name).symlink_to(REPOSITORY / name)
    command = yaml.safe_load((REPOSITORY / "dvc.yaml").read_text())["stages"]["tables"]["cmd"]
    assert command.endswith(" -- all")
    stage = {"cmd": command.removesuffix("all") + TABLE1, "outs": [{TABLE1: {"cache": False, "persist": True}}]}
    (project.folder / "dvc.yaml").write_text(yaml.safe_dump({"stages": {"tables": stage}}))
    environment = os.environ | {
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "SNAKEMAKE_PROFILE": str(slurm_profile),
    }
    before = cluster.jobs(rule="tables")
    for arguments in (["init", "--no-scm", "--quiet"], ["repro"]):
        done = subprocess.run(
            [sys.executable, "-m", "dvc", *arguments],
            cwd=project.folder,
            env=environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=300,
        )
        assert done.returncode == 0, done.stdout + done.stderr
    assert len(cluster.jobs("COMPLETED", rule="tables").keys() - before.keys()) == 1
    assert (project.folder / TABLE1).read_bytes() == first


def test_another_scheduler(queued: Queued, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The profile cluster-generic as it stands, through qsub and qdel; a job that is killed is tried again."""
    project, here = queued.project, queued.here
    for stage in ("predictions", "metrics"):  # of Table 1
        shutil.rmtree(project.store / stage / "shapes.basic_sce.clip")
    (project.folder / TABLE1).unlink()
    monkeypatch.setenv("CLUSTER_JOBS", "qstat")
    site = site_profile("cluster-generic", tmp_path, seconds__between__status__checks="1")
    before = cluster.jobs()
    with ThreadPoolExecutor(1) as threads:
        running = threads.submit(project.snakemake, "--profile", str(site), "--", TABLE1)
        while not running.done():
            started = cluster.jobs("RUNNING").keys() - before.keys()
            if started:
                cancel(*started)
                break
            time.sleep(0.2)
        done = running.result()
    assert done.returncode == 0, done.stderr[-5000:]
    assert artifacts(project) == artifacts(here)
    assert project.results() == here.results()
    jobs = [job for number, job in sorted(cluster.jobs().items()) if number not in before]
    assert [job["JobState"] for job in jobs] == ["CANCELLED", "COMPLETED", "COMPLETED"]
    assert [memory_mb(job) for job in jobs] == [4000, 8000, 4000]
    assert [job["TimeLimit"] for job in jobs] == ["01:00:00", "02:00:00", "00:30:00"]


def test_slurm_through_the_generic_profile(queued: Queued, tmp_path: Path):
    """With the lines that the profile's notes give for it: no accounting is needed, jobs say how they end."""
    project, here = queued.project, queued.here
    (project.folder / TABLE1).unlink()
    site = site_profile("cluster-generic", tmp_path, seconds__between__status__checks="1") / "config.yaml"
    notes = site.read_text(encoding="utf-8")
    submit = re.search(r"^#   Slurm:(.*(?:\n#     .*)*)", notes, re.MULTILINE)
    cancel = re.search(r"^# Slurm: (scancel)\n", notes, re.MULTILINE)
    assert submit is not None and cancel is not None
    content = yaml.safe_load(notes)
    content["cluster-generic-submit-cmd"] = " ".join(submit[1].replace("\n#", " ").split())
    content["cluster-generic-cancel-cmd"] = cancel[1]
    site.write_text(yaml.safe_dump(content))
    before = cluster.jobs()
    done = project.snakemake("--profile", str(site.parent), "--", TABLE1)
    assert done.returncode == 0, done.stderr[-5000:]
    assert project.results() == here.results()
    ((_, job),) = ((number, job) for number, job in cluster.jobs().items() if number not in before)
    assert (job["JobState"], memory_mb(job), job["TimeLimit"]) == ("COMPLETED", 4000, "00:30:00")
