"""Choosing epsilon by what it does: the softness of the masks.

No temperature is set by hand. The schedule says how soft the masks shall be at each step, and epsilon is whatever gives
that softness. It is the same annealing that the proximal scheme produces by itself, where the logits are sums over the
steps and the effective epsilon falls as epsilon / T, but it is free of the scale of the scores and of the number of
steps, and it ends hard for any of them.
"""

import math
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from dtp_deploy.errors import TransportError
from dtp_deploy.transport.exact import solve_exact
from dtp_deploy.transport.problem import TransportProblem

_BOTTOM, _TOP = math.log(1e-9), math.log(1e6)
_TOLERANCE = 0.02


def softness(masks: Tensor) -> float:
    """Mean of 4 m (1 - m): 0 where all masks are 0 or 1, 1 where all are 1/2.

    >>> import torch
    >>> softness(torch.tensor([0.0, 0.5]))
    0.5
    """
    masks = masks.detach()
    return float((4 * masks * (1 - masks)).mean())


def entropy_bits(masks: Tensor) -> float:
    """Mean entropy of masks as probabilities, in bits: 1 where all are 1/2, 0 where all are decided.

    >>> import torch
    >>> entropy_bits(torch.tensor([0.0, 0.5]))
    0.5
    """
    masks = masks.detach().double()
    return float((torch.special.entr(masks) + torch.special.entr(1 - masks)).mean()) / math.log(2)


def epsilon_for_softness(problem: TransportProblem, wanted: float, *, least: float = 0.0) -> float:
    """The epsilon at which the exact masks of `problem` have a softness of `wanted`, within 2 % of it.

    Args:
        problem: its epsilon is the first guess.
        wanted: softness in (0, 1). One that cannot be reached gives the nearest end of the range 1e-9..1e6: a single
            undecided unit, say, stays undecided for any epsilon.
        least: softness that no epsilon takes away, above which `wanted` counts.

    Raises:
        TransportError: `wanted` is outside of (0, 1).
    """
    detached = replace(problem, scores=problem.scores.detach())
    scaled = None

    def softness_at(epsilon: float) -> float:
        nonlocal scaled
        start = scaled / epsilon if scaled is not None and math.isfinite(scaled) else None
        result = solve_exact(replace(detached, epsilon=epsilon), start)
        scaled = result.threshold * epsilon
        return softness(result.masks) - least

    return search_epsilon(softness_at, problem.epsilon, wanted)


def search_epsilon(softness_at: Callable[[float], float], guess: float, wanted: float) -> float:
    """The epsilon at which a softness that grows with it is `wanted`, within 2 %: a bisection of log epsilon, whose
    bracket grows from the first guess.

    Raises:
        TransportError: `wanted` is outside of (0, 1).
    """
    if not 0 < wanted < 1:
        raise TransportError(f"The wanted softness is {wanted}; give a number between 0 and 1, both excluded.")

    def excess(log_epsilon: float) -> float:
        return math.log(max(softness_at(math.exp(log_epsilon)), 1e-300) / wanted)

    # Leave the first guess in growing strides until the wanted softness is passed, then bisect.
    middle = min(max(math.log(guess), _BOTTOM), _TOP)
    difference = excess(middle)
    other, stride = middle, 0.1
    while abs(difference) > _TOLERANCE:
        other = min(max(middle - math.copysign(stride, difference), _BOTTOM), _TOP)
        if other == middle:
            return math.exp(middle)  # the nearest end of the range
        following = excess(other)
        if following * difference <= 0:
            break
        middle, difference, stride = other, following, stride * 3
    low, high = sorted((middle, other))
    while abs(difference) > _TOLERANCE and high - low > 1e-6:
        middle = (low + high) / 2
        difference = excess(middle)
        low, high = (low, middle) if difference > 0 else (middle, high)
    return math.exp(middle)
