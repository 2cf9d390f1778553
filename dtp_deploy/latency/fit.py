"""Least squares with coefficients that are never negative: a layer cannot take less than no time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_ROUNDS = 3000


def fit_not_negative(features: Floats, measured: Floats) -> Floats:
    """The x >= 0 that makes the relative errors (features x - measured) / measured smallest in squares.

    Cyclic coordinate descent, which ends at the optimum of this convex problem (Franc et al., CAIP 2005).

    Args:
        features: shape [K, F].
        measured: all above zero, shape [K,].

    >>> fit_not_negative(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]]), np.array([3.0, 5.0, 9.0])).round(6).tolist()
    [1.0, 2.0]
    >>> fit_not_negative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0])).round(6).tolist()  # no falling line
    [1.2, 0.0]
    """
    relative = features / measured[:, None]
    scales = np.linalg.norm(relative, axis=0)
    scales[scales == 0] = 1.0
    relative = relative / scales
    gram = relative.T @ relative
    towards = relative.sum(axis=0)
    x = np.zeros(features.shape[1])
    for _ in range(_ROUNDS):
        largest = 0.0
        for j in range(len(x)):
            if gram[j, j] > 0:
                new = max(0.0, x[j] + (towards[j] - gram[j] @ x) / gram[j, j])
                largest, x[j] = max(largest, abs(new - x[j])), new
        if largest < 1e-12:
            break
    return np.asarray(x / scales, dtype=np.float64)
