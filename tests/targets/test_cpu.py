import os
import re
import subprocess
import sys

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.target import TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import CHECKS, make_case, write_small_model
from dtp_deploy_targets.runner import profiling


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check, tmp_path):
    check(make_case(TargetSpec("cpu", {"threads": 1}), tmp_path))


def write_model(path, nodes, inputs, outputs, weights=None):
    graph = helper.make_graph(
        [helper.make_node(*node[:3], **(node[3] if len(node) > 3 else {})) for node in nodes],
        "graph",
        [helper.make_tensor_value_info(*value) for value in inputs],
        [helper.make_tensor_value_info(*value) for value in outputs],
        [numpy_helper.from_array(value, name) for name, value in (weights or {}).items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def test_gives_what_the_model_says(tmp_path):
    path = write_model(
        tmp_path / "sum.onnx",
        [("Add", ["x", "y"], ["sum"]), ("Sub", ["x", "y"], ["difference"])],
        [("x", TensorProto.FLOAT, [2, 3]), ("y", TensorProto.FLOAT, [2, 3])],
        [("difference", TensorProto.FLOAT, [2, 3]), ("sum", TensorProto.FLOAT, [2, 3])],
    )
    x, y = np.arange(6, dtype=np.float32).reshape(2, 3), np.ones((2, 3), np.float32)
    with find_target("cpu").build(path).open() as session:
        outputs = session.run({"x": x, "y": y})
    assert outputs.keys() == {"sum", "difference"}
    np.testing.assert_array_equal(outputs["sum"], x + y)
    np.testing.assert_array_equal(outputs["difference"], x - y)


def test_info_comes_from_the_runtime(tmp_path):
    write_small_model(tmp_path / "model.onnx")
    info = find_target("cpu").build(tmp_path / "model.onnx").info
    assert (info.runtime, info.runtime_version) == ("onnxruntime", onnxruntime.__version__)
    assert info.threads == 1
    assert info.precision == "fp32"
    assert info.options == {
        "provider": "CPUExecutionProvider",
        "intra_op_num_threads": 1,
        "inter_op_num_threads": 1,
        "execution_mode": "ORT_SEQUENTIAL",
        "graph_optimization_level": "ORT_ENABLE_ALL",
        "session.intra_op.allow_spinning": "0",
    }


def test_the_time_of_every_kernel_comes_from_the_runtime(tmp_path):
    write_small_model(tmp_path / "model.onnx", width=32)
    layers = find_target("cpu").build(tmp_path / "model.onnx").layer_times()
    assert layers is not None
    by_name = {layer.name: layer for layer in layers}
    assert {"Gemm_5", "Flatten_4"} <= by_name.keys()
    convolutions = [layer for name, layer in by_name.items() if name.startswith(("b", "c"))]
    assert [layer.precision for layer in convolutions] == ["fp32", "fp32"]
    assert all(layer.mean_ms > 0 and layer.median_ms is not None for layer in convolutions)


def test_a_slow_model_is_profiled_in_fewer_runs(monkeypatch):
    clock = iter(range(0, 1000, 2))
    monkeypatch.setattr(profiling.time, "monotonic", lambda: float(next(clock)))
    runs = []
    assert profiling.profiled_runs(lambda: runs.append(1)) == len(runs) == profiling.WARM_UP_RUNS + profiling.LEAST_RUNS
    monkeypatch.setattr(profiling.time, "monotonic", lambda: 0.0)
    assert profiling.profiled_runs(lambda: None) == profiling.WARM_UP_RUNS + profiling.MOST_RUNS


def test_float16_graph_is_reported_as_it_is_computed(tmp_path):
    weight = np.random.default_rng(0).standard_normal((4, 3, 3, 3)).astype(np.float16)
    path = write_model(
        tmp_path / "half.onnx",
        [("Conv", ["x", "w"], ["y"])],
        [("x", TensorProto.FLOAT16, [1, 3, 8, 8])],
        [("y", TensorProto.FLOAT16, [1, 4, 6, 6])],
        {"w": weight},
    )
    engine = find_target("cpu").build(path)
    with engine.open() as session:
        assert session.inputs[0].dtype == "float16"
        assert session.run(random_inputs(session.inputs, 1)[0])["y"].dtype == np.float16
    assert engine.info.precision == "fp32"


def test_integer_matrix_product_is_int8(tmp_path):
    path = write_model(
        tmp_path / "int8.onnx",
        [("MatMulInteger", ["x", "w"], ["y"])],
        [("x", TensorProto.UINT8, [1, 8])],
        [("y", TensorProto.INT32, [1, 4])],
        {"w": np.ones((8, 4), np.int8)},
    )
    assert find_target("cpu").build(path).info.precision == "int8"


def test_open_batch_is_one_and_open_outputs_are_found(tmp_path):
    path = write_model(
        tmp_path / "batch.onnx",
        [("Flatten", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, ["batch", 2, 3])],
        [("y", TensorProto.FLOAT, ["batch", "features"])],
    )
    with find_target("cpu").build(path).open() as session:
        assert session.inputs[0].shape == (1, 2, 3)
        assert session.outputs[0].shape == (1, 6)


def test_open_height_is_refused(tmp_path):
    path = write_model(
        tmp_path / "open.onnx",
        [("Relu", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1, 3, "height", 8])],
        [("y", TensorProto.FLOAT, [1, 3, "height", 8])],
    )
    message = (
        "Target 'cpu' needs tensors of a fixed shape, but 'x' is tensor(float) [1, 3, 'height', 8]. "
        "Export the model with a static shape."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        find_target("cpu").build(path)


def test_unknown_operator_is_one_line(tmp_path):
    path = write_model(
        tmp_path / "odd.onnx",
        [("Frobnicate", ["x"], ["y"])],
        [("x", TensorProto.FLOAT, [1])],
        [("y", TensorProto.FLOAT, [1])],
    )
    with pytest.raises(TargetError, match=r"^Target 'cpu' with odd\.onnx failed to build: .*Frobnicate.*$") as caught:
        find_target("cpu").build(path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("threads", [0, -1, 10_000, True, 1.5, "2"])
def test_impossible_threads_are_refused(threads):
    message = f"--threads {threads} is not possible for target 'cpu'. Give 1 to {os.cpu_count()}."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_target(TargetSpec("cpu", {"threads": threads}))


def test_missing_runtime_is_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr("dtp_deploy_targets.cpu.find_spec", lambda name: None)
    write_small_model(tmp_path / "model.onnx")
    with pytest.raises(TargetError, match=r"^Target 'cpu' needs the package onnxruntime: pip install onnxruntime\.$"):
        find_target("cpu").build(tmp_path / "model.onnx")


def test_nothing_of_the_runtime_is_imported_before_it_is_used():
    code = (
        "import sys\nfrom dtp_deploy.target import find_target, target_classes\n"
        "assert find_target('cpu').availability().available and 'cpu' in target_classes()\n"
        "assert 'onnxruntime' not in sys.modules"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
