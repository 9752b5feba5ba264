"""From a configuration to the graph of artifacts: every spec, key and path, before anything runs."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

from pipeline_lib.config import Config
from pipeline_lib.datasets.registry import Dataset, Split
from pipeline_lib.datasets.units import real_units
from pipeline_lib.digests import DigestCache, MissingModelError, encoder_digest, model_digest
from pipeline_lib.errors import UserError
from pipeline_lib.few_shot_plan import FewShotPlan
from pipeline_lib.graph import Graph, blocks, once, paths_of, sets_with
from pipeline_lib.methods import TABLE2_METHODS, Method
from pipeline_lib.records import Strategy
from pipeline_lib.store import Artifact, slug

# Of a contact sheet, which a person looks at.
SAMPLES = 16  # images per class
SAMPLED_CLASSES = 20


class Plan(Graph):
    """The artifacts that a configuration asks for. Methods return `Artifact`s; `jobs` holds all that have a rule."""

    def __init__(self, config: Config):
        super().__init__(Path(config.store))
        self.config = config
        self.digests = DigestCache(self.store.root / "digests.json")
        self.missing_models: list[str] = []
        models, digests = config.models, self.digests
        self.generator = self._identity(model_digest, models.generator, models.generator_revision, "generator", digests)
        self._sentences = self._identity(
            model_digest, models.sentences, models.sentences_revision, "sentences", digests
        )
        self._encoder_models = {encoder.name: encoder for encoder in models.encoders}
        self.encoders = {
            name: self._identity(encoder_digest, encoder.model, encoder.pretrained, encoder.revision, name, digests)
            for name, encoder in self._encoder_models.items()
        }
        self.tables = {"table1": self._table1(), "table2": self._table2()}
        self.few_shot = FewShotPlan(self)
        self.tables |= self.few_shot.tables
        self.digests.save()

    def _identity(self, digest: Callable[..., str], model: str, *arguments: Any) -> str:
        """A model's digest. One that is not here yet leaves a note: what a study costs can be asked before that."""
        try:
            return digest(model, *arguments)
        except MissingModelError as error:
            self.missing_models.append(str(error))
            return f"missing:{model}"
        except OSError as error:
            raise UserError(
                f"models: {error.filename} cannot be read: {error.strerror}; give this user the permission to read it"
            ) from None

    def require_models(self) -> None:
        """Raises `UserError` where a model is not here: then nothing can be made, and no key is the final one."""
        if self.missing_models:
            raise UserError("\n".join(self.missing_models))

    # --- targets ------------------------------------------------------------------------------------------------------

    def _table1(self) -> Artifact:
        tuning = self.config.tuning
        # The paper's best strategy: language enhancement, filtered, soft targets.
        method = Method(
            self.config.prompts.strategy, self.config.prompts.strategy == "language_enhancement", tuning.loss
        )
        return self._table(
            "table1",
            [self.cell(name, method, encoder) for encoder in self.encoders for name in self.config.datasets],
        )

    def _table2(self) -> Artifact:
        names = self.config.tables.table2_datasets
        encoder = next(iter(self.encoders))
        return self._table("table2", [self.cell(name, method, encoder) for name in names for method in TABLE2_METHODS])

    def _table(self, name: str, cells: list[Artifact]) -> Artifact:
        evaluation = self.config.evaluation
        return self.job(
            "tables",
            name,
            {
                "study": self.config.study,
                "table": name,
                "cells": paths_of(cells),
                "bootstrap_resamples": evaluation.bootstrap_resamples,
            },
            suffix=".csv",
            inputs=[*paths_of(cells), *(cell.spec["predictions"] for cell in cells)],
        )

    def samples(self, dataset: str, kind: str) -> Artifact:
        """Contact sheet of one image set: some images of some classes, spread over all of them. `kind`: a strategy, or
        `real_guidance`."""
        if kind == "real_guidance":
            return self.few_shot.samples(dataset)
        strategy: Strategy = "basic" if kind == "basic" else "language_enhancement"
        prompts = self.class_prompts(self.dataset(dataset), strategy)
        shown = prompts[:: -(-len(prompts) // SAMPLED_CLASSES)]
        shards = [shard for unit in shown for shard in self.shards(unit, strategy) if shard.spec["start"] < SAMPLES]
        spec = {"dataset": dataset, "strategy": strategy, "images": paths_of(shards), "per_class": SAMPLES}
        return self.job(
            "samples",
            f"{dataset}.{strategy}",
            spec,
            suffix=".png",
            inputs=paths_of(shards),
            after=paths_of(sets_with(shards, self.images(dataset, strategy))),
        )

    def sample_sheets(self, table: str) -> Iterator[tuple[str, str]]:
        """The (data set, kind of images) pairs that a table rests on, as `samples` takes them."""
        if table in self.few_shot.tables:
            yield from self.few_shot.sample_sheets(table)
        elif table == "table1":
            yield from ((name, self.config.prompts.strategy) for name in self.config.datasets)
        else:
            for name in self.config.tables.table2_datasets:
                yield from ((name, strategy) for strategy in ("basic", "language_enhancement"))

    def sheets(self) -> dict[str, Artifact]:
        """The contact sheets that the tables rest on, by name: `DATASET.KIND`."""
        pairs = sorted({pair for table in self.tables for pair in self.sample_sheets(table)})
        return {f"{dataset}.{kind}": self.samples(dataset, kind) for dataset, kind in pairs}

    def results(self) -> dict[str, Artifact]:
        """Tables, figures and contact sheets by path, results folder included."""
        folder = self.config.results
        return {f"{folder}/{name}.csv": table for name, table in self.tables.items()} | {
            f"{folder}/samples/{name}.png": sheet for name, sheet in self.sheets().items()
        }

    # --- synthetic images ---------------------------------------------------------------------------------------------

    @once
    def dataset(self, name: str) -> Dataset:
        return self.config.dataset(name)

    @once
    def prompts(self, strategy: Strategy) -> list[Artifact]:
        """The prompts of all classes of all data sets, each class once: per job a set of classes."""
        units = {
            unit.path: unit
            for name in self.config.datasets
            for unit in self.class_prompts(self.dataset(name), strategy)
        }
        return [
            self.set("prompts", strategy, units_of_job)
            for units_of_job in blocks(list(units.values()), self.config.prompts.classes_per_job)
        ]

    @once
    def prompt_set_of(self, strategy: Strategy) -> dict[str, str]:
        """Path of the set that holds each unit."""
        return {unit.path: prompts.path for prompts in self.prompts(strategy) for unit in prompts.members}

    @once
    def class_prompts(self, dataset: Dataset, strategy: Strategy) -> list[Artifact]:
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
                **self.config.prompts.language_enhancement.model_dump(exclude={"batch_size"}),
            }
        location = {
            "model": self.config.models.sentences,
            "revision": self.config.models.sentences_revision,
            "batch_size": self.config.prompts.language_enhancement.batch_size,
            "device": self.config.device,
        }
        return self.unit("prompts", f"{slug(class_name)}.{strategy}", spec, location=location)

    @once
    def images(self, dataset: str, strategy: Strategy) -> list[Artifact]:
        """The synthetic images: per job a set of shards, each a range of one class's image indices."""
        set_of = self.prompt_set_of(strategy)
        return [
            self.set(
                "images",
                f"{dataset}.{strategy}",
                [shard for unit in prompts for shard in self.shards(unit, strategy)],
                after=dict.fromkeys(set_of[unit.path] for unit in prompts),
            )
            for prompts in blocks(
                self.class_prompts(self.dataset(dataset), strategy), self.config.images.classes_per_job
            )
        ]

    @once
    def shards(self, prompts: Artifact, strategy: Strategy) -> list[Artifact]:
        """The shards of one class: units of `images`."""
        return self.image_shards(prompts, strategy, self.config.images.per_class)

    def image_shards(
        self,
        prompts: Artifact,
        kind: str,
        per_class: int,
        real_guidance: dict[str, Any] | None = None,
        references: Sequence[str] = (),
    ) -> list[Artifact]:
        """Shards of the images that one class's prompts ask for; `kind` is a word for people.

        `real_guidance` says what the images start from, as `pipeline_lib.images` reads it from a spec; `references`
        are the paths in it.
        """
        images, models = self.config.images, self.config.models
        class_name = prompts.spec["class_name"]
        recipe = {
            "class_name": class_name,
            "prompts": prompts.path,
            "generator": self.generator,
            "seed": self.config.seed,
            **images.model_dump(exclude={"per_class", "batch_size", "compile", "per_shard", "classes_per_job"}),
            **({"real_guidance": real_guidance} if real_guidance else {}),
        }
        location = {
            "model": models.generator,
            "revision": models.generator_revision,
            "batch_size": images.batch_size,
            "compile": images.compile,
            "device": self.config.device,
        }
        # Shards of one recipe lie in one folder: a longer range takes over what shorter ones already hold.
        name = f"{slug(class_name)}.{kind}"
        whole = self.unit("images", name, recipe)
        return [
            self.unit(
                "images",
                f"{name}/{whole.short_key}",
                {**recipe, "start": start, "stop": stop},
                location=location,
                inputs=[prompts.path, *references],
                file_name=f"{start:06d}-{stop:06d}",
            )
            for start in range(0, per_class, images.per_shard)
            for stop in [min(start + images.per_shard, per_class)]
        ]

    # --- real images --------------------------------------------------------------------------------------------------

    @once
    def real_images(self, dataset: str, split: Split) -> Artifact:
        """The real images of a split, as shards that one job makes."""
        units = [
            self.unit("real_images", f"{dataset}.{split}", unit.spec, location=unit.location)
            for unit in real_units(self.dataset(dataset), split, self.config, self.digests)
        ]
        return self.set("real_images", f"{dataset}.{split}", units)

    # --- features -----------------------------------------------------------------------------------------------------

    @once
    def embeddings(self, dataset: str, strategy: Strategy, encoder: str) -> list[Artifact]:
        """Features of the synthetic images: per job a set of shards' features; it may span several sets of images."""
        sets = self.images(dataset, strategy)
        set_of = {shard.path: images.path for images in sets for shard in images.members}
        shards = [shard for images in sets for shard in images.members]
        return [
            self.features(f"{dataset}.{strategy}", block, encoder, [set_of[shard.path] for shard in block])
            for block in blocks(shards, self.config.embeddings.shards_per_job)
        ]

    @once
    def real_embeddings(self, dataset: str, split: Split, encoder: str) -> Artifact:
        """Features of the real images of a split."""
        images = self.real_images(dataset, split)
        return self.features(f"{dataset}.{split}", images.members, encoder, [images.path])

    def features(self, name: str, shards: Sequence[Artifact], encoder: str, after: Sequence[str]) -> Artifact:
        units = [
            self.unit(
                "embeddings",
                shard.path.removesuffix(".parquet"),
                {"images": shard.path, "encoder": self.encoders[encoder], "dtype": self.config.embeddings.dtype},
                location=self.encoder_location(encoder),
                inputs=[shard.path],
            )
            for shard in shards
        ]
        return self.set("embeddings", f"{name}.{encoder}", units, after=dict.fromkeys(after))

    @once
    def heads(self, encoder: str) -> Artifact:
        """The zero-shot heads of all data sets, made by one job."""
        return self.set("heads", encoder, [self.head(name, encoder) for name in self.config.datasets])

    @once
    def head(self, dataset: str, encoder: str) -> Artifact:
        """A data set's zero-shot classifier: one text embedding per class. A unit of `heads`."""
        definition = self.dataset(dataset)
        spec = {
            "class_names": definition.class_names,
            "templates": definition.head_templates,
            "encoder": self.encoders[encoder],
        }
        return self.unit("heads", dataset, spec, suffix=".safetensors", location=self.encoder_location(encoder))

    def encoder_location(self, encoder: str) -> dict[str, Any]:
        return {
            **self._encoder_models[encoder].model_dump(exclude={"name"}),
            **self.config.embeddings.model_dump(include={"batch_size", "workers"}),
            "device": self.config.device,
        }

    # --- selection, tuning, evaluation --------------------------------------------------------------------------------

    @once
    def scores(self, dataset: str, strategy: Strategy, encoder: str) -> Artifact:
        """Own-class probability and prediction of the zero-shot head, for every synthetic image."""
        features = self.embeddings(dataset, strategy, encoder)
        head = self.head(dataset, encoder)
        spec = {
            "class_names": self.dataset(dataset).class_names,
            "embeddings": paths_of(features),
            "head": head.path,
        }
        return self.job(
            "scores",
            f"{dataset}.{strategy}.{encoder}",
            spec,
            inputs=[*paths_of(features), head.path],
            after=[*paths_of(features), self.heads(encoder).path],
        )

    @once
    def manifest(self, dataset: str, strategy: Strategy, clip_filter: bool, encoder: str) -> Artifact:
        """Which images are kept, and why."""
        scores = self.scores(dataset, strategy, encoder)
        spec = {
            "scores": scores.path,
            "head": scores.spec["head"],
            "n_classes": len(self.dataset(dataset).class_names),
            "filter": self.config.clip_filter.model_dump() if clip_filter else None,
            "seed": self.config.seed,
        }
        name = f"{dataset}.{strategy}.{'clip_filter' if clip_filter else 'all'}.{encoder}"
        return self.job("manifests", name, spec, inputs=[scores.path])

    @once
    def classifier(self, dataset: str, method: Method, encoder: str) -> Artifact:
        """The tuned heads, one per seed."""
        manifest = self.manifest(dataset, method.strategy, method.clip_filter, encoder)
        scores = self.scores(dataset, method.strategy, encoder)
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
        return self.job(
            "classifiers",
            f"{dataset}.{method.name}.{encoder}",
            spec,
            suffix=".safetensors",
            location={"device": self.config.device},
            inputs=[*inputs, scores.spec["head"]],
            after=[*inputs, self.heads(encoder).path],
        )

    @once
    def predictions(self, dataset: str, method: Method, encoder: str) -> Artifact:
        """What the zero-shot and the tuned heads say of every test image."""
        classifier = self.classifier(dataset, method, encoder)
        features = self.real_embeddings(dataset, self.config.evaluation.split, encoder)
        spec = {
            "class_names": self.dataset(dataset).class_names,
            "embeddings": features.path,
            "head": classifier.spec["head"],
            "classifier": classifier.path,
        }
        inputs = [features.path, classifier.path]
        return self.job(
            "predictions",
            f"{dataset}.{method.name}.{encoder}",
            spec,
            inputs=[*inputs, classifier.spec["head"]],
            after=[*inputs, self.heads(encoder).path],
        )

    @once
    def cell(self, dataset: str, method: Method, encoder: str) -> Artifact:
        """One number of a table."""
        definition = self.dataset(dataset)
        predictions = self.predictions(dataset, method, encoder)
        classifier = self.classifier(dataset, method, encoder)
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
            "generator": self.generator,
            "encoder_name": encoder,
            "encoder": self.encoders[encoder],
            "predictions": predictions.path,
            "manifest": classifier.spec["manifest"],
        }
        inputs = [predictions.path, spec["manifest"]]
        return self.job("metrics", f"{dataset}.{method.name}.{encoder}", spec, suffix=".json", inputs=inputs)
