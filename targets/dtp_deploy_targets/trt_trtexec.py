"""TensorRT by trtexec on this machine, where its Python package is not installed."""

import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import TargetError
from dtp_deploy.target import Arrays, Engine, EngineInfo, Session, TensorSpec
from dtp_deploy_targets.engine_cache import cache_folder
from dtp_deploy_targets.prepare import prepare
from dtp_deploy_targets.runner.tensorrt_backend import Options, TensorRtBackend
from dtp_deploy_targets.runner.wire import Blob

_MODEL = "model"
_STRONGLY_TYPED_FROM = 11


class TrtexecEngine(Engine):
    """An engine that trtexec built, and runs: each run starts the program anew, so never time `run` itself."""

    def __init__(self, model_path: Path, precision: str, root: Path = Path("/")) -> None:
        super().__init__(model_path)
        self._folder = tempfile.TemporaryDirectory(prefix="dtp-deploy-", ignore_cleanup_errors=True)
        folder = Path(self._folder.name)
        prepared = folder / "model.onnx"
        try:
            self.backend = TensorRtBackend(folder, Options(precision, cache=str(cache_folder())), root)
            # Up to 10.x trtexec has a flag for fp16; int8 needs Q/DQ nodes in every version.
            by_flag = precision == "fp16" and self.backend.version[0] < _STRONGLY_TYPED_FROM
            facts = prepare(model_path, "fp32" if by_flag else precision, prepared)
            self._inputs, self._outputs = facts.inputs, facts.outputs
            described = self.backend.build(_MODEL, prepared)
        except RuntimeError as error:
            raise TargetError(f"{error}.".replace("..", ".")) from error
        self._info = EngineInfo(**described, threads=None)

    def _open(self) -> Session:
        return TrtexecSession(self.backend, self._inputs, self._outputs)

    @property
    def info(self) -> EngineInfo:
        """What trtexec's inspection of the engine said."""
        return self._info


class TrtexecSession(Session):
    """Runs by trtexec: correct to the six digits that it writes, and slow."""

    def __init__(
        self, backend: TensorRtBackend, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]
    ) -> None:
        super().__init__(inputs, outputs)
        self._backend = backend

    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        blobs = {
            name: Blob(name, str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
            for name, array in inputs.items()
        }
        found = {blob.name: blob for blob in self._backend.run(_MODEL, blobs)}
        return {
            spec.name: np.frombuffer(found[spec.name].data, found[spec.name].dtype)
            .reshape(spec.shape)
            .astype(spec.dtype)
            for spec in self.outputs
        }
