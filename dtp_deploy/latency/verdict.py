"""Whether a latency budget is met, so that measuring it afresh in a new process says the same.

Processes differ: memory lies elsewhere, and others load the machine. So a share of a limit is the median over several
fresh processes, and what any one of them saw bounds it: with six, the median of all that could be started lies between
the smallest and the largest of them with 97 % confidence, whatever the distribution (the interval of the sign test,
1 - 2 / 2^6). The margin that is kept for noise is thus the noise itself, as seen.
"""

from __future__ import annotations

from dtp_deploy.budget import Budget
from dtp_deploy.profile.measure import LatencyReport, median_ratio

PROCESSES = 6


def share_of_limit(budget: Budget, pruned: LatencyReport, dense: LatencyReport) -> float:
    """The latency of the pruned network as a share of its limit, from one interleaved measurement.

    A percentage of p50 is judged by the paired ratio (see `median_ratio`); other percentiles are of all samples.

    >>> fast, slow = (LatencyReport.from_samples([each] * 60) for each in (1.0, 2.0))
    >>> share_of_limit(Budget("latency", 0.8, relative=True), fast, slow)
    0.625
    >>> share_of_limit(Budget("latency", 4.0), fast, slow)
    0.25
    """
    if budget.relative and budget.statistic == "p50":
        return median_ratio(pruned, dense).ratio / budget.limit
    return budget.latency_of(pruned) / budget.limit_for(budget.latency_of(dense))
