"""An engine of TensorRT, or of TensorRT for RTX, loaded by the Python interface that both have."""

import json
from collections.abc import Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import TargetError
from dtp_deploy.target import Arrays, Engine, EngineInfo, LayerTime, Option, Session, random_inputs
from dtp_deploy_targets import cuda
from dtp_deploy_targets.engine_cache import Built
from dtp_deploy_targets.prepare import specs_from
from dtp_deploy_targets.runner.failures import explain_failure
from dtp_deploy_targets.runner.layers import parse_layers
from dtp_deploy_targets.runner.profiling import layers_of_runs, profiled_runs
from dtp_deploy_targets.trt_build import BuildSettings, make_log


class ApiEngine(Engine):
    """A built engine. It may have been built where no GPU is: only opening it needs one."""

    def __init__(
        self, model_path: Path, trt: ModuleType, built: Built, settings: BuildSettings, options: Mapping[str, Option]
    ) -> None:
        super().__init__(model_path)
        self.built = built
        self._trt = trt
        self._settings = settings
        self._options = dict(options)

    def _open(self) -> "ApiSession":
        fault = cuda.problem(self._settings.device)
        if fault:
            raise TargetError(f"{self.label} was built, but cannot run: {fault}.")
        return ApiSession(self._trt, self.built, self._settings.device)

    def _layer_times(self) -> list[LayerTime]:
        precisions = {layer.name: layer.precision for layer in parse_layers(json.dumps(self.built.facts["layers"]))}
        session = self._open()
        try:
            runs = session.profile(random_inputs(session.inputs, 1)[0])
        finally:
            session.close()
        return [LayerTime(**layer) for layer in layers_of_runs(runs, str, lambda name: precisions.get(name, ""))]

    @property
    def info(self) -> EngineInfo:
        """What was built; the precision is the one that the engine states."""
        fault = cuda.problem(self._settings.device)
        return EngineInfo(
            runtime=self._trt.__name__,
            runtime_version=self._trt.__version__,
            device=fault or cuda.gpu(self._settings.device).name,
            threads=None,
            precision=self.built.facts["precision"],
            options={
                "interface": "python",
                "strongly_typed": True,
                "tf32": False,
                "sparse_2_4_weights": len(self.built.facts["sparse_2_4"]),
                "workspace_mib": self._settings.workspace_mib,
                "optimization_level": self._settings.optimization_level,
                "transfers": "included",
                "cuda_graph": False,
                **self._options,
            },
        )


class ApiSession(Session):
    """An engine on a GPU. A run copies the inputs there, computes, and copies the outputs back; all three are timed."""

    def __init__(self, trt: ModuleType, built: Built, device: int) -> None:
        super().__init__(specs_from(built.facts["inputs"]), specs_from(built.facts["outputs"]))
        self._trt = trt
        self._stream = cuda.Stream(device)
        try:
            self._log = make_log(trt)
            self._runtime = trt.Runtime(self._log)
            self._engine = self._runtime.deserialize_cuda_engine(built.plan)
            self._context: Any = self._engine.create_execution_context() if self._engine is not None else None
            if self._context is None:
                raise TargetError(f"the engine could not be loaded: {explain_failure('', self._log.errors())}")
            self._addresses: dict[str, int] = {}
            for spec in (*self.inputs, *self.outputs):
                size_bytes = int(np.prod(spec.shape)) * np.dtype(spec.dtype).itemsize
                self._addresses[spec.name] = self._stream.allocate(max(1, size_bytes))
                self._context.set_tensor_address(spec.name, self._addresses[spec.name])
        except BaseException:
            self._stream.close()
            raise

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        sent = {name: np.ascontiguousarray(array) for name, array in inputs.items()}
        for name, array in sent.items():
            self._stream.upload(array, self._addresses[name])
        if not self._context.execute_async_v3(self._stream.handle):
            raise TargetError(f"the engine could not be run: {explain_failure('', self._log.errors())}")
        outputs = {spec.name: np.empty(spec.shape, np.dtype(spec.dtype)) for spec in self.outputs}
        for name, array in outputs.items():
            self._stream.download(self._addresses[name], array)
        self._stream.wait()
        return outputs

    def profile(self, inputs: Mapping[str, npt.NDArray[Any]]) -> list[dict[str, float]]:
        """The time of each layer in ms, in each of some runs, by the runtime's profiler.

        Measure in another session: this one keeps its profiler.
        """
        runs: list[dict[str, float]] = []

        class Profiler(self._trt.IProfiler):  # type: ignore[name-defined,misc]
            def report_layer_time(self, layer_name: str, ms: float) -> None:
                runs[-1][layer_name] = runs[-1].get(layer_name, 0.0) + ms

        def run() -> None:
            runs.append({})
            self.run(inputs)

        self._profiler = Profiler()  # the context holds no reference of its own
        self._context.profiler = self._profiler
        profiled_runs(run)
        return runs

    def _close(self) -> None:
        del self._context, self._engine, self._runtime
        self._stream.close()
