"""TensorRT for RTX: engines that are built anywhere, even without a GPU, and compiled for the GPU when loaded."""

import tempfile
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

from dtp_deploy.target import Availability, Engine, Target
from dtp_deploy_targets import cuda
from dtp_deploy_targets.engine_cache import Built, cached, key_of
from dtp_deploy_targets.prepare import prepare
from dtp_deploy_targets.trt_build import BuildSettings, build, check_options, labelled
from dtp_deploy_targets.trt_session import ApiEngine


class TensorRtRtxTarget(Target):
    """An NVIDIA RTX GPU of this machine, by TensorRT for RTX.

    Args:
        precision: "fp32" (without TF32), "fp16" (inputs and outputs stay float32), or "int8" for a model with Q/DQ
            nodes.
        device: the index of the GPU.

    Raises:
        UsageError: another precision, or a negative device.

    >>> TensorRtRtxTarget(precision="fp8")  # doctest: +ELLIPSIS
    Traceback (most recent call last):
    dtp_deploy.errors.UsageError: precision 'fp8' is not possible for target 'tensorrt-rtx'. Give fp32, fp16 or int8.
    """

    name = "tensorrt-rtx"
    summary = "An NVIDIA RTX GPU, by TensorRT for RTX (builds without a GPU too)"
    build_is_slow = True

    def __init__(self, *, precision: str = "fp16", device: int = 0) -> None:
        check_options(self.name, precision, device)
        self._settings = BuildSettings(precision, device)

    def availability(self) -> Availability:
        """Whether the package tensorrt-rtx is installed, and there is a GPU. Without one it still builds."""
        if find_spec("tensorrt_rtx") is None:
            return Availability(False, "needs the package tensorrt-rtx", "pip install 'dtp-deploy[tensorrt-rtx]'")
        fault = cuda.problem(self._settings.device)
        if fault:
            return Availability(False, f"builds here, but cannot run: {fault}", builds=True)
        return Availability(True)

    def _build(self, model_path: Path) -> Engine:
        with labelled(self.name, model_path):
            trt = import_module("tensorrt_rtx")
            # The plan fits every GPU that the version knows, so none is in the key.
            key = key_of(model_path, runtime=self.name, version=trt.__version__, precision=self._settings.precision)
            built, was_cached = cached(key, lambda: self._fresh(model_path))
        return ApiEngine(model_path, trt, built, self._settings, {"cached": was_cached})

    def _fresh(self, model_path: Path) -> Built:
        with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
            prepared = Path(folder) / "model.onnx"
            facts = prepare(model_path, self._settings.precision, prepared)
            trt = import_module("tensorrt_rtx")
            return build(trt, prepared, facts, self._settings, timing_cache=None, progress=self.progress)
