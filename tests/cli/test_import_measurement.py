"""``dtp-deploy import-measurement``: what it asks the library for, and how it ends."""

import json
from pathlib import Path
from typing import Any

import pytest

from dtp_deploy.errors import BudgetError
from dtp_deploy.report import Report

SAMPLE = Path(__file__).parents[1] / "dtp_deploy/report/sample_report.json"


def test_the_files_reach_the_library_and_the_verdict_is_shown(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []

    def complete(*given: Any) -> Report:
        asked.extend(given)
        return Report.from_json(SAMPLE.read_text(encoding="utf-8"))

    monkeypatch.setattr("dtp_deploy.imports.import_measurement", complete)
    outcome = run_cli("import-measurement", "out", "times.json", "--layers", "profile.json", "--force")

    assert (outcome.code, outcome.err) == (0, "")
    assert asked == [Path("out"), Path("times.json"), True, Path("profile.json")]
    assert "Budget met: p50 latency 1.1 ms" in outcome.out
    assert json.loads(run_cli("import-measurement", "out", "times.json", "--json").out)["schema_version"] == 1


def test_a_budget_that_the_measurement_breaks_is_code_3(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*given: Any) -> Report:
        raise BudgetError("--latency 5ms was not met: 6 ms were measured.")

    monkeypatch.setattr("dtp_deploy.imports.import_measurement", fail)

    assert run_cli("import-measurement", "out", "result.json") == (
        3,
        "",
        "Error: --latency 5ms was not met: 6 ms were measured.\n",
    )
