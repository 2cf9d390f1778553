"""TensorRT itself cannot be installed here, so its parts are tested with stand-ins, none of which gives a result:
the API with the package tensorrt-rtx, which has the same one; the driver with `fake_cuda`; trtexec with `replay`.
"""

import ctypes
import os
import re
import sys
from dataclasses import asdict
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType, SimpleNamespace

import numpy as np
import pytest

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.profile.settings import MeasureSettings
from dtp_deploy.target import LayerTime, TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import CHECKS, make_case, write_small_model
from dtp_deploy_targets import cuda
from dtp_deploy_targets.tensorrt import TensorRtTarget
from tests.targets import fake_cuda

TARGET = "dtp_deploy_targets.tensorrt:TensorRtTarget"
REPLAY = Path(__file__).parent / "replay"
HAS_RTX = find_spec("tensorrt_rtx") is not None
NO_TENSORRT = "needs TensorRT, which is not installed here" if find_spec("tensorrt") is None else ""
NO_GPU = cuda.problem()

# TensorRT has a timing cache; tensorrt-rtx, which stands in for it, has one that does nothing, and says so.
pytestmark = pytest.mark.filterwarnings("ignore:Use Deprecated in TensorRT-RTX:DeprecationWarning")


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    write_small_model(tmp_path / "model.onnx", width=32)
    return tmp_path / "model.onnx"


@pytest.fixture
def stand_in_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(cuda, "LIBRARY", str(fake_cuda.build(tmp_path)))
    return ctypes.CDLL(cuda.LIBRARY)


class Context:
    """Gives the sums over a batch's pixels, ten times: enough to see which memory was given to which tensor."""

    def __init__(self):
        self.addresses = {}
        self.profiler = None

    def set_tensor_address(self, name, address):
        self.addresses[name] = address

    def execute_async_v3(self, stream):
        values = np.empty((1, 3, 16, 16), np.float32)
        ctypes.memmove(values.ctypes.data, self.addresses["input"], values.nbytes)
        result = np.full((1, 10), values.sum(), np.float32)
        ctypes.memmove(self.addresses["output"], result.ctypes.data, result.nbytes)
        for name, ms in (("first", 1.0), ("second", 3.0)) if self.profiler is not None else ():
            self.profiler.report_layer_time(name, ms)
        return True


class Runtime:
    def __init__(self, log):
        self.log = log

    def deserialize_cuda_engine(self, plan):
        # Without an inspector: what the engine computes in is then read from the builder's log.
        return (
            SimpleNamespace(create_execution_context=Context) if sys._getframe(1).f_code.co_name == "__init__" else None
        )


@pytest.fixture
def stand_in_tensorrt(monkeypatch, stand_in_gpu):
    """The package tensorrt: builds by tensorrt-rtx; its runtime is a stand-in."""
    if not HAS_RTX:
        pytest.skip("needs the package tensorrt-rtx: pip install 'dtp-deploy[tensorrt-rtx]'")
    import tensorrt_rtx

    module = ModuleType("tensorrt")
    module.__dict__.update({name: getattr(tensorrt_rtx, name) for name in dir(tensorrt_rtx) if name[0] != "_"})
    module.__version__, module.Runtime = "11.4.1", Runtime
    monkeypatch.setitem(sys.modules, "tensorrt", module)
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_spec", lambda name: module)
    return module


@pytest.fixture
def stand_in_trtexec(monkeypatch, stand_in_gpu, tmp_path):
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_spec", lambda name: None)
    monkeypatch.setenv("PATH", f"{REPLAY}:{os.environ['PATH']}")
    monkeypatch.setenv("REPLAY_CALLS", str(tmp_path / "calls"))
    return tmp_path / "calls"


# ---- by the Python package -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_the_life_cycle_conforms_with_stand_ins(check, tmp_path, stand_in_tensorrt):
    check(make_case(TargetSpec(TARGET, {"precision": "fp16"}), tmp_path))


def test_inputs_and_outputs_reach_the_right_memory_and_all_is_given_back(model, stand_in_tensorrt, stand_in_gpu):
    with TensorRtTarget().build(model).open() as session:
        (inputs,) = random_inputs(session.inputs, 1)
        np.testing.assert_allclose(session.run(inputs)["output"], np.full((1, 10), inputs["input"].sum()), rtol=1e-6)
        assert stand_in_gpu.fake_allocated() == 2
    assert (stand_in_gpu.fake_allocated(), stand_in_gpu.fake_retained()) == (0, 0)


def test_the_report_says_how_it_was_built(model, stand_in_tensorrt):
    engine = TensorRtTarget(precision="fp32", workspace_mib=64, optimization_level=2).build(model)
    assert (engine.info.runtime, engine.info.runtime_version) == ("tensorrt", "11.4.1")
    assert (engine.info.device, engine.info.precision) == ("Stand-in GPU", "fp32")
    assert engine.info.options == {
        "interface": "python",
        "strongly_typed": True,
        "tf32": False,
        "sparse_2_4_weights": 0,
        "workspace_mib": 64,
        "optimization_level": 2,
        "transfers": "included",
        "cuda_graph": False,
        "cached": False,
    }


def test_the_profiler_tells_the_time_of_every_layer(model, stand_in_tensorrt, stand_in_gpu):
    engine = TensorRtTarget().build(model)
    engine.built.facts["layers"].append(
        {"Name": "second", "LayerType": "gemm", "Weights": {"Type": "Half", "Count": 64}, "Inputs": []}
    )
    assert engine.layer_times() == (LayerTime("first", 1.0, 1.0, ""), LayerTime("second", 3.0, 3.0, "fp16"))
    assert (stand_in_gpu.fake_allocated(), stand_in_gpu.fake_retained()) == (0, 0)


def test_the_cache_knows_the_options_and_the_version(model, stand_in_tensorrt, tmp_path):
    def cached(**options):
        return TensorRtTarget(**options).build(model).info.options["cached"]

    assert [cached(), cached(), cached(precision="fp32"), cached(optimization_level=4)] == [False, True, False, False]
    stand_in_tensorrt.__version__ = "11.4.2"
    assert not cached()
    assert (tmp_path / "cache/dtp-deploy/timings-11.4.1-sm8.7.cache").is_file()


def test_an_old_version_is_refused(model, stand_in_tensorrt):
    stand_in_tensorrt.__version__ = "8.6.2"
    message = "Target 'tensorrt' with model.onnx: TensorRT 8.6.2 is too old. Install TensorRT 10 or newer."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        TensorRtTarget().build(model)


def test_libraries_that_are_missing_are_named(model, stand_in_gpu, monkeypatch, tmp_path):
    (tmp_path / "tensorrt.py").write_text("raise ImportError('libnvinfer.so.11: cannot open shared object file')")
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "tensorrt", raising=False)
    message = (
        "Target 'tensorrt' with model.onnx: the package tensorrt cannot be imported (libnvinfer.so.11: cannot open "
        "shared object file). Install TensorRT with its libraries, or add their folder to LD_LIBRARY_PATH."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        TensorRtTarget().build(model)


def test_a_failed_build_gives_its_reason(model, stand_in_tensorrt, monkeypatch):
    class Builder:
        def __init__(self, log):
            self._log, self._real = log, real(log)

        def __getattr__(self, name):
            return getattr(self._real, name)

        def build_serialized_network(self, network, config):
            self._log.log(SimpleNamespace(name="ERROR"), "Error Code 1: Cuda Runtime (out of memory)")

    real = stand_in_tensorrt.Builder
    monkeypatch.setattr(stand_in_tensorrt, "Builder", Builder)
    message = (
        r"^Target 'tensorrt' with model\.onnx: the engine could not be built: out of memory \(.*\)\. Close what else"
    )
    with pytest.raises(TargetError, match=message):
        TensorRtTarget().build(model)


# ---- by trtexec ----------------------------------------------------------------------------------------------------


def test_trtexec_builds_runs_and_measures(model, stand_in_trtexec):
    target = TensorRtTarget(precision="fp16")
    engines = {"dense": target.build(model), "pruned": target.build(model)}
    assert engines["dense"].info.runtime_version == "10.3.0"
    assert "fp16" in engines["dense"].info.precision
    with engines["dense"].open() as session:
        outputs = session.run(random_inputs(session.inputs, 1)[0])
    assert (outputs["output"].shape, outputs["output"].dtype) == ((1, 10), np.float32)
    attempt = target.measure(engines, asdict(MeasureSettings()) | {"min_seconds": 0.1, "idle_seconds": 0.0})
    assert attempt.blocks_ns.keys() == engines.keys()
    assert "REPLAY" in str(attempt.details["dense"]["warnings"])
    assert engines["dense"].layer_times()[1] == LayerTime("Conv_0 + Relu_1", 0.111616, 0.111616, "fp16")
    calls = stand_in_trtexec.read_text()
    assert "--fp16" in calls
    assert "--noTF32" in calls


def test_trtexec_is_told_which_gpu_and_may_use_sparse_kernels(model, stand_in_trtexec):
    engine = TensorRtTarget(precision="fp16").build(model)
    assert engine.info.device.startswith("Stand-in GPU sm8.7")
    build, inspect = [line for line in stand_in_trtexec.read_text().splitlines() if "--help" not in line][:2]
    assert "--device=0" in build.split()
    assert "--device=0" in inspect.split()
    assert "--sparsity=enable" in build.split()


def test_an_engine_of_another_gpu_is_not_taken_from_the_cache(model, stand_in_trtexec, monkeypatch):
    names = [TensorRtTarget().build(model).info.options["engine"]]
    names.append(TensorRtTarget().build(model).info.options["engine"])
    monkeypatch.setattr(cuda, "gpu", lambda index=0: cuda.Gpu(index, "Another GPU", "8.9"))
    names.append(TensorRtTarget().build(model).info.options["engine"])
    assert names[0] == names[1] != names[2]


def test_a_package_that_is_too_old_gives_way_to_trtexec(model, stand_in_trtexec, monkeypatch):
    old = ModuleType("tensorrt")
    old.__version__ = "8.6.2"
    monkeypatch.setitem(sys.modules, "tensorrt", old)
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_spec", lambda name: old)
    assert TensorRtTarget(precision="fp16").build(model).info.runtime_version == "10.3.0"


def test_trtexec_11_gets_a_converted_model_and_no_flag(model, stand_in_trtexec, monkeypatch):
    monkeypatch.setenv("REPLAY_VERSION", "110100")
    assert TensorRtTarget(precision="fp16").build(model).info.runtime_version == "11.1.0"
    assert "--fp16" not in stand_in_trtexec.read_text()


def test_trtexec_whose_engine_has_another_precision_is_refused(model, stand_in_trtexec):
    message = r"^Target 'tensorrt' with model\.onnx: asked for fp32, but the engine spends .* in fp16"
    with pytest.raises(TargetError, match=message):
        TensorRtTarget(precision="fp32").build(model)


def test_trtexec_that_runs_out_of_memory_says_so(model, stand_in_trtexec, monkeypatch):
    monkeypatch.setenv("REPLAY_FAIL", "error-oom-10.3.txt")
    with pytest.raises(TargetError, match=r"^Target 'tensorrt' with model\.onnx: out of memory \(") as caught:
        TensorRtTarget().build(model)
    assert "\n" not in str(caught.value)


# ---- options and what is missing -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"precision": "fp8"}, "precision 'fp8' is not possible for target 'tensorrt'. Give fp32, fp16 or int8."),
        ({"device": True}, "device True is not possible for target 'tensorrt'. Give 0, or the index of another GPU."),
        ({"workspace_mib": -1}, "workspace_mib -1 is not possible for target 'tensorrt'. Give 0 or more."),
        ({"optimization_level": 6}, "optimization_level 6 is not possible for target 'tensorrt'. Give 0 to 5."),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_target(TargetSpec(TARGET, options))


def test_what_is_missing_is_an_answer(monkeypatch, model):
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_spec", lambda name: None)
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_trtexec", lambda: "")
    message = (
        "Target 'tensorrt' needs the package tensorrt, or trtexec in PATH or /usr/src/tensorrt/bin: "
        "pip install 'dtp-deploy[tensorrt]'."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        TensorRtTarget().build(model)
    monkeypatch.setattr("dtp_deploy_targets.tensorrt.find_trtexec", lambda: "/usr/bin/trtexec")
    monkeypatch.setattr(cuda, "LIBRARY", "libno-such-driver.so.1")
    message = "Target 'tensorrt' needs an NVIDIA GPU in this machine (no GPU: there is no NVIDIA driver here"
    with pytest.raises(TargetError, match=f"^{re.escape(message)}"):
        TensorRtTarget().build(model)


# ---- for real ------------------------------------------------------------------------------------------------------


@pytest.mark.gpu
@pytest.mark.skipif(bool(NO_GPU or NO_TENSORRT), reason=NO_GPU or NO_TENSORRT)
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check, tmp_path):
    check(make_case(TargetSpec(TARGET, {"precision": "fp32"}), tmp_path))


@pytest.mark.gpu
@pytest.mark.skipif(bool(NO_GPU or NO_TENSORRT), reason=NO_GPU or NO_TENSORRT)
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_agrees_with_onnx_runtime(model, precision, tolerance):
    engine = TensorRtTarget(precision=precision).build(model)
    with engine.open() as session, find_target("cpu").build(model).open() as reference:
        for inputs in random_inputs(session.inputs, 3):
            expected, found = reference.run(inputs)["output"], session.run(inputs)["output"]
            np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())
    assert engine.layer_times()
