"""This machine's CPU through ONNX Runtime: the target that is always there."""

import os
from collections.abc import Iterable, Mapping, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.profile.environment import cpu_model
from dtp_deploy.target import (
    Arrays,
    Availability,
    Engine,
    EngineInfo,
    LayerTime,
    Option,
    Session,
    Target,
    TensorSpec,
    random_inputs,
)
from dtp_deploy_targets.runner.onnx_backend import SPINNING, executed_precision, layer_times, load_session

if TYPE_CHECKING:
    import onnxruntime

_DTYPES = {"float": "float32", "double": "float64"}


class CpuTarget(Target):
    """ONNX Runtime's CPU execution provider, one operator after the other, all graph optimisations on.

    Worker threads sleep between operators instead of spinning: with more threads than one, spinning gains some
    microseconds an operator on an idle machine, but takes whole cores from everything else that runs there, the other
    model of an interleaved measurement included. With one thread it makes no difference.

    Args:
        threads: how many threads share one operator, from 1 to the number of logical CPUs.

    Raises:
        UsageError: threads out of that range.

    >>> CpuTarget(threads=0)  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dtp_deploy.errors.UsageError: ...
    """

    name = "cpu"
    summary = "This machine's CPU, by ONNX Runtime"

    def __init__(self, *, threads: int = 1) -> None:
        limit = os.cpu_count() or 1
        if not isinstance(threads, int) or isinstance(threads, bool) or not 1 <= threads <= limit:
            raise UsageError(f"--threads {threads} is not possible for target 'cpu'. Give 1 to {limit}.")
        self.threads = threads

    def availability(self) -> Availability:
        """Whether the package onnxruntime is installed."""
        if find_spec("onnxruntime") is None:
            return Availability(False, "needs the package onnxruntime", "pip install onnxruntime")
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        return CpuEngine(model_path, self.threads)


class CpuEngine(Engine):
    """A model loaded by ONNX Runtime. All sessions of an engine share it."""

    def __init__(self, model_path: Path, threads: int) -> None:
        super().__init__(model_path)
        self._threads = threads
        self._runtime = load_session(model_path, threads)
        self._inputs = tuple(_static_spec(value) for value in self._runtime.get_inputs())
        self._outputs = self._output_specs()
        self._info: EngineInfo | None = None

    def _output_specs(self) -> tuple[TensorSpec, ...]:
        # A graph may leave its outputs' shapes open although they follow from the inputs': one run tells them.
        values = self._runtime.get_outputs()
        if any(not _is_static(value.shape) for value in values):
            arrays = self._runtime.run(None, random_inputs(self._inputs, 1)[0])
            pairs = zip(values, arrays, strict=True)
            return tuple(TensorSpec(value.name, array.shape, str(array.dtype)) for value, array in pairs)
        return tuple(_static_spec(value) for value in values)

    def _open(self) -> Session:
        return CpuSession(self._runtime, self._inputs, self._outputs)

    @property
    def info(self) -> EngineInfo:
        """What runs here. The first call profiles one run, to see in which precision the kernels really work."""
        if self._info is None:
            self._info = self._read_info()
        return self._info

    def _layer_times(self) -> list[LayerTime]:
        found = layer_times(self.model_path, self._threads, random_inputs(self._inputs, 1)[0])
        return [LayerTime(**layer) for layer in found]

    def _read_info(self) -> EngineInfo:
        import onnxruntime

        session_options = self._runtime.get_session_options()
        options: dict[str, Option] = {
            "provider": ",".join(self._runtime.get_providers()),
            "intra_op_num_threads": session_options.intra_op_num_threads,
            "inter_op_num_threads": session_options.inter_op_num_threads,
            "execution_mode": session_options.execution_mode.name,
            "graph_optimization_level": session_options.graph_optimization_level.name,
            SPINNING: session_options.get_session_config_entry(SPINNING),
        }
        return EngineInfo(
            runtime="onnxruntime",
            runtime_version=onnxruntime.__version__,
            device=cpu_model(),
            threads=session_options.intra_op_num_threads,
            precision=executed_precision(self.model_path, self._threads, random_inputs(self._inputs, 1)[0]),
            options=options,
        )


class CpuSession(Session):
    """One use of a loaded model."""

    def __init__(
        self, runtime: "onnxruntime.InferenceSession", inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]
    ) -> None:
        super().__init__(inputs, outputs)
        self._runtime = runtime
        self._names = [spec.name for spec in outputs]

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        return dict(zip(self._names, self._runtime.run(self._names, inputs), strict=True))


def _is_static(shape: Iterable[object]) -> bool:
    return all(isinstance(size, int) for size in shape)


def _static_spec(value: "onnxruntime.NodeArg") -> TensorSpec:
    """The spec of a model's input or output. An open first dimension is the batch, and is taken as 1."""
    shape = list(value.shape)
    if shape and not isinstance(shape[0], int):
        shape[0] = 1
    if not _is_static(shape) or not value.type.startswith("tensor("):
        raise TargetError(
            f"Target 'cpu' needs tensors of a fixed shape, but '{value.name}' is {value.type} {value.shape}. "
            "Export the model with a static shape."
        )
    onnx_type = value.type.removeprefix("tensor(").removesuffix(")")
    dtype = _DTYPES.get(onnx_type, onnx_type)
    try:
        np.dtype(dtype)
    except TypeError:
        raise TargetError(
            f"Target 'cpu' has no NumPy type for '{value.name}', which is {value.type}. "
            "Export the model with float32 or integer inputs and outputs."
        ) from None
    return TensorSpec(value.name, tuple(shape), dtype)
