"""An ONNX file made ready for a strongly typed build, in a process of its own.

    python -m dtp_deploy_targets.prepare MODEL PRECISION DESTINATION

The precision goes into the file's types (fp16), or must be there already (int8: Q/DQ nodes). The child process keeps
onnx out of the one that measures, which shall hold nothing but the runtime.
"""

import json
import subprocess
import sys
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import DtpError, TargetError
from dtp_deploy.target import TensorSpec

if TYPE_CHECKING:
    import onnx

PRECISIONS = ("fp32", "fp16", "int8")

_INPUT_AXIS = {"Conv": 1, "Gemm": 0, "MatMul": 0}


@dataclass(frozen=True)
class Facts:
    """What a build must know of a model.

    Attributes:
        sparse_2_4: the weights of which at most two of any four along the input channels are not zero.
        quantized: whether it has Q/DQ nodes.
        inputs: what it takes.
        outputs: what it gives.
    """

    sparse_2_4: tuple[str, ...]
    quantized: bool
    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]


def prepare(model_path: Path, precision: str, destination: Path) -> Facts:
    """Write the model in that precision to `destination`.

    Raises:
        TargetError: the file is no ONNX model, or cannot be brought to that precision.
    """
    command = [sys.executable, "-m", __name__, str(model_path), precision, str(destination)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    if done.returncode:
        raise TargetError(
            f"{model_path.name} could not be prepared: {(done.stderr.strip() or 'no message').splitlines()[-1]}"
        )
    facts = json.loads(done.stdout)
    if "error" in facts:
        raise TargetError(facts["error"])
    return Facts(
        tuple(facts["sparse_2_4"]), facts["quantized"], specs_from(facts["inputs"]), specs_from(facts["outputs"])
    )


def specs_from(values: Iterable[Mapping[str, Any]]) -> tuple[TensorSpec, ...]:
    """Specs that went through JSON."""
    return tuple(TensorSpec(value["name"], tuple(value["shape"]), value["dtype"]) for value in values)


def is_sparse_2_4(weights: npt.NDArray[Any], axis: int) -> bool:
    """Whether of any four neighbours along `axis`, two or more are zero; at least one weight must not be.

    >>> is_sparse_2_4(np.array([[0, 0, 1, 2], [3, 0, 0, 4]]), axis=1), is_sparse_2_4(np.ones((4, 4)), axis=1)
    (True, False)
    """
    if weights.shape[axis] % 4 or not weights.any():
        return False
    groups = np.moveaxis(weights, axis, -1).reshape(-1, 4)
    return bool((np.count_nonzero(groups, axis=1) <= 2).all())


def _facts(model: "onnx.ModelProto") -> Facts:
    from onnx import numpy_helper

    weights = {tensor.name: tensor for tensor in model.graph.initializer}
    # Quantized weights come through a node of their own; a zero is a zero there too, as weights have no zero point.
    stored = {node.output[0]: node.input[0] for node in model.graph.node if node.op_type == "DequantizeLinear"}
    sparse = []
    for node in model.graph.node:
        name = stored.get(node.input[1], node.input[1]) if len(node.input) > 1 else ""
        if node.op_type in _INPUT_AXIS and name in weights:
            transposed = any(attribute.name == "transB" and attribute.i for attribute in node.attribute)
            array = numpy_helper.to_array(weights[name])
            if array.ndim > 1 and is_sparse_2_4(array, 1 if transposed else _INPUT_AXIS[node.op_type]):
                sparse.append(name)
    quantized = any(node.op_type == "DequantizeLinear" for node in model.graph.node)
    initialised = weights.keys()
    inputs = [value for value in model.graph.input if value.name not in initialised]
    return Facts(tuple(sparse), quantized, _specs(inputs), _specs(model.graph.output))


def _specs(values: "Iterable[onnx.ValueInfoProto]") -> tuple[TensorSpec, ...]:
    from onnx import helper

    found = []
    for value in values:
        sizes = value.type.tensor_type.shape.dim
        if not all(size.HasField("dim_value") for size in sizes):
            shape = [size.dim_value if size.HasField("dim_value") else size.dim_param or "?" for size in sizes]
            raise TargetError(f"'{value.name}' has the open shape {shape}. Export the model with a static shape.")
        dtype = helper.tensor_dtype_to_np_dtype(value.type.tensor_type.elem_type)
        found.append(TensorSpec(value.name, tuple(size.dim_value for size in sizes), np.dtype(dtype).name))
    return tuple(found)


def _prepared(source: Path, precision: str) -> tuple[Facts, bytes]:
    import onnx

    try:
        model = onnx.load(source)
        onnx.checker.check_model(model)
    except Exception as error:
        line = next((line for line in str(error).splitlines() if line.strip()), type(error).__name__)
        raise TargetError(
            f"{source.name} cannot be read as an ONNX model ({line.strip()}). Export it again."
        ) from error
    facts = _facts(onnx.shape_inference.infer_shapes(model))
    if precision == "int8" and not facts.quantized:
        raise TargetError(
            f"{source.name} has no Q/DQ nodes, so nothing says how to compute it in int8. Quantise it first, or ask "
            "for fp16 or fp32."
        )
    if precision == "fp16":
        from dtp_deploy.quantize.fp16 import to_float16

        model = to_float16(model)
    return facts, model.SerializeToString()


def main() -> None:
    """The child: the facts, or an error, as JSON on standard output."""
    source, precision, destination = sys.argv[1:]
    try:
        facts, content = _prepared(Path(source), precision)
    except DtpError as error:
        print(json.dumps({"error": str(error)}))
        return
    Path(destination).write_bytes(content)
    print(json.dumps(asdict(facts)))


if __name__ == "__main__":
    main()
