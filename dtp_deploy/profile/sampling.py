"""Taking samples: warm-up, how many, and in which order. Works on callables, so that tests can give it a false clock.

Every time is an integer of nanoseconds from a monotonic clock. This file also runs on boards: standard library only,
Python 3.8 or newer.
"""

from __future__ import annotations

import gc
import math
import time
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import TYPE_CHECKING, Callable

from dtp_deploy.profile.settings import LEAST_BLOCKS, MeasureSettings

if TYPE_CHECKING:
    from collections.abc import Iterator, Mapping

Run = Callable[[int], object]
"""Runs a model once; the argument counts the runs, and so picks the input."""
Clock = Callable[[], int]

_WINDOW_RUNS = 5
_WINDOW_NS = 50_000_000
_BLOCK_SAMPLES = 5


@dataclass(frozen=True)
class WarmUp:
    """How a warm-up ended.

    Attributes:
        runs: how many runs it took.
        seconds: how long it took.
        steady: whether the running median was steady at its end (False: it ended at `max_warm_up_seconds`).
        median_ns: the median of its last window, of at least one run.
    """

    runs: int
    seconds: float
    steady: bool
    median_ns: float


def warm_up(run: Run, settings: MeasureSettings, clock: Clock = time.perf_counter_ns) -> WarmUp:
    """Run until the median of a window is within `warm_up_tolerance` of that of the window before it.

    A window holds at least 5 runs and 50 ms.
    """
    begin = window_begin = clock()
    window: list[int] = []
    before = math.inf
    runs = 0
    while True:
        start = clock()
        run(runs)
        end = clock()
        runs += 1
        window.append(end - start)
        is_late = end - begin >= settings.max_warm_up_seconds * 1e9
        if is_late or (len(window) >= _WINDOW_RUNS and end - window_begin >= _WINDOW_NS):
            now = median(window)
            steady = len(window) >= _WINDOW_RUNS and abs(now - before) <= settings.warm_up_tolerance * now
            if is_late or (steady and end - begin >= settings.warm_up_seconds * 1e9):
                return WarmUp(runs, (end - begin) / 1e9, steady, now)
            before, window, window_begin = now, [], end


def block_sizes(median_ns: Mapping[str, float], settings: MeasureSettings) -> tuple[int, dict[str, int]]:
    """The number of rounds, and the samples that each model gets in one round.

    >>> block_sizes({"dense": 10e6, "pruned": 5e6}, MeasureSettings(min_seconds=1.0, min_samples=50, blocks=20))
    (20, {'dense': 5, 'pruned': 10})
    """
    samples = {
        name: _samples(max(duration, 1.0), settings)  # a clock may be too coarse for an empty model
        for name, duration in median_ns.items()
    }
    # The first run after a change of model is not kept, so small blocks are a waste: few samples make few blocks, but
    # not too few to tell whether they are stable.
    fewest = min(samples.values())
    rounds = min(settings.blocks, max(math.ceil(fewest / _BLOCK_SAMPLES), min(fewest, LEAST_BLOCKS)))
    return rounds, {name: math.ceil(count / rounds) for name, count in samples.items()}


def _samples(duration_ns: float, settings: MeasureSettings) -> int:
    wanted = max(settings.min_samples, math.ceil(settings.min_seconds * 1e9 / duration_ns))
    affordable = max(1, math.floor(settings.max_seconds * 1e9 / duration_ns))
    return min(wanted, affordable, settings.max_samples)


def interleave(
    runs: Mapping[str, Run],
    rounds: int,
    sizes: Mapping[str, int],
    on_block: Callable[[str], None] = lambda name: None,
    clock: Clock = time.perf_counter_ns,
) -> dict[str, list[list[int]]]:
    """Measure all models in turns: in each round a block of each. The durations in ns, by model, round and run.

    A block begins with one run that is not kept, because the caches still hold the model before. Every other round runs
    the models in the opposite order, so that none always follows the same one, and a drift hits all alike. Python's
    garbage collector rests during a block.

    Args:
        runs: the models to measure, by name.
        rounds: how many blocks each model gets.
        sizes: samples in a block, by model.
        on_block: told the name of the model whose block begins, outside the measured time.
    """
    blocks: dict[str, list[list[int]]] = {name: [] for name in runs}
    for index in range(rounds):
        for name in runs if index % 2 == 0 else reversed(list(runs)):
            on_block(name)
            blocks[name].append(_block(runs[name], sizes[name], index * sizes[name], clock))
    return blocks


def _block(run: Run, size: int, first: int, clock: Clock) -> list[int]:
    durations = []
    run(first)
    with _no_garbage_collection():
        for index in range(first, first + size):
            start = clock()
            run(index)
            durations.append(clock() - start)
    return durations


@contextmanager
def _no_garbage_collection() -> Iterator[None]:
    was_enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if was_enabled:
            gc.enable()
