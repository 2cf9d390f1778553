import re

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.errors import TargetError
from dtp_deploy.target import TensorSpec
from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy_targets.prepare import is_sparse_2_4, prepare


@pytest.fixture
def model(tmp_path):
    write_small_model(tmp_path / "model.onnx")
    return tmp_path / "model.onnx"


def test_fp32_keeps_the_model_and_tells_its_interface(model, tmp_path):
    facts = prepare(model, "fp32", tmp_path / "out.onnx")
    assert onnx.load(tmp_path / "out.onnx") == onnx.load(model)
    assert facts.inputs == (TensorSpec("input", (1, 3, 16, 16), "float32"),)
    assert facts.outputs == (TensorSpec("output", (1, 10), "float32"),)
    assert (facts.sparse_2_4, facts.quantized) == ((), False)


def test_fp16_goes_into_the_types(model, tmp_path):
    prepare(model, "fp16", tmp_path / "out.onnx")
    weights = onnx.load(tmp_path / "out.onnx").graph.initializer
    assert {weight.data_type for weight in weights} == {TensorProto.FLOAT16}


def test_int8_needs_quantised_nodes(model, tmp_path):
    message = (
        "model.onnx has no Q/DQ nodes, so nothing says how to compute it in int8. Quantise it first, or ask for fp16 "
        "or fp32."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        prepare(model, "int8", tmp_path / "out.onnx")


def test_a_damaged_file_and_an_open_shape_are_one_line(model, tmp_path):
    damaged = tmp_path / "damaged.onnx"
    damaged.write_bytes(model.read_bytes()[:100])
    with pytest.raises(
        TargetError, match=r"^damaged\.onnx cannot be read as an ONNX model \(.*\)\. Export it again\.$"
    ):
        prepare(damaged, "fp32", tmp_path / "out.onnx")
    content = onnx.load(model)
    content.graph.input[0].type.tensor_type.shape.dim[0].dim_param = "batch"
    onnx.save(content, tmp_path / "open.onnx")
    message = "'input' has the open shape ['batch', 3, 16, 16]. Export the model with a static shape."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        prepare(tmp_path / "open.onnx", "fp32", tmp_path / "out.onnx")


def test_2_4_weights_are_found_along_the_input_channels(tmp_path):
    def weights(shape, axis):
        values = np.ones(shape, np.float32)
        np.moveaxis(values, axis, -1)[..., 1::4] = 0
        np.moveaxis(values, axis, -1)[..., 2::4] = 0
        return values

    tensors = {
        "conv": weights((8, 8, 3, 3), 1),
        "wrong_axis": weights((8, 8, 3, 3), 0),
        "linear": weights((10, 8), 1),
        "dense": np.ones((10, 10), np.float32),
    }
    graph = helper.make_graph(
        [
            helper.make_node("Conv", ["x", "conv"], ["a"], pads=[1, 1, 1, 1]),
            helper.make_node("Conv", ["a", "wrong_axis"], ["b"], pads=[1, 1, 1, 1]),
            helper.make_node("GlobalAveragePool", ["b"], ["c"]),
            helper.make_node("Flatten", ["c"], ["d"]),
            helper.make_node("Gemm", ["d", "linear"], ["e"], transB=1),
            helper.make_node("MatMul", ["e", "dense"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    assert prepare(tmp_path / "m.onnx", "fp32", tmp_path / "out.onnx").sparse_2_4 == ("conv", "linear")


def test_2_4_weights_are_found_behind_their_dequantize_node(tmp_path):
    values = np.ones((8, 8, 1, 1), np.int8)
    values[:, 1::4] = values[:, 2::4] = 0
    tensors = {"w": values, "scale": np.full(8, 0.1, np.float32), "zero": np.zeros(8, np.int8)}
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "scale", "zero"], ["dw"], axis=0),
            helper.make_node("Conv", ["x", "dw"], ["y"]),
        ],
        "graph",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 8, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 8, 4, 4])],
        [numpy_helper.from_array(value, name) for name, value in tensors.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    facts = prepare(tmp_path / "m.onnx", "int8", tmp_path / "out.onnx")
    assert (facts.sparse_2_4, facts.quantized) == (("w",), True)


@pytest.mark.parametrize(
    ("weights", "expected"),
    [
        ([[1, 1, 0, 0]], True),
        ([[1, 1, 1, 0]], False),
        ([[0, 0, 0, 0]], False),
        ([[1, 0, 0]], False),
        ([[0, 1, 1, 0, 0, 0, 0, 1]], True),
        ([[0, 0, 1, 1, 1, 0, 0, 1]], True),
        ([[0, 1, 1, 1, 0, 0, 0, 1]], False),
    ],
)
def test_2_4_means_two_of_any_four(weights, expected):
    assert is_sparse_2_4(np.array(weights), axis=1) is expected
