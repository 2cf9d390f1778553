"""A GPU in this machine through TensorRT 10 or 11, by its Python package, or else by trtexec."""

import tempfile
from collections.abc import Mapping
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from pathlib import Path
from types import ModuleType
from typing import Any

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.target import Attempt, Availability, Engine, Target
from dtp_deploy_targets import cuda
from dtp_deploy_targets.engine_cache import Built, cache_folder, cached, key_of
from dtp_deploy_targets.prepare import prepare
from dtp_deploy_targets.runner.board import find_trtexec
from dtp_deploy_targets.runner.trtexec import Version
from dtp_deploy_targets.trt_build import BuildSettings, build, check_options, labelled
from dtp_deploy_targets.trt_session import ApiEngine
from dtp_deploy_targets.trt_trtexec import LocalTrtexec, TrtexecEngine

LEAST_VERSION = Version(10)
LEVELS = range(6)


class TensorRtTarget(Target):
    """An NVIDIA GPU of this machine, by TensorRT 10 or 11.

    Engines are strongly typed wherever the Python package builds them: the precision is written into the ONNX file
    first, TF32 is off, and what the engine computes in is read from the engine. Where there is only trtexec, or the
    package is too old, trtexec builds, runs and measures (its times leave out the copies to and from the GPU, those of
    the package include them).

    Args:
        precision: "fp32", "fp16" (inputs and outputs stay float32), or "int8" for a model with Q/DQ nodes.
        device: the index of the GPU.
        workspace_mib: memory that kernels may use for intermediate values; 0 for all there is. Python package only.
        optimization_level: 0 (fastest build) to 5 (fastest engine); 3 is TensorRT's own. Python package only.

    Raises:
        UsageError: an option that is not possible.

    >>> TensorRtTarget(optimization_level=6)
    Traceback (most recent call last):
    dtp_deploy.errors.UsageError: optimization_level 6 is not possible for target 'tensorrt'. Give 0 to 5.
    """

    name = "tensorrt"
    summary = "An NVIDIA GPU of this machine, by TensorRT"
    build_is_slow = True

    def __init__(
        self, *, precision: str = "fp16", device: int = 0, workspace_mib: int = 0, optimization_level: int = 3
    ) -> None:
        check_options(self.name, precision, device)
        if workspace_mib < 0:
            raise UsageError(f"workspace_mib {workspace_mib} is not possible for target 'tensorrt'. Give 0 or more.")
        if optimization_level not in LEVELS:
            raise UsageError(
                f"optimization_level {optimization_level} is not possible for target 'tensorrt'. Give 0 to 5."
            )
        self._settings = BuildSettings(precision, device, workspace_mib, optimization_level)
        self._trtexec: LocalTrtexec | None = None

    def availability(self) -> Availability:
        """Whether TensorRT 10 or newer is installed, in either form, and there is a GPU."""
        if find_spec("tensorrt") is None and not find_trtexec():
            return Availability(
                False,
                "needs the package tensorrt, or trtexec in PATH or /usr/src/tensorrt/bin",
                "pip install 'dtp-deploy[tensorrt]'",
            )
        if find_spec("tensorrt") is not None and not find_trtexec():
            found = _package_version()
            if found is not None and found < LEAST_VERSION:
                return Availability(
                    False, f"needs TensorRT 10 or newer, found {found}", "pip install 'dtp-deploy[tensorrt]'"
                )
        fault = cuda.problem(self._settings.device)
        if fault:
            return Availability(False, f"needs an NVIDIA GPU in this machine ({fault})")
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        with labelled(self.name, model_path):
            trt = _package()
            if trt is None:
                self._trtexec = self._trtexec or LocalTrtexec(self._settings.precision, self._settings.device)
                return self._trtexec.build(model_path)
            gpu = cuda.gpu(self._settings.device)
            key = key_of(
                model_path,
                runtime=self.name,
                version=trt.__version__,
                gpu=gpu.name,
                compute_capability=gpu.compute_capability,
                precision=self._settings.precision,
                workspace_mib=self._settings.workspace_mib,
                optimization_level=self._settings.optimization_level,
            )
            timings = cache_folder() / f"timings-{trt.__version__}-sm{gpu.compute_capability}.cache"

            def fresh() -> Built:
                with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
                    prepared = Path(folder) / "model.onnx"
                    facts = prepare(model_path, self._settings.precision, prepared)
                    return build(trt, prepared, facts, self._settings, timings, self.progress)

            built, was_cached = cached(key, fresh)
        return ApiEngine(model_path, trt, built, self._settings, {"cached": was_cached})

    def measure(self, engines: Mapping[str, Engine], settings: Mapping[str, Any]) -> Attempt | None:
        """Measured by trtexec where it built the engines; else the sessions are timed."""
        built = {name: engine for name, engine in engines.items() if isinstance(engine, TrtexecEngine)}
        if not built:
            return None
        assert self._trtexec is not None
        assert built.keys() == engines.keys()
        return self._trtexec.measure(built, settings)


def _package() -> ModuleType | None:
    """The Python package; None where trtexec is to be used, because there is no package, or one that is too old.

    Raises:
        TargetError: it is broken; or too old, and there is no trtexec.
    """
    if find_spec("tensorrt") is None:
        return None
    try:
        package = import_module("tensorrt")
    except ImportError as error:
        raise TargetError(
            f"the package tensorrt cannot be imported ({str(error).splitlines()[0]}). Install TensorRT with "
            "its libraries, or add their folder to LD_LIBRARY_PATH."
        ) from error
    found = Version.parse(package.__version__)
    if found is not None and found >= LEAST_VERSION:
        return package
    if find_trtexec():
        return None
    raise TargetError(f"TensorRT {package.__version__} is too old. Install TensorRT 10 or newer.")


def _package_version() -> Version | None:
    try:
        return Version.parse(version("tensorrt"))
    except PackageNotFoundError:  # a system package without metadata
        return None
