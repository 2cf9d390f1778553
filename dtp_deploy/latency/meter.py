"""The time of single layers on a target, by small graphs of them; what was measured once comes from the cache."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dtp_deploy.cost import LayerTime, Staircase, Stairs
from dtp_deploy.latency.cache import MeasurementCache
from dtp_deploy.latency.graphs import COPIES, write_layer
from dtp_deploy.latency.layers import LayerSignature, gemm
from dtp_deploy.latency.staircase import Widths, find_stairs, find_step, probe_widths, step_widths
from dtp_deploy.latency.timing import is_unsteady, time_models
from dtp_deploy.profile.measure import LatencyReport, MeasureSettings
from dtp_deploy.target import TargetSpec

_LAYER = MeasureSettings(
    min_samples=12,
    min_seconds=0.03,
    max_seconds=0.5,
    blocks=4,
    warm_up_seconds=0.0,
    max_warm_up_seconds=0.03,
    repeats=0,
    timeout_s=180.0,
)
_QUANTILE = 25
"""Percentile of the samples that counts here, for whatever statistic: load of others only ever adds to a time."""
_OVERHEAD = "overhead"


def identify(target: TargetSpec) -> dict[str, Any]:
    """What latencies on a target depend on besides the network: device, runtime, options. Asked of the target itself.

    Raises:
        TargetError: it does not run.
    """
    with tempfile.TemporaryDirectory() as folder:
        environment = time_models({_OVERHEAD: _overhead_graph(Path(folder))}, target, _LAYER)[_OVERHEAD].environment
    system = {key: environment.get("system", {}).get(key) for key in ("cpu_model", "architecture", "logical_cpus")}
    known: dict[str, Any] = {
        key: environment[key] for key in ("engine", "device", "assumptions", "basis") if key in environment
    }
    return {"target": target.name, "options": dict(target.options), "system": system, **known}


def _quiet_ms(report: LatencyReport) -> float:
    return float(np.percentile(report.samples_ms, _QUANTILE))


def _overhead_graph(folder: Path) -> Path:
    """As good as nothing: what it takes is what a run costs besides the layers."""
    path = folder / f"{_OVERHEAD}.onnx"
    write_layer(path, gemm(1), 16, 16, copies=1)
    return path


class Meter:
    """Times of single layers, from the cache or from the target.

    Args:
        target: where to measure.
        cache: what is in it is not measured again.
        prepare: called before anything is measured.

    Attributes:
        taken: measurements that were used.
        unsteady: how many of them the load of others disturbed (see `is_unsteady`).
    """

    def __init__(self, target: TargetSpec, cache: MeasurementCache, prepare: Callable[[], object]) -> None:
        self.target, self.cache, self.prepare = target, cache, prepare
        self.taken = self.unsteady = 0

    def stairs(self, signatures: Sequence[LayerSignature]) -> Stairs:
        """The staircase of some kinds of layers, by input and output channels."""
        inputs, outputs = (self._stairs(axis, signatures) for axis in (0, 1))
        return inputs, outputs

    def _stairs(self, axis: int, signatures: Sequence[LayerSignature]) -> Staircase:
        step = find_step([self._along(axis, each, probe_widths(axis, each)) for each in signatures])
        if step == 1:
            return Staircase()
        return find_stairs(step, [self._along(axis, each, step_widths(axis, each, step)) for each in signatures])

    def _along(self, axis: int, signature: LayerSignature, widths: Sequence[Widths]) -> dict[int, float]:
        times = self._times(signature, widths)
        return {width[axis]: ms for width, ms in zip(widths, times, strict=True)}

    def knows(self, signature: LayerSignature, inputs: Sequence[int], outputs: Sequence[int]) -> bool:
        """Whether the cache has a table."""
        return self._read(signature, points(inputs, outputs)) is not None

    def table(self, signature: LayerSignature, inputs: Sequence[int], outputs: Sequence[int]) -> LayerTime:
        """The times over a grid."""
        values = np.array(self._times(signature, points(inputs, outputs))).reshape(len(inputs), len(outputs))
        return LayerTime(tuple(inputs), tuple(outputs), tuple(tuple(row) for row in values.tolist()))

    def _read(self, signature: LayerSignature, widths: Sequence[Widths]) -> dict[str, Any] | None:
        entry: dict[str, Any] | None = self.cache.read("layer", _layer_key(signature, widths))
        return entry

    def _times(self, signature: LayerSignature, widths: Sequence[Widths]) -> list[float]:
        entry = self._read(signature, widths)
        if entry is None:
            entry = self._measured(signature, widths)
            self.cache.write("layer", _layer_key(signature, widths), entry)
        self.taken += 1
        self.unsteady += entry["unsteady"]
        times: list[float] = entry["ms"]
        return times

    def _measured(self, signature: LayerSignature, widths: Sequence[Widths]) -> dict[str, Any]:
        self.prepare()
        with tempfile.TemporaryDirectory() as folder:
            paths = {_OVERHEAD: _overhead_graph(Path(folder))}
            for inputs, outputs in widths:
                path = Path(folder) / f"layer-{inputs}-{outputs}.onnx"
                write_layer(path, signature, inputs, outputs)
                paths[path.stem] = path
            reports = time_models(paths, self.target, _LAYER)
        overhead, *whole = [_quiet_ms(report) for report in reports.values()]
        # A graph that is hardly slower than none at all must not come out as free.
        values = [max(ms - overhead, 0.1 * ms) / COPIES for ms in whole]
        return {"ms": values, "unsteady": is_unsteady(reports.values())}


def _layer_key(signature: LayerSignature, widths: Sequence[Widths]) -> dict[str, Any]:
    return {"layer": signature.to_json(), "widths": [list(pair) for pair in widths], "copies": COPIES}


def points(inputs: Sequence[int], outputs: Sequence[int]) -> list[Widths]:
    """All pairs of a grid, row by row."""
    return [(i, o) for i in inputs for o in outputs]
