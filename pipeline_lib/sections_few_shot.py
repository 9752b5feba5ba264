"""The section `few_shot` of params.yaml (paper, section 3.2, A.2 and A.7.2)."""

from typing import Annotated

from pydantic import Field, field_validator, model_validator

from pipeline_lib.records import Loss
from pipeline_lib.sections import Positive, Section, Seed

Rate = Annotated[float, Field(gt=0, le=1)]
Share = Annotated[float, Field(ge=0, le=1)]


class RealGuidance(Section):
    """Real guidance, RG: synthetic images that start from a noised real shot (paper A.2, Equation 9)."""

    starts: list[Share]
    """t*/T for each of `shots`: 1 is no guidance, 0 the real image itself; the paper: 0.5 to 0.15."""


class RealFilter(Section):
    """Real filtering, RF: synthetic images that lie too close to real shots of another class are dropped."""

    quantile: Annotated[float, Field(gt=0, le=1)]
    """Too close is what is more similar than this quantile of the similarities between real images of different
    classes."""
    min_per_class: Positive
    """If fewer images of a class are left, those farthest from other classes fill up to this many."""


class FewShotTuning(Section):
    """Classifier tuning on real shots, synthetic images, or both (paper A.7.2)."""

    epochs: Positive
    """Passes over the data; of mix training, over the synthetic data; of phase-wise training, in each phase."""
    learning_rate: Rate
    """AdamW's initial learning rate on one kind of data at a time."""
    mix_learning_rate: Rate
    """AdamW's initial learning rate in mix training."""
    weight_decay: Annotated[float, Field(ge=0)]
    """AdamW's decoupled weight decay."""
    real_batch_size: Positive
    """Real images per step."""
    synthetic_batch_size: Positive
    """Synthetic images per step."""
    synthetic_loss: Loss
    """Loss on synthetic images, ce or sce (as in `tuning`); real images always have ce."""


class TipAdapter(Section):
    """Tip-Adapter and Tip-Adapter-F (Zhang et al., 2022)."""

    alpha: Annotated[float, Field(gt=0)]
    """Weight of the cache while Tip-Adapter-F is tuned; afterwards, and without tuning, it is searched."""
    beta: Annotated[float, Field(gt=0)]
    """Sharpness of the cache while Tip-Adapter-F is tuned; afterwards, and without tuning, it is searched."""
    epochs: Positive
    """Passes over the shots (Tip-Adapter-F)."""
    learning_rate: Rate
    """AdamW's initial learning rate (Tip-Adapter-F)."""
    batch_size: Positive
    """Shots per step (Tip-Adapter-F)."""


class CoOp(Section):
    """CoOp (Zhou et al., 2022): learned context tokens, one context for all classes, the class name at the end."""

    context_tokens: Positive
    """Learned tokens before the class name."""
    epochs: list[Positive]
    """Passes over the shots, for each of `shots`."""
    learning_rate: Rate
    """SGD's initial learning rate, decayed to 0 by a cosine after one epoch of warm-up."""
    batch_size: Positive
    """Shots per step."""


class FewShot(Section):
    """Few-shot recognition: real shots, synthetic images, and other ways to use the shots."""

    datasets: list[str]
    """Data sets of Figure 1, of those in the top-level `datasets`; they need real training images."""
    ablation_dataset: str | None
    """Data set of Tables 5, 6 and 7; null, or where it is not in the study: the first of `datasets` that is."""
    shots: Annotated[list[Positive], Field(min_length=1)]
    """Real training images per class, ascending; fewer shots are a part of more."""
    seeds: Annotated[list[Seed], Field(min_length=2)]
    """Each seed draws other shots."""
    validation_per_class: Positive
    """Further real images per class for what must be chosen, at most as many as there are shots (as in CoOp)."""
    images_per_class: Positive
    """Synthetic images per class: guided ones are drawn, B and RF choose as many of those of `images` at the most."""
    real_guidance: RealGuidance
    """Real guidance."""
    real_filter: RealFilter
    """Real filtering."""
    tuning: FewShotTuning
    """Classifier tuning."""
    tip_adapter: TipAdapter
    """Tip-Adapter."""
    coop: CoOp
    """CoOp."""

    @field_validator("datasets", "shots", "seeds")
    @classmethod
    def _distinct(cls, values: list[object]) -> list[object]:
        if len(set(values)) != len(values):
            raise ValueError(f"{values} names something twice")
        return values

    @field_validator("shots")
    @classmethod
    def _ascending(cls, shots: list[int]) -> list[int]:
        if shots != sorted(shots):
            raise ValueError(f"write them in ascending order: {sorted(shots)}")
        return shots

    @model_validator(mode="after")
    def _one_for_each(self) -> "FewShot":
        for key, values in (("real_guidance.starts", self.real_guidance.starts), ("coop.epochs", self.coop.epochs)):
            if len(values) != len(self.shots):
                raise ValueError(
                    f"{key} has {len(values)} entries, {values}, and shots has {len(self.shots)}, {self.shots}; give "
                    f"one for each"
                )
        return self
