"""Ways to use synthetic images: the columns that the tables compare."""

from dataclasses import dataclass

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
