"""Costs as functions of the widths: sums of products of affine functions.

A tensor with two pruned dimensions has (b0 + A0 w)(b1 + A1 w) values per fixed remainder, where w holds the units kept
of every prunable group. Parameters, bytes and MACs are such sums with different factors, so one type serves them all,
with its exact gradient.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

import torch
from torch import Tensor, nn

from dtp_deploy.cost.count import count_macs
from dtp_deploy.graph import ChannelGroup, Groups
from dtp_deploy.modules import Inputs, device_of, evaluating, fused_apart


class WidthFunction(Protocol):
    """A cost of the network, rising with every width."""

    def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        """Cost, shape (), and gradient, shape [G,], at the kept units of the prunable groups, [G,], float64."""
        ...


@dataclass(frozen=True)
class ChannelCount:
    """The number of channels kept in all prunable groups.

    Attributes:
        channels_per_unit: shape [G,], float64.
    """

    channels_per_unit: Tensor

    def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        return self.channels_per_unit @ widths, self.channels_per_unit


@dataclass(frozen=True)
class NetworkCost:
    """constant + sum over tensors of factor (b0 + A0 w)(b1 + A1 w).

    Attributes:
        factors: cost of one value of each tensor, shape [T,], float64.
        offsets: b0 and b1, each [T,].
        slopes: A0 and A1, each [T, G].
        constant: cost that no width changes.
    """

    factors: Tensor
    offsets: tuple[Tensor, Tensor]
    slopes: tuple[Tensor, Tensor]
    constant: float

    def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        first = self.offsets[0] + self.slopes[0] @ widths
        second = self.offsets[1] + self.slopes[1] @ widths
        value = self.constant + (self.factors * first * second).sum()
        gradient = (self.factors * second) @ self.slopes[0] + (self.factors * first) @ self.slopes[1]
        return value, gradient


def parameter_cost(model: nn.Module, groups: Groups, *, per_value: float = 1.0, constant: float = 0.0) -> NetworkCost:
    """Number of parameters, or bytes with `per_value` bytes each and a constant for everything else in the file."""
    factors = {name: per_value for name, _ in model.named_parameters()}
    return _network_cost(model, groups.prunable, factors, constant)


def macs_cost(model: nn.Module, groups: Groups) -> NetworkCost:
    """Multiply-accumulate operations for one sample of the groups' example input.

    Convolutions and linear layers are functions of the widths; everything else that `count_macs` finds (attention, say)
    is a constant.
    """
    samples = len(groups.inputs[0])
    factors = {name: uses / samples for name, uses in _uses_of_weights(model, groups.inputs).items()}
    cost = _network_cost(model, groups.prunable, factors, 0.0)
    full = torch.tensor([float(group.units) for group in groups.prunable], dtype=torch.float64)
    rest = count_macs(model, groups.inputs) / samples - float(cost(full)[0])
    return _network_cost(model, groups.prunable, factors, rest)


def _uses_of_weights(model: nn.Module, inputs: Inputs) -> dict[str, float]:
    """How often one forward pass uses each value of a layer's weight."""
    uses: dict[str, float] = defaultdict(float)
    known = {id(parameter): name for name, parameter in model.named_parameters()}  # a shared one by its first name

    def convolution(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        positions = args[0] if module.transposed else output
        uses[known[id(module.weight)]] += positions.numel() / positions.shape[-1 - len(module.kernel_size)]  # type: ignore[arg-type]

    def linear(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
        uses[known[id(module.weight)]] += output.numel() / output.shape[-1]

    handles = []
    for module in model.modules():
        if id(getattr(module, "weight", None)) not in known:
            continue  # computed, as by weight_norm: of layers that no prunable group touches
        if isinstance(module, nn.modules.conv._ConvNd):
            handles.append(module.register_forward_hook(convolution))
        elif isinstance(module, nn.Linear):
            handles.append(module.register_forward_hook(linear))
    try:
        with evaluating(model), torch.no_grad(), fused_apart():
            model(*(tensor.to(device_of(model)) for tensor in inputs))
    finally:
        for handle in handles:
            handle.remove()
    return uses


def _network_cost(
    model: nn.Module, groups: Sequence[ChannelGroup], factors: dict[str, float], constant: float
) -> NetworkCost:
    shares: dict[str, dict[int, dict[int, float]]] = defaultdict(lambda: defaultdict(dict))
    for number, group in enumerate(groups):
        for piece in group.slices:
            indices = sum(unit >= 0 for unit in piece.unit_of_index)
            shares[piece.tensor][piece.dim][number] = indices / group.units
    parameters = dict(model.named_parameters())
    rows = []
    for name, factor in factors.items():
        shape = parameters[name].shape
        dims = shares.get(name, {})
        fixed = parameters[name].numel()
        for dim in dims:
            fixed //= shape[dim]
        if not dims:
            constant += factor * fixed
            continue
        assert len(dims) <= 2, name
        sides = [(float(shape[dim]), by_group) for dim, by_group in dims.items()] + [(1.0, {})] * (2 - len(dims))
        rows.append((factor * fixed, sides))
    offsets = [torch.zeros(len(rows), dtype=torch.float64) for _ in range(2)]
    slopes = [torch.zeros(len(rows), len(groups), dtype=torch.float64) for _ in range(2)]
    for row, (_, sides) in enumerate(rows):
        for side, (size, by_group) in enumerate(sides):
            offsets[side][row] = size - sum(each * groups[number].units for number, each in by_group.items())
            for number, each in by_group.items():
                slopes[side][row, number] = each
    return NetworkCost(
        factors=torch.tensor([factor for factor, _ in rows], dtype=torch.float64),
        offsets=(offsets[0], offsets[1]),
        slopes=(slopes[0], slopes[1]),
        constant=constant,
    )
