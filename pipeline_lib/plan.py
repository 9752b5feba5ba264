"""From a configuration to the graph of artifacts: every spec, key and path, before anything runs.

Units (prompts of one class, a shard of images, the embeddings of a shard) are shared between data sets, tables and
studies; a *set* names the units that one job makes and is the file that the graph sees. All else is one file per job.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from functools import wraps
from pathlib import Path
from typing import Any, ParamSpec, TypeVar

from pipeline_lib.config import Config
from pipeline_lib.datasets.registry import IMAGE_SUFFIXES, Dataset
from pipeline_lib.digests import DigestCache, files_below, model_digest
from pipeline_lib.errors import UserError
from pipeline_lib.records import Loss, Strategy
from pipeline_lib.store import Artifact, Store, slug

P = ParamSpec("P")
T = TypeVar("T")

# A stage's version goes up when a change to its code changes what it makes; nothing else remakes old artifacts.
VERSIONS = {
    "prompts": 1,
    "images": 1,
    "datasets": 1,
    "embeddings": 1,
    "heads": 1,
    "scores": 1,
    "manifests": 1,
    "classifiers": 1,
    "predictions": 1,
    "metrics": 1,
    "tables": 1,
    "samples": 1,
}
SAMPLES_PER_CLASS = 16


@dataclass(frozen=True)
class Method:
    """One way to use synthetic images: prompts, filter and loss."""

    strategy: Strategy
    clip_filter: bool
    loss: Loss

    @property
    def name(self) -> str:
        return "_".join([self.strategy, *(["clip_filter"] if self.clip_filter else []), self.loss])


# Paper, Table 2: {B, LE, LE+CF} x {CE, SCE}
_TABLE2_DATA: tuple[tuple[Strategy, bool], ...] = (
    ("basic", False),
    ("language_enhancement", False),
    ("language_enhancement", True),
)
_LOSSES: tuple[Loss, ...] = ("ce", "sce")
TABLE2_METHODS = tuple(
    Method(strategy, clip_filter, loss) for strategy, clip_filter in _TABLE2_DATA for loss in _LOSSES
)


def _once(method: Callable[P, T]) -> Callable[P, T]:
    """Remember what a plan's method returned, by its positional arguments: at the paper's scale one image set has
    thousands of keys to hash."""

    @wraps(method)
    def remembered(*args: P.args, **kwargs: P.kwargs) -> T:
        plan, *rest = args
        key = (method.__name__, *map(_identity, rest), *map(_identity, kwargs.values()))
        memory: dict[Any, T] = plan.__dict__.setdefault("_memory", {})
        if key not in memory:
            memory[key] = method(*args, **kwargs)
        return memory[key]

    return remembered


def _identity(argument: Any) -> Any:
    if isinstance(argument, Artifact):
        return argument.path
    return argument.name if isinstance(argument, Dataset) else argument


class Plan:
    """The artifacts that a configuration asks for. Methods return `Artifact`s; `jobs` holds all that have a rule."""

    def __init__(self, config: Config):
        self.config = config
        self.store = Store(Path(config.store))
        self.jobs: dict[str, Artifact] = {}
        self._digests = DigestCache(self.store.root / "digests.json")
        models = config.models
        self._generator = model_digest(models.generator, models.generator_revision, "generator", self._digests)
        self._sentences = model_digest(models.sentences, models.sentences_revision, "sentences", self._digests)
        self._encoder = _encoder_digest(models.encoder, models.encoder_pretrained, self._digests)
        self.tables = {"table1": self._table1(), "table2": self._table2()}
        self._digests.save()

    # --- targets ------------------------------------------------------------------------------------------------------

    def _table1(self) -> Artifact:
        tuning = self.config.tuning
        # The paper's best strategy: language enhancement, filtered, soft targets.
        method = Method(
            self.config.prompts.strategy, self.config.prompts.strategy == "language_enhancement", tuning.loss
        )
        return self._table("table1", [self.cell(name, method) for name in self.config.datasets])

    def _table2(self) -> Artifact:
        names = self.config.tables.table2_datasets
        return self._table("table2", [self.cell(name, method) for name in names for method in TABLE2_METHODS])

    def _table(self, name: str, cells: list[Artifact]) -> Artifact:
        evaluation = self.config.evaluation
        return self._job(
            "tables",
            name,
            {
                "study": self.config.study,
                "table": name,
                "cells": [cell.path for cell in cells],
                "bootstrap_resamples": evaluation.bootstrap_resamples,
            },
            suffix=".csv",
            inputs=[*(cell.path for cell in cells), *(cell.spec["predictions"] for cell in cells)],
        )

    def samples(self, dataset: str, strategy: Strategy) -> Artifact:
        """Contact sheet of one image set."""
        sets = self.images(dataset, strategy)
        spec = {"dataset": dataset, "strategy": strategy, "images": _paths(sets), "per_class": SAMPLES_PER_CLASS}
        return self._job("samples", f"{dataset}.{strategy}", spec, suffix=".png", inputs=_paths(sets))

    def sample_sheets(self, table: str) -> Iterator[tuple[str, Strategy]]:
        """The (data set, strategy) pairs whose images a table rests on."""
        if table == "table1":
            yield from ((name, self.config.prompts.strategy) for name in self.config.datasets)
        else:
            for name in self.config.tables.table2_datasets:
                yield from ((name, strategy) for strategy in ("basic", "language_enhancement"))

    # --- synthetic images ---------------------------------------------------------------------------------------------

    @_once
    def dataset(self, name: str) -> Dataset:
        return self.config.dataset(name)

    @_once
    def prompts(self, strategy: Strategy) -> list[Artifact]:
        """The prompts of all classes of all data sets, each class once: per job a set of classes."""
        units = {
            unit.path: unit
            for name in self.config.datasets
            for unit in self._class_prompts(self.dataset(name), strategy)
        }
        return self._sets("prompts", strategy, list(units.values()), self.config.prompts.classes_per_job)

    @_once
    def _prompt_set_of(self, strategy: Strategy) -> dict[str, str]:
        """Path of the set that holds each unit."""
        return {unit.path: prompts.path for prompts in self.prompts(strategy) for unit in prompts.members}

    @_once
    def _class_prompts(self, dataset: Dataset, strategy: Strategy) -> list[Artifact]:
        return [self._prompts_of(dataset, class_name, strategy) for class_name in dataset.class_names]

    def _prompts_of(self, dataset: Dataset, class_name: str, strategy: Strategy) -> Artifact:
        spec: dict[str, Any] = {"class_name": class_name, "strategy": strategy}
        if strategy == "basic":
            spec["template"] = dataset.prompt_template
        else:
            spec |= {
                "template": dataset.sentence_template,
                "keywords": list(dataset.keywords),
                "model": self._sentences,
                "seed": self.config.seed,
                **self.config.prompts.language_enhancement.model_dump(),
            }
        location = {"model": self.config.models.sentences, "revision": self.config.models.sentences_revision}
        return self._unit("prompts", f"{slug(class_name)}.{strategy}", spec, location=location)

    @_once
    def images(self, dataset: str, strategy: Strategy) -> list[Artifact]:
        """The synthetic images: per job a set of shards, each a range of one class's image indices."""
        set_of = self._prompt_set_of(strategy)
        prompts = self._class_prompts(self.dataset(dataset), strategy)
        shards = [list(self._shards(unit, strategy)) for unit in prompts]
        per_job = self.config.images.classes_per_job
        return [
            self._set(
                "images",
                f"{dataset}.{strategy}",
                [shard for class_shards in shards[first : first + per_job] for shard in class_shards],
                after=dict.fromkeys(set_of[unit.path] for unit in prompts[first : first + per_job]),
            )
            for first in range(0, len(prompts), per_job)
        ]

    def _shards(self, prompts: Artifact, strategy: Strategy) -> Iterator[Artifact]:
        images, models = self.config.images, self.config.models
        class_name = prompts.spec["class_name"]
        recipe = {
            "class_name": class_name,
            "prompts": prompts.path,
            "generator": self._generator,
            "seed": self.config.seed,
            **images.model_dump(include={"steps", "guidance_scale", "height", "width", "format", "dtype"}),
        }
        location = {
            "model": models.generator,
            "revision": models.generator_revision,
            "batch_size": images.batch_size,
        }
        # Shards of one recipe lie in one folder: a longer range takes over what shorter ones already hold.
        whole = self._unit("images", f"{slug(class_name)}.{strategy}", recipe)
        for start in range(0, images.per_class, images.per_shard):
            stop = min(start + images.per_shard, images.per_class)
            yield self._unit(
                "images",
                f"{slug(class_name)}.{strategy}/{whole.short_key}",
                {**recipe, "start": start, "stop": stop},
                location=location,
                inputs=[prompts.path],
                file_name=f"{start:06d}-{stop:06d}",
            )

    # --- real images --------------------------------------------------------------------------------------------------

    @_once
    def test_images(self, dataset: str) -> Artifact:
        """The real images that the tables are computed on."""
        definition, split = self.dataset(dataset), self.config.evaluation.split
        spec: dict[str, Any] = {
            "dataset": dataset,
            "split": split,
            "class_names": definition.class_names,
            "n_images": definition.n_images.get(split),
        }
        if definition.fashion_mnist:
            spec["fashion_mnist"] = definition.fashion_mnist
            location = {"folder": self.config.fashion_mnist, "cache": self.config.data}
        else:
            assert definition.folder is not None
            spec["folders"] = [path.as_posix() for path in definition.folders()]
            root = Path(definition.folder)
            images = [path for name in definition.folders() for path in files_below(root / name, IMAGE_SUFFIXES)]
            spec["content"] = self._digests.files(root, images)
            location = {"folder": definition.folder}
        unit = self._unit("datasets", f"{dataset}.{split}", spec, location=location)
        return self._set("datasets", f"{dataset}.{split}", [unit])

    # --- features -----------------------------------------------------------------------------------------------------

    @_once
    def embeddings(self, images: Artifact) -> Artifact:
        """Features of a set of images: one unit per shard, shared like the shard."""
        units = [
            self._unit(
                "embeddings",
                shard.path.removesuffix(".parquet"),
                {"images": shard.path, "encoder": self._encoder},
                location=self._encoder_location(),
                inputs=[shard.path],
            )
            for shard in images.members
        ]
        name = images.folder.removeprefix("images/sets/").removeprefix("datasets/sets/")
        return self._set("embeddings", name, units, after=[images.path])

    @_once
    def heads(self) -> Artifact:
        """The zero-shot heads of all data sets, made by one job."""
        return self._set("heads", "all", [self.head(name) for name in self.config.datasets])

    @_once
    def head(self, dataset: str) -> Artifact:
        """A data set's zero-shot classifier: one text embedding per class. A unit of `heads`."""
        definition = self.dataset(dataset)
        spec = {
            "class_names": definition.class_names,
            "templates": definition.head_templates,
            "encoder": self._encoder,
        }
        return self._unit("heads", dataset, spec, suffix=".safetensors", location=self._encoder_location())

    def _encoder_location(self) -> dict[str, Any]:
        return {
            "model": self.config.models.encoder,
            "pretrained": self.config.models.encoder_pretrained,
            "batch_size": self.config.embeddings.batch_size,
        }

    # --- selection, tuning, evaluation --------------------------------------------------------------------------------

    @_once
    def scores(self, dataset: str, strategy: Strategy) -> Artifact:
        """Own-class probability and prediction of the zero-shot head, for every synthetic image."""
        features = [self.embeddings(images) for images in self.images(dataset, strategy)]
        head = self.head(dataset)
        spec = {
            "class_names": self.dataset(dataset).class_names,
            "embeddings": _paths(features),
            "head": head.path,
        }
        return self._job(
            "scores",
            f"{dataset}.{strategy}",
            spec,
            inputs=[*_paths(features), head.path],
            after=[*_paths(features), self.heads().path],
        )

    @_once
    def manifest(self, dataset: str, strategy: Strategy, clip_filter: bool) -> Artifact:
        """Which images are kept, and why."""
        scores = self.scores(dataset, strategy)
        spec = {
            "scores": scores.path,
            "head": scores.spec["head"],
            "n_classes": len(self.dataset(dataset).class_names),
            "filter": self.config.clip_filter.model_dump() if clip_filter else None,
            "seed": self.config.seed,
        }
        name = f"{dataset}.{strategy}.{'clip_filter' if clip_filter else 'all'}"
        return self._job("manifests", name, spec, inputs=[scores.path])

    @_once
    def classifier(self, dataset: str, method: Method) -> Artifact:
        """The tuned heads, one per seed."""
        manifest = self.manifest(dataset, method.strategy, method.clip_filter)
        scores = self.scores(dataset, method.strategy)
        tuning = self.config.tuning.model_dump(exclude={"loss", "soft_target_weight", "temperature"})
        if method.loss == "sce":
            tuning |= self.config.tuning.model_dump(include={"soft_target_weight", "temperature"})
        spec = {
            "manifest": manifest.path,
            "embeddings": scores.spec["embeddings"],
            "head": scores.spec["head"],
            "loss": method.loss,
            **tuning,
            "seeds": sorted(self.config.tuning.seeds),
        }
        inputs = [manifest.path, *scores.spec["embeddings"]]
        return self._job(
            "classifiers",
            f"{dataset}.{method.name}",
            spec,
            suffix=".safetensors",
            inputs=[*inputs, scores.spec["head"]],
            after=[*inputs, self.heads().path],
        )

    @_once
    def predictions(self, dataset: str, method: Method) -> Artifact:
        """What the zero-shot and the tuned heads say of every test image."""
        classifier = self.classifier(dataset, method)
        features = self.embeddings(self.test_images(dataset))
        spec = {
            "class_names": self.dataset(dataset).class_names,
            "embeddings": features.path,
            "head": classifier.spec["head"],
            "classifier": classifier.path,
        }
        inputs = [features.path, classifier.path]
        return self._job(
            "predictions",
            f"{dataset}.{method.name}",
            spec,
            inputs=[*inputs, classifier.spec["head"]],
            after=[*inputs, self.heads().path],
        )

    @_once
    def cell(self, dataset: str, method: Method) -> Artifact:
        """One number of a table."""
        definition = self.dataset(dataset)
        predictions = self.predictions(dataset, method)
        classifier = self.classifier(dataset, method)
        spec = {
            "dataset": dataset,
            "task": definition.task,
            "pool": definition.pool,
            "class_names": definition.class_names,
            "strategy": method.strategy,
            "clip_filter": method.clip_filter,
            "loss": method.loss,
            "images_per_class": self.config.images.per_class,
            "seeds": sorted(self.config.tuning.seeds),
            "split": self.config.evaluation.split,
            "bootstrap_resamples": self.config.evaluation.bootstrap_resamples,
            "generator": self._generator,
            "encoder": self._encoder,
            "predictions": predictions.path,
            "manifest": classifier.spec["manifest"],
        }
        inputs = [predictions.path, spec["manifest"]]
        return self._job("metrics", f"{dataset}.{method.name}", spec, suffix=".json", inputs=inputs)

    # --- plumbing -----------------------------------------------------------------------------------------------------

    def inputs(self, short_key: str) -> list[str]:
        """Paths, store folder included, of what must be there before the job whose path carries this key.

        Raises `UserError` for a key of another configuration.
        """
        if short_key not in self.jobs:
            raise UserError(f"the present configuration asks for no artifact with key {short_key}; name another target")
        job = self.jobs[short_key]
        return [str(self.store.root / name) for name in job.after or job.inputs]

    def stage(self, name: str) -> list[Artifact]:
        """All jobs of one stage."""
        return [job for job in self.jobs.values() if job.spec["stage"] == name]

    def paths(self, artifacts: Iterable[Artifact]) -> list[str]:
        """Paths, store folder included."""
        return [str(self.store.root / artifact.path) for artifact in artifacts]

    def reached(self) -> set[str]:
        """Every path, relative to the store, that the configuration reaches: jobs and the units in them."""
        jobs = self.jobs.values()
        return {job.path for job in jobs} | {member.path for job in jobs for member in job.members}

    def _unit(self, stage: str, name: str, spec: dict[str, Any], **keywords: Any) -> Artifact:
        location = keywords.pop("location", None)
        return _artifact(stage, name, spec, location, **keywords)

    def _job(self, stage: str, name: str, spec: dict[str, Any], **keywords: Any) -> Artifact:
        job = self._unit(stage, name, spec, **keywords)
        return self.jobs.setdefault(job.short_key, job)

    def _sets(self, stage: str, name: str, units: list[Artifact], per_set: int) -> list[Artifact]:
        return [self._set(stage, name, units[first : first + per_set]) for first in range(0, len(units), per_set)]

    def _set(self, stage: str, name: str, units: list[Artifact], after: Iterable[str] = ()) -> Artifact:
        spec = {"set": stage, "members": [unit.path for unit in units]}
        members = tuple(units)
        return self._job(stage, f"sets/{name}", spec, suffix=".json", after=after, members=members)


def _artifact(
    stage: str,
    name: str,
    spec: dict[str, Any],
    location: dict[str, Any] | None = None,
    *,
    suffix: str = ".parquet",
    inputs: Iterable[str] = (),
    after: Iterable[str] = (),
    file_name: str | None = None,
    members: tuple[Artifact, ...] = (),
) -> Artifact:
    return Artifact(
        folder=f"{stage}/{name}",
        spec={"stage": stage, "version": VERSIONS[stage], **spec},
        suffix=suffix,
        inputs=tuple(inputs),
        after=tuple(after),
        location=location or {},
        file_name=file_name,
        members=members,
    )


def _paths(artifacts: Iterable[Artifact]) -> list[str]:
    return [artifact.path for artifact in artifacts]


def _encoder_digest(model: str, pretrained: str | None, digests: DigestCache) -> str:
    """What identifies the CLIP model: the content of a local folder, or the names that open_clip resolves."""
    if model.startswith("local-dir:"):
        folder = model.removeprefix("local-dir:")
        if not Path(folder).is_dir():
            raise UserError(f"models.encoder: the folder {folder!r} of {model!r} does not exist; name a model folder")
        return model_digest(folder, None, "encoder", digests)
    if pretrained is None and not model.startswith("hf-hub:"):
        raise UserError(
            f"models.encoder: {model!r} names an architecture without weights; name them in models.encoder_pretrained "
            f"(for example openai), or give local-dir:FOLDER or hf-hub:ID"
        )
    if pretrained is not None and Path(pretrained).is_file():
        return f"open_clip:{model}:sha256:{digests.files(Path(pretrained).parent, [Path(pretrained)])}"
    return f"open_clip:{model}:{pretrained}"
