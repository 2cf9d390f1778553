"""This machine's CPU through OpenVINO."""

import os
import sys
from collections.abc import Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.target import (
    Arrays,
    Availability,
    Engine,
    EngineInfo,
    LayerTime,
    Session,
    Target,
    TensorSpec,
    random_inputs,
)
from dtp_deploy_targets.runner.profiling import layers_of_runs, profiled_runs

if TYPE_CHECKING:
    import openvino

_PRECISIONS = {"fp32": "f32", "bf16": "bf16", "fp16": "f16"}
_TYPES = {"f32": "fp32", "f16": "fp16", "bf16": "bf16", "f64": "fp64", "i8": "int8", "u8": "int8"}
_MATRIX_LAYERS = frozenset(
    ["Convolution", "Deconvolution", "FullyConnected", "MatMul", "RNNCell", "RNNSeq", "ScaledDotProductAttention"]
)


class OpenVinoTarget(Target):
    """OpenVINO's CPU plugin, tuned for latency.

    The plugin computes in bfloat16 where the CPU has it, unless told otherwise: here fp32 is the default.

    Args:
        threads: how many threads share one inference, from 1 to the number of logical CPUs.
        precision: "fp32", "bf16" or "fp16" for the arithmetic of float layers; a model with Q/DQ nodes runs in int8
            where it says so.

    Raises:
        UsageError: an option that is not possible.

    >>> OpenVinoTarget(precision="int4")
    Traceback (most recent call last):
    dtp_deploy.errors.UsageError: precision 'int4' is not possible for target 'openvino'. Give fp32, bf16 or fp16.
    """

    name = "openvino"
    summary = "This machine's CPU, by OpenVINO"

    def __init__(self, *, threads: int = 1, precision: str = "fp32") -> None:
        limit = os.cpu_count() or 1
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= limit:
            raise UsageError(f"--threads {threads} is not possible for target 'openvino'. Give 1 to {limit}.")
        if precision not in _PRECISIONS:
            raise UsageError(f"precision {precision!r} is not possible for target 'openvino'. Give fp32, bf16 or fp16.")
        self.threads = threads
        self.precision = precision

    def availability(self) -> Availability:
        """Whether the package openvino is installed."""
        if find_spec("openvino") is None:
            return Availability(False, "needs the package openvino", "pip install 'dtp-deploy[openvino]'")
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        return OpenVinoEngine(model_path, self.threads, self.precision)


class OpenVinoEngine(Engine):
    """A compiled model."""

    def __init__(self, model_path: Path, threads: int, precision: str) -> None:
        super().__init__(model_path)
        openvino = _runtime()
        core = openvino.Core()
        model = core.read_model(model_path)
        self._inputs = tuple(_spec(port) for port in model.inputs)
        self._outputs = tuple(_spec(port) for port in model.outputs)
        self._model = model
        self._settings = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_PRECISION_HINT": _PRECISIONS[precision],
            "INFERENCE_NUM_THREADS": threads,
            "NUM_STREAMS": 1,
        }
        self._compiled = core.compile_model(model, "CPU", self._settings)

    def _layer_times(self) -> list[LayerTime]:
        # Counting costs time, so the timed engine does not.
        compiled = _runtime().Core().compile_model(self._model, "CPU", self._settings | {"PERF_COUNT": True})
        runs: list[dict[tuple[str, str], float]] = []
        inputs = random_inputs(self._inputs, 1)[0]
        session = OpenVinoSession(compiled, self._inputs, self._outputs)

        def run() -> None:
            session.run(inputs)
            runs.append(session.kernel_times_ms())

        profiled_runs(run)
        session.close()
        return [LayerTime(**layer) for layer in layers_of_runs(runs, lambda key: key[0], lambda key: key[1])]

    def _open(self) -> Session:
        return OpenVinoSession(self._compiled, self._inputs, self._outputs)

    @property
    def info(self) -> EngineInfo:
        """What the compiled model says of itself."""
        openvino = _runtime()
        return EngineInfo(
            runtime="openvino",
            runtime_version=openvino.__version__,
            device=str(openvino.Core().get_property("CPU", "FULL_DEVICE_NAME")),
            threads=int(self._compiled.get_property("INFERENCE_NUM_THREADS")),
            precision=_executed_precision(self._compiled),
            options={
                name: str(self._compiled.get_property(name))
                for name in ("PERFORMANCE_HINT", "INFERENCE_PRECISION_HINT", "NUM_STREAMS", "ENABLE_HYPER_THREADING")
            },
        )


class OpenVinoSession(Session):
    """One inference request."""

    def __init__(
        self, compiled: "openvino.CompiledModel", inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(inputs, outputs)
        self._request = compiled.create_infer_request()

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        # The request's output tensors are its own and are written again by the next run: give copies.
        self._request.infer(dict(inputs), share_inputs=True)
        return {
            spec.name: np.array(self._request.get_output_tensor(index).data) for index, spec in enumerate(self.outputs)
        }

    def kernel_times_ms(self) -> dict[tuple[str, str], float]:
        """The time of each kernel in the last run, by name and precision; for a model that was compiled to count."""
        return {
            (info.node_name, _TYPES.get(info.exec_type.rpartition("_")[2], "")): info.real_time.total_seconds() * 1e3
            for info in self._request.get_profiling_info()
            if info.status.name == "EXECUTED"
        }

    def _close(self) -> None:
        del self._request


def _runtime() -> ModuleType:
    # openvino brings openvino-telemetry, which its model converter would ask and use. None in its place makes importing
    # it fail, upon which openvino takes an empty stand-in of its own.
    sys.modules.setdefault("openvino_telemetry", None)  # type: ignore[arg-type]
    return import_module("openvino")


def _spec(port: "openvino.Output") -> TensorSpec:
    name = port.get_any_name()
    if port.partial_shape.is_dynamic:
        raise TargetError(
            f"Target 'openvino' needs tensors of a fixed shape, but '{name}' is {port.partial_shape}. "
            "Export the model with a static shape."
        )
    return TensorSpec(name, tuple(port.shape), np.dtype(port.element_type.to_dtype()).name)


def _executed_precision(compiled: "openvino.CompiledModel") -> str:
    """The precision of the kernels that compute, from the graph that the plugin really runs."""
    found = set()
    every = set()
    for node in compiled.get_runtime_model().get_ops():
        info = node.get_rt_info()
        kind = str(info["layerType"].astype(str)) if "layerType" in info else ""
        dtype = str(info["runtimePrecision"].astype(str)) if "runtimePrecision" in info else ""
        precision = _TYPES.get(dtype, dtype)
        every.add(precision)
        if kind in _MATRIX_LAYERS:
            found.add(precision)
    return "+".join(sorted((found or every) - {""})) or "unknown"
