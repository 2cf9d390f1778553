import os
import re
import subprocess
import sys
from importlib.util import find_spec

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.target import TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import CHECKS, make_case, write_small_model
from dtp_deploy_targets.openvino import OpenVinoTarget

TARGET = "dtp_deploy_targets.openvino:OpenVinoTarget"
installed = pytest.mark.skipif(
    find_spec("openvino") is None, reason="needs the package openvino: pip install 'dtp-deploy[openvino]'"
)


@installed
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check, tmp_path):
    check(make_case(TargetSpec(TARGET, {"threads": 1}), tmp_path))


@installed
def test_computes_in_fp32_unless_told_otherwise_and_agrees_with_onnx_runtime(tmp_path):
    path = tmp_path / "model.onnx"
    write_small_model(path, width=32)
    engine, reference = find_target(TARGET).build(path), find_target("cpu").build(path)
    with engine.open() as session, reference.open() as expected:
        (inputs,) = random_inputs(session.inputs, 1)
        np.testing.assert_allclose(session.run(inputs)["output"], expected.run(inputs)["output"], rtol=1e-4, atol=1e-5)
    assert (engine.info.runtime, engine.info.threads, engine.info.precision) == ("openvino", 1, "fp32")
    assert engine.info.options["INFERENCE_PRECISION_HINT"] == "<Type: 'float32'>"


@installed
def test_the_precision_is_the_one_of_the_kernels(tmp_path):
    import openvino

    write_small_model(tmp_path / "model.onnx", width=32)
    info = find_target(TargetSpec(TARGET, {"precision": "bf16"})).build(tmp_path / "model.onnx").info
    capable = "BF16" in openvino.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    assert ("bf16" in info.precision) == capable


@installed
def test_the_time_of_every_kernel_comes_from_the_runtime(tmp_path):
    write_small_model(tmp_path / "model.onnx", width=32)
    layers = find_target(TARGET).build(tmp_path / "model.onnx").layer_times()
    assert layers is not None
    convolutions = [layer for layer in layers if layer.name in ("a", "b", "c")]
    assert convolutions
    assert all(layer.mean_ms > 0 and layer.precision == "fp32" for layer in convolutions)


@installed
def test_an_open_height_is_refused(tmp_path):
    graph = helper.make_graph(
        [helper.make_node("Relu", ["x"], ["y"])],
        "open",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3, "height", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3, "height", 8])],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), tmp_path / "m.onnx")
    message = "needs tensors of a fixed shape, but 'x' is [1,3,?,8]. Export the model with a static shape."
    with pytest.raises(TargetError, match=re.escape(message)):
        find_target(TARGET).build(tmp_path / "m.onnx")


@installed
def test_telemetry_is_never_imported(tmp_path):
    write_small_model(tmp_path / "model.onnx")
    code = (
        "import sys\nfrom pathlib import Path\nfrom dtp_deploy.target import find_target\n"
        f"find_target({TARGET!r}).build(Path({str(tmp_path / 'model.onnx')!r})).info\n"
        "assert 'openvino' in sys.modules and not sys.modules.get('openvino_telemetry')\n"
        "assert not [name for name in sys.modules if name.startswith('openvino_telemetry.')]"
    )
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.parametrize("threads", [0, True, 10_000, "2"])
def test_impossible_threads_are_refused(threads):
    message = f"--threads {threads} is not possible for target 'openvino'. Give 1 to {os.cpu_count()}."
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        OpenVinoTarget(threads=threads)


def test_a_missing_runtime_is_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr("dtp_deploy_targets.openvino.find_spec", lambda name: None)
    write_small_model(tmp_path / "model.onnx")
    message = "Target 'openvino' needs the package openvino: pip install 'dtp-deploy[openvino]'."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        OpenVinoTarget().build(tmp_path / "model.onnx")
