"""``dtp-deploy compress``: what it refuses, and what it asks of the library (whole runs: tests/test_compress.py)."""

import json
import sys
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import torch
from torch import nn

import dtp_deploy.pipeline
from dtp_deploy.budget import Budget, parse_budget
from dtp_deploy.errors import BudgetError
from dtp_deploy.prune import MaskSettings
from dtp_deploy.report import Report, headline, summary_rows
from dtp_deploy.target import TargetSpec
from dtp_deploy.train import Settings
from dtp_deploy_cli.compress import compress

FACTORY = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that lacks nothing but a budget. The working directory holds the factory and the checkpoint."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delitem(sys.modules, "nets_of_cli_test", raising=False)
    (tmp_path / "nets_of_cli_test.py").write_text(FACTORY)
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))
    torch.save(model.state_dict(), "tiny.pt")
    return [
        "compress",
        "tiny.pt",
        "--model",
        "nets_of_cli_test:tiny",
        "--data",
        "digits",
        "--input",
        "1x1x8x8",
        "--out",
        "small",
    ]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, sample_report: dict[str, object]) -> dict[str, Any]:
    """What the library was asked for; it answers with the sample report at once."""
    seen: dict[str, Any] = {}

    def answer(model: nn.Module, **given: Any) -> Report:
        seen.update(given, model=model)
        return Report.model_validate(sample_report)

    monkeypatch.setattr(dtp_deploy.pipeline, "compress", answer)
    return seen


def test_the_defaults_are_the_librarys(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    assert run_cli(*job, "--macs", "50%").code == 0

    assert asked["settings"] == Settings()
    assert asked["budget"] == Budget("macs", 0.5, relative=True)
    assert asked["target"] == TargetSpec("cpu")
    assert asked["input_shape"] == (1, 1, 8, 8)
    assert asked["out"] == Path("small")
    assert asked["force"] is False
    assert asked["model_name"] == "tiny.pt"
    assert asked["data"].name == "digits"


def test_the_weights_are_loaded(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    run_cli(*job, "--macs", "50%")

    assert torch.equal(asked["model"].state_dict()["0.weight"], torch.load("tiny.pt")["0.weight"])


def test_every_flag_reaches_the_library(run_cli, job: list[str], asked: dict[str, Any]) -> None:
    flags = (
        "--epochs 3 --seed 7 --lr 0.5 --batch-size 8 --no-distill --augment shift --solver sinkhorn-1 --round-to 4 "
        "--threads 1 --force --per-layer"
    )

    assert run_cli(*job, "--channels", "50%", *flags.split()).code == 0

    assert asked["settings"] == Settings(
        epochs=3,
        seed=7,
        learning_rate=0.5,
        batch_size=8,
        distill=False,
        augment="shift",
        masks=MaskSettings(solver="sinkhorn-1", round_to=4),
    )
    assert asked["budget"] == Budget("channels", 0.5, relative=True, scope="per-layer")
    assert asked["target"] == TargetSpec("cpu", {"threads": 1})
    assert asked["force"] is True


@pytest.mark.parametrize(
    ("kind", "text"), [("macs", "1k"), ("params", "1k"), ("size", "2MB"), ("channels", "3"), ("latency", "5ms")]
)
def test_each_kind_of_budget(run_cli, job: list[str], asked: dict[str, Any], kind: Any, text: str) -> None:
    assert run_cli(*job, f"--{kind}", text).code == 0
    assert asked["budget"] == parse_budget(kind, text)


@pytest.mark.parametrize(("option", "owner"), [("solver", MaskSettings), ("augment", Settings)])
def test_the_choices_are_the_librarys(option: str, owner: type) -> None:
    assert get_args(get_type_hints(compress)[option]) == get_args(get_type_hints(owner)[option])


@pytest.mark.usefixtures("asked")
def test_a_person_gets_a_table_and_the_path(run_cli, job: list[str], sample_report: dict[str, object]) -> None:
    report = Report.model_validate(sample_report)

    outcome = run_cli(*job, "--latency", "60%")

    lines = outcome.out.splitlines()
    rows = [tuple(cell.strip() for cell in line.strip("│").split("│")) for line in lines if line.startswith("│")]
    assert (outcome.code, outcome.err) == (0, "")
    assert rows == [tuple(row) for row in summary_rows(report)]
    assert lines[-2:] == [headline(report), "Report: small/report.md"]


@pytest.mark.usefixtures("asked")
def test_a_program_gets_the_report_alone(run_cli, job: list[str], sample_report: dict[str, object]) -> None:
    outcome = run_cli(*job, "--latency", "60%", "--json")

    assert (outcome.code, outcome.err) == (0, "")
    assert json.loads(outcome.out) == sample_report


def test_a_budget_that_is_not_met_is_code_3(run_cli, job: list[str], monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*words: Any, **given: Any) -> Report:
        raise BudgetError("--latency 1us is below what tiny.pt can reach. Give 2us or more.")

    monkeypatch.setattr(dtp_deploy.pipeline, "compress", fail)

    assert run_cli(*job, "--latency", "1us") == (
        3,
        "",
        "Error: --latency 1us is below what tiny.pt can reach. Give 2us or more.\n",
    )


ONE_BUDGET = "Give exactly one budget of --macs, --params, --size, --channels, --latency; given: "


@pytest.mark.parametrize(
    ("budget", "message"),
    [
        ([], f"{ONE_BUDGET}none. For half of the operations: --macs 50%."),
        (
            ["--macs", "50%", "--size", "2MB"],
            f"{ONE_BUDGET}--macs 50% and --size 2MB. For half of the operations: --macs 50%.",
        ),
        (["--macs", "0%"], "--macs 0%: give a percentage above 0% and at most 100%."),
        (["--macs", "120%"], "--macs 120%: give a percentage above 0% and at most 100%."),
        (["--latency", "0ms"], "--latency 0ms: a budget must be above zero. Give 5ms, say."),
        (
            ["--latency", "fast"],
            "--latency 'fast' is not a budget. Give a percentage of the dense model such as 50%, or 5ms "
            "(units: us, ms, s).",
        ),
        (
            ["--size", "2ms"],
            "--size '2ms' is not a budget. Give a percentage of the dense model such as 50%, or 2MB "
            "(units: B, kB, MB, GB, KiB, MiB, GiB).",
        ),
    ],
)
def test_a_wrong_budget_is_refused(run_cli, job: list[str], budget: list[str], message: str) -> None:
    assert run_cli(*job, *budget) == (2, "", f"Error: {message}\n")
    assert not Path("small").exists()


def test_an_existing_folder_is_refused_before_anything_is_read(run_cli, job: list[str]) -> None:
    Path("small").mkdir()
    Path("tiny.pt").unlink()

    assert run_cli(*job, "--macs", "50%") == (
        2,
        "",
        "Error: --out small exists already. Give another folder, or --force to replace it.\n",
    )


def test_an_unknown_target_is_refused_before_anything_is_read(run_cli, job: list[str]) -> None:
    Path("tiny.pt").unlink()

    outcome = run_cli(*job, "--macs", "50%", "--target", "toaster")

    assert outcome.code == 2
    assert outcome.err.startswith("Error: --target 'toaster' is unknown. Give one of: ")


def replaced(job: list[str], option: str, value: str) -> list[str]:
    words = list(job)
    words[words.index(option) + 1] = value
    return words


@pytest.mark.parametrize(
    ("option", "value", "start"),
    [
        ("compress", "missing.pt", "Checkpoint missing.pt does not exist."),
        ("compress", "nets_of_cli_test.py", "Checkpoint nets_of_cli_test.py "),
        ("--model", "nets_of_cli_test", "--model 'nets_of_cli_test' is not of the form pkg.module:name."),
        ("--model", "nets_of_cli_test:big", "--model nets_of_cli_test:big: module nets_of_cli_test has no 'big'."),
        ("--data", "photos", "--data 'photos' is not known."),
        ("--input", "8 by 8", "--input '8 by 8' is not a shape."),
        ("--input", "1x3x32x32", "--input 1x3x32x32 does not fit --data digits, whose samples are 1x8x8."),
    ],
)
@pytest.mark.usefixtures("asked")
def test_bad_input_is_one_line_that_names_it(run_cli, job: list[str], option: str, value: str, start: str) -> None:
    outcome = run_cli(*replaced(job, option, value), "--macs", "50%")

    assert (outcome.code, outcome.out) == (2, "")
    assert outcome.err.startswith(f"Error: {start}")
    assert outcome.err.count("\n") == 1
    assert not Path("small").exists()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ("--epochs 0", "Invalid value for '--epochs': Input should be greater than or equal to 1."),
        ("--lr 0", "--lr 0.0 is not allowed. Give a number above 0, such as 0.02."),
        ("--lr nan", "--lr nan is not allowed. Give a number above 0, such as 0.02."),
    ],
)
def test_a_wrong_hyper_parameter_is_refused(run_cli, job: list[str], words: str, message: str) -> None:
    hint = " See `dtp-deploy compress --help`." if message.startswith("Invalid") else ""

    assert run_cli(*job, "--macs", "50%", *words.split()) == (2, "", f"Error: {message}{hint}\n")
