"""Linear probe: logistic regression on the features of the shots, the baseline of Radford et al. (2021, section 3.2).

How strongly it is regularised is searched on validation images as in CoOp's baseline (Zhou et al., 2022). Differences
from its code: features are L2-normalised, there they are as they come from the image encoder; and the solver works in
float64.
"""

from __future__ import annotations

import warnings
from collections.abc import Sequence
from functools import cache
from typing import Any

import numpy as np
from sklearn.exceptions import ConvergenceWarning
from sklearn.linear_model import LogisticRegression
from threadpoolctl import threadpool_limits

from pipeline_lib.classifiers.examples import Examples
from pipeline_lib.classifiers.head import Head

# C = 10 ** exponent, the inverse of the regularisation's strength.
_SWEEP = (6.0, 4.0, 2.0, 0.0, -2.0, -4.0, -6.0)
_HALVINGS = 8
_MAX_ITERATIONS = 1000


def linear_probe(
    shots: Examples, validation: Examples, class_names: Sequence[str], threads: int = 1
) -> tuple[Head, dict[str, Any]]:
    """Fit logistic regression (L-BFGS, L2, at most 1,000 iterations) to the shots; returns the head, and what was
    chosen: `C`, with the accuracy on the validation images in percent, how many fits were made, and whether the chosen
    one converged.

    The search: the best of C = 1e6, 1e4, ..., 1e-6, the largest of equally good ones; then eight halvings of the
    interval from a tenth of it to ten times it, each time towards the end that is better, the smaller C if neither is.
    The better end of the last interval is the result. (So C leans to weak regularisation where validation images are
    too few to tell, and by less than a factor of ten to strong.)

    The head's logits are scikit-learn's decision function; of two classes it has only one, the second class's: the
    first has logit 0. threads: CPU threads of the linear algebra.

    Raises ValueError where shots and validation images have different features, there are none of them, or a class has
    no shot.
    """
    names = tuple(class_names)
    present = np.unique(shots.labels)
    if len(names) < 2 or not np.array_equal(present, np.arange(len(names))):
        raise ValueError(
            f"linear probe: the shots have the classes {present.tolist()} of {len(names)}; give shots of each of two "
            f"or more classes"
        )
    if len(validation) == 0 or validation.features.shape[1] != shots.features.shape[1]:
        raise ValueError(
            f"linear probe: validation features have shape {validation.features.shape}, shots {shots.features.shape}; "
            f"give one image or more, of the same encoder"
        )
    features, validation_features = shots.features.astype(np.float64), validation.features.astype(np.float64)

    @cache  # each interval shares an end with the one before
    def fitted(exponent: float) -> tuple[LogisticRegression, float]:
        model = LogisticRegression(C=10.0**exponent, max_iter=_MAX_ITERATIONS)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)
            model.fit(features, shots.labels)
        return model, float(model.score(validation_features, validation.labels))

    with threadpool_limits(threads):
        best = max(_SWEEP, key=lambda exponent: fitted(exponent)[1])
        left, right = best - 1, best + 1
        for _ in range(_HALVINGS):
            middle = (left + right) / 2
            if fitted(left)[1] < fitted(right)[1]:
                chosen, left = right, middle
            else:
                chosen, right = left, middle
        model, accuracy = fitted(chosen)
    details = {
        "C": 10.0**chosen,
        "validation_top1": round(100 * accuracy, 4),
        "fits": fitted.cache_info().currsize,
        "converged": bool(model.n_iter_.max() < _MAX_ITERATIONS),
    }
    return _head(model, names), details


def _head(model: Any, class_names: tuple[str, ...]) -> Head:
    weight, bias = (np.asarray(values, np.float64) for values in (model.coef_, model.intercept_))
    if len(class_names) == 2:
        weight, bias = (np.concatenate([np.zeros_like(values), values]) for values in (weight, bias))
    return Head(weight.astype(np.float32), bias.astype(np.float32), class_names)
