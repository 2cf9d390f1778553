"""Scores before any training: how much of the network's weight runs through a unit."""

from collections.abc import Callable, Mapping, Sequence
from typing import Literal, get_args

import torch
from torch import Tensor, nn

from dtp_deploy.errors import UsageError
from dtp_deploy.graph import ChannelGroup, tensor_by_name
from dtp_deploy.graph.groups import index_tensor

ScoreStart = Literal["l2", "uniform"]


def initial_scores(model: nn.Module, groups: Sequence[ChannelGroup], start: ScoreStart = "l2") -> tuple[Tensor, ...]:
    """One score a unit for every group, each of shape [units,], float64, of mean 0 to within 1e-4.

    No two are equal: units with equal scores would share the mass for ever. The lower index counts more, relative to
    the size of its group, so that among equal units every layer keeps the same share.

    Raises:
        UsageError: `start` is not known.
    """
    strategies: Mapping[ScoreStart, Callable[[nn.Module, Sequence[ChannelGroup]], list[Tensor]]] = {
        "l2": _l2,
        "uniform": _uniform,
    }
    if start not in strategies:
        raise UsageError(f"Initial scores {start!r} are unknown. Give one of {', '.join(get_args(ScoreStart))}.")
    scores = strategies[start](model, groups)
    places = torch.cat([torch.arange(len(score), dtype=torch.float64) / len(score) for score in scores])
    ranks = torch.argsort(torch.argsort(places, stable=True)) / len(places)
    penalties = torch.split(1e-4 * ranks.to(torch.float64), [len(score) for score in scores])
    return tuple(score - penalty.to(score) for score, penalty in zip(scores, penalties, strict=True))


def unit_norms(model: nn.Module, group: ChannelGroup) -> Tensor:
    """L2 norm of all parameters that belong to a unit, writers, readers and those between, shape [units,], float64."""
    parameters = dict(model.named_parameters())
    squares: Tensor | None = None
    for piece in group.slices:
        if piece.tensor not in parameters:
            continue  # running statistics are no weights
        tensor = tensor_by_name(model, piece.tensor).detach().to(torch.float64)
        by_index = tensor.square().transpose(0, piece.dim).flatten(1).sum(1) if tensor.ndim > 1 else tensor.square()
        units = index_tensor(piece, tensor.device)
        inside = units >= 0
        if squares is None:
            squares = torch.zeros(group.units, dtype=torch.float64, device=tensor.device)
        squares = squares.index_add(0, units[inside], by_index[inside])
    assert squares is not None, group.name
    return squares.sqrt()


def _l2(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    # Divided by its group's mean, so that no layer wins by the scale of its weights; then brought to unit spread.
    relative = [norms / norms.mean().clamp_min(1e-30) - 1 for norms in (unit_norms(model, group) for group in groups)]
    spread = torch.cat(relative).std(correction=0)
    # Below 1e-6 the norms are equal but for rounding, which must not be blown up.
    return [score / spread.clamp_min(1e-6) for score in relative]


def _uniform(model: nn.Module, groups: Sequence[ChannelGroup]) -> list[Tensor]:
    return [torch.zeros_like(unit_norms(model, group)) for group in groups]
