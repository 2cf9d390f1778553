import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_deploy.budget import Granularity
from dtp_deploy.errors import UsageError
from dtp_deploy.prune import MaskSettings
from dtp_deploy.train import Settings

progresses = st.floats(0, 1)
both_solvers = st.sampled_from(["exact", "sinkhorn-1"])


@given(progresses, progresses, st.floats(0.001, 1))
def test_the_budget_comes_down_from_just_below_dense_and_stays_at_the_limit(first, second, share):
    settings, dense = MaskSettings(), 1e6
    limit = share * dense
    early, late = (settings.budget_at(p, limit, dense) for p in sorted((first, second)))
    assert limit <= late <= early <= dense
    assert settings.budget_at(0, limit, dense) == pytest.approx(limit + 0.999 * (dense - limit))
    assert settings.budget_at(0.7, limit, dense) == limit == settings.budget_at(1, limit, dense)


@given(both_solvers, progresses, progresses, st.floats(0.01, 0.99))
def test_softness_falls_to_its_end_whatever_the_budget(solver, first, second, ratio):
    settings = MaskSettings(solver=solver)
    early, late = (settings.softness_at(p, ratio, ratio) for p in sorted((first, second)))
    end = min(settings.softness_end, 0.005 * 4 * ratio * (1 - ratio))
    assert end <= late * (1 + 1e-9)
    assert late <= early * (1 + 1e-9)
    assert settings.softness_at(1, ratio, ratio) == pytest.approx(end)


@given(progresses, st.floats(0.01, 0.99), st.floats(0.01, 0.999))
def test_softness_stays_below_that_of_equal_masks(progress, ratio, now):
    assert MaskSettings().softness_at(progress, ratio, now) < 4 * now * (1 - now)


@pytest.mark.parametrize(("granularity", "first"), [("channels", 0.03), ("weights", 0.005), ("2:4", 0.005)])
def test_rates_fall_to_zero(granularity, first):
    settings = MaskSettings().for_granularity(granularity)
    rates = [settings.rate_at(step / 10, 0.5) for step in range(11)]
    assert rates == sorted(rates, reverse=True)
    assert (rates[0], rates[-1]) == (first, 0)
    assert MaskSettings(score_rate=0.3).for_granularity(granularity).rate_at(0, 0.5) == 0.3


def test_rates_fall_with_what_is_pruned_where_more_is_kept():
    settings = MaskSettings(score_rate=0.3)
    assert [settings.rate_at(0, ratio) for ratio in (0.0, 1e-9, 0.3, 0.5)] == [0.3] * 4
    assert settings.rate_at(0, 0.75) == pytest.approx(0.1)
    assert settings.rate_at(0, 1.0) == 0


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"solver": "newton"}, "--solver 'newton' is unknown. Give exact or sinkhorn-1."),
        ({"scores": "l1"}, "--scores 'l1' is unknown. Give one of l2, bn, taylor, uniform."),
        ({"score_rate": -0.1}, "score_rate is -0.1; give a number of 0 or more, or None for the default."),
        ({"score_rate": math.nan}, "score_rate is nan; give a number of 0 or more, or None for the default."),
        ({"round_to": 0}, "--round-to 0 is not allowed. Give 1 or more channels."),
        ({"budget_reached": 0.0}, "budget_reached is 0.0; give a number above 0 and at most 1."),
        ({"budget_reached": 1.5}, "budget_reached is 1.5; give a number above 0 and at most 1."),
        ({"softness_start": 1.1}, "softness_start is 1.1; give a number above 0 and at most 1."),
        ({"softness_end": 0.0}, "softness_end is 0.0; give a number above 0 and at most 1."),
        ({"sinkhorn_softness": math.nan}, "sinkhorn_softness is nan; give a number above 0 and at most 1."),
        ({"score_momentum": 1.0}, "score_momentum is 1.0; give a number from 0 to below 1."),
        ({"rms_decay": -0.5}, "rms_decay is -0.5; give a number from 0 to below 1."),
        ({"floor_share": 1.2}, "floor_share is 1.2; give a number from 0 to 1."),
        ({"floor_units": 0}, "floor_units is 0; give 1 or more."),
        ({"score_batches": 0}, "score_batches is 0; give 1 or more."),
    ],
)
def test_settings_that_are_not_allowed(values, message):
    with pytest.raises(UsageError) as caught:
        MaskSettings(**values)
    assert str(caught.value) == message


@pytest.mark.parametrize("granularity", ["weights", "2:4"])
def test_what_is_of_channels_only_is_refused_for_weights(granularity: Granularity) -> None:
    MaskSettings().check_granularity(granularity)
    MaskSettings(solver="sinkhorn-1", round_to=8).check_granularity("channels")
    with pytest.raises(UsageError, match=f"--solver sinkhorn-1 is of channels.*--granularity {granularity}"):
        MaskSettings(solver="sinkhorn-1").check_granularity(granularity)
    MaskSettings(scores="uniform").check_granularity(granularity)
    for scores in ("bn", "taylor"):
        with pytest.raises(
            UsageError, match=rf"--scores {scores} is of channels; .* start from l2 or uniform\. Give one"
        ):
            MaskSettings(scores=scores).check_granularity(granularity)
    with pytest.raises(UsageError, match="--round-to 8 is of channels"):
        Settings(granularity=granularity, masks=MaskSettings(round_to=8))
    with pytest.raises(UsageError, match=r"MaskSettings\(learn_split=False\) is of channels"):
        Settings(granularity=granularity, masks=MaskSettings(learn_split=False))


def test_an_unknown_granularity_is_refused() -> None:
    with pytest.raises(UsageError, match=r"--granularity 'filters' is unknown. Give one of channels, weights, 2:4"):
        Settings(granularity="filters")
