"""Whether a latency budget is met, so that measuring it afresh in a new process says the same.

Processes differ: memory lies elsewhere, and others load the machine meanwhile. So a plan is measured in several fresh
processes, and the slowest of them counts while plans are searched for: with six, the median of all processes that
could be started lies between the smallest and the largest of them with 97 % confidence, whatever the distribution (the
interval of the sign test, 1 - 2 / 2^6). The margin that is kept for noise is thus the noise that was seen.
"""

from __future__ import annotations

from collections.abc import Callable

from dtp_deploy.budget import Budget
from dtp_deploy.latency.timing import is_predicted
from dtp_deploy.profile.measure import LatencyReport, median_ratio

PROCESSES = 6

Pair = tuple[LatencyReport, LatencyReport]
"""The pruned and the dense network, measured in turns."""


def limit_ms(budget: Budget, pruned: LatencyReport, dense: LatencyReport) -> float:
    """What the pruned network may take, by one measurement in turns with the dense one.

    A percentage of p50 is judged by the paired ratio (see `median_ratio`): the limit is that share of what the dense
    network took under the load that the pruned one ran under. Other percentiles are of all samples.

    >>> fast, slow = (LatencyReport.from_samples([each] * 60) for each in (1.0, 2.0))
    >>> limit_ms(Budget("latency", 0.75, relative=True), fast, slow), limit_ms(Budget("latency", 4.0), fast, slow)
    (1.5, 4.0)
    """
    if budget.relative and budget.statistic == "p50":
        return budget.limit * pruned.p50_ms / median_ratio(pruned, dense).ratio
    return budget.limit_for(budget.latency_of(dense))


def share_of_limit(budget: Budget, pruned: LatencyReport, dense: LatencyReport) -> float:
    """The latency of the pruned network as a share of `limit_ms`; at most 1 meets the budget."""
    return budget.latency_of(pruned) / limit_ms(budget, pruned, dense)


def largest_share(budget: Budget, measure: Callable[[], Pair]) -> float:
    """The largest share of the limit that `PROCESSES` fresh processes see; the first above 1 is the last.

    Args:
        budget: of a latency.
        measure: one measurement in a process of its own.
    """
    largest = 0.0
    for _ in range(PROCESSES):
        pruned, dense = measure()
        largest = max(largest, share_of_limit(budget, pruned, dense))
        if largest > 1 or is_predicted(pruned):
            break
    return largest
