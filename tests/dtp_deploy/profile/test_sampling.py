import gc
import itertools

import pytest

from dtp_deploy.errors import UsageError
from dtp_deploy.profile import MeasureSettings
from dtp_deploy.profile.sampling import block_sizes, interleave, warm_up


class FalseClock:
    """A clock that moves only when a model runs."""

    def __init__(self):
        self.now_ns = 0

    def __call__(self):
        return self.now_ns

    def model(self, durations_ms):
        durations = iter(durations_ms)

        def run(index):
            self.now_ns += int(next(durations) * 1e6)

        return run


def test_warm_up_ends_when_the_median_is_steady():
    clock = FalseClock()
    cooling = itertools.chain([100.0] * 3, [50.0] * 5, [20.0] * 5, itertools.repeat(10.0))
    result = warm_up(clock.model(cooling), MeasureSettings(max_warm_up_seconds=60), clock)
    assert result.steady
    assert result.median_ns == 10e6
    # windows of five: 100, 50 (2 of 20), 20 (2 of 10), 10, 10
    assert result.runs == 25


def test_warm_up_lasts_its_least_time_even_if_steady():
    clock = FalseClock()
    result = warm_up(clock.model(itertools.repeat(1.0)), MeasureSettings(warm_up_seconds=0.5), clock)
    assert result.steady
    assert result.seconds == pytest.approx(0.5, abs=0.06)


def test_warm_up_is_capped_and_says_so():
    clock = FalseClock()
    growing = (1.1**index for index in itertools.count())
    result = warm_up(clock.model(growing), MeasureSettings(max_warm_up_seconds=2), clock)
    assert not result.steady
    assert 2 <= result.seconds < 2.5


def test_warm_up_of_a_very_slow_model_is_one_run():
    clock = FalseClock()
    result = warm_up(clock.model(itertools.repeat(9000.0)), MeasureSettings(max_warm_up_seconds=3), clock)
    assert (result.runs, result.steady, result.median_ns) == (1, False, 9e9)


@pytest.mark.parametrize(
    ("median_ms", "rounds", "size"),
    [
        (0.001, 20, 500),  # as many as are kept
        (1.0, 20, 50),  # for min_seconds
        (50.0, 10, 5),  # min_samples
        (1000.0, 4, 5),  # what max_seconds allows
        (5000.0, 4, 1),
        (60_000.0, 1, 1),  # one run at the least
    ],
)
def test_number_of_samples_follows_the_speed(median_ms, rounds, size):
    assert block_sizes({"a": median_ms * 1e6}, MeasureSettings()) == (rounds, {"a": size})


def test_all_models_get_the_same_number_of_blocks():
    rounds, sizes = block_sizes({"slow": 50e6, "fast": 1e6}, MeasureSettings())
    assert (rounds, sizes) == (10, {"slow": 5, "fast": 100})


def test_interleaving_takes_turns_in_alternating_order():
    clock = FalseClock()
    order = []
    runs = {"a": clock.model(itertools.repeat(1.0)), "b": clock.model(itertools.repeat(2.0))}
    blocks = interleave(runs, 4, {"a": 3, "b": 2}, order.append, clock)
    assert order == ["a", "b", "b", "a", "a", "b", "b", "a"]
    assert blocks == {"a": [[1_000_000] * 3] * 4, "b": [[2_000_000] * 2] * 4}


def test_first_run_of_a_block_is_not_kept_and_inputs_rotate():
    clock = FalseClock()
    seen = []

    def run(index):
        seen.append(index)
        clock.now_ns += 7 if len(seen) in {1, 4} else 1

    assert interleave({"a": run}, 2, {"a": 2}, clock=clock) == {"a": [[1, 1], [1, 1]]}
    assert seen == [0, 0, 1, 2, 2, 3]


def test_garbage_collection_rests_while_timing_and_comes_back():
    states = []
    interleave({"a": lambda index: states.append(gc.isenabled())}, 1, {"a": 3})
    assert states == [True, False, False, False]
    assert gc.isenabled()


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"min_samples": 0}, r"^MeasureSettings\(min_samples=0\) is out of range\. Give more than 0\.$"),
        ({"repeats": -1}, r"^MeasureSettings\(repeats=-1\) is out of range\. Give 0 or more\.$"),
        ({"timeout_s": 0}, r"timeout_s=0"),
        ({"min_seconds": 30}, r"min_seconds=30\) is out of range\. Give at most max_seconds \(20\.0\)"),
        ({"warm_up_seconds": 5}, r"Give at most max_warm_up_seconds"),
    ],
)
def test_settings_out_of_range_are_named(setting, message):
    with pytest.raises(UsageError, match=message):
        MeasureSettings(**setting)
