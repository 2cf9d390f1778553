"""What TensorRT and TensorRT for RTX share: their Python interfaces are one, under two names (`trt` here is either).

Builds are strongly typed: the types in the ONNX file are the precision. TF32 is off. What the engine really computes in
is then read from the engine, and an engine that does something else than was asked for is an error.
"""

import json
import logging
import os
import re
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np

from dtp_deploy.errors import TargetError, UsageError
from dtp_deploy.progress import Progress
from dtp_deploy_targets import cuda
from dtp_deploy_targets.engine_cache import Built
from dtp_deploy_targets.prepare import PRECISIONS, Facts
from dtp_deploy_targets.runner.failures import explain_failure
from dtp_deploy_targets.runner.layers import parse_layers, precision_fault, precision_shares
from dtp_deploy_targets.trt_progress import Percent, make_monitor

_log = logging.getLogger(__name__)

_MATRIX_KINDS = frozenset({"correlation", "convolution", "conv", "gemm", "matmul", "runtime_fusion"})
"""The layers that compute with weights which newer engines list as constants, beside scales of one element."""


@dataclass(frozen=True)
class BuildSettings:
    """How to build.

    Attributes:
        precision: what the engine must turn out to compute in: "fp32", "fp16" or "int8".
        device: the index of the GPU.
        workspace_mib: memory that kernels may use for intermediate values; 0 for all there is.
        optimization_level: 0 (fastest build) to 5 (fastest engine).
    """

    precision: str
    device: int = 0
    workspace_mib: int = 0
    optimization_level: int = 3


def check_options(target: str, precision: str, device: int) -> None:
    """Raise a `UsageError` unless the options are possible."""
    if precision not in PRECISIONS:
        raise UsageError(f"precision {precision!r} is not possible for target '{target}'. Give fp32, fp16 or int8.")
    if not isinstance(device, int) or isinstance(device, bool) or device < 0:
        raise UsageError(
            f"device {device!r} is not possible for target '{target}'. Give 0, or the index of another GPU."
        )


@contextmanager
def labelled(target: str, model_path: Path) -> Iterator[None]:
    """Put the target and the model before every error."""
    try:
        yield
    except TargetError as error:
        raise TargetError(f"Target '{target}' with {model_path.name}: {error}") from error


def build(
    trt: ModuleType,
    onnx_path: Path,
    facts: Facts,
    settings: BuildSettings,
    timing_cache: Path | None,
    progress: Progress,
) -> Built:
    """Parse an ONNX file, build its engine, and see what the engine computes in.

    Raises:
        TargetError: an operator is not supported, a shape is open, memory runs out, the precision is another.
    """
    log = make_log(trt)
    builder = trt.Builder(log)
    network = builder.create_network(_strongly_typed(trt))
    parser = trt.OnnxParser(network, log)
    if not parser.parse(onnx_path.read_bytes()):
        raise TargetError(parser_fault(parser))

    config = builder.create_builder_config()
    config.clear_flag(trt.BuilderFlag.TF32)
    config.profiling_verbosity = trt.ProfilingVerbosity.DETAILED
    config.builder_optimization_level = settings.optimization_level
    if settings.workspace_mib:
        config.set_memory_pool_limit(trt.MemoryPoolType.WORKSPACE, settings.workspace_mib << 20)
    if facts.sparse_2_4:
        config.set_flag(trt.BuilderFlag.SPARSE_WEIGHTS)
    timings = _read_timings(config, timing_cache)
    with progress.task("engine, percent", 100, passing=True) as advance:
        monitor = make_monitor(trt, Percent(advance))
        config.progress_monitor = monitor
        plan = builder.build_serialized_network(network, config)
        if monitor.failure is not None:
            raise monitor.failure
    if plan is None:
        raise TargetError(f"the engine could not be built: {explain_failure('', log.errors())}")
    _write_timings(timings, timing_cache)

    content = bytes(plan)
    layers = inspected_layers(trt, content, log, settings.device)
    precisions = check_precision(settings.precision, layers)
    return Built(
        content,
        {
            "inputs": [asdict(spec) for spec in facts.inputs],
            "outputs": [asdict(spec) for spec in facts.outputs],
            "precision": precisions,
            "layers": layers,
            "sparse_2_4": list(facts.sparse_2_4),
        },
    )


def _strongly_typed(trt: ModuleType) -> int:
    """The flag for it; where there is none, every network is strongly typed."""
    flag = getattr(trt.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    return 0 if flag is None else 1 << int(flag)


# ---- what the library says -----------------------------------------------------------------------------------------


def make_log(trt: ModuleType) -> Any:  # noqa: ANN401 - a subclass of a class that is known at run time only
    """A logger that keeps every message of the library. `errors()` gives its error lines, `text(start)` one message."""

    class Log(trt.ILogger):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.messages: list[tuple[str, str]] = []

        def log(self, severity: Any, message: str) -> None:  # noqa: ANN401
            self.messages.append((severity.name, message))
            _log.debug("%s: %s", severity.name, message)

        def errors(self) -> str:
            failed = ("ERROR", "INTERNAL_ERROR")
            return "\n".join(f"[E] {message}" for severity, message in self.messages if severity in failed)

        def text(self, start: str) -> str:
            return next((message for _, message in reversed(self.messages) if message.startswith(start)), "")

    return Log()


def parser_fault(parser: Any) -> str:  # noqa: ANN401
    """The parser's first error in one line, with the operator and the node that it concerns."""
    if not parser.num_errors:
        return "the ONNX model cannot be parsed, and TensorRT does not say why. Export it again."
    error = parser.get_error(0)
    said = " ".join(str(error.desc()).split())
    operator, node = error.node_operator(), error.node_name()
    if not operator:
        return f"the ONNX model cannot be parsed: {said}. Export it again."
    where = f"node {error.node()} '{node}' ({operator})"
    if "Plugin not found" in said or error.code().name.startswith("UNSUPPORTED"):
        return f"{where} is not supported: there is no operator or plugin for it. Replace it in the model."
    return f"{where} cannot be parsed: {said}. Replace it in the model."


# ---- what the engine computes in -----------------------------------------------------------------------------------


def inspected_layers(trt: ModuleType, plan: bytes, log: Any, device: int) -> list[dict[str, Any]]:  # noqa: ANN401
    """The layers of an engine: by its inspector where a GPU can load it, else as the builder's log lists them."""
    if not cuda.problem(device):
        engine = trt.Runtime(log).deserialize_cuda_engine(plan)
        if engine is not None:
            inspector = engine.create_engine_inspector()
            content = json.loads(inspector.get_engine_information(trt.LayerInformationFormat.JSON))
            return [_normalised(layer) for layer in content.get("Layers", []) if isinstance(layer, dict)]
    return [_normalised(layer) for layer in layers_of_log(log.text("Layers:"))]


def layers_of_log(text: str) -> list[dict[str, Any]]:
    """The layers that a builder's log lists, one a line, as the inspector's JSON would give them.

    >>> line = ("Name: a, LayerType: gemm, Inputs: [ { Name: x, Dimensions: [1,8], Datatype: Half, Format: L }], "
    ...         "Constants: [], Outputs: [], TacticName: t, StreamId: 0")
    >>> layers_of_log(line)[0]["Inputs"]
    [{'Name': 'x', 'Dimensions': [1, 8], 'Datatype': 'Half'}]
    """
    layers = []
    for line in text.splitlines():
        match = re.match(
            r"Name: (.*?), LayerType: (\w+), Inputs: \[(.*?)\], Constants: \[(.*?)\], Outputs: \[(.*?)\], "
            r"TacticName: (.*?), StreamId",
            line,
        )
        if match:
            name, kind, inputs, constants, outputs, tactic = match.groups()
            layers.append(
                {
                    "Name": name,
                    "LayerType": kind,
                    "Inputs": _tensors(inputs),
                    "Constants": _tensors(constants),
                    "Outputs": _tensors(outputs),
                    "TacticName": tactic,
                }
            )
    return layers


def _tensors(text: str) -> list[dict[str, Any]]:
    found = re.findall(r"Name: ([^,]+), Dimensions: \[([\d,]*)\].*?Datatype: (\w+)", text)
    return [
        {"Name": name, "Dimensions": [int(size) for size in sizes.split(",") if size], "Datatype": dtype}
        for name, sizes, dtype in found
    ]


def _normalised(layer: dict[str, Any]) -> dict[str, Any]:
    """A layer with its weights where older engines have them: as "Weights", not among the constants."""
    constants = [(int(np.prod(tensor["Dimensions"])), tensor["Datatype"]) for tensor in layer.get("Constants") or []]
    count, dtype = max(constants, default=(0, ""))
    if count <= 1 or layer.get("Weights") or layer.get("LayerType", "").lower() not in _MATRIX_KINDS:
        return layer
    return {**layer, "Weights": {"Type": dtype, "Count": count}}


def check_precision(asked: str, layers: Sequence[Mapping[str, Any]]) -> str:
    """What an engine computes in, all of it: "fp16", or "fp16+fp32". It has not run yet: layers are counted, not timed.

    Raises:
        TargetError: most of it is not what was asked for.
    """
    shares = precision_shares(parse_layers(json.dumps(layers)), [])
    fault = precision_fault(asked, shares, "layers")
    if fault:
        raise TargetError(f"{fault}. The engine is refused: its times would be those of another precision.")
    return "+".join(sorted(shares))


# ---- timing cache --------------------------------------------------------------------------------------------------


def _read_timings(config: Any, path: Path | None) -> Any:  # noqa: ANN401
    if path is None:
        return None
    content = path.read_bytes() if path.is_file() else b""
    timings = config.create_timing_cache(content)
    if timings is not None:
        config.set_timing_cache(timings, ignore_mismatch=False)
    return timings


def _write_timings(timings: Any, path: Path | None) -> None:  # noqa: ANN401
    if timings is None or path is None:
        return
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial.write_bytes(bytes(timings.serialize()))
        partial.replace(path)
    except OSError:  # the next build takes longer
        partial.unlink(missing_ok=True)
