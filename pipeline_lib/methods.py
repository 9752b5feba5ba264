"""Ways to use synthetic images and real shots: what the tables and Figure 1 compare."""

from dataclasses import dataclass
from typing import Literal

from pipeline_lib.records import Loss, Strategy


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

Fit = Literal["tuning", "tuning_chosen", "tip_adapter", "tip_adapter_f", "coop", "linear_probe"]
Training = Literal["real", "synthetic", "mix", "real_then_synthetic", "synthetic_then_real"]
# Paper, section 3.2: the best of zero-shot (B), real filtering (RF) and real guidance (RG).
Source = Literal["b", "rf", "rg"]


@dataclass(frozen=True)
class FewShotMethod:
    """One way to use real shots: what is fitted to them, and with which synthetic images, if any."""

    name: str
    fit: Fit = "tuning"
    training: Training = "real"  # of `fit` tuning
    source: Source | None = None

    @property
    def uses_validation(self) -> bool:
        """Whether it chooses something on validation images: steps, Tip-Adapter's alpha and beta, the probe's C, what
        real filtering takes for too close."""
        return self.fit in ("tuning_chosen", "tip_adapter", "tip_adapter_f", "linear_probe") or self.source == "rf"


CT_INIT = FewShotMethod("ct_init")
# The control that the paper lacks: on real shots alone, with as many steps as mix training if validation images say so.
CT_CHOSEN = FewShotMethod("ct_init_chosen", "tuning_chosen")
CT_SYN = FewShotMethod("ct_syn", training="mix", source="rg")
BASELINES = tuple(FewShotMethod(fit, fit) for fit in ("tip_adapter", "tip_adapter_f", "coop", "linear_probe"))
CT_SYN_B = FewShotMethod("ct_syn_b", training="mix", source="b")
CT_SYN_RF = FewShotMethod("ct_syn_rf", training="mix", source="rf")
FIGURE1_METHODS = (CT_INIT, CT_CHOSEN, CT_SYN, CT_SYN_B, *BASELINES)
TABLE5_METHODS = (CT_SYN_B, CT_SYN_RF, CT_SYN)
TABLE7_METHODS = (
    FewShotMethod("syn_then_real", training="synthetic_then_real", source="rg"),
    FewShotMethod("real_then_syn", training="real_then_synthetic", source="rg"),
    CT_SYN,
)
FEW_SHOT_METHODS = {method.name: method for method in (*FIGURE1_METHODS, *TABLE5_METHODS, *TABLE7_METHODS)}
