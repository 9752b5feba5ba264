"""The configuration that a run hands over to its jobs on a cluster."""

import json
import stat
from pathlib import Path
from typing import Any

import pytest
import yaml
from small_project import changed, draw_shapes, fake_models, planned, small_params
from workflow_project import STORE, Project

from pipeline_lib.handover import hand_over, is_handed_over

# A scheduler that runs a job at once, after its user has thought better of the whole study.
SUBMIT = """\
#!/bin/sh
printf 'images: [\\n\\t' > params.yaml
rm overlay.yaml
sh "$1" > /dev/null 2>&1
echo $? > ended
echo 1
"""
STATUS = '#!/bin/sh\ntest "$(cat ended)" = 0 && echo success || echo failed\n'


def test_what_is_handed_over_is_what_was_given(params: dict[str, Any], tmp_path: Path):
    """Values, the order of keys, and text as it is, composed or not."""
    params = changed(params, study="Cafe\u0301 \U0001f600")
    path = hand_over(params, tmp_path / "configurations")
    assert path.is_absolute()
    read = json.loads(path.read_text(encoding="utf-8"))
    assert read == params
    assert list(read) == list(params)


def test_runs_of_one_folder_do_not_meet(params: dict[str, Any], tmp_path: Path):
    """Each configuration has its file; the same one is written once."""
    first = hand_over(params, tmp_path)
    written = first.stat()
    assert hand_over(changed(params, seed=1), tmp_path) != first
    assert hand_over(params, tmp_path) == first
    assert first.stat() == written
    assert json.loads(first.read_text())["seed"] == 0


def test_a_damaged_handover_is_written_again(params: dict[str, Any], tmp_path: Path):
    """A file of its name is not taken for it unread."""
    path = hand_over(params, tmp_path)
    path.write_bytes(path.read_bytes()[:100])
    assert json.loads(hand_over(params, tmp_path).read_text()) == params


def test_what_was_handed_over_is_known(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """By its folder, whichever way the path is written; an overlay of somebody's is no whole configuration."""
    monkeypatch.chdir(tmp_path)
    path = hand_over({})
    assert is_handed_over([path]) and is_handed_over([str(path.relative_to(tmp_path))])
    assert not is_handed_over([]) and not is_handed_over(["overlay.yaml", tmp_path / "workflow/studies/paper.yaml"])


@pytest.fixture
def scheduled(tmp_path: Path) -> Project:
    """A project whose runs hand their jobs to a scheduler."""
    pytest.importorskip("snakemake")
    for name, content in (("submit", SUBMIT), ("status", STATUS)):
        (tmp_path / name).write_text(content)
        (tmp_path / name).chmod(stat.S_IRWXU)
    images = draw_shapes(tmp_path / "shapes", 2)
    return Project(tmp_path, small_params(fake_models(tmp_path / "models"), images, STORE))


def test_a_job_plans_from_what_its_run_was_started_with(scheduled: Project):
    """Whatever becomes of params.yaml, of an overlay on it, and of the command line's last word."""
    (scheduled.folder / "overlay.yaml").write_text(yaml.safe_dump({"images": {"per_class": 3}, "seed": 5}))
    params = changed(scheduled.params, images__per_class=3, seed=6)
    (prompts,) = (job for job in planned(params).stage("prompts") if "/basic/" in job.path)
    done = scheduled.snakemake(
        *("--executor", "cluster-generic", "--jobs", "1", "--seconds-between-status-checks", "1"),
        *("--cluster-generic-submit-cmd", "./submit", "--cluster-generic-status-cmd", "./status"),
        *("--configfile", "overlay.yaml", "--config", "seed=6", "--", f"{STORE}/{prompts.path}"),
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert (scheduled.store / prompts.path).exists()
    assert not (scheduled.folder / "overlay.yaml").exists()
