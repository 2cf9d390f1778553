"""Whether two forms of one model say the same: comparing callables, and knowing nothing else about them.

The error of an output is judged relative to the output's own scale, the largest magnitude in the reference:

    error = max|reference - candidate| / max(max|reference|, SMALLEST_SCALE)

where both maxima run over all elements of the output in all batches; the worst output decides. Judging element by
element would divide rounding noise by elements that happen to be near zero, and batch by batch does the same to a
model that returns one number; judging absolutely would let a small-valued output be wrong altogether, and would fail a
large-valued one for its rounding. One output never lends its scale to another.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt

Batch = TypeVar("Batch")

SMALLEST_SCALE = 1e-6
"""An output whose reference is smaller than this, all zeros for instance, is judged as if its scale were this."""


@dataclass(frozen=True)
class ParityResult:
    """How far one form of a model is from another.

    Attributes:
        stage: the form that was checked, such as "simplified".
        max_abs_error: largest difference of any element, in the output's own units; infinite if not comparable.
        max_rel_error: largest error relative to an output's scale (see the module); infinite if not comparable.
        tolerance: the largest `max_rel_error` that passes.
        passed: whether the two forms agree.
    """

    stage: str
    max_abs_error: float
    max_rel_error: float
    tolerance: float
    passed: bool


def compare(
    stage: str,
    reference: Callable[[Batch], Sequence[npt.NDArray[Any]]],
    candidate: Callable[[Batch], Sequence[npt.NDArray[Any]]],
    batches: Sequence[Batch],
    tolerance: float = 1e-4,
) -> ParityResult:
    """Run both forms on the same batches and compare their outputs, in order.

    Outputs that cannot be compared have an infinite error and do not pass: a different number of outputs, a different
    shape, NaN or infinity on either side. Types may differ (a float16 engine against a float32 model).

    Args:
        stage: a name for the result.
        reference: the form that is right by definition; batch -> outputs.
        candidate: the form to be checked; batch -> outputs.
        batches: at least one; neither callable may change a batch.
        tolerance: the largest relative error that passes, above zero.

    Raises:
        ValueError: no batches, a tolerance that is not above zero and finite, or a reference without outputs. A
            comparison of nothing would pass and prove nothing.

    >>> def double(x): return [2 * x]
    >>> def almost(x): return [2 * x + 2**-10]
    >>> compare("exact", double, double, [np.ones(3)]).passed
    True
    >>> result = compare("inexact", double, almost, [np.ones(3)])
    >>> result.max_abs_error, result.max_rel_error, result.passed
    (0.0009765625, 0.00048828125, False)
    """
    if not batches:
        raise ValueError(f"Parity of {stage!r} was asked for on no batches. Give at least one.")
    if not (math.isfinite(tolerance) and tolerance > 0):
        raise ValueError(f"Parity of {stage!r} has the tolerance {tolerance}. Give a finite number above zero.")
    abs_errors: dict[int, float] = {}
    scales: dict[int, float] = {}
    for batch in batches:
        expected, given = reference(batch), candidate(batch)
        if not expected:
            raise ValueError(f"The reference of {stage!r} has no outputs. Compare forms that have at least one.")
        if len(expected) != len(given):
            return ParityResult(stage, math.inf, math.inf, tolerance, passed=False)
        for output, (a, b) in enumerate(zip(expected, given, strict=True)):
            abs_error, scale = _difference(a, b)
            abs_errors[output] = max(abs_errors.get(output, 0.0), abs_error)
            scales[output] = max(scales.get(output, SMALLEST_SCALE), scale)
    max_rel_error = max(abs_error / scales[output] for output, abs_error in abs_errors.items())
    return ParityResult(stage, max(abs_errors.values()), max_rel_error, tolerance, passed=max_rel_error <= tolerance)


def _difference(reference: npt.NDArray[Any], candidate: npt.NDArray[Any]) -> tuple[float, float]:
    """Largest absolute error of one output in one batch, and the largest magnitude of its reference."""
    if np.shape(reference) != np.shape(candidate):
        return math.inf, 0.0
    a, b = np.asarray(reference, dtype=np.float64), np.asarray(candidate, dtype=np.float64)
    if not (np.isfinite(a).all() and np.isfinite(b).all()):
        return math.inf, 0.0
    return float(np.max(np.abs(a - b), initial=0.0)), float(np.max(np.abs(a), initial=0.0))
