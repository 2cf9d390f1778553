import numpy as np
import pytest

from dtp_deploy.errors import UsageError
from dtp_deploy.profile import LatencyReport, median_ratio


def noisy_blocks(rng, level_ms, rounds=20, size=10, noise=0.01, drift=None):
    drift = np.ones(rounds) if drift is None else drift
    return [list(level_ms * factor * (1 + noise * rng.standard_normal(size))) for factor in drift]


def test_statistics_of_known_numbers():
    report = LatencyReport.from_samples([float(value) for value in range(1, 102)])
    assert (report.p50_ms, report.p90_ms, report.p99_ms, report.max_ms, report.mean_ms) == (51, 91, 100, 101, 51)
    assert report.coefficient_of_variation == pytest.approx(np.sqrt(101 * 102 / 12) / 51)
    assert report.robust_variation == pytest.approx(1.4826 * 25 / 51)
    assert report.outlier_share == 0


def test_outliers_on_both_sides_are_counted():
    report = LatencyReport.from_samples([10.0, 10.1, 9.9, 10.0, 10.1, 9.9, 10.0, 10.1, 1.0, 90.0])
    assert report.outlier_share == 0.2


def test_robust_variation_is_blind_to_one_outlier():
    calm = [10.0, 10.1, 9.9] * 20
    with_outlier = LatencyReport.from_samples([*calm, 500.0])
    assert with_outlier.robust_variation == pytest.approx(LatencyReport.from_samples(calm).robust_variation)
    assert with_outlier.coefficient_of_variation > 1


def test_robust_variation_agrees_with_the_plain_one_on_normal_noise():
    report = LatencyReport.from_samples(list(np.random.default_rng(0).normal(10, 0.5, 20_000)))
    assert report.robust_variation == pytest.approx(report.coefficient_of_variation, rel=0.03)


def test_blocks_are_kept():
    blocks = ((1.0, 2.0), (3.0,), (4.0, 5.0, 6.0))
    report = LatencyReport.from_blocks(blocks)
    assert report.blocks_ms == blocks
    assert report.samples_ms == (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)


def test_calm_run_is_stable():
    assert LatencyReport.from_blocks(noisy_blocks(np.random.default_rng(0), 5.0)).stable


def test_drift_is_not_stable():
    report = LatencyReport.from_blocks([[value] * 5 for value in np.linspace(1, 1.12, 20)])
    assert report.drift == pytest.approx(0.06, abs=0.005)
    assert not report.stable
    assert report.unrest > 1


def test_load_spike_is_not_stable():
    report = LatencyReport.from_blocks([[1.0] * 5] * 8 + [[2.0] * 5] * 3 + [[1.0] * 5] * 9)
    assert report.drift == 0
    assert not report.stable


def test_single_slow_runs_are_a_tail_and_stable():
    report = LatencyReport.from_blocks([[1.0] * 49 + [5.0]] * 20)
    assert report.stable
    assert report.p99_ms == 5.0


def test_steady_load_of_others_is_not_stable():
    report = LatencyReport.from_blocks([[1.0] * 9 + [5.0]] * 20)
    assert (report.drift, report.spread) == (0, 0)
    assert report.stall == pytest.approx(0.4)
    assert not report.stable


def test_too_few_blocks_are_not_stable():
    assert not LatencyReport.from_blocks([[1.0] * 100] * 3).stable
    assert LatencyReport.from_blocks([[1.0] * 100] * 4).stable


@pytest.mark.parametrize("blocks", [[], [[1.0], []]])
def test_empty_blocks_are_refused(blocks):
    with pytest.raises(UsageError, match="got an empty block of samples"):
        LatencyReport.from_blocks(blocks)


def test_no_samples_are_refused():
    with pytest.raises(UsageError, match=r"^A latency report got no samples\. Give one or more\.$"):
        LatencyReport.from_samples([])


def test_ratio_of_a_report_with_itself_is_one():
    report = LatencyReport.from_blocks(noisy_blocks(np.random.default_rng(0), 5.0))
    interval = median_ratio(report, report)
    assert (interval.ratio, interval.low, interval.high) == (1, 1, 1)


def test_interval_covers_the_true_ratio_about_as_often_as_it_says():
    rng = np.random.default_rng(0)
    covered = 0
    for _ in range(30):
        # Both models share each round's load, and have their own noise on top of it.
        load = 1 + 0.05 * rng.standard_normal(20)
        fast = LatencyReport.from_blocks(noisy_blocks(rng, 3.0, drift=load * (1 + 0.01 * rng.standard_normal(20))))
        slow = LatencyReport.from_blocks(noisy_blocks(rng, 6.0, drift=load * (1 + 0.01 * rng.standard_normal(20))))
        interval = median_ratio(fast, slow)
        assert interval.ratio == pytest.approx(0.5, abs=0.03)
        covered += interval.low <= 0.5 <= interval.high
    assert covered >= 26


def test_pairing_narrows_the_interval():
    rng = np.random.default_rng(1)
    load = 1 + 0.3 * rng.random(20)
    a = LatencyReport.from_blocks(noisy_blocks(rng, 3.0, drift=load))
    paired = LatencyReport.from_blocks(noisy_blocks(rng, 6.0, drift=load))
    unpaired = LatencyReport.from_blocks(noisy_blocks(rng, 6.0, drift=load[::-1]))

    def width(interval):
        return interval.high - interval.low

    assert width(median_ratio(a, paired)) < width(median_ratio(a, unpaired)) / 2


def test_ratio_does_not_jump_between_levels_of_load():
    """Nine of twenty rounds are slow for both, and one more is for the first alone."""
    rng = np.random.default_rng(2)
    load = np.repeat([1.0, 1.7], [11, 9])
    a = LatencyReport.from_blocks(noisy_blocks(rng, 3.0, drift=np.where(np.arange(20) == 0, 1.7, load)))
    b = LatencyReport.from_blocks(noisy_blocks(rng, 6.0, drift=load))
    assert abs(a.p50_ms / b.p50_ms / 0.5 - 1) > 0.1
    assert median_ratio(a, b).ratio == pytest.approx(0.5, rel=0.01)


def test_reports_of_different_runs_are_refused():
    with pytest.raises(UsageError, match="have 2 and 3 blocks, so they were not measured in turns"):
        median_ratio(LatencyReport.from_blocks([[1.0]] * 2), LatencyReport.from_blocks([[1.0]] * 3))
