import math
import re
from dataclasses import replace

import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper

from dtp_deploy.errors import TargetError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.testing.zoo import ZOO
from dtp_deploy_targets.devices import shipped_devices
from dtp_deploy_targets.roofline import BANDWIDTH_SHARE, COMPUTE_SHARE, LAUNCH_MS, predict

BOARD = shipped_devices()["orin-nano"]


def write(path, nodes, inputs, outputs, weights=()):
    """Nodes (op, inputs, outputs, attributes); weights (name, shape) of zeros."""
    graph = helper.make_graph(
        [helper.make_node(op, ins, outs, **attributes) for op, ins, outs, attributes in nodes],
        "graph",
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in outputs],
        [helper.make_tensor(name, TensorProto.FLOAT, shape, [0.0] * math.prod(shape)) for name, shape in weights],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def conv(path, channels, filters, size=32, groups=1):
    """One 3x3 convolution that keeps the size."""
    return write(
        path,
        [("Conv", ["x", "w"], ["y"], {"pads": [1, 1, 1, 1], "group": groups})],
        [("x", [1, channels, size, size])],
        [("y", [1, filters, size, size])],
        [("w", [filters, channels // groups, 3, 3])],
    )


def test_a_convolution_computed_by_hand(tmp_path):
    # 60 input channels count as 64, 100 filters as 104; the 3x3 window over 64 x 64 pixels.
    board = replace(BOARD, fp16_tflops=10.0, memory_bandwidth_gb_s=100.0)
    (layer,) = predict(conv(tmp_path / "m.onnx", 60, 100, size=64), board, "fp16").per_layer
    assert layer.macs == 64 * 64 * 9 * 60 * 100
    assert layer.bytes == 2 * (64 * 64 * 64 + 104 * 64 * 9 + 104 * 64 * 64)
    compute_ms = 2 * 64 * 64 * 9 * 64 * 104 / (10e12 * COMPUTE_SHARE) * 1e3
    memory_ms = layer.bytes / (100e9 * BANDWIDTH_SHARE) * 1e3
    assert compute_ms > memory_ms > LAUNCH_MS
    assert layer.ms == pytest.approx(compute_ms)
    assert (layer.op, layer.bound) == ("Conv", "compute")


def test_each_of_the_three_bounds_is_named(tmp_path):
    path = conv(tmp_path / "m.onnx", 64, 64, size=64)
    slow = {
        "compute": replace(BOARD, fp16_tflops=0.01),
        "memory": replace(BOARD, memory_bandwidth_gb_s=0.1),
        "launch": replace(BOARD, fp16_tflops=1e6, memory_bandwidth_gb_s=1e6),
    }
    for bound, board in slow.items():
        assert [layer.bound for layer in predict(path, board, "fp16").per_layer] == [bound]
    assert predict(path, slow["launch"], "fp16").total_ms == LAUNCH_MS


def test_matrix_products_and_depthwise_convolutions(tmp_path):
    gemm = write(
        tmp_path / "gemm.onnx",
        [("Gemm", ["x", "w", "b"], ["y"], {"transB": 1})],
        [("x", [2, 20])],
        [("y", [2, 10])],
        [("w", [10, 20]), ("b", [10])],
    )
    assert predict(gemm, BOARD, "fp32").per_layer[0].macs == 2 * 20 * 10
    matmul = write(
        tmp_path / "matmul.onnx",
        [("MatMul", ["a", "b"], ["y"], {})],
        [("a", [1, 4, 16, 8]), ("b", [1, 4, 8, 16])],
        [("y", [1, 4, 16, 16])],
    )
    assert predict(matmul, BOARD, "fp16").per_layer[0].macs == 4 * 16 * 8 * 16
    depthwise = predict(conv(tmp_path / "depthwise.onnx", 64, 64, groups=64), BOARD, "fp16").per_layer[0]
    assert depthwise.macs == 32 * 32 * 9 * 64
    assert depthwise.bytes == 2 * (2 * 64 * 32 * 32 + 64 * 9)
    transposed = write(
        tmp_path / "transposed.onnx",
        [("ConvTranspose", ["x", "w"], ["y"], {"strides": [2, 2]})],
        [("x", [1, 8, 4, 4])],
        [("y", [1, 16, 8, 8])],
        [("w", [8, 16, 2, 2])],
    )
    assert predict(transposed, BOARD, "fp16").per_layer[0].macs == 4 * 4 * 4 * 8 * 16


def test_pointwise_operators_cost_only_what_they_read_besides(tmp_path):
    path = write(
        tmp_path / "m.onnx",
        [
            ("Conv", ["x", "w"], ["a"], {}),
            ("Relu", ["a"], ["b"], {}),
            ("Add", ["b", "x"], ["c"], {}),
            ("Flatten", ["c"], ["y"], {}),
        ],
        [("x", [1, 16, 8, 8])],
        [("y", [1, 1024])],
        [("w", [16, 16, 1, 1])],
    )
    layers = predict(path, BOARD, "fp16").per_layer
    assert [layer.op for layer in layers] == ["Conv", "Add"]
    assert layers[1].bytes == 2 * 16 * 8 * 8
    first = write(tmp_path / "first.onnx", [("Relu", ["x"], ["y"], {})], [("x", [1, 8])], [("y", [1, 8])])
    assert [layer.bound for layer in predict(first, BOARD, "fp16").per_layer] == ["launch"]


@pytest.mark.parametrize("entry", ZOO.values(), ids=str)
def test_the_zoo_is_predicted_and_the_layers_sum_up(entry, tmp_path):
    export_onnx(entry.model(), entry.inputs(), tmp_path / "model.onnx")
    prediction = predict(tmp_path / "model.onnx", BOARD, "fp16")
    assert prediction.total_ms == pytest.approx(sum(layer.ms for layer in prediction.per_layer))
    assert any(layer.macs for layer in prediction.per_layer)
    assert all(layer.ms > 0 for layer in prediction.per_layer)


@settings(deadline=None, max_examples=30)
@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 200), st.sampled_from(["fp32", "fp16", "int8"]))
def test_fewer_channels_are_never_slower(tmp_path_factory, channels, narrow, more, precision):
    path = tmp_path_factory.mktemp("roofline") / "m.onnx"
    small = predict(conv(path, channels, narrow), BOARD, precision).total_ms
    assert small <= predict(conv(path, channels, narrow + more), BOARD, precision).total_ms
    small = predict(conv(path, narrow, channels), BOARD, precision).total_ms
    assert small <= predict(conv(path, narrow + more, channels), BOARD, precision).total_ms


def test_time_scales_with_the_bandwidth_and_halves_with_the_precision(tmp_path):
    path = conv(tmp_path / "m.onnx", 32, 32, size=256)
    starved = replace(BOARD, memory_bandwidth_gb_s=1.0)
    times = {p: predict(path, starved, p).total_ms for p in ("fp32", "fp16", "int8")}
    assert times["fp32"] == pytest.approx(2 * times["fp16"]) == pytest.approx(4 * times["int8"])
    faster = replace(BOARD, memory_bandwidth_gb_s=4.0)
    assert predict(path, faster, "fp16").total_ms == pytest.approx(times["fp16"] / 4)


def test_channels_between_two_multiples_gain_nothing(tmp_path):
    def time_of(filters):
        return predict(conv(tmp_path / "m.onnx", 64, filters, size=128), BOARD, "fp16").total_ms

    assert time_of(57) == time_of(64) < time_of(65) == time_of(72)


def test_assumptions_begin_with_the_warning_and_name_the_board(tmp_path):
    assumptions = predict(conv(tmp_path / "m.onnx", 8, 8), BOARD, "fp16").assumptions
    assert assumptions[0] == "Predicted, not measured: a roofline over the layers of the ONNX file."
    text = " ".join(assumptions)
    for part in ("orin-nano", "75%", "multiples of 8", "Depthwise"):
        assert part in text


@pytest.mark.parametrize(
    ("board", "precision", "message"),
    [
        (BOARD, "fp8", "Precision 'fp8' cannot be predicted. Give fp32, fp16 or int8."),
        (
            shipped_devices()["nano"],
            "int8",
            "nano has no int8 arithmetic to speak of. Ask for another precision.",
        ),
    ],
)
def test_a_precision_that_the_board_lacks_is_refused(board, precision, message, tmp_path):
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        predict(conv(tmp_path / "m.onnx", 8, 8), board, precision)


def test_what_cannot_be_predicted_is_named(tmp_path):
    path = write(
        tmp_path / "m.onnx",
        [("Einsum", ["x", "x"], ["y"], {"equation": "ij,kj->ik", "name": "odd"})],
        [("x", [4, 4])],
        [("y", [4, 4])],
    )
    with pytest.raises(
        TargetError, match=r"^Node 'odd' \(Einsum\) cannot be predicted\. Measure the model on the board\.$"
    ):
        predict(path, BOARD, "fp16")
    path = write(
        tmp_path / "open.onnx",
        [("Relu", ["x"], ["y"], {})],
        [("x", [1, "channels"])],
        [("y", [1, "channels"])],
    )
    message = r"^Node 'y' has a tensor of open shape, 'x'\. Export the model with a static shape\.$"
    with pytest.raises(TargetError, match=message):
        predict(path, BOARD, "fp16")
