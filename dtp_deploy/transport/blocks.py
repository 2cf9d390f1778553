"""Many tiny transports at once: k blocks of n units each, every block with a budget of its own.

Two of every four consecutive weights kept (2:4) is n = 4 and kept = 2: k problems that share nothing but epsilon. Each
is the problem of `exact.py` for equal costs, so with a threshold t_b for every block

    m_bi = sigmoid(x_bi - t_b),     sum_i m_bi = kept,     grad_x = v (g - mean_v(g)),     v = m (1 - m),

where mean_v is the mean over the block, weighted by v; it is 0 where all masks of a block are hard.
"""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from dtp_deploy.errors import TransportError
from dtp_deploy.transport.annealing import search_epsilon, softness
from dtp_deploy.transport.problem import check_logits

_MAX_ITERATIONS = 200
_TOLERANCE = 1e-13
_SPACING = 2 * torch.finfo(torch.float64).eps


@dataclass(frozen=True)
class BlockProblem:
    """Transport of k blocks of n units into the bins pruned and kept, `kept` units of mass in every block.

    Attributes:
        scores: s_bi, shape [k, n], float32 or float64, finite. Gradients flow to it.
        epsilon: weight of the entropy, > 0.
        kept: sum of the masks of a block, in 0..n.

    Raises:
        TransportError: scores empty, not finite, of another type or shape; epsilon or kept out of range.
    """

    scores: Tensor
    epsilon: float
    kept: float

    def __post_init__(self) -> None:
        if self.scores.ndim != 2 or self.scores.numel() == 0:
            raise TransportError(
                f"Scores of blocks have shape {tuple(self.scores.shape)}; give (blocks, units), neither of them zero."
            )
        if self.scores.dtype not in (torch.float32, torch.float64):
            raise TransportError(f"Scores have dtype {self.scores.dtype}; give float32 or float64.")
        ends = torch.stack(torch.aminmax(self.scores.detach())).tolist()  # NaN, too, comes through
        if not all(map(math.isfinite, ends)):
            raise TransportError(
                "Scores hold NaN or infinity; they must be finite. Lower the learning rate, or check the data for NaN."
            )
        if not (math.isfinite(self.epsilon) and self.epsilon > 0):
            raise TransportError(f"epsilon is {self.epsilon}; give a positive, finite number.")
        check_logits(ends, self.epsilon)
        if not 0 <= self.kept <= self.scores.shape[1]:
            raise TransportError(
                f"kept is {self.kept} of blocks of {self.scores.shape[1]} units; give a number between zero and that."
            )


@dataclass(frozen=True)
class BlockResult:
    """A solution of a `BlockProblem`.

    Attributes:
        masks: m_bi in [0, 1], shape [k, n], in the scores' dtype, differentiable with respect to them.
        thresholds: t_b, shape [k,], float64, in units of the logits; -inf keeps all units, +inf none.
        marginal_error: the largest difference of any block's mass from the one wanted, as a share of n.
        iterations: Newton steps until the last block was solved.
    """

    masks: Tensor
    thresholds: Tensor
    marginal_error: float
    iterations: int

    @property
    def converged(self) -> bool:
        """Whether every block has its mass to within 1e-9 of its size."""
        return self.marginal_error <= 1e-9


def solve_blocks(problem: BlockProblem, start: Tensor | None = None) -> BlockResult:
    """Solve all blocks to machine precision: safeguarded Newton steps on every t_b, those that are solved left alone.

    Args:
        problem: the problem, k blocks of n units.
        start: guesses of t_b, shape [k,], say the last solution's, which save iterations.

    Returns:
        Masks with the mass `kept` in every block, differentiable with respect to the scores.

    >>> result = solve_blocks(BlockProblem(torch.tensor([[0.3, 0.9, 0.1, 0.5]]), epsilon=0.01, kept=2))
    >>> result.masks.round().tolist(), result.converged
    ([[0.0, 1.0, 0.0, 1.0]], True)
    """
    units, kept = problem.scores.shape[1], float(problem.kept)
    x = problem.scores.detach().to(torch.float64) * (2.0 / problem.epsilon)
    iterations = 0
    if kept in (0.0, float(units)):
        thresholds = torch.full_like(x[:, 0], -math.inf if kept else math.inf)
        x = x - thresholds[:, None]
    else:
        thresholds, iterations = _thresholds(x, kept, start)
        x = x - thresholds[:, None]
        # Where neighbouring numbers near t_b are too far apart: seen from t_b, the logits that matter are exact.
        off = _excess(x, kept).abs() > _TOLERANCE * kept
        if bool(off.any()):
            shifts, more = _thresholds(x[off], kept, torch.zeros_like(thresholds[off]))
            x[off] -= shifts[:, None]
            thresholds[off] += shifts
            iterations += more
    masks = torch.sigmoid(x)
    error = float((masks.sum(1) - kept).abs().max()) / units
    return BlockResult(
        _BlockMasks.apply(problem.scores, masks, problem.epsilon),  # type: ignore[no-untyped-call]
        thresholds,
        error,
        iterations,
    )


def epsilon_for_block_softness(problem: BlockProblem, wanted: float, *, least: float = 0.0) -> float:
    """The epsilon at which the masks of all blocks together have a softness of `wanted`: as `epsilon_for_softness`.

    Args:
        problem: its epsilon is the first guess.
        wanted: softness in (0, 1).
        least: softness that no epsilon takes away, above which `wanted` counts.

    Raises:
        TransportError: `wanted` is outside of (0, 1).
    """
    detached = replace(problem, scores=problem.scores.detach())
    scaled: Tensor | None = None

    def softness_at(epsilon: float) -> float:
        nonlocal scaled
        result = solve_blocks(replace(detached, epsilon=epsilon), None if scaled is None else scaled / epsilon)
        scaled = result.thresholds * epsilon
        return softness(result.masks) - least

    return search_epsilon(softness_at, problem.epsilon, wanted)


def _excess(x: Tensor, kept: float) -> Tensor:
    return torch.sigmoid(x).sum(1) - kept


def _thresholds(x: Tensor, kept: float, start: Tensor | None) -> tuple[Tensor, int]:
    """t_b with sum_i sigmoid(x_bi - t_b) = kept, shape [k,], and the number of steps that the slowest block took.

    sigmoid(x_min - t) and sigmoid(x_max - t) bound the mean mask, which gives every block its bracket.
    """
    share = math.log(kept) - math.log(x.shape[1] - kept)  # the quotient may be too small to be a number
    low, high = x.amin(1) - share, x.amax(1) - share
    t = _where_hard(x, kept)
    if start is not None:
        better = _excess(x - start[:, None], kept).abs() < _excess(x - t[:, None], kept).abs()
        t = torch.where(better, start, t)
    t = torch.where((low < t) & (t < high), t, (low + high) / 2)
    found = t.clone()
    rows = torch.arange(len(x), device=x.device)
    previous = torch.full_like(t, math.inf)
    iterations = 0
    while iterations < _MAX_ITERATIONS:
        iterations += 1
        masks = torch.sigmoid(x - t[:, None])
        excess = masks.sum(1) - kept
        low, high = torch.where(excess >= 0, t, low), torch.where(excess >= 0, high, t)
        middle = (low + high) / 2
        slope = (masks * (1 - masks)).sum(1)
        newton = t + excess / slope
        good = (low < newton) & (newton < high) & (excess.abs() < 0.5 * previous)
        # Below the second term, no number near t does better.
        enough = torch.maximum(slope * t.abs() * _SPACING, torch.full_like(t, _TOLERANCE * kept))
        open_ = (excess.abs() > enough) & (middle > low) & (middle < high)
        found[rows] = t
        if not bool(open_.any()):
            break
        following = torch.where(good, newton, middle)
        rows, x, low, high = rows[open_], x[open_], low[open_], high[open_]
        t, previous = following[open_], excess.abs()[open_]
    return found, iterations


def _where_hard(x: Tensor, kept: float) -> Tensor:
    """Where t_b lies if the logits are far apart: between the last unit kept and the next, or at the one in part."""
    whole = math.floor(kept)
    part = kept - whole
    ordered = x.sort(1, descending=True).values
    if part == 0:
        return (ordered[:, whole - 1] + ordered[:, whole]) / 2
    return ordered[:, whole] - math.log(part / (1 - part))


class _BlockMasks(torch.autograd.Function):
    """Hands out masks that are solved already, and differentiates them as the module's docstring says."""

    @staticmethod
    def forward(ctx: Any, scores: Tensor, masks: Tensor, epsilon: float) -> Tensor:  # noqa: ANN401 - torch has no type
        ctx.save_for_backward(masks)
        ctx.epsilon, ctx.dtype = epsilon, scores.dtype
        return masks.to(scores.dtype)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # noqa: ANN401
        (masks,) = ctx.saved_tensors
        g = gradient.to(torch.float64)
        v = masks * (1 - masks)
        weight = v.sum(1, keepdim=True)
        price = torch.where(weight > 0, (v * g).sum(1, keepdim=True) / weight, 0.0)
        return (v * (g - price) * (2.0 / ctx.epsilon)).to(ctx.dtype), None, None
