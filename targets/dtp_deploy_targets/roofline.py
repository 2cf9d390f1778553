"""The latency of a network on a board that is not at hand: predicted from the board's peak rates, never measured.

Each kernel takes as long as the slowest of three things: its arithmetic, the bytes that it moves, and its start,

    t = max(2 * MACs / rate, bytes / bandwidth, launch),

the roofline of Williams, Waterman and Patterson (2009) with a floor. A prediction ranks networks on one board; its
absolute value can be off by a factor of two. What it assumes stands in `Prediction.assumptions`.
"""

import math
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import numpy as np

from dtp_deploy.errors import TargetError

if TYPE_CHECKING:
    import onnx

    from dtp_deploy_targets.devices import DeviceProfile

Bound = Literal["compute", "memory", "launch"]

BANDWIDTH_SHARE = 0.75
"""Of the memory's peak: 0.70 to 0.85 is usual on these boards."""
COMPUTE_SHARE = 0.6
"""Of the peak rate of dense arithmetic, with shapes that fill the tensor cores."""
LAUNCH_MS = 0.004
"""The shortest time from the start of one small kernel to the next, inside a CUDA graph."""

ELEMENT_BYTES = {"fp32": 4, "fp16": 2, "int8": 1}
CHANNEL_MULTIPLE = {"fp32": 1, "fp16": 8, "int8": 32}
"""What tensor cores and their layouts round channels up to."""
FEW_CHANNELS = 4
"""First layers have kernels of their own: up to four input channels cost as four."""

# fmt: off
_FREE = frozenset([
    "DequantizeLinear", "Dropout", "Flatten", "Identity", "QuantizeLinear", "Reshape", "Squeeze", "Unsqueeze",
])
"""No kernel: a view, or part of the kernel beside it."""
_POINTWISE = frozenset([
    "Abs", "Add", "BatchNormalization", "Cast", "Ceil", "Clip", "Div", "Elu", "Erf", "Exp", "Floor", "Gelu",
    "HardSigmoid", "HardSwish", "LeakyRelu", "Log", "Max", "Min", "Mish", "Mul", "Neg", "PRelu", "Pow", "Reciprocal",
    "Relu", "Selu", "Sigmoid", "Softplus", "Sqrt", "Sub", "Swish", "Tanh", "Where",
])
"""Computed inside the kernel that makes their input; only a second operand is read besides."""
_UNPREDICTABLE = frozenset([
    "Attention", "DeformConv", "Einsum", "GRU", "If", "LSTM", "Loop", "NonMaxSuppression", "RNN", "Scan",
])
# fmt: on

_Shapes = dict[str, tuple[tuple[int, ...], int]]
"""Shape, and ONNX element type, of every tensor."""


@dataclass(frozen=True)
class LayerPrediction:
    """One node of the network.

    Attributes:
        name: the node's, or that of its first output where it has none.
        op: its operator.
        macs: multiply-accumulates that it needs, without padding.
        bytes: that it moves to and from memory, padding included.
        ms: the time predicted for it.
        bound: what that time is spent on.
    """

    name: str
    op: str
    macs: int
    bytes: int
    ms: float
    bound: Bound


@dataclass(frozen=True)
class Prediction:
    """The predicted latency of one inference: predicted, not measured.

    Attributes:
        total_ms: the sum over the layers.
        per_layer: in the order of the graph, only nodes that cost something.
        assumptions: what was taken for granted, in sentences.
    """

    total_ms: float
    per_layer: tuple[LayerPrediction, ...]
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class _Rates:
    """What is left of the peak rates, per millisecond."""

    matrix_macs: float
    plain_macs: float
    bytes: float


def predict(onnx_path: Path, profile: "DeviceProfile", precision: str) -> Prediction:
    """Predict the latency of an ONNX model on a board.

    Args:
        onnx_path: a model with static shapes.
        profile: of the board.
        precision: "fp32", "fp16" or "int8", for all layers alike.

    Raises:
        TargetError: the board does not have this precision, a shape is not static, or an operator is not predictable.
    """
    import onnx

    rates = _rates(profile, precision)
    model = onnx.shape_inference.infer_shapes(onnx.load(onnx_path), data_prop=True)
    shapes = _shapes(model.graph)
    constants = {weight.name for weight in model.graph.initializer}
    computed: set[str] = set()
    layers = []
    for node in model.graph.node:
        if node.op_type == "Shape" or set(node.input) <= constants | {""}:
            constants.update(node.output)  # shapes are static, so the runtime folds this
            continue
        layer = _layer(node, shapes, constants, computed, rates, precision)
        if layer is not None:
            layers.append(layer)
        if layer is not None or computed.intersection(node.input):
            computed.update(node.output)
    return Prediction(math.fsum(layer.ms for layer in layers), tuple(layers), _assumptions(profile, precision))


def _rates(profile: "DeviceProfile", precision: str) -> _Rates:
    if precision not in ELEMENT_BYTES:
        raise TargetError(f"Precision {precision!r} cannot be predicted. Give fp32, fp16 or int8.")
    tera = {"fp32": profile.fp32_tflops, "fp16": profile.fp16_tflops, "int8": profile.int8_tops}[precision]
    if not tera:
        raise TargetError(f"{profile.name} has no {precision} arithmetic to speak of. Ask for another precision.")
    macs_per_ms = 1e12 / 2 / 1e3 * COMPUTE_SHARE
    return _Rates(
        matrix_macs=tera * macs_per_ms,
        plain_macs=profile.fp32_tflops * macs_per_ms,
        bytes=profile.memory_bandwidth_gb_s * 1e6 * BANDWIDTH_SHARE,
    )


def _shapes(graph: "onnx.GraphProto") -> _Shapes:
    found: _Shapes = {weight.name: (tuple(weight.dims), weight.data_type) for weight in graph.initializer}
    for value in (*graph.input, *graph.output, *graph.value_info):
        tensor = value.type.tensor_type
        if all(size.HasField("dim_value") for size in tensor.shape.dim):
            found[value.name] = (tuple(size.dim_value for size in tensor.shape.dim), tensor.elem_type)
    return found


def _layer(
    node: "onnx.NodeProto",
    shapes: _Shapes,
    constants: set[str],
    computed: set[str],
    rates: _Rates,
    precision: str,
) -> LayerPrediction | None:
    """The prediction for one node, or None if it costs nothing."""
    name = node.name or node.output[0]
    if node.op_type in _UNPREDICTABLE or node.domain not in ("", "ai.onnx"):
        raise TargetError(f"Node '{name}' ({node.op_type}) cannot be predicted. Measure the model on the board.")
    if node.op_type in _FREE:
        return None
    for tensor in (*node.input, *node.output):
        if tensor and tensor not in shapes:
            raise TargetError(
                f"Node '{name}' has a tensor of open shape, '{tensor}'. Export the model with a static shape."
            )

    def moved(tensors: Iterable[str]) -> int:
        return sum(_bytes(*shapes[tensor], precision, tensor in constants) for tensor in tensors if tensor)

    if node.op_type in _POINTWISE and computed.intersection(node.input):
        main = next(tensor for tensor in node.input if tensor in computed)
        extra = list(node.input)
        extra.remove(main)
        size = moved(tensor for tensor in extra if tensor not in constants)
        return LayerPrediction(name, node.op_type, 0, size, size / rates.bytes, "memory") if size else None
    macs, padded, rate = _arithmetic(node, shapes, rates, precision)
    size = moved([*node.input, *node.output])
    times: dict[Bound, float] = {"compute": padded / rate, "memory": size / rates.bytes, "launch": LAUNCH_MS}
    bound = max(times, key=lambda kind: times[kind])
    return LayerPrediction(name, node.op_type, macs, size, times[bound], bound)


def _arithmetic(node: "onnx.NodeProto", shapes: _Shapes, rates: _Rates, precision: str) -> tuple[int, int, float]:
    """MACs, MACs with the channels padded, and the rate at which this kind of kernel computes."""
    shape = [shapes[tensor][0] if tensor else () for tensor in node.input]
    out = shapes[node.output[0]][0]
    if node.op_type in ("Conv", "ConvTranspose"):
        groups = next((attribute.i for attribute in node.attribute if attribute.name == "group"), 1)
        # A Conv has weights [out, in / groups, ...] and works per output pixel, its transpose [in, out / groups, ...]
        # and per input pixel.
        weights, pixels = shape[1], (out if node.op_type == "Conv" else shape[0])
        positions = pixels[0] * math.prod(pixels[2:]) * math.prod(weights[2:])
        first, second = weights[0] // groups, weights[1]
        macs = positions * groups * first * second
        if first == second == 1:  # depthwise: no tensor cores
            return macs, macs, rates.plain_macs
        return macs, positions * groups * _padded(first, precision) * _padded(second, precision), rates.matrix_macs
    if node.op_type in ("Gemm", "MatMul"):
        transposed = any(attribute.name == "transA" and attribute.i for attribute in node.attribute)
        inner = shape[0][-2 if transposed and len(shape[0]) > 1 else -1]
        width = out[-1] if out and len(shape[1]) > 1 else 1
        rows = math.prod(out) // width
        return (
            rows * inner * width,
            rows * _padded(inner, precision) * _padded(width, precision),
            rates.matrix_macs,
        )
    return 0, 0, rates.plain_macs


def _padded(channels: int, precision: str) -> int:
    """
    >>> [_padded(channels, "fp16") for channels in (3, 5, 16)], _padded(33, "int8"), _padded(5, "fp32")
    ([4, 8, 16], 64, 5)
    """
    multiple = CHANNEL_MULTIPLE[precision]
    if channels <= FEW_CHANNELS < multiple:
        return FEW_CHANNELS
    return math.ceil(channels / multiple) * multiple


def _bytes(shape: tuple[int, ...], element_type: int, precision: str, constant: bool) -> int:
    """What a tensor takes in memory: its channels padded, floats in the engine's precision, integers as they are."""
    from onnx import helper

    dtype = np.dtype(helper.tensor_dtype_to_np_dtype(element_type))
    size = ELEMENT_BYTES[precision] if np.issubdtype(dtype, np.floating) else dtype.itemsize
    if len(shape) < 2:
        return math.prod(shape) * size
    if constant:
        # Weights [out, in, ...]; those of a depthwise convolution, in = 1, have no input channels to pad.
        inner = 1 if shape[1] == 1 else _padded(shape[1], precision)
        return _padded(shape[0], precision) * inner * math.prod(shape[2:]) * size
    return shape[0] * _padded(shape[1], precision) * math.prod(shape[2:]) * size


def _assumptions(profile: "DeviceProfile", precision: str) -> tuple[str, ...]:
    multiple = CHANNEL_MULTIPLE[precision]
    return (
        "Predicted, not measured: a roofline over the layers of the ONNX file.",
        f"{profile.name}: fp16 {profile.fp16_tflops:g} TFLOPS, fp32 {profile.fp32_tflops:g} TFLOPS, int8 "
        f"{profile.int8_tops:g} TOPS (dense), {profile.memory_bandwidth_gb_s:g} GB/s, at the clocks of its profile.",
        f"{COMPUTE_SHARE:.0%} of the peak rate and {BANDWIDTH_SHARE:.0%} of the bandwidth are reached; a kernel takes "
        f"{LAUNCH_MS * 1e3:g} us or more.",
        f"Every layer runs in {precision}"
        + (
            f", with channels rounded up to multiples of {multiple} (up to {FEW_CHANNELS}: to {FEW_CHANNELS})."
            if multiple > 1
            else "."
        ),
        "Depthwise convolutions run without tensor cores, at the fp32 rate.",
        "Pointwise operators run inside the kernel before them; views and Q/DQ cost nothing.",
        "Nothing stays in a cache between kernels, no DLA, no copies to or from the GPU, batch as exported.",
    )
