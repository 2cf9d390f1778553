"""Whether a latency budget is met, judged by several processes."""

import numpy as np
import pytest

from dtp_deploy.budget import parse_budget
from dtp_deploy.latency.structures import without_load
from dtp_deploy.latency.verdict import PROCESSES, largest_share, limit_ms, share_of_limit
from dtp_deploy.profile import LatencyReport


def report(ms: float, blocks: int = 4, basis: str = "measured") -> LatencyReport:
    return LatencyReport.from_blocks([[ms] * 3] * blocks, {"basis": basis})


def judged(shares: list[float], basis: str = "measured") -> tuple[float, int]:
    """The largest share of 60 % that was seen, and how many processes it took."""
    left = list(shares)
    largest = largest_share(
        parse_budget("latency", "60%"), lambda: (report(6 * left.pop(0), basis=basis), report(10.0))
    )
    return largest, len(shares) - len(left)


def test_the_slowest_of_all_processes_counts() -> None:
    assert judged([0.9, 0.95, 0.99, 0.9, 0.93, 0.92]) == (pytest.approx(0.99), PROCESSES)


def test_one_process_above_the_limit_is_enough() -> None:
    assert judged([0.9, 1.01, 0.9]) == (pytest.approx(1.01), 2)


def test_a_prediction_is_not_repeated() -> None:
    assert judged([0.9], "predicted") == (pytest.approx(0.9), 1)


def test_more_noise_leaves_more_room_below_the_limit() -> None:
    """The median of the processes lies below what counts by the noise that they show."""
    rng = np.random.default_rng(0)
    margins = []
    for noise in (0.001, 0.01, 0.05):
        largest = [judged((0.8 * (1 + noise * rng.standard_normal(6))).tolist())[0] for _ in range(50)]
        margins.append(float(np.mean(largest)) / 0.8 - 1)
    assert margins == pytest.approx([0.00127, 0.0127, 0.0634], rel=0.2)  # 1.27: mean of the largest of six normals


def test_a_percentage_is_judged_under_the_load_of_its_own_round() -> None:
    """Both are slow in every other round, and the dense model once more: the middles of their samples lie apart."""
    load = np.array([1.0, 2.0, 1.0, 2.0, 1.0])
    dense = LatencyReport.from_blocks([[10 * each] * 3 for each in [*load[:4], 2.0]])
    pruned = LatencyReport.from_blocks([[6 * each] * 3 for each in load])
    budget = parse_budget("latency", "60%")
    assert pruned.p50_ms / dense.p50_ms == pytest.approx(0.3)
    assert share_of_limit(budget, pruned, dense) == pytest.approx(1.0)
    assert limit_ms(budget, pruned, dense) == pytest.approx(6.0)


def test_an_absolute_limit_is_what_it_is() -> None:
    assert share_of_limit(parse_budget("latency", "5ms"), report(4.0), report(1.0)) == pytest.approx(0.8)


def test_times_are_freed_from_load_that_hits_a_whole_round() -> None:
    rng = np.random.default_rng(0)
    true = np.array([10.0, 5.0, 3.0, 8.0, 2.0])
    load = rng.choice([1.0, 1.0, 1.7, 2.5], 40)
    noise = 1 + 0.05 * rng.standard_normal((5, 40))
    found = without_load(true[:, None] * load * noise)
    assert found / found[0] == pytest.approx(true / true[0], rel=0.05)
