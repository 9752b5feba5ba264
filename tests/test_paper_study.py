"""workflow/studies/paper.yaml: the paper's settings, and a plan of its size that is made on a laptop."""

import os
import re
import resource
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from small_project import REPOSITORY

from pipeline_lib.config import Config, read_config
from pipeline_lib.datasets.registry import builtin_datasets
from pipeline_lib.tables import paper_values

STUDY = REPOSITORY / "workflow" / "studies" / "paper.yaml"
GIB = 2**30


@pytest.fixture(scope="module")
def study() -> Config:
    return read_config(REPOSITORY / "params.yaml", STUDY)


def test_its_data_sets_are_those_of_table_1_in_the_papers_order(study: Config):
    rows = [row for table, row, column in paper_values() if (table, column) == ("1", "clip_rn50")]
    assert study.datasets == rows
    assert sum(len(builtin_datasets()[name].class_names) for name in rows) == 4359
    assert set(study.tables.table2_datasets) == {row for table, row, _ in paper_values() if table == "2"}


def test_its_settings_are_the_papers(study: Config):
    """Sections 3.1 and A.7.1, A.5 for the loss, GLIDE's own for sampling."""
    enhancement, images, tuning = study.prompts.language_enhancement, study.images, study.tuning
    assert (enhancement.asked, enhancement.kept, images.per_class) == (250, 200, 2000)
    assert (images.steps, images.guidance_scale, images.negative_prompt, images.scheduler) == (100, 3.0, "", None)
    assert study.clip_filter.threshold == "1/N" and study.clip_filter.per_class is None
    assert (tuning.epochs, tuning.learning_rate, tuning.weight_decay, tuning.batch_size) == (30, 2e-3, 0.1, 512)
    assert (tuning.loss, tuning.soft_target_weight, tuning.temperature) == ("sce", 0.5, 2.0)
    assert [(model.model, model.pretrained) for model in study.models.encoders] == [
        ("RN50", "openai"),
        ("ViT-B-16", "openai"),
    ]
    assert study.evaluation.split == "test"


def test_it_is_planned_without_data_or_models_in_a_minute_and_two_gibibytes(study: Config, tmp_path: Path):
    """A dry run, every job of it; the limits are far above what it takes."""
    pytest.importorskip("snakemake")
    (tmp_path / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--directory", tmp_path, "-n"]
    done = subprocess.run(
        [*command, "--quiet", "rules", "--configfile", STUDY, "--", "results/table1.csv"],
        cwd=tmp_path,
        env=os.environ | {"HF_HUB_OFFLINE": "1"},
        preexec_fn=_limit_memory(2 * GIB),
        capture_output=True,
        text=True,
        check=False,
        timeout=60,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert "Not here yet: models.generator: the folder './models/glide' does not exist" in done.stderr
    jobs = dict(re.findall(r"^(\w+) +(\d+)$", done.stdout + done.stderr, re.MULTILINE))
    assert int(jobs["tables"]) == 1
    assert int(jobs["real_images"]) == 17
    assert int(jobs["metrics"]) == 2 * 17  # encoders, data sets
    # A job draws 4 classes of one data set; where two data sets have a block of classes in common, one job does.
    blocks = sum(-(-len(builtin_datasets()[name].class_names) // 4) for name in study.datasets)
    assert 0.99 * blocks < int(jobs["images"]) <= blocks


def _limit_memory(n_bytes: int) -> Callable[[], None]:
    return lambda: resource.setrlimit(resource.RLIMIT_DATA, (n_bytes, n_bytes))
