"""``dtp-deploy calibrate``."""

from pathlib import Path

import pytest
import torch

from dtp_deploy.cost import ChannelSum, LatencyCost, LayerTime, Staircase, TimedLayer
from dtp_deploy.latency import LatencyTable
from dtp_deploy.target import TargetSpec

LINE = (
    "Latency table: 3 kinds of layers measured, 1 estimated; preferred widths: multiples of 8 input and multiples "
    "of 8 (best: of 32) output channels; structures that it had not seen were off by 2.0% in the median, 4.0% at most. "
    "Load of other work came and went during 2 of 9 measurements: for better figures, remove them from the cache and "
    "calibrate on a quiet machine.\n"
)
STAIRS = (Staircase(8, (8.0,)), Staircase(8, (18.0, 21.0, 26.0, 32.0)))


@pytest.fixture
def seen(monkeypatch: pytest.MonkeyPatch) -> list[object]:
    """What the command asked the library for; nothing is measured."""
    given: list[object] = []
    layer = TimedLayer(LayerTime((1,), (1, 2), ((1.0, 2.0),)), ChannelSum(1.0, (0.0,)), ChannelSum(0.0, (1.0,)))

    def learn(model: object, inputs: tuple[torch.Tensor, ...], target: TargetSpec, **named: object) -> LatencyTable:
        given.extend([type(model).__name__, [tuple(each.shape) for each in inputs], target, named["time_cap_s"]])
        cost, errors = LatencyCost([layer], [2], 0.0, STAIRS), (0.01, -0.02, 0.04)
        return LatencyTable(cost, 2.0, 3, 1, errors, (2, 9), problem="It could not be kept.")

    monkeypatch.setattr("dtp_deploy.latency.calibrate", learn)
    return given


def test_the_options_reach_the_library_and_the_table_is_told_of(run_cli, seen: list[object], tmp_path: Path) -> None:
    outcome = run_cli(
        "calibrate", "examples.digits_cnn:make_model", "--input", "1x1x8x8", "--threads", "1", "--time-cap", "7"
    )
    assert (outcome.code, outcome.err) == (0, "")
    assert outcome.out == LINE + "It could not be kept.\n"
    assert seen == ["ResNet", [(1, 1, 8, 8)], TargetSpec("cpu", {"threads": 1}), 7.0]


def test_a_missing_input_is_refused_before_anything_is_measured(run_cli, seen: list[object]) -> None:
    outcome = run_cli("calibrate", "examples.digits_cnn:make_model")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: No --input is given")
    assert seen == []


def test_an_unknown_target_is_refused_first(run_cli, seen: list[object]) -> None:
    outcome = run_cli("calibrate", "missing.pt", "--target", "toaster")
    assert outcome.code == 2
    assert outcome.err.startswith("Error: --target 'toaster' is unknown.")
    assert seen == []
