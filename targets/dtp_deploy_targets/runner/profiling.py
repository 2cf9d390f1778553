"""Times of an engine's layers, from runs that are made for them: how many runs, and what comes of them."""

from __future__ import annotations

import statistics
import time
from typing import TYPE_CHECKING, Any, TypeVar

if TYPE_CHECKING:
    from collections.abc import Callable, Mapping, Sequence

Key = TypeVar("Key")

WARM_UP_RUNS = 3
LEAST_RUNS = 3
MOST_RUNS = 20
SECONDS = 2.0


def profiled_runs(run: Callable[[], object]) -> int:
    """Run a model that is being profiled: `WARM_UP_RUNS` times, and then `MOST_RUNS` times, or fewer if it is slow.

    Returns:
        How many runs were made; those of the warm-up are the first, and do not count.
    """
    for _ in range(WARM_UP_RUNS):
        run()
    began = time.monotonic()
    count = 0
    while count < LEAST_RUNS or (count < MOST_RUNS and time.monotonic() - began < SECONDS):
        run()
        count += 1
    return WARM_UP_RUNS + count


def layer(name: str, mean_ms: float, median_ms: float | None, precision: str) -> dict[str, Any]:
    """One layer, as `dtp_deploy.target.LayerTime` has it, in plain values."""
    return {"name": name, "mean_ms": mean_ms, "median_ms": median_ms, "precision": precision}


def layers_of_runs(
    runs: Sequence[Mapping[Key, float]], name_of: Callable[[Key], str], precision_of: Callable[[Key], str]
) -> list[dict[str, Any]]:
    """The layers of some runs after the warm-up, in the order in which they first ran.

    Args:
        runs: the time in ms of each layer, by a key of the caller's choice; one that a run left out took no time in it.
        name_of: the name of a key's layer.
        precision_of: the precision of a key's layer.

    >>> runs = [{"a": 9.0}] * WARM_UP_RUNS + [{"a": 1.0}, {"a": 1.0, "b": 3.0}, {"a": 4.0}]
    >>> layers_of_runs(runs, str, {"a": "fp32", "b": ""}.__getitem__)[0]
    {'name': 'a', 'mean_ms': 2.0, 'median_ms': 1.0, 'precision': 'fp32'}
    """
    counted = runs[WARM_UP_RUNS:]
    found = []
    for key in dict.fromkeys(key for run in counted for key in run):
        times = [run.get(key, 0.0) for run in counted]
        found.append(layer(name_of(key), statistics.fmean(times), statistics.median(times), precision_of(key)))
    return found
