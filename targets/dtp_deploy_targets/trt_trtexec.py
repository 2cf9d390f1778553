"""TensorRT by trtexec on this machine, where its Python package is not installed."""

import shutil
import tempfile
import weakref
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import TargetError
from dtp_deploy.target import Arrays, Attempt, Engine, EngineInfo, LayerTime, Session, TensorSpec
from dtp_deploy_targets import cuda
from dtp_deploy_targets.engine_cache import cache_folder
from dtp_deploy_targets.prepare import prepare
from dtp_deploy_targets.runner.tensorrt_backend import Options, TensorRtBackend
from dtp_deploy_targets.runner.trtexec import STRONGLY_TYPED_FROM
from dtp_deploy_targets.runner.wire import Blob


class LocalTrtexec:
    """This machine's trtexec, and the engines that it built for one target.

    Raises:
        TargetError: there is none, or it is too old.
    """

    def __init__(self, precision: str, device: int = 0) -> None:
        self._precision = precision
        gpu = cuda.gpu(device)
        options = Options(
            precision, cache=str(cache_folder()), device=device, gpu=f"{gpu.name} sm{gpu.compute_capability}"
        )
        self._folder = Path(tempfile.mkdtemp(prefix="dtp-deploy-"))
        weakref.finalize(self, shutil.rmtree, self._folder, ignore_errors=True)
        self._count = 0
        with told():
            self.backend = TensorRtBackend(self._folder, options, Path("/"))

    def build(self, model_path: Path) -> "TrtexecEngine":
        """Bring a model to the precision where trtexec does not, and build its engine.

        Raises:
            TargetError: the model or its precision is refused.
        """
        self._count += 1
        name = f"model-{self._count}"
        prepared = self._folder / f"{name}.onnx"
        # Up to 10.x trtexec has a flag for fp16; int8 needs Q/DQ nodes in every version.
        by_flag = self._precision == "fp16" and self.backend.version < STRONGLY_TYPED_FROM
        facts = prepare(model_path, "fp32" if by_flag else self._precision, prepared)
        with told():
            described = self.backend.build(name, prepared)
        info = EngineInfo(**{"threads": None} | described)
        return TrtexecEngine(model_path, name, self.backend, facts.inputs, facts.outputs, info)

    def measure(self, engines: Mapping[str, "TrtexecEngine"], settings: Mapping[str, Any]) -> Attempt:
        """Let trtexec measure: it starts for each block, so the time of a run from here would be that of its start.

        Raises:
            TargetError: trtexec fails.
        """
        with told():
            found = self.backend.measure([engine.name for engine in engines.values()], settings)
        per_model = {
            key: {name: found[key][engine.name] for name, engine in engines.items()}
            for key in ("blocks_ns", "warm_up", "details")
        }
        return Attempt(**per_model, system=found["system"], before=found["before"], after=found["after"])


@contextmanager
def told() -> Iterator[None]:
    """Turn the runner's errors, which know nothing of this library, into its own."""
    try:
        yield
    except (RuntimeError, OSError, ValueError) as error:
        raise TargetError(f"{str(error).rstrip('.')}.") from error


class TrtexecEngine(Engine):
    """An engine that trtexec built."""

    def __init__(
        self,
        model_path: Path,
        name: str,
        backend: TensorRtBackend,
        inputs: tuple[TensorSpec, ...],
        outputs: tuple[TensorSpec, ...],
        info: EngineInfo,
    ) -> None:
        super().__init__(model_path)
        self.name = name
        self._backend = backend
        self._inputs, self._outputs = inputs, outputs
        self._info = info

    def _layer_times(self) -> list[LayerTime]:
        return [LayerTime(**layer) for layer in self._backend.layers(self.name)]

    def _open(self) -> Session:
        return TrtexecSession(self.name, self._backend, self._inputs, self._outputs)

    @property
    def info(self) -> EngineInfo:
        """What trtexec's inspection of the engine said."""
        return self._info


class TrtexecSession(Session):
    """Runs by trtexec: right to the six digits that it writes, and slow, for it starts anew for each."""

    def __init__(
        self, name: str, backend: TensorRtBackend, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(inputs, outputs)
        self._name = name
        self._backend = backend

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        blobs = {
            name: Blob(name, str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in inputs.items()
        }
        with told():
            found = {blob.name: blob for blob in self._backend.run(self._name, blobs)}
        outputs = {}
        for spec in self.outputs:
            values = np.frombuffer(found[spec.name].data, found[spec.name].dtype)
            outputs[spec.name] = values.reshape(spec.shape).astype(spec.dtype)
        return outputs
