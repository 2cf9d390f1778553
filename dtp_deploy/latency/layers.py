"""The layers of a network that take time and have widths, as one forward pass of the dense model shows them."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.conv import _ConvNd

from dtp_deploy.cost import ChannelSum, channel_sum
from dtp_deploy.graph import ChannelGroup, Groups
from dtp_deploy.modules import evaluating, fused_apart

Op = Literal["Conv", "ConvTranspose", "Gemm"]


@dataclass(frozen=True)
class LayerSignature:
    """All that decides about the time of a layer, but for its widths.

    Attributes:
        op: the ONNX operator.
        kernel, stride, dilation, output_padding: one a spatial dimension.
        padding: of the beginning of every dimension, then of the end of every one.
        groups: of a grouped convolution; 0 for a depthwise one, which has as many as channels.
        batch: samples, or rows of a matrix product.
        positions: spatial size of the input.
    """

    op: Op
    kernel: tuple[int, ...]
    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    output_padding: tuple[int, ...]
    groups: int
    batch: int
    positions: tuple[int, ...]

    @property
    def is_depthwise(self) -> bool:
        """Whether it has one width only."""
        return self.groups == 0

    @property
    def kind(self) -> tuple[Op, tuple[int, ...], bool]:
        """What one implementation in a runtime usually serves."""
        return self.op, self.kernel, self.is_depthwise

    @property
    def weights_each(self) -> float:
        """Values of the weight for every pair of an input and an output channel; a depthwise layer has one input."""
        return math.prod(self.kernel) / max(1, self.groups)

    def weights(self, inputs: int, outputs: int) -> int:
        """Values of the weight at some widths."""
        each = math.prod(self.kernel) * outputs
        return each if self.is_depthwise else each * inputs // self.groups

    def macs(self, inputs: int, outputs: int) -> int:
        """Multiply-accumulate operations at some widths."""
        return self.weights(inputs, outputs) * self.batch * math.prod(self._summed_positions())

    def _summed_positions(self) -> tuple[int, ...]:
        if self.op == "ConvTranspose":
            return self.positions
        rank = len(self.positions)
        return tuple(
            (size + self.padding[d] + self.padding[d + rank] - self.dilation[d] * (self.kernel[d] - 1) - 1)
            // self.stride[d]
            + 1
            for d, size in enumerate(self.positions)
        )

    def __str__(self) -> str:
        """Short, for people: ``Conv 3x3 on 1x56x56``.

        >>> str(gemm(4))
        'Gemm on 4'
        """
        kernel = " " + "x".join(map(str, self.kernel)) if self.kernel else ""
        stride = f"/{self.stride[0]}" if any(value > 1 for value in self.stride) else ""
        kind = " depthwise" if self.is_depthwise else f" in {self.groups} groups" if self.groups > 1 else ""
        return f"{self.op}{kernel}{stride}{kind} on {'x'.join(map(str, (self.batch, *self.positions)))}"

    def to_json(self) -> dict[str, object]:
        """Plain values, for the key of a cache."""
        return asdict(self)


def gemm(rows: int) -> LayerSignature:
    """The signature of a linear layer."""
    return LayerSignature("Gemm", (), (), (), (), (), 1, rows, ())


@dataclass(frozen=True)
class Layer:
    """One use of a layer.

    Attributes:
        name: of the module.
        signature: see there.
        inputs, outputs: channels in the dense model.
        input_channels, output_channels: how these follow from the groups.
    """

    name: str
    signature: LayerSignature
    inputs: int
    outputs: int
    input_channels: ChannelSum
    output_channels: ChannelSum

    @property
    def macs(self) -> int:
        """In the dense model."""
        return self.signature.macs(self.inputs, self.outputs)


def trace_layers(model: nn.Module, groups: Groups) -> list[Layer]:
    """Every use of a convolution or linear layer in one forward pass of the groups' example inputs, in order."""
    layers: list[Layer] = []
    prunable = groups.prunable

    def hook_for(name: str) -> Callable[[nn.Module, tuple[Tensor, ...], Tensor], None]:
        def hook(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> None:
            layers.append(_layer(name, module, tuple(args[0].shape), prunable))

        return hook

    handles = [
        module.register_forward_hook(hook_for(name))
        for name, module in model.named_modules()
        if isinstance(module, _ConvNd | nn.Linear)
    ]
    try:
        with evaluating(model), torch.no_grad(), fused_apart():
            model(*groups.inputs)
    finally:
        for handle in handles:
            handle.remove()
    return layers


def _layer(name: str, module: nn.Module, shape: tuple[int, ...], groups: Sequence[ChannelGroup]) -> Layer:
    weight = f"{name}.weight"
    if isinstance(module, nn.Linear):
        return Layer(
            name,
            gemm(math.prod(shape[:-1])),
            module.in_features,
            module.out_features,
            channel_sum(weight, 1, module.in_features, groups),
            channel_sum(weight, 0, module.out_features, groups),
        )
    assert isinstance(module, _ConvNd)
    rank = len(module.kernel_size)
    if len(shape) == rank + 1:  # without a batch dimension
        shape = (1, *shape)
    transposed = bool(module.transposed)
    depthwise = module.groups > 1 and module.groups == module.in_channels == module.out_channels
    signature = LayerSignature(
        op="ConvTranspose" if transposed else "Conv",
        kernel=tuple(module.kernel_size),
        stride=tuple(module.stride),
        padding=_padding(module, rank),
        dilation=tuple(module.dilation),
        output_padding=tuple(module.output_padding),
        groups=0 if depthwise else module.groups,
        batch=shape[0],
        positions=shape[2:],
    )
    if depthwise:
        fixed = ChannelSum(1.0, (0.0,) * len(groups))
        outputs = channel_sum(weight, 0, module.out_channels, groups)
        return Layer(name, signature, 1, module.out_channels, fixed, outputs)
    # A weight of a grouped layer holds the channels of one group along its second dimension.
    first = channel_sum(weight, 0, module.weight.shape[0], groups)
    second = channel_sum(weight, 1, module.weight.shape[1], groups, module.groups)
    inputs, outputs = (first, second) if transposed else (second, first)
    return Layer(name, signature, module.in_channels, module.out_channels, inputs, outputs)


def _padding(module: _ConvNd, rank: int) -> tuple[int, ...]:
    if module.padding == "valid":
        return (0,) * (2 * rank)
    if module.padding == "same":
        totals = [d * (k - 1) for d, k in zip(module.dilation, module.kernel_size, strict=True)]
        begins = tuple(total // 2 for total in totals)
        return begins + tuple(total - begin for total, begin in zip(totals, begins, strict=True))
    assert not isinstance(module.padding, str)
    return tuple(module.padding) * 2
