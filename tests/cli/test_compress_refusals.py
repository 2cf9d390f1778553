"""``dtp-deploy compress``: values that it refuses, each in one line, before anything is written."""

from pathlib import Path

import pytest


@pytest.mark.parametrize(
    ("budget", "message"),
    [
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
        ("--data", "photos", "--data 'photos' is not known, and there is no such file or folder."),
        ("--input", "8 by 8", "--input '8 by 8' is not of the form [name:]shape[:type]."),
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
        ("--statistic p90", "--statistic p90 is of a latency. Give --latency too, or leave it out."),
        (
            "--target-option fast",
            "--target-option 'fast' is not of the form KEY=VALUE. Give a name and a value: precision=fp16.",
        ),
        (
            "--mean 0.5,a",
            "--mean 0.5,a is not allowed. Input should be a valid number, unable to parse string as a number.",
        ),
        ("--crop big", "--crop 'big' is not a size. Give pixels, such as 224, or HEIGHTxWIDTH: 480x640."),
        ("--epochs 0", "Invalid value for '--epochs': Input should be greater than or equal to 1."),
        (
            "--scores nonsense",
            "Invalid value for '--scores': 'nonsense' is not one of 'l2', 'bn', 'taylor', 'uniform'.",
        ),
        ("--lr 0", "--lr 0.0 is not allowed. Give a number above 0, such as 0.02."),
        ("--lr nan", "--lr nan is not allowed. Input should be a finite number."),
    ],
)
def test_a_wrong_hyper_parameter_is_refused(run_cli, job: list[str], words: str, message: str) -> None:
    hint = " See `dtp-deploy compress --help`." if message.startswith("Invalid") else ""

    assert run_cli(*job, "--macs", "50%", *words.split()) == (2, "", f"Error: {message}{hint}\n")
