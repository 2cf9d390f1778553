"""Whole structures of a network, measured to learn what everything around its layers costs.

All of them are measured in turns, in several fresh processes. What slows a round down slows all of its models, so their
times are freed from it by all of them together: the dense network alone, if it were the yardstick, would hand on its
own noise to every share.
"""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import replace

import numpy as np
import numpy.typing as npt

from dtp_deploy.graph import Groups
from dtp_deploy.latency.cache import MeasurementCache
from dtp_deploy.latency.probe import PROBING, LatencyProbe
from dtp_deploy.latency.timing import can_measure, is_unsteady
from dtp_deploy.profile.measure import LatencyReport
from dtp_deploy.progress import Progress
from dtp_deploy.prune import PruningPlan, make_plan
from dtp_deploy.prune.plan import fingerprint_of

Floats = npt.NDArray[np.float64]

_UNIFORM = (0.75, 0.5, 0.25)
_LEVEL = (0.25, 1.0)
_AROUND_LEVEL = (0.5, 1.5)
_PROCESSES = 4
_SETTINGS = replace(PROBING, min_samples=24, min_seconds=0.15, max_seconds=0.6, max_warm_up_seconds=0.3)
_POLISHINGS = 20

Timed = list[tuple[list[float], float]]
"""Units kept of every prunable group, and milliseconds."""


def make_structures(groups: Groups, fingerprint: str, step: int, random: int) -> dict[str, PruningPlan]:
    """Structures to be measured whole: the smallest, uniform ones, and random ones; widths on the staircase.

    A random one has a level of its own, around which its widths lie: with widths drawn from all levels alike, all
    structures would be about half as large as the dense one.
    """
    rng = np.random.default_rng(0)
    prunable = groups.prunable
    ratios = {"smallest": [0.0] * len(prunable)}
    ratios |= {f"uniform {ratio:.0%}": [ratio] * len(prunable) for ratio in _UNIFORM}
    for number in range(random):
        shares = rng.uniform(*_LEVEL) * rng.uniform(*_AROUND_LEVEL, len(prunable))
        ratios[f"random {number}"] = np.minimum(shares, 1.0).tolist()
    plans = {}
    for name in ratios:
        kept = {}
        for group, share in zip(prunable, ratios[name], strict=True):
            channels = share * group.width
            if channels > step:
                channels = round(channels / step) * step
            kept[group.name] = range(min(group.units, max(1, round(channels / group.channels_per_unit))))
        plans[name] = make_plan(groups, kept, fingerprint)
    return plans


def measure_structures(
    probe: LatencyProbe,
    plans: Mapping[str, PruningPlan],
    cache: MeasurementCache,
    progress: Progress,
    at_once: int | None = None,
    until: float = float("inf"),
) -> tuple[Timed, tuple[int, int]]:
    """Milliseconds of the dense network, first, and of whole structures, on the scale of its first measurement.

    Then how many of the measurements were disturbed by the load of others, and how many there are.

    Args:
        probe: of the network and the target.
        plans: the structures.
        cache: what is in it is not measured again.
        progress: told of every structure.
        at_once: how many are measured together with the dense network; all of them by default.
        until: the time (`time.monotonic`) after which no further lot is begun, but for the first.
    """
    groups = probe.groups
    shapes = [list(tensor.shape) for tensor in groups.inputs]
    names = list(plans)
    size = at_once or len(names)
    found: Timed = []
    disturbed: list[bool] = []
    with progress.task("latency of structures", len(names)) as advance:
        for start in range(0, len(names), size):
            lot = {name: plans[name] for name in names[start : start + size]}
            widths = [_units(plan, groups) for plan in lot.values()]
            key = {"network": fingerprint_of(probe.model), "inputs": shapes, "widths": widths}
            entry = cache.read("structures", key)
            if entry is None:
                if found and time.monotonic() > until:
                    break
                times, unsteady = time_together(probe, lot)
                entry = {"ms": times, "unsteady": unsteady}
                cache.write("structures", key, entry)
            disturbed.append(entry["unsteady"])
            dense, *others = entry["ms"]
            if not found:
                found.append(([float(group.units) for group in groups.prunable], dense))
            found += [(units, ms * found[0][1] / dense) for units, ms in zip(widths, others, strict=True)]
            for _ in lot:
                advance()
    return found, (sum(disturbed), len(disturbed))


def time_together(probe: LatencyProbe, plans: Mapping[str, PruningPlan]) -> tuple[list[float], bool]:
    """Milliseconds of the dense network and of every plan, freed from the load of each round; whether that changed."""
    processes = _PROCESSES if can_measure(probe.target) else 1
    attempts = [list(probe.measure(plans, _SETTINGS).values()) for _ in range(processes)]
    pooled = [LatencyReport.pooled(reports) for reports in zip(*attempts, strict=True)]
    medians = np.array([[np.median(block) for block in report.blocks_ms] for report in pooled])
    return without_load(medians).tolist(), is_unsteady(pooled)


def without_load(medians: Floats) -> Floats:
    """The time of each model on a machine whose load changes from round to round, and hits all models of a round alike.

    Tukey's median polish (Exploratory Data Analysis, 1977, ch. 11) of the logarithms: time = model * round.

    Args:
        medians: of the blocks, shape [M, R].

    Returns:
        Times in the typical round, shape [M,].

    >>> load = np.array([1.0, 3.0, 1.0, 1.2, 1.0])
    >>> without_load(np.outer([2.0, 5.0, 7.0], load)).round(6).tolist()
    [2.0, 5.0, 7.0]
    """
    table = np.log(medians)
    of_model = np.median(table, axis=1, keepdims=True)
    for _ in range(_POLISHINGS):
        of_round = np.median(table - of_model, axis=0, keepdims=True)
        of_model = np.median(table - of_round, axis=1, keepdims=True)
    typical = float(np.median(of_round))
    return np.asarray(np.exp(of_model[:, 0] + typical), dtype=np.float64)


def _units(plan: PruningPlan, groups: Groups) -> list[float]:
    kept: dict[str, Sequence[int]] = {choice.name: choice.kept_units for choice in plan.groups}
    return [float(len(kept[group.name])) for group in groups.prunable]
