"""report.md says what report.json says, in words and points."""

import json
from pathlib import Path
from typing import Any

import pytest

from dtp_deploy.report import Report, headlines, render_markdown
from dtp_deploy.report.schema import MaskPhaseEntry

SAMPLE = json.loads((Path(__file__).parent / "sample_report.json").read_text(encoding="utf-8"))


def report_with(**changes: Any) -> Report:
    return Report.model_validate({**SAMPLE, **changes})


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        ({}, "Budget met: p50 latency 1.1 ms of at most 1.2 ms (60% of the dense model), measured on cpu."),
        (
            {"achieved": 1.3, "met": False},
            "Budget NOT met: p50 latency 1.3 ms of at most 1.2 ms (60% of the dense model), measured on cpu.",
        ),
        (
            {"met": None, "basis": "predicted"},
            "Budget not checked: p50 latency 1.1 ms of at most 1.2 ms (60% of the dense model), "
            "predicted, not measured.",
        ),
        (
            {"met": None, "achieved": None},
            "Budget not checked: p50 latency at most 1.2 ms (60% of the dense model); what was reached is not known.",
        ),
        (
            {"kind": "macs", "requested": "10M", "relative": False, "limit": 1e7, "unit": "MACs", "achieved": 9e6},
            "Budget met: 9.000 M MACs of at most 10.000 M MACs, measured on cpu.",
        ),
        (
            {
                "kind": "size",
                "requested": "2MB",
                "relative": False,
                "limit": 2e6,
                "unit": "bytes",
                "achieved": 1.9e6,
                "basis": "computed",
            },
            "Budget met: size 1.900 MB of at most 2.000 MB, computed exactly from the pruned model.",
        ),
    ],
)
def test_headline_says_verdict_figure_limit_and_basis(changes: dict[str, Any], expected: str) -> None:
    assert headlines(report_with(budget={**SAMPLE["budget"], **changes})) == [expected]


def test_every_budget_has_a_line() -> None:
    size = {"kind": "size", "requested": "2MB", "relative": False, "limit": 2e6, "unit": "bytes", "achieved": 1.9e6}
    report = report_with(further_budgets=[SAMPLE["budget"] | size | {"basis": "computed", "met": True}])
    first, second = headlines(report)
    assert first == headlines(report_with())[0]
    assert second == "Budget met: size 1.900 MB of at most 2.000 MB, computed exactly from the pruned model."
    assert f"**{first}**\n\n**{second}**" in render_markdown(report)


@pytest.mark.parametrize(
    "line",
    [
        "Target: cpu (onnxruntime 1.31.1 on x86_64, 1 thread).",
        "| accuracy (points) | 92.34 | 91.12 | -1.22 |",
        "| latency p50 | 2 ms | 1.1 ms (unstable) | 0.550 (0.540 to 0.570) |",
        "| MACs | 20.000 M | 9.000 M | 0.450 |",
        "**The latency of the pruned model was unstable: repeat it on a quiet machine.**",
        "| after hardening | 84.00 |",
        "| layer1.0.conv1 | 16 |  | 9 |  |",
        "| stem\\|conv | 16 |  | 16 | a norm runs across its channels |",
        "| dense ONNX | 1e-06 | 2e-07 | 0.0001 | yes |",
        "| broken pass | not comparable | not comparable | 0.0001 | NO |",
        "| fuse | NO | it changed the numbers |",
        "| masks | 30.5 |",
        "| learning_rate | 0.02 |",
        "| torch | 2.13.0 |",
        "- Group stem|conv is frozen.",
    ],
)
def test_every_part_is_shown(line: str) -> None:
    assert line in render_markdown(report_with()).splitlines()


def test_what_is_not_known_is_a_dash() -> None:
    unknown = {**SAMPLE["pruned"], "accuracy": None, "latency": None}
    lines = render_markdown(report_with(pruned=unknown, latency_ratio=None)).splitlines()

    assert "| accuracy (points) | 92.34 | - | - |" in lines
    assert "| latency p50 | 2 ms | - | - |" in lines


def test_single_weights_that_are_zero_are_told() -> None:
    layer = {"name": "stem", "weights": 80, "kept": 40, "left_because": None}
    left = {"name": "head", "weights": 30, "kept": 30, "left_because": "four does not divide its 3 inputs"}
    pruned = {**SAMPLE["pruned"], "nonzero_params": 135000}
    lines = render_markdown(report_with(granularity="2:4", layers=[layer, left], pruned=pruned)).splitlines()

    assert "| not zero (2:4) | 270.000 k | 135.000 k | 0.500 |" in lines
    assert "## Layers (2:4)" in lines
    assert "| stem | 80 | 40 |  |" in lines
    assert "| head | 30 | 30 | four does not divide its 3 inputs |" in lines


def test_empty_parts_are_left_out() -> None:
    text = render_markdown(report_with(notes=[], passes=[]))

    assert "## Notes" not in text
    assert "## Passes" not in text
    assert "## Parity" in text


def test_the_groups_say_what_was_learned_and_what_was_kept() -> None:
    groups = [
        {"name": "head", "width_before": 7, "width_after": 7, "frozen_because": "an output"},
        {"name": "stem", "width_before": 20, "width_after": 16, "frozen_because": None},
    ]
    entry = dict.fromkeys(MaskPhaseEntry.model_fields)
    entry |= {"epoch": 0, "step": 0, "cost_share": 1.0, "undecided": 0.0, "entropy_bits": 0.0, "widths": [17]}
    lines = render_markdown(report_with(groups=groups, mask_phase=[entry])).splitlines()
    assert "| head | 7 |  | 7 | an output |" in lines
    assert "| stem | 20 | 17 | 16 |  |" in lines


def test_a_table_survives_any_text() -> None:
    group = {"name": "a\nb", "width_before": 1, "width_after": 1, "frozen_because": "x | y\n| z"}

    assert "| a b | 1 |  | 1 | x \\| y \\| z |" in render_markdown(report_with(groups=[group])).splitlines()


def test_the_ten_slowest_layers_are_shown() -> None:
    layers = [{"name": f"l{ms}", "mean_ms": ms, "median_ms": None, "precision": "fp16"} for ms in range(1, 13)]
    pruned = SAMPLE["pruned"] | {"latency": SAMPLE["pruned"]["latency"] | {"layer_times": layers}}
    text = render_markdown(report_with(pruned=pruned))
    assert "The 10 slowest of 12, by the runtime's profiler." in text
    assert "| l12 | 15.4% | 12 ms | - | fp16 |" in text
    assert "| l3 |" in text
    assert "| l2 |" not in text
    pruned["latency"]["layer_times"] = layers[:2]
    assert "All 2, by the runtime's profiler." in render_markdown(report_with(pruned=pruned))
    pruned["latency"]["layer_times"] = None
    assert "## Times" not in render_markdown(report_with(pruned=pruned))
