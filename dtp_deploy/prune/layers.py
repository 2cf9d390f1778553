"""Layers whose single weights may be masked, and those that are left as they are, each with its reason."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dtp_deploy.budget import Granularity
from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.graph.frozen import check_patterns, is_by_hand, why_frozen
from dtp_deploy.modules import Inputs, as_inputs, evaluating, fused_apart

BLOCK, KEPT_OF_BLOCK = 4, 2
"""2:4 keeps two of every four."""
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)


@dataclass(frozen=True)
class WeightLayer:
    """A convolution or a linear layer.

    Attributes:
        name: dotted, in the model.
        weights: values of its weight.
        left_because: why its weights stay as they are; None for one that may be masked.
    """

    name: str
    weights: int
    left_because: str | None = None

    def module(self, model: nn.Module) -> nn.Module:
        """The layer in a model."""
        return model.get_submodule(self.name)

    def weight_of(self, model: nn.Module) -> Tensor:
        """Its weight."""
        weight = self.module(model).weight
        assert isinstance(weight, Tensor)
        return weight


@dataclass(frozen=True)
class WeightLayers:
    """All layers with weights, maskable or not, in the order of the model.

    Attributes:
        all: the layers.
        granularity: "weights", or "2:4" for two of every four weights along the input.
    """

    all: tuple[WeightLayer, ...]
    granularity: Granularity

    @property
    def maskable(self) -> tuple[WeightLayer, ...]:
        """The layers that may be masked."""
        return tuple(layer for layer in self.all if layer.left_because is None)

    @property
    def count(self) -> int:
        """How many weights may be masked."""
        return sum(layer.weights for layer in self.maskable)

    def __iter__(self) -> Iterator[WeightLayer]:
        return iter(self.all)

    def __len__(self) -> int:
        return len(self.all)


def find_weights(
    model: nn.Module,
    inputs: Tensor | Inputs,
    granularity: Granularity = "weights",
    *,
    keep: Sequence[str] = (),
    only: Sequence[str] = (),
) -> WeightLayers:
    """The convolutions and linear layers of a model, those that cannot be masked with the reason.

    Args:
        model: run once, in evaluation mode; not changed.
        inputs: an example, each tensor batch first, on the model's device.
        granularity: "weights", or "2:4", which needs a number of inputs that four divides and one group of channels.
        keep: patterns of layers that are left as they are, as for `find_groups`.
        only: patterns of the only layers to mask.

    Raises:
        UsageError: the granularity is "channels", which `find_groups` is for; or a pattern matches no layer.
        GraphError: no layer can be masked.
    """
    if granularity == "channels":
        raise UsageError("find_weights() got the granularity channels. Give weights or 2:4, or use find_groups().")
    check_patterns(model, keep, only)
    named: dict[str, nn.Module] = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, nn.modules.conv._ConvNd | nn.Linear)
        and not isinstance(module, nn.modules.lazy.LazyModuleMixin)
    }
    called = _called(model, as_inputs(inputs), named)
    owners: dict[int, list[str]] = {}
    for path, parameter in model.named_parameters(remove_duplicate=False):
        owners.setdefault(id(parameter), []).append(path)

    def layer(name: str, module: nn.Module) -> WeightLayer:
        weight = module.weight
        assert isinstance(weight, Tensor)
        others = [path for path in owners.get(id(weight), []) if path != f"{name}.weight".lstrip(".")]
        reason = None
        if parametrize.is_parametrized(module, "weight") or "weight" not in module._parameters:
            reason = "its weight is computed from other tensors"
        elif others:
            reason = f"its weight is also {others[0]}"
        elif name not in called:
            reason = "the model does not call it"
        elif granularity == "2:4":
            reason = _no_blocks(module)
        reason = reason or why_frozen([name], [name], keep, only)
        return WeightLayer(name, weight.numel(), reason)

    layers = WeightLayers(tuple(layer(name, module) for name, module in named.items()), granularity)
    if not layers.maskable:
        reasons = "; ".join(f"{one.name or type(model).__name__}: {one.left_because}" for one in layers.all[:5])
        needs = "a layer with weights of its own"
        if granularity == "2:4":
            needs = "a convolution or linear layer, not grouped, with a number of inputs that four divides"
        advice = f"Give a model with {needs}, or another granularity."
        if any(is_by_hand(one.left_because) for one in layers):
            advice = "Leave --keep and --only out, or give patterns that leave some layers to prune."
        raise GraphError(
            f"{type(model).__name__} has no layer for --granularity {granularity} ({reasons or 'none has weights'}). "
            f"{advice}"
        )
    return layers


def _called(model: nn.Module, inputs: Inputs, named: dict[str, nn.Module]) -> set[str]:
    called: set[str] = set()
    hooks = [
        module.register_forward_pre_hook(lambda _module, _args, name=name: called.add(name))
        for name, module in named.items()
    ]
    try:
        with evaluating(model), torch.no_grad(), fused_apart():
            model(*inputs)
    finally:
        for hook in hooks:
            hook.remove()
    return called


def _no_blocks(module: nn.Module) -> str | None:
    """Why a layer cannot be 2:4; None if it can."""
    if isinstance(module, _TRANSPOSED):
        return "it is a transposed convolution"
    if isinstance(module, nn.modules.conv._ConvNd) and module.groups > 1:
        return "it is a grouped convolution"
    assert isinstance(module.weight, Tensor)
    count = module.weight.shape[1]
    return f"four does not divide its {count} inputs" if count % BLOCK else None
