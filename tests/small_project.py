"""A small project: a few drawn shapes as real images, settings as small as they go, everything in one folder."""

import copy
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from pipeline_lib import stages
from pipeline_lib.config import Config, load_config
from pipeline_lib.plan import Plan

REPOSITORY = Path(__file__).resolve().parent.parent
# Class names are data, never paths.
SHAPES = {"red/square": "red", 'blue "circle"': "blue", "grüne Fläche": "green"}
FOLDERS = ("red", "blue", "green")


def draw_shapes(folder: Path, n: int, seed: int = 0, folders: tuple[str, ...] = FOLDERS) -> Path:
    """Write `n` PNG images per sub-folder: a box on noise whose colour tells the class."""
    random = np.random.default_rng(seed)
    for number, name in enumerate(folders):
        (folder / name).mkdir(parents=True)
        for index in range(n):
            pixels = random.integers(0, 60, (24, 24, 3), dtype=np.uint8)
            top, left = random.integers(2, 10, 2)
            pixels[top : top + 10, left : left + 10, number % 3] = random.integers(150, 255)
            Image.fromarray(pixels).save(folder / name / f"{index:03d}.png")
    return folder


def fake_models(folder: Path) -> dict[str, Any]:
    """Model folders that can be planned with, not loaded."""
    for name in ("generator", "encoder", "sentences"):
        (folder / name).mkdir(parents=True, exist_ok=True)
        (folder / name / "model.safetensors").write_bytes(name.encode())
    return {
        "generator": str(folder / "generator"),
        "encoders": [{"name": "clip", "model": f"local-dir:{folder / 'encoder'}"}],
        "sentences": str(folder / "sentences"),
    }


def own_dataset(images: Path, shapes: dict[str, str] | None = None) -> dict[str, Any]:
    """The section of one data set below `own_datasets`."""
    shapes = shapes or SHAPES
    return {
        "folder": str(images),
        "class_names": list(shapes),
        "class_folders": list(shapes.values()),
        "subset": True,  # the folder may hold more
        "template": "a photo of a {}",
    }


def small_params(models: dict[str, Any], images: Path, store: Path | str = "store") -> dict[str, Any]:
    """The content of a params.yaml for one own data set, `shapes`."""
    return {
        "study": "small",
        "seed": 0,
        "store": str(store),
        "results": "results",
        "data": "data",
        "device": "cpu",
        "fashion_mnist": None,
        "datasets": ["shapes"],
        "own_datasets": {"shapes": own_dataset(images)},
        "models": dict(models),
        "prompts": {
            "strategy": "language_enhancement",
            "classes_per_job": 10,
            "language_enhancement": {
                "asked": 4,
                "kept": 2,
                "at_least": 2,
                "top_p": 0.95,
                "top_k": 0,
                "temperature": 1.0,
                "rounds": 5,
                "batch_size": 64,
                "require_class_name": False,  # the tiny model writes noise
            },
        },
        "images": {
            "per_class": 4,
            "batch_size": 1,  # the composition of a batch may change the last bits: one by one, bytes can be compared
            "steps": 2,
            "guidance_scale": 2.0,
            "negative_prompt": "",
            "scheduler": None,
            "compile": False,
            "format": "png",
            "dtype": "auto",
            "per_shard": 3,
            "classes_per_job": 10,
        },
        "embeddings": {"batch_size": 8, "dtype": "auto", "workers": 1, "shards_per_job": 10},
        "clip_filter": {"threshold": "1/N", "per_class": None, "min_per_class": 2},
        "tuning": {
            "epochs": 2,
            "learning_rate": 0.002,
            "weight_decay": 0.1,
            "batch_size": 8,
            "seeds": [0, 1],
            "loss": "sce",
            "soft_target_weight": 0.5,
            "temperature": 2.0,
        },
        "evaluation": {"split": "test", "bootstrap_resamples": 100},
        "tables": {"table2_datasets": ["shapes"]},
        "few_shot": {
            "datasets": [],
            "ablation_dataset": None,
            "shots": [1, 2],
            "seeds": [0, 1],
            "validation_per_class": 1,
            "images_per_class": 4,
            "real_guidance": {"starts": [0.5, 0.25]},
            "real_filter": {"quantile": 0.95, "min_per_class": 2},
            "tuning": {
                "epochs": 2,
                "learning_rate": 0.002,
                "mix_learning_rate": 0.001,
                "weight_decay": 0.1,
                "real_batch_size": 4,
                "synthetic_batch_size": 4,
                "synthetic_loss": "ce",
            },
            "tip_adapter": {"alpha": 1.0, "beta": 5.5, "epochs": 2, "learning_rate": 0.001, "batch_size": 8},
            "coop": {"context_tokens": 2, "epochs": [2, 2], "learning_rate": 0.002, "batch_size": 4},
        },
        "costs": {
            "images_per_second": 10,
            "encodes_per_second": 100,
            "kilobytes_per_image": 1,
            "kilobytes_per_embedding": 0.1,
        },
    }


def changed(params: dict[str, Any], **changes: Any) -> dict[str, Any]:
    """A copy of `params` with changes named like `images__per_class=8`; ... (Ellipsis) removes a key."""
    params = copy.deepcopy(params)
    for path, value in changes.items():
        *sections, key = path.split("__")
        section = params
        for name in sections:
            section = section[name]
        if value is ...:
            del section[key]
        else:
            section[key] = value
    return params


def planned(params: dict[str, Any]) -> Plan:
    """The plan of validated `params`."""
    return Plan(configured(params))


def configured(params: dict[str, Any]) -> Config:
    """The validated configuration."""
    return load_config(params)


def make_all(plan: Plan, results: Path, tables: tuple[str, ...] = ("table1", "table2")) -> None:
    """Make everything that a plan asks for, in this process, as the workflow would; then the tables."""
    for job in plan.jobs.values():  # in the order of the graph: a job is planned after its inputs
        stage = job.spec["stage"]
        if stage in stages.STAGES and not plan.store.is_complete(job):
            stages.STAGES[stage](job, plan.store)
    for table in tables:
        stages.tables(plan.tables[table], plan.store, results / f"{table}.csv")


def dependants_of(target: str, plan: Plan) -> set[str]:
    """What rests on an artifact, from the plan alone: a set rests on its units, a unit and a job on their inputs."""
    reads: dict[str, set[str]] = {}
    for job in plan.jobs.values():
        for artifact in (job, *job.members):
            reads.setdefault(artifact.path, set()).update(artifact.inputs, [member.path for member in artifact.members])
    found: set[str] = set()
    while more := {path for path, parents in reads.items() if parents & (found | {target})} - found:
        found |= more
    results = {f"tables/{name}/": f"results/{name}.csv" for name in plan.tables}
    return {next((to for start, to in results.items() if path.startswith(start)), path) for path in found}
