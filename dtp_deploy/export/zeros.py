"""Zeros of a pruned model, looked for in the ONNX file that is delivered."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import onnx
from onnx import numpy_helper

from dtp_deploy.errors import ParityError

Array = npt.NDArray[Any]


def require_zeros(path: Path, zeros: Mapping[str, npt.NDArray[np.bool_]], two_of_four: bool = False) -> None:
    """Raise unless each layer has a weight in the file that is zero wherever the layer's is.

    Names do not survive an export, and folding a BatchNorm scales whole filters; places and zeros do. So a layer's
    weight is known by its shape and its zeros, and none counts for two layers.

    Args:
        path: an ONNX file.
        zeros: by layer, where its weight is zero, in PyTorch's shape: outputs, inputs, kernel.
        two_of_four: also of any four neighbours along the inputs, at least two must be zero.

    Raises:
        ParityError: a layer has no such weight.
    """
    weights = list(_weights(onnx.load(path).graph))
    for layer, wanted in zeros.items():
        found = [index for index, weight in enumerate(weights) if _has(weight, wanted)]
        if not found:
            raise ParityError(
                f"The zeros of layer '{layer}' are not in {path.name}: none of its weights of shape {wanted.shape} is "
                f"zero at all of the {np.count_nonzero(wanted):,} places. The model is not delivered. Leave out a "
                "--finish that merges, replaces or removes layers (what is for training only, remove by --prepare)."
            )
        weight = weights.pop(min(found, key=lambda index: int(np.count_nonzero(weights[index] == 0))))
        if two_of_four and (most := most_of_four(weight)) > 2:
            raise ParityError(
                f"Layer '{layer}' is not 2:4 in {path.name}: {most} of four neighbours along its inputs are not zero. "
                "The model is not delivered. Leave out a --finish that reorders channels."
            )


def most_of_four(weight: Array) -> int:
    """How many of four neighbours along the inputs, dimension 1, are not zero at most; the inputs are a multiple of 4.

    >>> most_of_four(np.array([[0, 0, 1, 2], [3, 0, 0, 4]])), most_of_four(np.ones((4, 8)))
    (2, 4)
    """
    groups = np.moveaxis(weight, 1, -1).reshape(-1, 4)
    return int(np.count_nonzero(groups, axis=1).max())


def _has(weight: Array, wanted: npt.NDArray[np.bool_]) -> bool:
    return weight.shape == wanted.shape and not weight[wanted].any()


def _weights(graph: onnx.GraphProto) -> Iterator[Array]:
    """The weights of convolutions and matrix products, each once, laid out as in PyTorch."""
    known = {tensor.name: numpy_helper.to_array(tensor) for tensor in graph.initializer}
    for node in graph.node:
        if node.op_type == "Transpose" and node.input[0] in known:
            order = next((attribute.ints for attribute in node.attribute if attribute.name == "perm"), None)
            known[node.output[0]] = known[node.input[0]].transpose(order)
    seen = set()
    for node in graph.node:
        if len(node.input) < 2 or node.input[1] not in known or node.input[1] in seen:
            continue
        weight = known[node.input[1]]
        seen.add(node.input[1])
        if node.op_type in ("Conv", "ConvTranspose"):
            yield weight
        elif node.op_type in ("Gemm", "MatMul") and weight.ndim == 2:
            as_is = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            yield weight if as_is else weight.T
