"""Running and measuring models with ONNX Runtime's CPU provider: on this machine, or on a board."""

from __future__ import annotations

import json
import platform
import tempfile
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dtp_deploy.profile.environment import cpu_model, snapshot, system_info
from dtp_deploy.profile.sampling import block_sizes, interleave, warm_up
from dtp_deploy.profile.settings import MeasureSettings
from dtp_deploy_targets.runner.profiling import layers_of_runs, profiled_runs
from dtp_deploy_targets.runner.wire import Blob

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

    import onnxruntime

    from dtp_deploy.profile.sampling import Run

_FATAL_ONLY = 4  # errors reach us as exceptions; the runtime's own log would only repeat them
SPINNING = "session.intra_op.allow_spinning"
_PRECISIONS = {"float": "fp32", "double": "fp64", "float16": "fp16", "bfloat16": "bf16"}
_KERNEL = "_kernel_time"
_COMPUTE = ("Conv", "Gemm", "MatMul", "Attention", "LSTM", "GRU")


def load_session(model_path: Path, threads: int, profile_prefix: Path | None = None) -> onnxruntime.InferenceSession:
    """A model in ONNX Runtime: one operator after the other, all graph optimisations on, threads that do not spin."""
    import onnxruntime

    onnxruntime.set_default_logger_severity(_FATAL_ONLY)
    options = onnxruntime.SessionOptions()
    options.log_severity_level = _FATAL_ONLY
    options.intra_op_num_threads = threads
    options.inter_op_num_threads = 1
    options.execution_mode = onnxruntime.ExecutionMode.ORT_SEQUENTIAL
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_ENABLE_ALL
    options.add_session_config_entry(SPINNING, "0")
    if profile_prefix is not None:
        options.enable_profiling = True
        options.profile_file_prefix = str(profile_prefix)
    return onnxruntime.InferenceSession(str(model_path), options, providers=["CPUExecutionProvider"])


def executed_precision(model_path: Path, threads: int, inputs: Mapping[str, Any]) -> str:
    """The precision of the kernels that ran: the runtime computes a float16 graph in float32, and says so only here."""
    events = _profile(model_path, threads, lambda session: session.run(None, inputs))
    nodes = [event["args"] for event in events if event.get("cat") == "Node" and event["args"].get("input_type_shape")]
    compute = [node for node in nodes if any(kind in node["op_name"] for kind in _COMPUTE)] or nodes
    return "+".join(sorted({_precision_of(node) for node in compute})) or "none"


def layer_times(model_path: Path, threads: int, inputs: Mapping[str, Any]) -> list[dict[str, Any]]:
    """The time of each kernel by the runtime's profiler, in a session of its own."""
    events = _profile(model_path, threads, lambda session: profiled_runs(lambda: session.run(None, inputs)))
    runs: list[dict[tuple[str, str], float]] = [{}]
    precisions: dict[tuple[str, str], str] = {}
    for event in events:
        if event.get("cat") == "Node" and event["name"].endswith(_KERNEL):
            key = (event["name"][: -len(_KERNEL)], event["args"].get("node_index", ""))
            runs[-1][key] = runs[-1].get(key, 0.0) + event["dur"] / 1e3
            precisions[key] = _precision_of(event["args"]) if event["args"].get("input_type_shape") else ""
        elif event["name"] == "model_run":  # comes after the kernels of its run
            runs.append({})
    return layers_of_runs(runs[:-1], lambda key: key[0], precisions.__getitem__)


def _profile(
    model_path: Path, threads: int, use: Callable[[onnxruntime.InferenceSession], object]
) -> list[dict[str, Any]]:
    """What the runtime's profiler writes down of the runs that `use` makes."""
    with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
        session = load_session(model_path, threads, Path(folder) / "profile")
        use(session)
        events: list[dict[str, Any]] = json.loads(Path(session.end_profiling()).read_text())
    return events


def _precision_of(node: Mapping[str, Any]) -> str:
    return node_precision([next(iter(entry)) for entry in node["input_type_shape"]])


def node_precision(input_types: Sequence[str]) -> str:
    """The precision of one kernel by its inputs' types.

    >>> node_precision(["float", "float"]), node_precision(["uint8", "float", "uint8", "int8"])
    ('fp32', 'int8')
    """
    if any(name in {"int8", "uint8"} for name in input_types):
        return "int8"
    return _PRECISIONS.get(input_types[0], input_types[0])


def to_arrays(blobs: Mapping[str, Blob]) -> dict[str, Any]:
    """The NumPy arrays that came over the wire. They cannot be written to."""
    return {name: np.frombuffer(blob.data, blob.dtype).reshape(blob.shape) for name, blob in blobs.items()}


def to_blobs(arrays: Mapping[str, Any]) -> list[Blob]:
    """NumPy arrays, ready for the wire."""
    return [
        Blob(name, str(array.dtype), array.shape, np.ascontiguousarray(array).tobytes())
        for name, array in arrays.items()
    ]


class OnnxBackend:
    """Models by name, in ONNX Runtime on this board."""

    def __init__(self, threads: int) -> None:
        import onnxruntime  # noqa: F401 - to learn at once that it is missing

        self._threads = threads
        self._sessions: dict[str, Any] = {}
        self._samples: dict[str, dict[str, Any]] = {}
        self._paths: dict[str, Path] = {}

    def build(self, name: str, onnx: Path, samples: Mapping[str, Blob]) -> dict[str, Any]:
        """Load a model and run it once on `samples`."""
        import onnxruntime

        session = load_session(onnx, self._threads)
        self._samples[name] = to_arrays(samples)
        session.run(None, self._samples[name])
        self._sessions[name], self._paths[name] = session, onnx
        return {
            "runtime": "onnxruntime",
            "runtime_version": onnxruntime.__version__,
            "device": cpu_model(),
            "threads": self._threads,
            "precision": executed_precision(onnx, self._threads, self._samples[name]),
            "options": {
                "provider": ",".join(session.get_providers()),
                SPINNING: "0",
                "python_version": platform.python_version(),
            },
        }

    def run(self, name: str, blobs: Mapping[str, Blob]) -> list[Blob]:
        """Run a model once."""
        session = self._sessions[name]
        names = [output.name for output in session.get_outputs()]
        values = session.run(names, to_arrays(blobs))
        return to_blobs({names[index]: value for index, value in enumerate(values)})

    def layers(self, name: str) -> list[dict[str, Any]]:
        """The time of each kernel, in a session of its own."""
        return layer_times(self._paths[name], self._threads, self._samples[name])

    def measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt, as `dtp_deploy.profile` makes it on the host: warmed up, in turns, every sample kept."""
        wanted = MeasureSettings(**settings)
        runs = {name: self._rotation(name, wanted) for name in names}
        before = snapshot()
        warm_ups = {name: warm_up(run, wanted) for name, run in runs.items()}
        rounds, sizes = block_sizes({name: result.median_ns for name, result in warm_ups.items()}, wanted)
        blocks = interleave(runs, rounds, sizes)
        return {
            "blocks_ns": blocks,
            "warm_up": {name: vars(result) for name, result in warm_ups.items()},
            "system": system_info(),
            "before": before,
            "after": snapshot(),
            "details": {name: {} for name in names},
        }

    def _rotation(self, name: str, settings: MeasureSettings) -> Run:
        rng = np.random.default_rng(settings.seed)
        inputs = [
            {
                key: rng.standard_normal(array.shape).astype(array.dtype)
                if np.issubdtype(array.dtype, np.floating)
                else array
                for key, array in self._samples[name].items()
            }
            for _ in range(settings.inputs)
        ]
        session = self._sessions[name]
        return lambda index: session.run(None, inputs[index % len(inputs)])
