"""Scores before any training: how much each unit matters, by one of several strategies."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Literal, Protocol, get_args

import torch
from torch import Tensor, nn

from dtp_deploy.errors import TrainingError, UsageError
from dtp_deploy.graph import ChannelGroup, tensor_by_name
from dtp_deploy.graph.groups import index_tensor
from dtp_deploy.modules import evaluating, fused_apart, train_only
from dtp_deploy.ranks import mean_over_ranks

ScoreStart = Literal["l2", "bn", "taylor", "uniform"]
WeightStart = Literal["l2", "uniform"]
"""What scores of single weights may start from."""

_LEAST = 0.1
"""A unit below this, as a share of the largest of its group, is as good as dead, and counts as this."""

_SAME = 1e-6
"""What differs by less, as a share of the largest, is equal: rounding shall not decide what comes first."""

Losses = Callable[[nn.Module], Iterable[Tensor]]
"""Gives the loss of a model on some batches, one scalar a batch, each with its graph."""


class Importance(Protocol):
    """A strategy: how much the units of every group matter, before any training."""

    def __call__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> Sequence[Tensor]:
        """For every group, shape [units,], float64, >= 0, on a scale of the group's own."""
        ...


def initial_scores(
    model: nn.Module, groups: Sequence[ChannelGroup], start: ScoreStart = "l2", losses: Losses | None = None
) -> tuple[Tensor, ...]:
    """One score a unit for every group, each of shape [units,], float64.

    It is log(n LAMP): twice `log_shares` of the importance in its group, and log(n), n being the units of the group. No
    layer wins by the scale of its numbers or by its width: of units that are nearly equal the k-th has log(n / k),
    which has unit spread, so that one threshold gives every layer the same share. A layer whose importance lies in few
    units keeps fewer. No two scores are equal: such units would share the mass for ever. The lower index counts more,
    relative to the size of its group.

    Args:
        model: the dense model; not changed.
        groups: whose units are scored.
        start: the strategy.
        losses: what "taylor" needs, and no other.

    Raises:
        UsageError: `start` is not known, or "taylor" has no losses.
        TrainingError: "taylor" met a loss or a gradient that is not finite.
    """
    importance = importance_of(start, losses)(model, groups)
    if start == "uniform":
        scores = [torch.zeros_like(values) for values in importance]
    else:
        scores = [2 * log_shares(values, _LEAST) + math.log(len(values)) for values in importance]
    places = torch.cat([torch.arange(len(score), dtype=torch.float64) / len(score) for score in scores])
    ranks = torch.argsort(torch.argsort(places, stable=True)) / len(places)
    penalties = torch.split(1e-4 * ranks.to(torch.float64), [len(score) for score in scores])
    return tuple(score - penalty.to(score) for score, penalty in zip(scores, penalties, strict=True))


def log_shares(importance: Tensor, least: float) -> Tensor:
    """log(one / norm of all that are not smaller), shape [n,], float64, on the CPU: zero for the largest.

    Half of the logarithm of LAMP (Lee et al., "Layer-adaptive Sparsity for the Magnitude-based Pruning", ICLR 2021). Of
    equal ones, up to rounding, the first counts as the largest. Where all are zero, they lie below those of any other.

    Args:
        importance: shape [n,], >= 0, on any scale.
        least: as a share of the largest, what all smaller ones count as.

    >>> log_shares(torch.tensor([1.0, 2.0, 2.0]), 1e-3).exp().square()  # 1 / 9, 4 / 4, 4 / 8
    tensor([0.1111, 1.0000, 0.5000], dtype=torch.float64)
    """
    values = importance.to("cpu", torch.float64)  # GPUs may add up in another order each time
    values = torch.round(values / values.max().clamp_min(1e-300) / _SAME) * _SAME
    order = torch.argsort(values, descending=True, stable=True)
    ordered = values[order].clamp_min(least)
    shares = ordered.log() - ordered.square().cumsum(0).log() / 2
    if not values.any():
        shares += math.log(least)
    return torch.empty_like(values).index_copy_(0, order, shares)


def importance_of(start: ScoreStart, losses: Losses | None = None) -> Importance:
    """The strategy of that name.

    Raises:
        UsageError: there is none, or "taylor" has no losses.
    """
    if start == "taylor":
        if losses is None:
            raise UsageError(
                "Initial scores 'taylor' need the loss on some batches, and none is given. Give ChannelMasks(..., "
                "losses=function), a function that yields model's loss on one batch after the other; or other scores."
            )
        return Taylor(losses)
    strategies: Mapping[ScoreStart, Importance] = {"l2": l2, "bn": batchnorm_scale, "uniform": uniform}
    if start not in strategies:
        raise UsageError(f"Initial scores {start!r} are unknown. Give one of {', '.join(get_args(ScoreStart))}.")
    return strategies[start]


def l2(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """L2 norm of all parameters that belong to a unit: writers, readers and those between."""
    return [_sum_over_units(model, group, lambda name, tensor: tensor.square()).sqrt() for group in groups]


def batchnorm_scale(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """Mean |gamma| of the BatchNorm entries that scale a unit; the `l2` of a group that no BatchNorm scales."""
    found = []
    for group in groups:
        scales = [_scale_by_unit(model, group, name) for name in _batchnorm_scales(model, group)]
        found.append(torch.stack(scales).mean(0) if scales else l2(model, [group])[0])
    return found


@contextmanager
def _all_learning(model: nn.Module) -> Iterator[None]:
    """Within the context every parameter of floating point has a gradient: a frozen one is worth no less."""
    learning = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    train_only(model, [name for name, parameter in model.named_parameters() if parameter.is_floating_point()])
    try:
        with torch.enable_grad():
            yield
    finally:
        train_only(model, learning)


class Taylor:
    """How much the loss would change without a unit, to first order: |sum of w dL/dw over its parameters|.

    The mean over the batches of `losses` (Molchanov et al., "Importance Estimation for Neural Network Pruning", CVPR
    2019). The model computes in eval mode, and the random state stays as it is: training goes on as without.
    """

    def __init__(self, losses: Losses) -> None:
        self.losses = losses

    def __call__(self, model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
        """See `Importance`.

        Raises:
            UsageError: `losses` yields nothing.
            TrainingError: a loss or a gradient is not finite.
        """
        parameters = {name: value for name, value in model.named_parameters() if value.is_floating_point()}
        totals: list[Tensor] = []
        batches = 0
        with _all_learning(model), evaluating(model), torch.random.fork_rng(devices=[]), fused_apart():
            for loss in self.losses(model):
                found = torch.autograd.grad(loss, list(parameters.values()), allow_unused=True)
                gradients = dict(zip(parameters, found, strict=True))
                batch = [_change_of_loss(model, group, gradients) for group in groups]
                totals = [total + one for total, one in zip(totals, batch, strict=True)] if totals else batch
                batches += 1
        if not batches:
            raise UsageError("The losses for the scores 'taylor' hold no batch. Let the function yield at least one.")
        if not all(bool(total.isfinite().all()) for total in totals):
            raise TrainingError(
                "The gradients for the scores 'taylor' hold NaN or infinity. Check the data and the loss, or start "
                "from other scores."
            )
        return [mean_over_ranks(total / batches) for total in totals]


def uniform(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    """The same for all units: only what is learned counts."""
    device = next(model.parameters()).device
    return [torch.ones(group.units, dtype=torch.float64, device=device) for group in groups]


def _sum_over_units(model: nn.Module, group: ChannelGroup, value_of: Callable[[str, Tensor], Tensor | None]) -> Tensor:
    """Sum of a value of every parameter over the units that it belongs to, shape [units,], float64.

    `value_of` gets a tensor's name and its parameter in float64; None leaves the tensor out.
    """
    parameters = {name for name, _ in model.named_parameters()}
    total: Tensor | None = None
    for piece in group.slices:
        if piece.tensor not in parameters:
            continue  # running statistics are no weights
        tensor = tensor_by_name(model, piece.tensor).detach().to(torch.float64)
        if total is None:
            total = torch.zeros(group.units, dtype=torch.float64, device=tensor.device)
        values = value_of(piece.tensor, tensor)
        if values is None:
            continue
        by_index = values.transpose(0, piece.dim).flatten(1).sum(1) if values.ndim > 1 else values
        units = index_tensor(piece, tensor.device)
        inside = units >= 0
        total = total.index_add(0, units[inside], by_index[inside])
    assert total is not None, group.name
    return total


def _change_of_loss(model: nn.Module, group: ChannelGroup, gradients: Mapping[str, Tensor | None]) -> Tensor:
    def product(name: str, tensor: Tensor) -> Tensor | None:
        gradient = gradients.get(name)
        return None if gradient is None else tensor * gradient.to(torch.float64)

    return _sum_over_units(model, group, product).abs()


def _batchnorm_scales(model: nn.Module, group: ChannelGroup) -> list[str]:
    """Names of the weights of the BatchNorm layers that a group runs through."""
    names = []
    for piece in group.slices:
        path, _, leaf = piece.tensor.rpartition(".")
        if leaf == "weight" and isinstance(model.get_submodule(path), nn.modules.batchnorm._BatchNorm):
            names.append(piece.tensor)
    return names


def _scale_by_unit(model: nn.Module, group: ChannelGroup, scale: str) -> Tensor:
    """Mean |gamma| of one BatchNorm over the entries of each unit."""

    def total_of(value: Callable[[Tensor], Tensor]) -> Tensor:
        return _sum_over_units(model, group, lambda name, tensor: value(tensor) if name == scale else None)

    return total_of(torch.abs) / total_of(torch.ones_like)
