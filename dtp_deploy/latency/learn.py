"""Learning a network's latency from its target: small graphs of its layers, and a few whole structures.

The layers' own times say how a width matters; whole structures, always measured in turns with the dense network, say
what everything around the layers costs. Where building an engine is slow, structures alone have to do.
"""

from __future__ import annotations

import time
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from dtp_deploy.cost import EVEN, LatencyCost, LayerTime, Spill, Staircase, Stairs, TimedLayer
from dtp_deploy.graph import Groups
from dtp_deploy.latency.cache import MeasurementCache
from dtp_deploy.latency.fit import fit_not_negative, fit_with_spill, with_spill
from dtp_deploy.latency.layers import Layer, LayerSignature, trace_layers
from dtp_deploy.latency.meter import Meter, identify, points
from dtp_deploy.latency.probe import LatencyProbe
from dtp_deploy.latency.structures import Timed, make_structures, measure_structures
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.target import find_target

Floats = npt.NDArray[np.float64]

TIME_CAP_S = 120.0
_LEVELS = (1 / 4, 1 / 2, 3 / 4)
_PERIODS = 4
"""In layers of so many periods or more, the grid is of whole periods; in smaller ones, of steps."""
_PROBED = 3
_RANDOM = 8
_RANDOM_IF_SLOW = 16
_AT_ONCE_IF_SLOW = 4
_MACS, _WEIGHTS, _TRAFFIC = 1, 2, 3  # places in what `_work` gives
_AROUND = 2
"""How many of the tables that explain a layer's time, the last, are of its surroundings and know no steps."""


@dataclass(frozen=True)
class LatencyTable:
    """What was learned about a network on a target.

    Attributes:
        cost: milliseconds as a function of the widths.
        dense_ms: what the dense network took when the structures were measured. A limit is a share of this, so that
            what `cost` is wrong by about the dense network does not matter.
        measured: layer signatures that were measured on the target, now or before.
        estimated: layer signatures whose time follows from the measured ones, as the time cap was reached.
        errors: relative errors of predicted structures, each by what all the others taught.
        unsteady: how many of the measurements the load of others disturbed, and how many there are.
        problem: why the measurements could not be kept for the next run; None if they could.
    """

    cost: LatencyCost
    dense_ms: float
    measured: int
    estimated: int
    errors: tuple[float, ...]
    unsteady: tuple[int, int] = (0, 0)
    problem: str | None = None

    def summary(self) -> str:
        """One line for people."""
        inputs, outputs = self.cost.stairs
        estimated = f", {self.estimated} estimated" if self.estimated else ""
        errors = np.abs(self.errors)
        return (
            f"Latency table: {self.measured} kinds of layers measured{estimated}; preferred widths: {inputs} "
            f"input and {outputs} output channels; structures that it had not seen were off by "
            f"{np.median(errors):.1%} in the median, {errors.max():.1%} at most.{self._disturbance()}"
        )

    def _disturbance(self) -> str:
        disturbed, taken = self.unsteady
        if not disturbed:
            return ""
        return (
            f" Load of other work came and went during {disturbed} of {taken} measurements: for better figures, remove "
            "them from the cache and calibrate on a quiet machine."
        )


def learn_table(
    probe: LatencyProbe,
    *,
    time_cap_s: float = TIME_CAP_S,
    cache_folder: Path | None = None,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Learn the latency of a network on its target; what was measured there before is not measured again.

    Args:
        probe: of the network and the target.
        time_cap_s: no further layer is measured after this time; the ones with the most operations come first.
        cache_folder: where measurements are kept.
        progress: told of every layer.

    Raises:
        TargetError: the target crashed, hung or gave no result. What was measured until then is kept.
    """
    began = time.monotonic()
    layers = trace_layers(probe.model, probe.groups)
    cache = MeasurementCache(identify(probe.target), cache_folder)
    if find_target(probe.target).build_is_slow:
        return _from_structures(probe, layers, cache, began + time_cap_s, progress)
    meter = Meter(probe.target, cache, probe.dense)  # what cannot be exported is refused before it takes time
    stairs = meter.stairs([signature for signature in _by_macs(layers) if signature.groups == 1][:_PROBED])
    grids = _grids(layers, stairs)
    tables: dict[LayerSignature, LayerTime] = {}
    with progress.task("latency of layers", len(grids)) as advance:
        for signature, (inputs, outputs) in grids.items():
            if time.monotonic() - began < time_cap_s or meter.knows(signature, inputs, outputs):
                tables[signature] = meter.table(signature, inputs, outputs).rising()
            advance()
    estimated = _estimate({key: grid for key, grid in grids.items() if key not in tables}, tables)
    plans = make_structures(probe.groups, fingerprint_of(probe.model), max(side.step for side in stairs), _RANDOM)
    times, unsteady = measure_structures(probe, plans, cache, progress)
    bases = [_with_surroundings(layer, (tables | estimated)[layer.signature]) for layer in layers]
    cost, errors = _fit(bases, layers, probe.groups, times, stairs)
    disturbed = (meter.unsteady + unsteady[0], meter.taken + unsteady[1])
    return LatencyTable(cost, times[0][1], len(tables), len(estimated), errors, disturbed, cache.problem)


def _by_macs(layers: Iterable[Layer]) -> list[LayerSignature]:
    """The distinct signatures, those with the most operations in the dense network first."""
    total: dict[LayerSignature, int] = defaultdict(int)
    for layer in layers:
        total[layer.signature] += layer.macs
    return sorted(total, key=lambda signature: -total[signature])


def _grids(layers: Sequence[Layer], stairs: Stairs) -> dict[LayerSignature, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Input and output channels at which to measure every signature, the one with the most operations first."""
    grids = {}
    for signature in _by_macs(layers):
        same = [layer for layer in layers if layer.signature == signature]
        multiple = max(1, signature.groups)
        inputs = _grid([layer.inputs for layer in same], any(any(x.input_channels.slopes) for x in same), stairs[0])
        outputs = _grid([layer.outputs for layer in same], any(any(x.output_channels.slopes) for x in same), stairs[1])
        if signature.is_depthwise:
            inputs = (1,)
        grids[signature] = (_multiples(inputs, multiple), _multiples(outputs, multiple))
    return grids


def _grid(full: Sequence[int], pruned: bool, stairs: Staircase) -> tuple[int, ...]:
    """One channel, one step, shares of the largest width rounded to periods or steps, and the full widths themselves.

    >>> eights = Staircase(8, (18.0, 21.0, 26.0, 32.0))
    >>> _grid([256], True, eights), _grid([24], True, eights), _grid([3], False, eights)
    ((1, 8, 64, 128, 192, 256), (1, 8, 16, 24), (3,))
    """
    if not pruned:
        return tuple(sorted(set(full)))
    largest = max(full)
    few = stairs.step if stairs.step > 1 else round(largest / 8)
    multiple = stairs.period if _PERIODS * stairs.period <= largest else stairs.step
    levels = {few, *(multiple * round(share * largest / multiple) for share in _LEVELS)}
    return tuple(sorted({1, largest, *(level for level in levels if 0 < level < largest)}))


def _multiples(grid: Sequence[int], multiple: int) -> tuple[int, ...]:
    return tuple(sorted({-(-width // multiple) * multiple for width in grid}))


def _estimate(
    grids: Mapping[LayerSignature, tuple[tuple[int, ...], tuple[int, ...]]], known: Mapping[LayerSignature, LayerTime]
) -> dict[LayerSignature, LayerTime]:
    """Times of layers that were not measured, from operations and traffic of those that were."""
    rows = [
        (_work(signature, i, o), ms)
        for signature, table in known.items()
        for i, row in zip(table.inputs, table.ms, strict=True)
        for o, ms in zip(table.outputs, row, strict=True)
    ]
    if rows:
        x = fit_not_negative(np.array([work for work, _ in rows]), np.array([ms for _, ms in rows]))
    else:
        x = np.array([0.0, 1e-6, 0.0, 0.0])  # whole structures will say how long an operation takes
    tables = {}
    for signature, (inputs, outputs) in grids.items():
        work = np.array([_work(signature, *widths) for widths in points(inputs, outputs)])
        tables[signature] = _tabulate(inputs, outputs, (work @ x).tolist())
    return tables


def _work(signature: LayerSignature, inputs: int, outputs: int) -> tuple[float, ...]:
    """What the time of a layer is made of: itself, its operations, the weights and the activations that it moves."""
    positions = signature.batch * float(np.prod(signature.positions))
    traffic = positions * (outputs + (outputs if signature.is_depthwise else inputs))
    return 1.0, float(signature.macs(inputs, outputs)), float(signature.weights(inputs, outputs)), traffic


def _tabulate(inputs: Sequence[int], outputs: Sequence[int], values: Sequence[float]) -> LayerTime:
    table = np.array(values, dtype=np.float64).reshape(len(inputs), len(outputs))
    return LayerTime(tuple(inputs), tuple(outputs), tuple(tuple(row) for row in table.tolist()))


def _from_work(signature: LayerSignature, inputs: Sequence[int], outputs: Sequence[int], which: int) -> LayerTime:
    """One part of `_work` over a grid."""
    return _tabulate(inputs, outputs, [_work(signature, *widths)[which] for widths in points(inputs, outputs)])


def _with_surroundings(layer: Layer, time_of: LayerTime) -> list[LayerTime]:
    """What explains a layer's time inside of the network: its time alone, where its weights and activations stay in the
    cache; its weights, which do not while the others run; its activations, which other operators read and write too.
    """
    return [
        time_of,
        *(_from_work(layer.signature, time_of.inputs, time_of.outputs, which) for which in (_WEIGHTS, _TRAFFIC)),
    ]


def _weighed(tables: Sequence[LayerTime], factors: Sequence[float]) -> LayerTime:
    """The sum of tables over one grid, each times its factor."""
    total = np.tensordot(np.array(factors), np.array([table.ms for table in tables]), axes=1)
    return _tabulate(tables[0].inputs, tables[0].outputs, total.ravel().tolist())


def _from_structures(
    probe: LatencyProbe, layers: Sequence[Layer], cache: MeasurementCache, until: float, progress: Progress
) -> LatencyTable:
    """Without graphs of single layers: the work of each kind of layer, weighed by whole structures."""
    plans = make_structures(probe.groups, fingerprint_of(probe.model), 1, _RANDOM_IF_SLOW)
    times, unsteady = measure_structures(probe, plans, cache, progress, at_once=_AT_ONCE_IF_SLOW, until=until)
    kinds = sorted({layer.signature.kind for layer in layers})
    bases = []
    for layer in layers:
        inputs, outputs = (tuple(sorted({1, full})) for full in (layer.inputs, layer.outputs))
        nothing = _tabulate(inputs, outputs, [0.0] * (len(inputs) * len(outputs)))
        operations = [
            _from_work(layer.signature, inputs, outputs, _MACS) if kind == layer.signature.kind else nothing
            for kind in kinds
        ]
        around = [_from_work(layer.signature, inputs, outputs, which) for which in (_WEIGHTS, _TRAFFIC)]
        bases.append([*operations, *around])
    cost, errors = _fit(bases, layers, probe.groups, times, EVEN)
    kinds_estimated = len({layer.signature for layer in layers})
    return LatencyTable(cost, times[0][1], 0, kinds_estimated, errors, unsteady, cache.problem)


def _fit(
    bases: Sequence[Sequence[LayerTime]], layers: Sequence[Layer], groups: Groups, times: Timed, stairs: Stairs
) -> tuple[LatencyCost, tuple[float, ...]]:
    """The constant and the factors of the bases that explain whole structures best; and the relative error on every
    structure but the dense and the smallest when it is predicted from all the others.
    """
    units = [group.units for group in groups.prunable]
    count = len(bases[0])
    each = tuple(layer.signature.weights_each for layer in layers)

    def cost_with(factors: Sequence[float], constant: float, capacity: float, spill_ms: float) -> LatencyCost:
        timed = []
        for layer, tables in zip(layers, bases, strict=True):
            own, around = (_weighed(tables[part], factors[part]) for part in (slice(-_AROUND), slice(-_AROUND, None)))
            even = layer.signature.groups != 1  # only others were asked how high the steps are
            timed.append(TimedLayer(own, layer.input_channels, layer.output_channels, around, even))
        return LatencyCost(timed, units, constant, stairs, Spill(each, capacity, spill_ms))

    widths = [torch.tensor(each, dtype=torch.float64) for each, _ in times]
    measured = np.array([ms for _, ms in times])
    alone = [cost_with([float(base == other) for other in range(count)], 0.0, 0.0, 0.0) for base in range(count)]
    alone.append(cost_with([0.0] * count, 0.0, 0.0, 1.0))
    features = np.array([[1.0, *(cost.exact(each) for cost in alone)] for each in widths])
    errors = []
    for row in range(2, len(times)):
        others = np.arange(len(times)) != row
        capacity, x = fit_with_spill(features[others], measured[others])
        errors.append(float(with_spill(features[row : row + 1], capacity)[0] @ x / measured[row]) - 1)
    capacity, x = fit_with_spill(features, measured)
    constant, *factors, spill_ms = x.tolist()
    return cost_with(factors, constant, capacity, spill_ms), tuple(errors)
