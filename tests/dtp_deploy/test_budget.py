"""What a budget allows, given what the dense model costs."""

import pytest

from dtp_deploy.budget import parse_budget
from dtp_deploy.errors import UsageError


@pytest.mark.parametrize("percent", range(1, 101))
def test_a_percentage_of_a_hundred_channels_is_as_many_channels(percent: int) -> None:
    assert parse_budget("channels", f"{percent}%").limit_for(100.0) == percent


@pytest.mark.parametrize(
    ("typed", "dense", "limit"), [("50%", 1_234_567_890_123.0, 617_283_945_061.5), ("28.6%", 0.5, 0.143)]
)
def test_what_is_no_whole_number_is_not_rounded(typed: str, dense: float, limit: float) -> None:
    assert parse_budget("macs", typed).limit_for(dense) == pytest.approx(limit, rel=1e-15)


def test_a_kind_that_there_is_not_is_refused() -> None:
    with pytest.raises(UsageError, match=r"Budget kind 'channel' is unknown\. Give one of macs, params, size, chan"):
        parse_budget("channel", "50%")  # type: ignore[arg-type]
