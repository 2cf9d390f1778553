"""What a budget allows, given what the dense model costs."""

import math

import pytest

from dtp_deploy.budget import parse_budget
from dtp_deploy.errors import UsageError


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_percentage_of_a_hundred_channels_is_as_many_channels(percent: int) -> None:
    assert parse_budget("channels", f"{percent}%").limit_for(100.0) == percent


@pytest.mark.parametrize("dense", [123_456_789_012.0, 0.0931])
def test_a_share_of_any_cost_is_right_to_twelve_digits(dense: float) -> None:
    assert math.isclose(parse_budget("macs", "28.6%").limit_for(dense), 0.286 * dense, rel_tol=1e-11)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Budget kind 'channel' is unknown\. Give one of macs, params, size, chan"):
        parse_budget("channel", "50%")  # type: ignore[arg-type]
