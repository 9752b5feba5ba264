"""The plan of Table 6: batch norm in train mode, where images pass through the encoder, and frozen."""

from __future__ import annotations

from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from pipeline_lib.graph import paths_of
from pipeline_lib.methods import Method
from pipeline_lib.store import Artifact

if TYPE_CHECKING:
    from pipeline_lib.few_shot_plan import FewShotPlan


def frozen_on_synthetic(few: FewShotPlan, dataset: str) -> Artifact:
    """Batch norm frozen, synthetic images alone: the classifier of Table 1."""
    predictions = few.plan.predictions(dataset, _method(few), few.encoder)
    runs = [{"shots": 0, "seed": seed} for seed in sorted(few.plan.config.tuning.seeds)]
    return few.cells_of(dataset, "bn_syn_frozen", predictions.path, runs)


def trained_on_real(few: FewShotPlan, dataset: str) -> Artifact:
    """Batch norm in train mode, on the largest number of real shots."""
    drawn, real = few.shots(dataset).members, few.shot_images(dataset).members
    n_shots, tuning = max(few.config.shots), few.config.tuning
    more: dict[str, Any] = {
        "runs": [
            {"shots": n_shots, "seed": seed, "drawn": one.path, "images": [images.path]}
            for seed, one, images in zip(few.config.seeds, drawn, real, strict=True)
        ],
        "settings": {
            **tuning.model_dump(include={"epochs", "learning_rate", "weight_decay"}),
            "batch_size": tuning.real_batch_size,
        },
    }
    job = _job(few, dataset, "real", more, paths_of([*drawn, *real]), few.references_made(dataset))
    return few.cells_of(dataset, "bn_real_trained", job.path, more["runs"])


def trained_on_synthetic(few: FewShotPlan, dataset: str) -> Artifact:
    """Batch norm in train mode, on the images and with the settings of Table 1's classifier."""
    classifier = few.plan.classifier(dataset, _method(few), few.encoder)
    manifest, embeddings = classifier.spec["manifest"], classifier.spec["embeddings"]
    sets = few.plan.images(dataset, few.strategy)
    images = [shard.path for made in sets for shard in made.members]
    settings = ("epochs", "learning_rate", "weight_decay", "batch_size", "soft_target_weight", "temperature")
    more: dict[str, Any] = {
        "runs": [
            {"shots": 0, "seed": seed, "manifest": manifest, "images": images} for seed in classifier.spec["seeds"]
        ],
        "settings": {name: classifier.spec[name] for name in settings if name in classifier.spec},
        "embeddings": embeddings,
    }
    after = [manifest, *embeddings, *paths_of(sets)]
    job = _job(few, dataset, "synthetic", more, [manifest, *embeddings, *images], after)
    return few.cells_of(dataset, "bn_syn_trained", job.path, more["runs"])


def _method(few: FewShotPlan) -> Method:
    return Method(few.strategy, few.is_filtered, few.plan.config.tuning.loss)


def _job(
    few: FewShotPlan, dataset: str, data: str, more: dict[str, Any], inputs: Iterable[str], after: Iterable[str]
) -> Artifact:
    """Tuning and predicting in one: the encoder that predicts is the one that training changed."""
    plan = few.plan
    head, heads = plan.head(dataset, few.encoder), plan.heads(few.encoder)
    tested = plan.real_images(dataset, plan.config.evaluation.split)
    spec = {
        "class_names": plan.dataset(dataset).class_names,
        "head": head.path,
        "encoder": plan.encoders[few.encoder],
        "dtype": plan.config.embeddings.dtype,
        "tested": paths_of(tested.members),
        **more,
    }
    return plan.job(
        "batch_norm",
        f"{dataset}.{data}.{few.encoder}",
        spec,
        location=plan.encoder_location(few.encoder),
        inputs=dict.fromkeys([head.path, *spec["tested"], *inputs]),
        after=dict.fromkeys([tested.path, heads.path, *after]),
    )
