"""How far a budget can go, and why a predicted latency cannot."""

import torch
from torch import nn

from dtp_deploy.budget import parse_budget
from dtp_deploy.graph import find_groups
from dtp_deploy.reach import smallest_plan, why_not_predicted
from dtp_deploy.target import TargetSpec

HALF = parse_budget("latency", "50%")
JETSON = TargetSpec("jetson", {"board": "orin-nano"})


def net(width: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3), nn.ReLU(), nn.Conv2d(width, width, 3), nn.ReLU(), nn.Conv2d(width, 4, 3)
    )


def why(model: nn.Module, side: int, target: TargetSpec) -> str | None:
    return why_not_predicted(model, find_groups(model, torch.zeros(1, 3, side, side)), target, HALF)


def test_the_smallest_plan_keeps_one_unit_or_what_rounding_allows() -> None:
    model = net(10).eval()
    groups = find_groups(model, torch.zeros(1, 3, 16, 16))

    assert smallest_plan(model, groups).widths() == {"0": 1, "2": 1, "4": 4}
    assert smallest_plan(model, groups, round_to=4).widths() == {"0": 4, "2": 4, "4": 4}


def test_a_large_network_can_be_predicted_to_take_half() -> None:
    assert why(net(256).eval(), 64, JETSON) is None


def test_a_small_one_cannot_and_the_reason_is_told() -> None:
    reason = why(net(4).eval(), 16, JETSON)

    assert reason is not None
    assert reason.startswith("On jetson the narrowest network that pruning may leave is predicted to take ")
    assert reason.endswith(" ms.")


def test_a_target_that_does_not_predict_is_a_reason() -> None:
    reason = why(net(4).eval(), 16, TargetSpec("ssh"))

    assert reason == "Target 'ssh' cannot predict, and needs the name of a board: give --host user@board."


def test_what_finishes_a_network_counts() -> None:
    finished: list[nn.Module] = []

    def finish(model: nn.Module) -> nn.Module:
        finished.append(model)
        return model

    model = net(4).eval()
    why_not_predicted(model, find_groups(model, torch.zeros(1, 3, 16, 16)), JETSON, HALF, finish=finish)

    assert len(finished) == 2
    assert all(one is not model for one in finished)
