"""Which widths a target likes: the step of its staircase, seen in a few small graphs of the network's own layers."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dtp_deploy.latency.layers import LayerSignature

STEPS = (4, 8, 16, 32)
"""Steps that are looked for; none of them is the step 1."""
BASES = (32, 64)
OTHER_WIDTH = 128
"""Channels of the side that is not varied."""

_LEAST_GROWTH = 0.3

Widths = tuple[int, int]


def probe_widths(axis: int, signature: LayerSignature) -> list[Widths]:
    """Input and output channels to measure for one axis (0: inputs, 1: outputs): a single channel, multiples of every
    step, and half a step below them.

    >>> from dtp_deploy.latency.layers import gemm
    >>> probe_widths(0, gemm(1))[:4]
    [(1, 128), (16, 128), (24, 128), (28, 128)]
    """
    widths = sorted({1, *BASES, *(base - step // 2 for base in BASES for step in STEPS)})
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
