"""Least squares with coefficients that are never negative: a layer cannot take less than no time."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]

_TOLERANCE = 1e-10
_BETWEEN = 4
"""Into how many parts the range between two values of a feature is cut to find a capacity."""


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


def fit_with_spill(features: Floats, measured: Floats) -> tuple[float, Floats]:
    """Least squares as above, where the last feature counts only beyond a capacity, which is fitted too.

    Args:
        features: shape [K, F].
        measured: shape [K,].

    Returns:
        The capacity, 0 or a value of the last feature or one of a few between them, and the factors for `with_spill`,
        [F,].

    >>> weights = np.arange(1.0, 9.0)
    >>> features = np.stack([np.ones(8), weights], axis=1)
    >>> capacity, factors = fit_with_spill(features, 2 + 3 * np.maximum(weights - 4, 0))
    >>> capacity, factors.round(6).tolist()
    (4.0, [2.0, 3.0])
    """
    best = (float("inf"), 0.0, np.zeros(features.shape[1]))
    values = np.unique([0.0, *features[:, -1]])
    places = np.linspace(0, len(values) - 1, _BETWEEN * (len(values) - 1) + 1)
    for capacity in np.interp(places, np.arange(len(values)), values).tolist():
        spilled = with_spill(features, capacity)
        x = fit_not_negative(spilled, measured)
        error = float(np.square(spilled @ x / measured - 1).sum())
        if error < best[0] * (1 - _TOLERANCE):
            best = (error, capacity, x)
    return best[1], best[2]


def with_spill(features: Floats, capacity: float) -> Floats:
    """The features with the last one replaced by what of it is above the capacity."""
    return np.column_stack([features[:, :-1], np.maximum(features[:, -1] - capacity, 0.0)])
