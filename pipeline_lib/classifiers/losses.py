"""Losses of Classifier Tuning: cross-entropy, and soft-target cross-entropy against the zero-shot head (SCE)."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def soft_target_cross_entropy(
    logits: Tensor,
    labels: Tensor,
    target_logits: Tensor | None,
    temperature: float = 2.0,
    weight: float = 0.5,
) -> Tensor:
    """Mean of (1 - weight) * CE(logits, labels) + weight * H(softmax(target_logits / T), softmax(logits)).

    logits: float [B, n_classes]; labels: int64 [B]; target_logits: float [B, n_classes], logits of the untouched
    zero-shot head, through which no gradient flows. With weight=0 it is plain cross-entropy and target_logits may be
    None. Natural logarithm; a scalar is returned.

    Source: paper section 3.1 and A.5. The listing in A.5 names two variables that it does not define; `soft_labels`
    is read as its `soft_targets`, `x` as `logits`, and the sum over classes is averaged over the batch, as the CE
    beside it is. T divides the target only, and there is no factor T**2: this is not the distillation loss of Hinton
    et al. (2015).

    Raises ValueError for a weight outside [0, 1], a temperature that is not positive, or shapes that disagree.
    """
    if not 0.0 <= weight <= 1.0:
        raise ValueError(f"soft-target weight is {weight}; allowed is 0 (plain cross-entropy) to 1; the paper has 0.5")
    log_probabilities = F.log_softmax(logits, dim=-1)
    hard = F.nll_loss(log_probabilities, labels)
    if weight == 0.0:
        return hard
    if not (math.isfinite(temperature) and temperature > 0):
        raise ValueError(f"soft-target temperature is {temperature}; allowed is a positive number; the paper has 2")
    if target_logits is None or target_logits.shape != logits.shape:
        found = None if target_logits is None else tuple(target_logits.shape)
        raise ValueError(f"target_logits have shape {found}, logits {tuple(logits.shape)}; give one row a logits row")
    targets = torch.softmax(target_logits.detach() / temperature, dim=-1)
    soft = -(targets * log_probabilities).sum(dim=-1).mean()
    return (1.0 - weight) * hard + weight * soft
