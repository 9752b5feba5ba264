"""The few-shot part of the plan: what is fitted to real shots and synthetic images (see `few_shot_images`).

embeddings -> few_shot (classifiers) -> predictions -> metrics -> Figure 1, Tables 5 to 7, findings. All seeds and
numbers of shots of one method on one data set are one job.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from pipeline_lib import batch_norm_plan
from pipeline_lib.few_shot_images import FewShotImages
from pipeline_lib.graph import once, paths_of
from pipeline_lib.methods import (
    CT_INIT,
    CT_SYN_RF,
    FEW_SHOT_METHODS,
    FIGURE1_METHODS,
    TABLE5_METHODS,
    TABLE7_METHODS,
    FewShotMethod,
)
from pipeline_lib.store import Artifact

if TYPE_CHECKING:
    from pipeline_lib.plan import Plan


class FewShotPlan(FewShotImages):
    """The artifacts of Figure 1 and Tables 5 to 7, jobs of `plan`. `tables` is empty where no data set is asked for."""

    def __init__(self, plan: Plan):
        super().__init__(plan)
        self.datasets = [name for name in self.config.datasets if name in plan.config.datasets]
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
                *self.plan.embeddings(name, self.strategy, self.encoder),
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
            batch_norm_plan.trained_on_real(self, dataset),
            self.cells(dataset, CT_INIT),
            batch_norm_plan.trained_on_synthetic(self, dataset),
            batch_norm_plan.frozen_on_synthetic(self, dataset),
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
        yield from ((name, kind) for name in names for kind in (self.strategy, "real_guidance"))

    # --- classifiers, predictions, cells ------------------------------------------------------------------------------

    @once
    def classifiers(self, dataset: str, name: str) -> Artifact:
        """What one method fits, for every number of shots and every seed."""
        method = FEW_SHOT_METHODS[name]
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
            return {"synthetic": self.guided_features(dataset, n_shots, seed_number)}, paths_of(made)
        run = (n_shots, seed_number) if method.source == "rf" else (None, None)
        manifest = self.manifest(dataset, *run)
        embeddings = self.plan.scores(dataset, self.strategy, self.encoder).spec["embeddings"]
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
        return self.cells_of(
            dataset, method.name, self._predictions(dataset, classifiers).path, classifiers.spec["runs"]
        )

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

    def cells_of(self, dataset: str, method: str, predictions: str, runs: Sequence[dict[str, Any]]) -> Artifact:
        """The accuracies of some predictions, whose columns are `runs` in this order (each with `shots` and `seed`)."""
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
