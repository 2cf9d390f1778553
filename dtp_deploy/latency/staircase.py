"""Which widths a target likes: its staircase, seen in a few small graphs of the network's own layers."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence

import numpy as np

from dtp_deploy.cost import Staircase
from dtp_deploy.latency.layers import LayerSignature

STEPS = (4, 8, 16, 32)
"""Steps that are looked for; none of them is the step 1."""
BASES = (32, 64)
OTHER_WIDTH = 128
"""Channels of the side that is not varied."""

_LEAST_GROWTH = 0.3
_WINDOW = 64
"""Channels from `_WINDOW` to twice as many show how high the steps are; it is the longest period that is seen."""
_UNEVEN = 0.06
"""Share of the window by which steps that repeat may differ."""

Widths = tuple[int, int]


def probe_widths(axis: int, signature: LayerSignature) -> list[Widths]:
    """Input and output channels to measure for one axis (0: inputs, 1: outputs): a single channel, multiples of every
    step, and half a step below them.

    >>> from dtp_deploy.latency.layers import gemm
    >>> probe_widths(0, gemm(1))[:4]
    [(1, 128), (16, 128), (24, 128), (28, 128)]
    """
    return _pairs(sorted({1, *BASES, *(base - step // 2 for base in BASES for step in STEPS)}), axis, signature)


def step_widths(axis: int, signature: LayerSignature, step: int) -> list[Widths]:
    """Input and output channels to measure for one axis, so that the heights of its steps are seen.

    >>> from dtp_deploy.latency.layers import gemm
    >>> step_widths(1, gemm(1), 16)
    [(128, 64), (128, 80), (128, 96), (128, 112), (128, 128)]
    """
    return _pairs(range(_WINDOW, 2 * _WINDOW + 1, step), axis, signature)


def _pairs(widths: Iterable[int], axis: int, signature: LayerSignature) -> list[Widths]:
    other = 1 if signature.is_depthwise else OTHER_WIDTH
    return [(width, other) if axis == 0 else (other, width) for width in widths]


def find_step(times: Sequence[Mapping[int, float]]) -> int:
    """The step of the staircase: the largest s so that half a step less than a multiple of s saves nothing.

    "Nothing" is less than half of what a straight line from one channel up would save, in the median over the layers:
    one disturbed measurement must not hide a step. A layer in which width hardly matters has no say.

    Args:
        times: for one layer each, milliseconds by width, measured at `probe_widths`.

    >>> import math
    >>> widths = [w[0] for w in probe_widths(0, LayerSignature("Gemm", (), (), (), (), (), 1, 1, ()))]
    >>> [find_step([{w: 1 + math.ceil(w / step) * step for w in widths}]) for step in (1, 4, 8, 16, 32)]
    [1, 4, 8, 16, 32]
    >>> find_step([{w: 5.0 for w in widths}])
    1
    """
    step = 1
    for candidate in STEPS:
        saved = [
            (layer[base] - layer[base - candidate // 2]) * base / ((layer[base] - layer[1]) * candidate / 2)
            for layer in times
            for base in BASES
            if layer[base] - layer[1] > _LEAST_GROWTH * layer[base]
        ]
        if saved and float(np.median(saved)) < 0.5:
            step = candidate
    return step


def find_stairs(step: int, times: Sequence[Mapping[int, float]]) -> Staircase:
    """The staircase with steps of a known length: the shortest period after which they repeat, and what each is worth.

    The median over the layers of what their time has risen by, as a share of what it rises by over the whole window. A
    layer in which width hardly matters has no say.

    Args:
        step: channels.
        times: for one layer each, milliseconds by width, measured at `step_widths`.

    >>> ms = [{w: 9 + 32 * (w // 32) + (0, 18, 21, 26)[w % 32 // 8] for w in range(64, 129, 8)}]
    >>> find_stairs(8, ms)
    Staircase(step=8, worth=(18.0, 21.0, 26.0, 32.0))
    >>> find_stairs(8, [{w: 3.0 * w for w in range(64, 129, 8)}])
    Staircase(step=8, worth=(8.0,))
    """
    widths = range(_WINDOW, 2 * _WINDOW + 1, step)
    risen = [
        [(layer[width] - layer[_WINDOW]) / (layer[2 * _WINDOW] - layer[_WINDOW]) for width in widths]
        for layer in times
        if layer[2 * _WINDOW] - layer[_WINDOW] > _LEAST_GROWTH * layer[2 * _WINDOW]
    ]
    if not risen:
        return Staircase(step, (float(step),))
    worth = _WINDOW * np.median(np.array(risen), axis=0)
    count = 1
    while step * count < _WINDOW and np.abs(worth[count:] - worth[:-count] - step * count).max() > _UNEVEN * _WINDOW:
        count *= 2
    periods = range(0, len(worth) - 1, count)
    heights = np.mean([worth[start + 1 : start + count + 1] - worth[start] for start in periods], axis=0)
    rising = np.maximum.accumulate(np.clip(heights, 1.0, step * count))
    rising[-1] = step * count
    return Staircase(step, tuple(round(float(each), 3) for each in rising))
