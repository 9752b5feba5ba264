"""The smoke study: every real format of models and raw data through the rules that the paper's study runs."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import pyarrow.parquet as pq
import pytest
import yaml
from small_project import REPOSITORY

pytest.importorskip("snakemake")
pytest.importorskip("diffusers")
STUDY = REPOSITORY / "workflow" / "studies" / "smoke.yaml"
GENERATORS = ("stable_diffusion_1", "stable_diffusion_xl", "glide")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working folder with the default configuration and what the study runs on."""
    from smoke_study import make_smoke

    folder = tmp_path_factory.mktemp("smoke")
    (folder / "params.yaml").write_bytes((REPOSITORY / "params.yaml").read_bytes())
    trees = make_smoke(folder / "data" / "smoke")
    described = yaml.safe_load(STUDY.read_text())["own_datasets"]
    for name, tree in trees.items():  # the study describes what is drawn
        assert described[f"smoke_{name}"]["class_folders"] == list(tree.classes)
        assert described[f"smoke_{name}"]["n_images"] == tree.n_images
    return folder


def run(folder: Path, *arguments: str) -> None:
    command = [sys.executable, "-m", "snakemake", "-s", REPOSITORY / "Snakefile", "--directory", folder, "--cores", "2"]
    done = subprocess.run(
        [*command, "--configfile", STUDY, *arguments],
        cwd=folder,
        env=os.environ | {"OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"},
        capture_output=True,
        text=True,
        check=False,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr[-5000:]


def drawn(folder: Path) -> dict[str, set[tuple[int, int]]]:
    """Sizes of the stored images by the generator that drew them, and each of them valid."""
    sizes: dict[str, set[tuple[int, int]]] = {}
    for path in (folder / "data/smoke/store/images").glob("*/*/*.parquet"):
        generator = json.loads(path.with_name(f"{path.name}.record.json").read_text())["spec"]["generator"]
        table = pq.read_table(path)
        assert all(table["valid"].to_pylist())
        found = zip(table["width"].to_pylist(), table["height"].to_pylist(), strict=True)
        sizes.setdefault(generator, set()).update(found)
    return sizes


def test_table_1_of_both_encoders(folder: Path):
    """Stable Diffusion 1's format, CLIPs with a ResNet and with a transformer, T5, CIFAR's binary records, Cars."""
    run(folder, "--", "results/smoke/table1.csv")
    rows = list(csv.DictReader((folder / "results/smoke/table1.csv").open()))
    assert [(row["encoder"], row["dataset"]) for row in rows] == [
        (encoder, dataset) for encoder in ("rn50", "vit") for dataset in ("smoke_cifar10", "smoke_cars", "average")
    ]
    assert all(row["n_test"] == "12" for row in rows if row["dataset"] != "average")
    assert list(drawn(folder).values()) == [{(32, 32)}]


@pytest.mark.parametrize("generator", GENERATORS[1:])
def test_other_generators(folder: Path, generator: str):
    """Stable Diffusion XL's format, and GLIDE converted from checkpoints of OpenAI's layout."""
    before = drawn(folder)
    models = {"generator": f"./data/smoke/models/{generator}"}
    choice = {"models": models, "datasets": ["smoke_cars"], "tables": {"table2_datasets": ["smoke_cars"]}}
    run(
        folder,
        *("--config", *(f"{key}={json.dumps(value)}" for key, value in choice.items())),
        *("--", "results/smoke/table1.csv"),
    )
    rows = list(csv.DictReader((folder / "results/smoke/table1.csv").open()))
    assert [row["encoder"] for row in rows] == ["rn50", "rn50", "vit", "vit"]
    (new,) = drawn(folder).keys() - before.keys()
    assert drawn(folder)[new] == {(32, 32)}
    record = json.loads((folder / "results/smoke/.records/table1.csv.record.json").read_text())
    assert record["spec"]["study"] == "smoke"


def test_few_shot_with_an_encoder_without_batch_norm(folder: Path):
    """Shots of an official layout, real guidance, CoOp on another text tower; what cannot be had says why."""
    models = {"encoders": [{"name": "vit", "model": "local-dir:data/smoke/models/clip_vit"}]}
    targets = [f"results/smoke/{name}.csv" for name in ("figure1", "table6", "findings")]
    run(folder, "--config", f"models={json.dumps(models)}", "--", *targets)
    figure, table6, findings = (list(csv.DictReader((folder / target).open())) for target in targets)
    assert {row["dataset"] for row in figure} == {"smoke_cars", "average"}
    assert all(row["top1"] for row in figure)
    without = [row for row in table6 if row["batch_norm"] == "trained"]
    assert [(row["top1"], row["note"]) for row in without] == [("", "the encoder has no batch norm")] * 2
    assert all(row["top1"] for row in table6 if row["batch_norm"] == "frozen")
    assert [row["verdict"] for row in findings[-2:]] == ["not computed: the encoder has no batch norm"] * 2
