"""A small ONNX model of one layer with random weights: what a target is asked about."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.export.files import serialise
from dtp_deploy.export.onnx import OPSET
from dtp_deploy.latency.layers import LayerSignature

_IR_VERSION = 10
COPIES = 3
"""How often a graph holds its layer. Runtimes lay tensors out anew at the ends of a graph, which a layer inside of a
network does not pay; several copies that share their input, and are added, make that a small part. They share their
weights too: what fetching weights from memory costs depends on the whole network, and is learned from whole ones."""


def write_layer(path: Path, signature: LayerSignature, inputs: int, outputs: int, copies: int = COPIES) -> None:
    """Write `copies` of the layer and its activation, side by side, added.

    Args:
        path: file to write.
        signature: of the layer.
        inputs: input channels; not looked at for a depthwise layer.
        outputs: output channels.
        copies: at least one.
    """
    rng = np.random.default_rng(0)
    channels = outputs if signature.is_depthwise else inputs
    weight = _weight(signature, channels, outputs)
    values = rng.standard_normal(weight).astype(np.float32) / np.sqrt(np.prod(weight[1:]))
    tensors = [
        numpy_helper.from_array(values.astype(np.float32), "weight"),
        numpy_helper.from_array(np.zeros(outputs, np.float32), "bias"),
    ]
    nodes: list[onnx.NodeProto] = []
    total = ""
    for copy in range(copies):
        names = ["input", "weight", "bias"]
        nodes.append(helper.make_node(signature.op, names, [f"linear_{copy}"], **_attributes(signature, outputs)))
        nodes.append(helper.make_node("Relu", [f"linear_{copy}"], [f"active_{copy}"]))
        if total:
            nodes.append(helper.make_node("Add", [total, f"active_{copy}"], [f"sum_{copy}"]))
        total = f"sum_{copy}" if total else f"active_{copy}"
    shape = [signature.batch, channels, *signature.positions]
    inferred = onnx.shape_inference.infer_shapes(_model(nodes, tensors, shape, total, None))
    out_shape = next(
        [dim.dim_value for dim in value.type.tensor_type.shape.dim]
        for value in [*inferred.graph.value_info, *inferred.graph.output]
        if value.name == total
    )
    path.write_bytes(serialise(_model(nodes, tensors, shape, total, out_shape)))


def _model(
    nodes: list[onnx.NodeProto], tensors: list[TensorProto], shape: list[int], output: str, out_shape: list[int] | None
) -> onnx.ModelProto:
    graph = helper.make_graph(
        nodes,
        "layer",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(output, TensorProto.FLOAT, out_shape)],
        tensors,
    )
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=_IR_VERSION)


def _weight(signature: LayerSignature, inputs: int, outputs: int) -> tuple[int, ...]:
    if signature.op == "Gemm":
        return inputs, outputs
    groups = outputs if signature.is_depthwise else signature.groups
    if signature.op == "ConvTranspose":
        return inputs, outputs // groups, *signature.kernel
    return outputs, inputs // groups, *signature.kernel


def _attributes(signature: LayerSignature, outputs: int) -> dict[str, Any]:
    if signature.op == "Gemm":
        return {}
    attributes: dict[str, Any] = {
        "kernel_shape": signature.kernel,
        "strides": signature.stride,
        "pads": signature.padding,
        "dilations": signature.dilation,
        "group": outputs if signature.is_depthwise else signature.groups,
    }
    if signature.op == "ConvTranspose":
        attributes["output_padding"] = signature.output_padding
    return attributes
