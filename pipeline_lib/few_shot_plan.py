"""The few-shot part of the plan: real shots, the synthetic images that rest on them, what is fitted to both.

shots -> images of the shots -> guided images -> embeddings -> few_shot (classifiers) -> predictions -> metrics ->
Figure 1, Tables 5 to 7, findings. All seeds and numbers of shots of one method on one data set are one job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_lib.datasets.units import shot_images_spec, shots_spec
from pipeline_lib.graph import blocks, once, paths_of, sets_with
from pipeline_lib.methods import (
    CT_INIT,
    CT_SYN_RF,
    FIGURE1_METHODS,
    TABLE5_METHODS,
    TABLE7_METHODS,
    FewShotMethod,
    Method,
)
from pipeline_lib.records import Strategy
from pipeline_lib.store import Artifact

if TYPE_CHECKING:
    from pipeline_lib.plan import Plan

DRAWN = 16  # shots that are drawn at least: fewer, or again as many, are the same draw
SAMPLES_PER_START = 3  # guided images of a shot on a contact sheet, for each number of shots
SAMPLED_CLASSES = 20


class FewShotPlan:
    """The artifacts of Figure 1 and Tables 5 to 7, jobs of `plan`. `tables` is empty where no data set is asked for."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.config = plan.config.few_shot
        self.datasets = [name for name in self.config.datasets if name in plan.config.datasets]
        self.encoder = next(iter(plan.encoders))
        # The paper's best strategy without shots, as far as the study has it.
        self._filtered = plan.config.prompts.strategy == "language_enhancement"
        self.tables = {}
        if self.datasets:
            asked = self.config.ablation_dataset
            self.ablation_dataset = asked if asked in self.datasets else self.datasets[0]
            self.tables = {
                "figure1": self._figure1(),
                "table5": self._table("table5", self._table5_cells()),
                "table6": self._table("table6", self._table6_cells()),
                "table7": self._table("table7", self._table7_cells()),
            }
            self.tables["findings"] = self._findings()

    # --- targets ------------------------------------------------------------------------------------------------------

    def _figure1(self) -> Artifact:
        cells = [self.cells(name, method) for name in self.datasets for method in FIGURE1_METHODS]
        learned_from = [
            made
            for name in self.datasets
            for made in (
                *self.shot_embeddings(name),
                *self.guided_embeddings(name),
                *self.plan.embeddings(name, self._strategy, self.encoder),
            )
        ]
        split = self.plan.config.evaluation.split
        tested = [self.plan.real_embeddings(name, split, self.encoder) for name in self.datasets]
        more = {"embeddings": paths_of(learned_from), "embeddings_tested": paths_of(tested)}
        return self._table("figure1", cells, more)

    def _table5_cells(self) -> list[Artifact]:
        return [self.cells(self.ablation_dataset, method) for method in TABLE5_METHODS]

    def _table6_cells(self) -> list[Artifact]:
        dataset = self.ablation_dataset
        return [
            self._batch_norm_cells(dataset, "real"),
            self.cells(dataset, CT_INIT),
            self._batch_norm_cells(dataset, "synthetic"),
            self._synthetic_cells(dataset),
        ]

    def _table7_cells(self) -> list[Artifact]:
        return [self.cells(self.ablation_dataset, method) for method in TABLE7_METHODS]

    def _findings(self) -> Artifact:
        cells = [
            *(self.cells(name, method) for name in self.datasets for method in FIGURE1_METHODS),
            *self._table5_cells(),
            *self._table6_cells(),
            *self._table7_cells(),
        ]
        return self._table("findings", cells, {"ablation_dataset": self.ablation_dataset})

    def _table(self, name: str, cells: Iterable[Artifact], more: dict[str, Any] | None = None) -> Artifact:
        unique = {cell.path: cell for cell in cells}
        spec = {"study": self.plan.config.study, "table": name, "cells": list(unique), **(more or {})}
        inputs = dict.fromkeys(
            [
                *unique,
                *(cell.spec["predictions"] for cell in unique.values()),
                *spec.get("embeddings", []),
                *spec.get("embeddings_tested", []),
            ]
        )
        return self.plan.job("tables", name, spec, suffix=".csv", inputs=inputs)

    def sample_sheets(self, table: str) -> Iterator[tuple[str, str]]:
        """The (data set, kind of images) pairs that a table rests on."""
        names = self.datasets if table in ("figure1", "findings") else [self.ablation_dataset]
        yield from ((name, kind) for name in names for kind in (self._strategy, "real_guidance"))

    def samples(self, dataset: str) -> Artifact:
        """Contact sheet of guided images: of some classes the first shot, and what was drawn from it."""
        drawn, real = self.shots(dataset).members[0], self.shot_images(dataset).members[0]
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self._strategy)
        shown = classes[:: -(-len(classes) // SAMPLED_CLASSES)]
        guided = [
            [self._guided_shards(prompts, dataset, n_shots, seed_number=0)[0] for n_shots in self.config.shots]
            for prompts in shown
        ]
        shards = [shard for row in guided for shard in row]
        sets = [made for n_shots in self.config.shots for made in self.guided_images(dataset, n_shots)]
        spec = {
            "dataset": dataset,
            "strategy": "real_guidance",
            "shots": drawn.path,
            "real_images": real.path,
            "images": [paths_of(row) for row in guided],
            "per_class": SAMPLES_PER_START,
        }
        return self.plan.job(
            "samples",
            f"{dataset}.real_guidance",
            spec,
            suffix=".png",
            inputs=[drawn.path, real.path, *paths_of(shards)],
            after=paths_of([self.shots(dataset), self.shot_images(dataset), *sets_with(shards, sets)]),
        )

    # --- real shots ---------------------------------------------------------------------------------------------------

    @once
    def shots(self, dataset: str) -> Artifact:
        """Which real training images each seed draws: one small JSON file a seed, made by one job."""
        return self.plan.set("shots", dataset, [self._drawn(dataset, seed) for seed in self.config.seeds])

    def _drawn(self, dataset: str, seed: int) -> Artifact:
        definition, config = self.plan.dataset(dataset), self.plan.config
        spec, location = shots_spec(
            definition,
            config,
            self.plan.digests,
            seed=seed,
            n_shots=max(DRAWN, *self.config.shots),
            n_validation=self.config.validation_per_class,
        )
        location = {**location, "at_least": max(self.config.shots)}
        return self.plan.unit("shots", dataset, spec, suffix=".json", location=location)

    @once
    def shot_images(self, dataset: str) -> Artifact:
        """The images that were drawn: a shard a seed."""
        units = []
        for drawn in self.shots(dataset).members:
            definition, config = self.plan.dataset(dataset), self.plan.config
            spec, location = shot_images_spec(definition, config, self.plan.digests, shots=drawn.path)
            units.append(
                self.plan.unit("real_images", f"{dataset}.shots", spec, location=location, inputs=[drawn.path])
            )
        return self.plan.set("real_images", f"{dataset}.shots", units, after=[self.shots(dataset).path])

    @once
    def shot_embeddings(self, dataset: str) -> list[Artifact]:
        """Features of the images that were drawn."""
        images = self.shot_images(dataset)
        return [self.plan.features(f"{dataset}.shots", images.members, self.encoder, [images.path])]

    # --- synthetic images ---------------------------------------------------------------------------------------------

    @property
    def _strategy(self) -> Strategy:
        return self.plan.config.prompts.strategy

    @once
    def guided_images(self, dataset: str, n_shots: int) -> list[Artifact]:
        """Images that start from the real shots: per job some classes, of all seeds."""
        prompt_sets = self.plan.prompt_set_of(self._strategy)
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self._strategy)
        return [
            self.plan.set(
                "images",
                f"{dataset}.real_guidance_{n_shots}",
                [
                    shard
                    for prompts in block
                    for number in range(len(self.config.seeds))
                    for shard in self._guided_shards(prompts, dataset, n_shots, number)
                ],
                after=dict.fromkeys(
                    [*(prompt_sets[prompts.path] for prompts in block), *self._references_made(dataset)]
                ),
            )
            for block in blocks(classes, self.plan.config.images.classes_per_job)
        ]

    def _references_made(self, dataset: str) -> list[str]:
        return [self.shots(dataset).path, self.shot_images(dataset).path]

    @once
    def _guided_shards(self, prompts: Artifact, dataset: str, n_shots: int, seed_number: int) -> list[Artifact]:
        drawn = self.shots(dataset).members[seed_number].path
        real = self.shot_images(dataset).members[seed_number].path
        guidance = {
            "start": self.config.real_guidance.starts[self.config.shots.index(n_shots)],
            "n_shots": n_shots,
            "shots": drawn,
            "images": real,
        }
        kind = f"{self._strategy}.real_guidance"
        return self.plan.image_shards(prompts, kind, self.config.images_per_class, guidance, [drawn, real])

    @once
    def guided_embeddings(self, dataset: str) -> list[Artifact]:
        """Features of the guided images, of all numbers of shots and all seeds."""
        sets = [made for n_shots in self.config.shots for made in self.guided_images(dataset, n_shots)]
        set_of = {shard.path: images.path for images in sets for shard in images.members}
        shards = [shard for images in sets for shard in images.members]
        return [
            self.plan.features(f"{dataset}.real_guidance", block, self.encoder, [set_of[shard.path] for shard in block])
            for block in blocks(shards, self.plan.config.embeddings.shards_per_job)
        ]

    def _guided_features(self, dataset: str, n_shots: int, seed_number: int) -> list[str]:
        """Paths of the features of the images that one run trains on."""
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self._strategy)
        features_of = self._features_of_guided(dataset)
        shards = [shard for prompts in classes for shard in self._guided_shards(prompts, dataset, n_shots, seed_number)]
        return [features_of[shard.path] for shard in shards]

    @once
    def _features_of_guided(self, dataset: str) -> dict[str, str]:
        """Path of the features of each shard."""
        return {unit.spec["images"]: unit.path for made in self.guided_embeddings(dataset) for unit in made.members}

    @once
    def _manifest(self, dataset: str, n_shots: int | None = None, seed_number: int | None = None) -> Artifact:
        """Which images of the basic strategy (B: prompts of the study, CLIP filter) are kept; with shots, those that
        real filtering leaves (RF)."""
        scores = self.plan.scores(dataset, self._strategy, self.encoder)
        cut, at_most = self.plan.config.clip_filter, self.config.images_per_class
        least = min(cut.min_per_class, at_most) if self._filtered else 0
        threshold = cut.threshold if self._filtered else None
        spec: dict[str, Any] = {
            "scores": scores.path,
            "head": scores.spec["head"],
            "n_classes": len(self.plan.dataset(dataset).class_names),
            "filter": {"threshold": threshold, "per_class": at_most, "min_per_class": least},
            "seed": self.plan.config.seed,
        }
        kind, inputs, after = "few_shot", [scores.path], [scores.path]
        if n_shots is not None and seed_number is not None:
            (features,) = self.shot_embeddings(dataset)
            drawn, shots = self.shots(dataset).members[seed_number], features.members[seed_number]
            spec |= {
                "class_names": self.plan.dataset(dataset).class_names,
                "embeddings": scores.spec["embeddings"],
                "real_filter": {
                    "quantile": self.config.real_filter.quantile,
                    "min_per_class": min(self.config.real_filter.min_per_class, at_most),
                    "validation_per_class": self.config.validation_per_class,
                    "n_shots": n_shots,
                    "shots": drawn.path,
                    "embeddings": shots.path,
                },
            }
            kind = f"real_filter_{n_shots}"
            inputs += [*scores.spec["embeddings"], drawn.path, shots.path]
            after += [*scores.spec["embeddings"], self.shots(dataset).path, features.path]
        name = f"{dataset}.{self._strategy}.{kind}.{self.encoder}"
        return self.plan.job("manifests", name, spec, inputs=inputs, after=after)

    # --- classifiers, predictions, cells ------------------------------------------------------------------------------

    @once
    def classifiers(self, dataset: str, name: str) -> Artifact:
        """What one method fits, for every number of shots and every seed."""
        method = _METHODS[name]
        shots = [max(self.config.shots)] if method == CT_SYN_RF else self.config.shots
        runs, inputs, after = [], [], []
        (features,) = self.shot_embeddings(dataset)
        head = self.plan.head(dataset, self.encoder)
        after += [self.shots(dataset).path, features.path, self.plan.heads(self.encoder).path]
        for n_shots in shots:
            for number, seed in enumerate(self.config.seeds):
                drawn, real = self.shots(dataset).members[number].path, features.members[number].path
                run: dict[str, Any] = {"shots": n_shots, "seed": seed, "drawn": drawn, "real": real}
                inputs += [drawn, real]
                synthetic, before = self._synthetic(dataset, method, n_shots, number)
                runs.append(run | synthetic)
                inputs += [synthetic[key] for key in ("manifest",) if key in synthetic]
                inputs += synthetic.get("synthetic", [])
                after += before
        spec = {
            "method": method.name,
            "class_names": self.plan.dataset(dataset).class_names,
            "head": head.path,
            "validation_per_class": self.config.validation_per_class,
            "runs": runs,
            **self._settings(method, len(self.plan.dataset(dataset).class_names)),
        }
        location = {"device": self.plan.config.device}
        if method.fit == "coop":
            spec["encoder"] = self.plan.encoders[self.encoder]
            location |= self.plan.encoder_location(self.encoder)
        return self.plan.job(
            "few_shot",
            f"{dataset}.{method.name}.{self.encoder}",
            spec,
            suffix=".safetensors",
            location=location,
            inputs=dict.fromkeys([head.path, *inputs]),
            after=dict.fromkeys(after),
        )

    def _synthetic(
        self, dataset: str, method: FewShotMethod, n_shots: int, seed_number: int
    ) -> tuple[dict[str, Any], Sequence[str]]:
        """The synthetic images of one run, and the jobs that make them."""
        if method.source is None:
            return {}, []
        if method.source == "rg":
            made = self.guided_embeddings(dataset)
            return {"synthetic": self._guided_features(dataset, n_shots, seed_number)}, paths_of(made)
        run = (n_shots, seed_number) if method.source == "rf" else (None, None)
        manifest = self._manifest(dataset, *run)
        embeddings = self.plan.scores(dataset, self._strategy, self.encoder).spec["embeddings"]
        return {"manifest": manifest.path, "synthetic": embeddings}, [manifest.path, *embeddings]

    def _settings(self, method: FewShotMethod, n_classes: int) -> dict[str, Any]:
        if method.fit == "tuning_chosen":
            tuning = self.config.tuning
            settings = tuning.model_dump(include={"epochs", "learning_rate", "weight_decay", "real_batch_size"})
            per_epoch = -(-self.config.images_per_class * n_classes // tuning.synthetic_batch_size)
            return {"fit": "tuning_chosen", "settings": settings, "most_steps": tuning.epochs * per_epoch}
        if method.fit == "tuning":
            # Only what acts: a setting of mix training does not refit what is tuned on real shots alone.
            tuning, mix = self.config.tuning, method.training == "mix"
            names = {"epochs", "weight_decay", "real_batch_size", "mix_learning_rate" if mix else "learning_rate"}
            if method.source is not None:
                names.add("synthetic_batch_size")
            settings = tuning.model_dump(include=names)
            if method.source is not None and tuning.synthetic_loss == "sce":
                settings |= self.plan.config.tuning.model_dump(include={"soft_target_weight", "temperature"})
            return {"fit": "tuning", "training": method.training, "settings": settings}
        if method.fit == "coop":
            epochs = dict(zip(map(str, self.config.shots), self.config.coop.epochs, strict=True))
            return {"fit": "coop", "settings": self.config.coop.model_dump() | {"epochs": epochs}}
        if method.fit == "linear_probe":
            return {"fit": "linear_probe"}
        searched = (
            {"alpha", "beta", "epochs", "learning_rate", "batch_size"} if method.fit == "tip_adapter_f" else set()
        )
        return {"fit": method.fit, "settings": self.config.tip_adapter.model_dump(include=searched)}

    def cells(self, dataset: str, method: FewShotMethod) -> Artifact:
        """A method's accuracies on a data set, at each number of shots."""
        classifiers = self.classifiers(dataset, method.name)
        return self._cells(dataset, method.name, self._predictions(dataset, classifiers).path, classifiers.spec["runs"])

    def _predictions(self, dataset: str, classifiers: Artifact) -> Artifact:
        plan = self.plan
        features = plan.real_embeddings(dataset, plan.config.evaluation.split, self.encoder)
        spec = {
            "class_names": classifiers.spec["class_names"],
            "embeddings": features.path,
            "head": classifiers.spec["head"],
            "few_shot": classifiers.path,
        }
        inputs = [features.path, classifiers.path]
        return plan.job(
            "predictions",
            f"{dataset}.{classifiers.spec['method']}.{self.encoder}",
            spec,
            inputs=[*inputs, spec["head"]],
            after=[*inputs, plan.heads(self.encoder).path],
        )

    def _cells(self, dataset: str, method: str, predictions: str, runs: Sequence[dict[str, Any]]) -> Artifact:
        definition, config = self.plan.dataset(dataset), self.plan.config
        spec = {
            "dataset": dataset,
            "pool": definition.pool,
            "method": method,
            "n_classes": len(definition.class_names),
            "shots": list(dict.fromkeys(run["shots"] for run in runs)),
            "seeds": list(dict.fromkeys(run["seed"] for run in runs)),
            "split": config.evaluation.split,
            "generator": self.plan.generator,
            "encoder_name": self.encoder,
            "encoder": self.plan.encoders[self.encoder],
            "predictions": predictions,
        }
        name = f"{dataset}.{method}.{self.encoder}"
        return self.plan.job("few_shot_metrics", name, spec, suffix=".json", inputs=[predictions])

    # --- batch norm (Table 6) -----------------------------------------------------------------------------------------

    def _synthetic_method(self) -> Method:
        return Method(self._strategy, self._filtered, self.plan.config.tuning.loss)

    def _synthetic_cells(self, dataset: str) -> Artifact:
        """Batch norm frozen, synthetic images alone: the classifier of Table 1."""
        predictions = self.plan.predictions(dataset, self._synthetic_method(), self.encoder)
        runs = [{"shots": 0, "seed": seed} for seed in sorted(self.plan.config.tuning.seeds)]
        return self._cells(dataset, "bn_syn_frozen", predictions.path, runs)

    def _batch_norm_cells(self, dataset: str, data: str) -> Artifact:
        """Batch norm in train mode: images pass through the encoder, and its statistics change with them."""
        plan = self.plan
        head = plan.head(dataset, self.encoder)
        tested = plan.real_images(dataset, plan.config.evaluation.split)
        spec: dict[str, Any] = {
            "class_names": plan.dataset(dataset).class_names,
            "head": head.path,
            "encoder": plan.encoders[self.encoder],
            "dtype": plan.config.embeddings.dtype,
            "tested": paths_of(tested.members),
        }
        after = [tested.path, plan.heads(self.encoder).path]
        inputs = [head.path, *spec["tested"]]
        if data == "real":
            n_shots = max(self.config.shots)
            drawn, real = self.shots(dataset).members, self.shot_images(dataset).members
            spec["runs"] = [
                {"shots": n_shots, "seed": seed, "drawn": one.path, "images": [images.path]}
                for seed, one, images in zip(self.config.seeds, drawn, real, strict=True)
            ]
            tuning = self.config.tuning
            spec["settings"] = tuning.model_dump(include={"epochs", "learning_rate", "weight_decay"})
            spec["settings"]["batch_size"] = tuning.real_batch_size
            after += self._references_made(dataset)
            inputs += paths_of([*drawn, *real])
        else:
            classifier = plan.classifier(dataset, self._synthetic_method(), self.encoder)
            sets = plan.images(dataset, self._strategy)
            images = [shard.path for made in sets for shard in made.members]
            soft = ("soft_target_weight", "temperature")
            spec["runs"] = [
                {"shots": 0, "seed": seed, "manifest": classifier.spec["manifest"], "images": images}
                for seed in classifier.spec["seeds"]
            ]
            spec["settings"] = {
                name: classifier.spec[name]
                for name in ("epochs", "learning_rate", "weight_decay", "batch_size", *soft)
                if name in classifier.spec
            }
            spec["embeddings"] = classifier.spec["embeddings"]
            after += [classifier.spec["manifest"], *classifier.spec["embeddings"], *paths_of(sets)]
            inputs += [classifier.spec["manifest"], *classifier.spec["embeddings"], *images]
        name = f"{dataset}.{data}.{self.encoder}"
        location = plan.encoder_location(self.encoder)
        job = plan.job(
            "batch_norm", name, spec, location=location, inputs=dict.fromkeys(inputs), after=dict.fromkeys(after)
        )
        method = "bn_real_trained" if data == "real" else "bn_syn_trained"
        return self._cells(dataset, method, job.path, spec["runs"])


_METHODS = {method.name: method for method in (*FIGURE1_METHODS, *TABLE5_METHODS, *TABLE7_METHODS)}
