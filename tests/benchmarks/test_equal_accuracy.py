"""Interpolation between budgets."""

import pytest

from benchmarks.equal_accuracy import Point, latency_at

POINTS = [Point("60%", 0.9, 0.8), Point("30%", 0.8, 0.4), Point("45%", 0.88, 0.6)]


@pytest.mark.parametrize(
    ("accuracy", "latency"), [(0.8, 0.4), (0.84, 0.5), (0.89, 0.7), (0.9, 0.8), (0.79, None), (0.91, None)]
)
def test_latency_lies_between_the_neighbours_by_accuracy(accuracy: float, latency: float | None) -> None:
    assert latency_at(accuracy, POINTS) == (None if latency is None else pytest.approx(latency, abs=1e-4))
