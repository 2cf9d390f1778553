"""Judging a budget by a measurement that was made elsewhere."""

import pytest

from dtp_deploy.imports import _completed
from dtp_deploy.profile import LatencyReport
from dtp_deploy.report.schema import BudgetEntry


def entry(requested: str, relative: bool = True) -> BudgetEntry:
    return BudgetEntry(
        kind="latency",
        requested=requested,
        relative=relative,
        limit=5.0,
        unit="ms",
        achieved=4.0,
        met=True,
        basis="predicted",
    )


def report(p50: float, slow: float) -> LatencyReport:
    return LatencyReport.from_samples([p50] * 60 + [slow] * 40)


@pytest.mark.parametrize(
    ("requested", "relative", "limit", "achieved", "met"),
    [
        ("60%", True, 1.2, 1.0, True),
        ("60% (p90)", True, 6.0, 9.0, False),
        ("10ms (p90)", False, 10.0, 9.0, True),
        ("5ms", False, 5.0, 1.0, True),
    ],
)
def test_the_statistic_that_was_asked_for_is_judged(
    requested: str, relative: bool, limit: float, achieved: float, met: bool
) -> None:
    done = _completed(entry(requested, relative), report(1.0, 9.0), report(2.0, 10.0))
    assert (done.limit, done.achieved, done.met, done.basis) == (pytest.approx(limit), achieved, met, "measured")
