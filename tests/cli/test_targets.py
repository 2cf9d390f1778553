"""``dtp-deploy targets``."""

import json
from pathlib import Path

import pytest

from dtp_deploy.target import Availability, Engine, Target


class Absent(Target):
    """A target whose runtime is not installed."""

    name = "absent"
    summary = "A runtime that nobody has"

    def availability(self) -> Availability:
        return Availability(False, "needs the package absent", "pip install 'dtp-deploy[absent]'")

    def _build(self, model_path: Path) -> Engine:
        raise AssertionError("never built")


class Compiler(Absent):
    """A target that builds here what only another machine can run."""

    name = "compiler"

    def availability(self) -> Availability:
        return Availability(False, "builds here, but cannot run: no chip", builds=True)


def test_the_cpu_is_available(run_cli) -> None:
    outcome = run_cli("targets", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert {entry["name"]: entry["available"] for entry in json.loads(outcome.out)}["cpu"] is True


def test_a_missing_target_says_why_and_what_to_install(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtp_deploy.target.target_classes", lambda: {"absent": Absent})

    assert json.loads(run_cli("targets", "--json").out) == [
        {
            "name": "absent",
            "summary": "A runtime that nobody has",
            "available": False,
            "builds": False,
            "reason": "needs the package absent",
            "install": "pip install 'dtp-deploy[absent]'",
        }
    ]
    lines = run_cli("targets").out.splitlines()
    assert [cell.strip() for cell in lines[3].strip("│").split("│")] == [
        "absent",
        "A runtime that nobody has",
        "no",
        "needs the package absent",
        "pip install 'dtp-deploy[absent]'",
    ]


def test_a_target_that_only_builds_is_no_place_to_measure(run_cli, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dtp_deploy.target.target_classes", lambda: {"compiler": Compiler})

    (entry,) = json.loads(run_cli("targets", "--json").out)
    assert (entry["available"], entry["builds"]) == (False, True)
    line = run_cli("targets").out.splitlines()[3]
    assert "builds only" in line
    assert "builds here, but cannot run: no chip" in line
