"""Least squares with coefficients that are never negative: a layer cannot take less than no time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TOLERANCE = 1e-10


def fit_not_negative(features: Floats, measured: Floats) -> Floats:
    """The x >= 0 that makes the relative errors (features x - measured) / measured smallest in squares.

    The active set method of Lawson and Hanson, Solving Least Squares Problems, 1974, ch. 23.

    Args:
        features: shape [K, F].
        measured: all above zero, shape [K,].

    >>> fit_not_negative(np.array([[1.0, 1.0], [1.0, 2.0], [1.0, 4.0]]), np.array([3.0, 5.0, 9.0])).round(6).tolist()
    [1.0, 2.0]
    >>> fit_not_negative(np.array([[1.0, 1.0], [1.0, 2.0]]), np.array([2.0, 1.0])).round(6).tolist()  # no falling line
    [1.2, 0.0]
    """
    a = features / measured[:, None]
    scales = np.linalg.norm(a, axis=0)
    scales[scales == 0] = 1.0
    a = a / scales
    ones = np.ones(len(measured))
    x = np.zeros(a.shape[1])
    used = np.zeros(a.shape[1], dtype=bool)
    for _ in range(3 * len(x)):
        slope = a.T @ (ones - a @ x)
        slope[used] = 0.0
        best = int(slope.argmax())
        if slope[best] <= _TOLERANCE * len(measured):
            break
        used[best] = True
        while True:
            wanted = np.zeros_like(x)
            wanted[used] = np.linalg.lstsq(a[:, used], ones)[0]
            below = used & (wanted <= 0)
            if not below.any():
                break
            # As far towards the free optimum as all stay above zero; what gets there is not used any more.
            x += (x[below] / (x[below] - wanted[below])).min() * (wanted - x)
            used &= x > _TOLERANCE
            x[~used] = 0.0
        x = wanted
    return np.asarray(x / scales, dtype=np.float64)
