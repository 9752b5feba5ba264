"""The images of the few-shot part of the plan: real shots, synthetic images that start from them, and which are kept.

shots -> images of the shots -> guided images -> embeddings; manifests of the basic strategy and of real filtering.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from pipeline_lib.datasets.units import shot_images_spec, shots_spec
from pipeline_lib.graph import blocks, once, paths_of, sets_with
from pipeline_lib.records import Strategy
from pipeline_lib.store import Artifact

if TYPE_CHECKING:
    from pipeline_lib.plan import Plan

DRAWN = 16  # shots that are drawn at least: fewer, or again as many, are the same draw
SAMPLES_PER_START = 3  # guided images of a shot on a contact sheet, for each number of shots
SAMPLED_CLASSES = 20


class FewShotImages:
    """Real and synthetic images of the few-shot study, as jobs of `plan`."""

    def __init__(self, plan: Plan):
        self.plan = plan
        self.config = plan.config.few_shot
        self.encoder = next(iter(plan.encoders))
        # The paper's best strategy without shots, as far as the study has it.
        self.is_filtered = plan.config.prompts.strategy == "language_enhancement"

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
    def strategy(self) -> Strategy:
        return self.plan.config.prompts.strategy

    @once
    def guided_images(self, dataset: str, n_shots: int) -> list[Artifact]:
        """Images that start from the real shots: per job some classes, of all seeds."""
        prompt_sets = self.plan.prompt_set_of(self.strategy)
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self.strategy)
        return [
            self.plan.set(
                "images",
                f"{dataset}.real_guidance_{n_shots}",
                [
                    shard
                    for prompts in block
                    for number in range(len(self.config.seeds))
                    for shard in self.guided_shards(prompts, dataset, n_shots, number)
                ],
                after=dict.fromkeys(
                    [*(prompt_sets[prompts.path] for prompts in block), *self.references_made(dataset)]
                ),
            )
            for block in blocks(classes, self.plan.config.images.classes_per_job)
        ]

    def references_made(self, dataset: str) -> list[str]:
        return [self.shots(dataset).path, self.shot_images(dataset).path]

    @once
    def guided_shards(self, prompts: Artifact, dataset: str, n_shots: int, seed_number: int) -> list[Artifact]:
        drawn = self.shots(dataset).members[seed_number].path
        real = self.shot_images(dataset).members[seed_number].path
        guidance = {
            "start": self.config.real_guidance.starts[self.config.shots.index(n_shots)],
            "n_shots": n_shots,
            "shots": drawn,
            "images": real,
        }
        kind = f"{self.strategy}.real_guidance"
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

    def guided_features(self, dataset: str, n_shots: int, seed_number: int) -> list[str]:
        """Paths of the features of the images that one run trains on."""
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self.strategy)
        features_of = self._features_of_guided(dataset)
        shards = [shard for prompts in classes for shard in self.guided_shards(prompts, dataset, n_shots, seed_number)]
        return [features_of[shard.path] for shard in shards]

    @once
    def _features_of_guided(self, dataset: str) -> dict[str, str]:
        """Path of the features of each shard."""
        return {unit.spec["images"]: unit.path for made in self.guided_embeddings(dataset) for unit in made.members}

    @once
    def manifest(self, dataset: str, n_shots: int | None = None, seed_number: int | None = None) -> Artifact:
        """Which images of the basic strategy (B: prompts of the study, CLIP filter) are kept; with shots, those that
        real filtering leaves (RF)."""
        scores = self.plan.scores(dataset, self.strategy, self.encoder)
        cut, at_most = self.plan.config.clip_filter, self.config.images_per_class
        least = min(cut.min_per_class, at_most) if self.is_filtered else 0
        threshold = cut.threshold if self.is_filtered else None
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
        name = f"{dataset}.{self.strategy}.{kind}.{self.encoder}"
        return self.plan.job("manifests", name, spec, inputs=inputs, after=after)

    def samples(self, dataset: str) -> Artifact:
        """Contact sheet of guided images: of some classes the first shot, and what was drawn from it."""
        drawn, real = self.shots(dataset).members[0], self.shot_images(dataset).members[0]
        classes = self.plan.class_prompts(self.plan.dataset(dataset), self.strategy)
        shown = classes[:: -(-len(classes) // SAMPLED_CLASSES)]
        guided = [
            [self.guided_shards(prompts, dataset, n_shots, seed_number=0)[0] for n_shots in self.config.shots]
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
