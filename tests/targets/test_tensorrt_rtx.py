"""Parsing and building run for real where the package is installed; running needs a GPU."""

import re
from contextlib import contextmanager
from importlib.util import find_spec
from types import SimpleNamespace

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.parity import compare
from dtp_deploy.profile import measure
from dtp_deploy.progress import SILENT
from dtp_deploy.target import TargetSpec, find_target, random_inputs
from dtp_deploy.testing.conformance import CHECKS, make_case, write_small_model
from dtp_deploy.testing.zoo import ZOO
from dtp_deploy_targets import cuda
from dtp_deploy_targets.prepare import Facts
from dtp_deploy_targets.tensorrt_rtx import TensorRtRtxTarget
from dtp_deploy_targets.trt_build import BuildSettings, _strongly_typed, build, check_precision

TARGET = "dtp_deploy_targets.tensorrt_rtx:TensorRtRtxTarget"
NO_GPU = cuda.problem()

installed = pytest.mark.skipif(
    find_spec("tensorrt_rtx") is None, reason="needs the package tensorrt-rtx: pip install 'dtp-deploy[tensorrt-rtx]'"
)
without_gpu = pytest.mark.skipif(not NO_GPU, reason="there is a GPU here")


def gpu(test):
    return installed(pytest.mark.gpu(pytest.mark.skipif(bool(NO_GPU), reason=NO_GPU)(test)))


@pytest.fixture(autouse=True)
def own_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))


@pytest.fixture
def model(tmp_path):
    write_small_model(tmp_path / "model.onnx", width=32)
    return tmp_path / "model.onnx"


def quantised(path):
    """One int8 convolution between Q/DQ nodes."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.integers(-127, 127, (32, 32, 3, 3)).astype(np.int8),
        "sw": np.full(32, 0.01, np.float32),
        "zw": np.zeros(32, np.int8),
        "sx": np.float32(0.05),
        "zx": np.int8(0),
    }
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "sx", "zx"], ["qx"]),
        helper.make_node("DequantizeLinear", ["qx", "sx", "zx"], ["dx"]),
        helper.make_node("DequantizeLinear", ["w", "sw", "zw"], ["dw"], axis=0),
        helper.make_node("Conv", ["dx", "dw"], ["y"], name="conv", pads=[1, 1, 1, 1]),
    ]
    graph = helper.make_graph(
        nodes,
        "quantised",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 32, 16, 16])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 32, 16, 16])],
        [numpy_helper.from_array(value, name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


def built(path, precision):
    return find_target(TargetSpec(TARGET, {"precision": precision})).build(path)


@installed
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_the_engine_computes_in_the_precision_that_was_asked_for(model, precision):
    engine = built(model, precision)
    assert engine.info.precision == precision
    assert (engine.info.runtime, engine.info.options["tf32"]) == ("tensorrt_rtx", False)
    layers = engine.built.facts["layers"]
    convolutions = [layer for layer in layers if layer["LayerType"] == "correlation"]
    assert {layer["Weights"]["Type"] for layer in convolutions} == {{"fp32": "Float", "fp16": "Half"}[precision]}
    assert [spec.dtype for spec in engine_specs(engine)] == ["float32", "float32"]


def engine_specs(engine):
    from dtp_deploy_targets.prepare import specs_from

    return [*specs_from(engine.built.facts["inputs"]), *specs_from(engine.built.facts["outputs"])]


@installed
def test_int8_comes_from_the_model(tmp_path):
    path = quantised(tmp_path / "quantised.onnx")
    assert built(path, "int8").info.precision == "int8"
    message = (
        "Target 'tensorrt-rtx' with quantised.onnx: asked for fp32, but the engine has 100 % of its layers in int8. "
        "The engine is refused: its times would be those of another precision."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        built(path, "fp32")


@installed
def test_a_model_that_stayed_fp32_is_refused_as_fp16(model):
    import tensorrt_rtx

    facts = Facts((), False, (), ())
    with pytest.raises(TargetError, match=r"^asked for fp16, but the engine has 100 % of its layers in fp32\."):
        build(tensorrt_rtx, model, facts, BuildSettings("fp16"), None, SILENT)


@installed
@pytest.mark.parametrize("entry", ZOO.values(), ids=str)
def test_the_zoo_is_built_in_fp16(entry, tmp_path):
    export_onnx(entry.model(), entry.inputs(), tmp_path / "model.onnx")
    assert "fp16" in built(tmp_path / "model.onnx", "fp16").info.precision


@installed
def test_the_second_build_comes_from_the_cache(model, monkeypatch):
    assert built(model, "fp16").info.options["cached"] is False
    monkeypatch.setattr("dtp_deploy_targets.tensorrt_rtx.prepare", None)
    again = built(model, "fp16")
    assert again.info.options["cached"] is True
    assert again.info.precision == "fp16"


@installed
def test_a_build_tells_how_far_it_is(model):
    percent = []

    class Heard:
        @contextmanager
        def task(self, name, total=None, *, passing=False):
            assert (name, total) == ("engine, percent", 100)
            yield lambda: percent.append(1)

    TensorRtRtxTarget(precision="fp32").build(model, Heard())
    assert len(percent) == 100


@installed
def test_a_listener_that_raises_ends_the_build(model):
    class Interrupts:
        @contextmanager
        def task(self, name, total=None, *, passing=False):
            def advance():
                raise KeyboardInterrupt

            yield advance

    with pytest.raises(KeyboardInterrupt):
        TensorRtRtxTarget(precision="fp32").build(model, Interrupts())


@installed
def test_an_unknown_operator_is_named_with_its_node(tmp_path):
    graph = helper.make_graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="first"),
            helper.make_node("Frobnicate", ["a"], ["y"], name="odd", domain="my.domain"),
        ],
        "odd",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 3])],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("my.domain", 1)]
    onnx.save(helper.make_model(graph, opset_imports=opsets, ir_version=10), tmp_path / "odd.onnx")
    message = (
        "Target 'tensorrt-rtx' with odd.onnx: node 1 'odd' (Frobnicate) is not supported: there is no operator or "
        "plugin for it. Replace it in the model."
    )
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        built(tmp_path / "odd.onnx", "fp32")


@installed
@without_gpu
def test_without_a_gpu_it_builds_and_says_that_it_cannot_run(model):
    state = TensorRtRtxTarget().availability()
    assert (state.available, state.builds) == (False, True)
    assert state.reason == f"builds here, but cannot run: {NO_GPU}"
    engine = built(model, "fp16")
    assert engine.info.device == NO_GPU
    message = f"Target 'tensorrt-rtx' with model.onnx was built, but cannot run: {NO_GPU}."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"), engine.open():
        pass


@installed
@without_gpu
def test_without_a_gpu_nothing_is_built_to_be_measured(model, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(model.parent / "cache"))
    with pytest.raises(TargetError, match=r"^Target 'tensorrt-rtx' builds here, but cannot run: no GPU"):
        measure({"model": model}, TARGET)
    assert not (model.parent / "cache").exists()


@gpu
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_conforms(check, tmp_path):
    check(make_case(TargetSpec(TARGET, {"precision": "fp32"}), tmp_path))


@gpu
@pytest.mark.parametrize(("precision", "tolerance"), [("fp32", 1e-4), ("fp16", 2e-2)])
def test_agrees_with_onnx_runtime(model, precision, tolerance):
    engine = built(model, precision)
    with engine.open() as session, find_target("cpu").build(model).open() as reference:
        batches = random_inputs(session.inputs, 3)

        def outputs_of(runner):
            return lambda batch: list(runner.run(batch).values())

        assert compare(precision, outputs_of(reference), outputs_of(session), batches, tolerance).passed
    assert engine.layer_times()


@pytest.mark.parametrize(
    "name", ["broken_model_is_refused", "availability_is_an_answer", "spec_survives_another_process"]
)
@installed
def test_conforms_as_far_as_no_gpu_is_needed(name, tmp_path):
    (check,) = (check for check in CHECKS if check.__name__ == name)
    check(make_case(TargetSpec(TARGET, {"precision": "fp32"}), tmp_path))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            {"precision": "fp8"},
            "precision 'fp8' is not possible for target 'tensorrt-rtx'. Give fp32, fp16 or int8.",
        ),
        (
            {"device": -1},
            "device -1 is not possible for target 'tensorrt-rtx'. Give 0, or the index of another GPU.",
        ),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        TensorRtRtxTarget(**options)


def test_a_missing_package_is_an_answer(monkeypatch, tmp_path):
    monkeypatch.setattr("dtp_deploy_targets.tensorrt_rtx.find_spec", lambda name: None)
    write_small_model(tmp_path / "model.onnx")
    message = "Target 'tensorrt-rtx' needs the package tensorrt-rtx: pip install 'dtp-deploy[tensorrt-rtx]'."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        TensorRtRtxTarget().build(tmp_path / "model.onnx")


def layer(dtype, count=64, kind="gemm", **more):
    return {
        "Name": f"{dtype}{count}",
        "LayerType": kind,
        "Inputs": [],
        "Weights": {"Type": dtype, "Count": count},
        **more,
    }


def test_a_mixed_engine_names_all_that_it_computes_in():
    assert check_precision("fp16", [layer("Half"), layer("Half", 65), layer("Float")]) == "fp16+fp32"
    with pytest.raises(TargetError, match=r"^asked for fp32, but the engine has 67 % of its layers in fp16"):
        check_precision("fp32", [layer("Half"), layer("Half", 65), layer("Float")])


def test_tf32_is_not_fp32():
    tactic = "sm80_xmma_gemm_f32f32_tf32f32_f32_nn_n_tilesize32x32x64"
    with pytest.raises(TargetError, match=r"^asked for fp32, but the engine has 100 % of its layers in tf32"):
        check_precision("fp32", [layer("Float", TacticName=tactic)])


def test_a_version_without_weak_typing_needs_no_flag():
    flags = SimpleNamespace(STRONGLY_TYPED=1)
    assert _strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=flags)) == 2
    assert _strongly_typed(SimpleNamespace(NetworkDefinitionCreationFlag=SimpleNamespace())) == 0


def test_an_engine_that_tells_nothing_is_refused():
    with pytest.raises(TargetError, match=r"^asked for fp16, but the engine does not tell what its layers run in"):
        check_precision("fp16", [])
