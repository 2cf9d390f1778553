import re

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.errors import GraphError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.parity import compare
from dtp_deploy.quantize.fp16 import KEPT, LARGEST, Float16Pass, to_float16
from dtp_deploy.testing.conformance import write_small_model
from dtp_deploy.testing.zoo import ZOO

RNG = np.random.default_rng(0)


def model_of(nodes, inputs, outputs, weights=None, opset=18):
    """A model from short node tuples (op, inputs, outputs, attributes)."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, name=f"{op}_{i}", **attrs) for i, (op, ins, outs, attrs) in enumerate(nodes)],
        "graph",
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in inputs],
        [helper.make_tensor_value_info(name, kind, shape) for name, kind, shape in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    onnx.checker.check_model(model, full_check=True)
    return model


def runner(model):
    session = onnxruntime.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    return lambda feed: session.run(None, feed)


def types_of(model):
    """Element type of every tensor of a model, by name."""
    graph = onnx.shape_inference.infer_shapes(model, strict_mode=True).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.output, *graph.value_info)}
    return types | {weight.name: weight.data_type for weight in graph.initializer}


def float32_nodes(model):
    """The operators that still compute in float32, without the casts."""
    types = types_of(model)
    return {
        node.op_type
        for node in model.graph.node
        if node.op_type != "Cast" and any(types.get(name) == TensorProto.FLOAT for name in (*node.input, *node.output))
    }


F = TensorProto.FLOAT
X = ("x", F, [1, 4, 8, 8])
Y = ("y", F, [1, 4, 8, 8])


def assert_same_interface(before, after):
    for field in ("input", "output"):
        old, new = ([v.SerializeToString(deterministic=True) for v in getattr(m.graph, field)] for m in (before, after))
        assert old == new
    assert list(before.opset_import) == list(after.opset_import)


def test_a_network_is_half_inside_and_float_outside(tmp_path):
    write_small_model(tmp_path / "model.onnx")
    model = onnx.load(tmp_path / "model.onnx")
    before = model.SerializeToString()
    half = Float16Pass().apply(model)
    assert model.SerializeToString() == before
    assert_same_interface(model, half)
    assert [node.op_type for node in half.graph.node].count("Cast") == 2
    assert float32_nodes(half) == set()
    assert {weight.data_type for weight in half.graph.initializer} == {TensorProto.FLOAT16}
    batches = [{"input": RNG.standard_normal((1, 3, 16, 16)).astype(np.float32)} for _ in range(3)]
    result = compare("float16", runner(model), runner(half), batches, tolerance=1e-2)
    assert result.passed
    assert result.max_rel_error > 1e-6, "the numbers are those of float32: nothing was converted"


@pytest.mark.parametrize("entry", ZOO.values(), ids=str)
def test_the_zoo_survives(entry, tmp_path):
    inputs = entry.inputs()
    export_onnx(entry.model(), inputs, tmp_path / "model.onnx")
    exported = onnx.load(tmp_path / "model.onnx")
    half = to_float16(exported)
    assert_same_interface(exported, half)
    assert float32_nodes(half) <= KEPT | {"Resize"}  # its scales must stay float32
    assert compare(entry.name, runner(exported), runner(half), [{"input": inputs.numpy()}], tolerance=2e-2).passed


def test_what_the_schema_wants_in_float32_stays():
    model = model_of(
        [
            ("Relu", ["x"], ["a"], {}),
            ("Resize", ["a", "", "scales"], ["b"], {"mode": "nearest"}),
            ("Mul", ["b", "scales"], ["y"], {}),
        ],
        [X],
        [("y", F, [1, 4, 16, 4])],
        {"scales": np.array([1, 1, 2, 0.5], np.float32)},
    )
    half = to_float16(model)
    resize = next(node for node in half.graph.node if node.op_type == "Resize")
    types = types_of(half)
    assert [types.get(name) for name in resize.input] == [TensorProto.FLOAT16, None, F]
    assert float32_nodes(half) == {"Resize"}
    feed = {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    assert compare("resize", runner(model), runner(half), [feed], tolerance=1e-2).passed


@pytest.mark.parametrize(
    "nodes",
    [
        [("Softmax", ["x"], ["y"], {"axis": 1})],
        [("Relu", ["x"], ["a"], {}), ("Softmax", ["a"], ["b"], {"axis": 1}), ("Mul", ["b", "a"], ["y"], {})],
        [("Constant", [], ["c"], {"value_float": 3.0}), ("Add", ["x", "c"], ["y"], {})],
        [("Constant", [], ["c"], {"value_floats": [1.0] * 8}), ("Add", ["x", "c"], ["y"], {})],
        [("Shape", ["x"], ["s"], {}), ("ConstantOfShape", ["s"], ["c"], {}), ("Add", ["x", "c"], ["y"], {})],
        [
            ("Cast", ["x"], ["i"], {"to": TensorProto.INT32}),
            ("Cast", ["i"], ["f"], {"to": F}),
            ("Add", ["x", "f"], ["y"], {}),
        ],
        [("Relu", ["x"], ["y"], {}), ("Sigmoid", ["y"], ["z"], {})],
        [("Identity", ["x"], ["y"], {})],
    ],
    ids=["kept alone", "kept between", "constant", "constants", "of shape", "cast", "output used inside", "identity"],
)
def test_islands_constants_and_casts(nodes):
    outputs = [Y, ("z", F, [1, 4, 8, 8])] if any("z" in node[2] for node in nodes) else [Y]
    model = model_of(nodes, [X], outputs)
    half = to_float16(model)
    assert_same_interface(model, half)
    assert float32_nodes(half) <= {"Softmax", "ConstantOfShape"}
    feed = {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    assert compare("node", runner(model), runner(half), [feed], tolerance=1e-2).passed


def test_large_constants_are_cut_and_infinities_kept():
    mask = np.array([-1e9, -np.inf, 1e9, 0.5, 0, 0, 0, 0], np.float32)
    half = to_float16(model_of([("Add", ["x", "mask"], ["y"], {})], [X], [Y], {"mask": mask}))
    (weight,) = (numpy_helper.to_array(weight) for weight in half.graph.initializer)
    np.testing.assert_array_equal(weight[:4], np.array([-LARGEST, -np.inf, LARGEST, 0.5], np.float16))


def test_integers_and_quantised_nodes_are_left_alone():
    model = model_of(
        [
            ("QuantizeLinear", ["x", "s", "z"], ["q"], {}),
            ("DequantizeLinear", ["q", "s", "z"], ["d"], {}),
            ("Relu", ["d"], ["y"], {}),
        ],
        [X],
        [Y],
        {"s": np.float32(0.1), "z": np.int8(0)},
        opset=21,
    )
    half = to_float16(model)
    assert float32_nodes(half) == set()
    assert types_of(half)["q"] == TensorProto.INT8
    feed = {"x": RNG.standard_normal((1, 4, 8, 8)).astype(np.float32)}
    assert compare("qdq", runner(model), runner(half), [feed], tolerance=5e-2).passed


def test_control_flow_is_refused_by_name():
    branch = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["r"])], "b", [], [helper.make_tensor_value_info("r", F, [1, 4, 8, 8])]
    )
    model = model_of(
        [("If", ["c"], ["y"], {"then_branch": branch, "else_branch": branch})], [X, ("c", TensorProto.BOOL, [])], [Y]
    )
    message = (
        "Node 'If_0' is a If, whose branches cannot be converted to float16. "
        "Export the model without control flow, or ask for fp32."
    )
    with pytest.raises(GraphError, match=f"^{re.escape(message)}$"):
        to_float16(model)


def test_types_that_do_not_fit_are_one_line():
    model = model_of([("Relu", ["x"], ["y"], {})], [X], [Y])
    model.graph.input[0].type.tensor_type.elem_type = TensorProto.INT64
    with pytest.raises(GraphError, match=r"^The model cannot be converted to float16: .* Ask for fp32\.$") as caught:
        to_float16(model)
    assert "\n" not in str(caught.value)
