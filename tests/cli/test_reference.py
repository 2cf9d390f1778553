"""docs/cli.md names every command and every flag."""

import re
from pathlib import Path

import pytest
import typer

from dtp_deploy.errors import DtpError
from dtp_deploy_cli.main import EXIT_CODES, app
from dtp_deploy_cli.reference import error_classes, help_text, render_errors, render_reference

DOCUMENT = Path(__file__).parents[2] / "docs" / "cli.md"
COMMANDS = sorted(typer.main.get_group(app).commands)


def undocumented(text: str) -> list[str]:
    """Commands and flags of the application that the text does not name."""
    group = typer.main.get_group(app)
    missing = []
    for name, command in group.commands.items():
        section = text.partition(f"## dtp-deploy {name}\n")[2].partition("\n## ")[0]
        words = [word for parameter in command.params for word in [*parameter.opts, *parameter.secondary_opts]]
        flags = [word for word in words if word.startswith("-")]
        missing += [f"{name} {flag}" for flag in flags if not re.search(rf"(?i)(?<![\w-]){flag}(?![\w-])", section)]
        missing += [name] if not section else []
    return missing


def test_every_command_and_flag_is_documented() -> None:
    assert undocumented(DOCUMENT.read_text(encoding="utf-8")) == []


@pytest.mark.parametrize(
    ("removed", "missing"), [("--round-to", "compress --round-to"), ("## dtp-deploy targets", "targets")]
)
def test_the_check_fails_for_what_is_missing(removed: str, missing: str) -> None:
    assert missing in undocumented(DOCUMENT.read_text(encoding="utf-8").replace(removed, ""))


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render_reference(), (
        "run: python -m dtp_deploy_cli.reference > docs/cli.md"
    )


@pytest.mark.parametrize("command", COMMANDS)
def test_the_document_shows_what_help_prints(run_cli, monkeypatch: pytest.MonkeyPatch, command: str) -> None:
    monkeypatch.setenv("COLUMNS", "100")

    printed = run_cli(command, "--help").out

    assert "".join(printed.split()) == "".join(help_text(command).split())  # however the lines are broken


def test_every_exit_code_is_documented() -> None:
    text = DOCUMENT.read_text(encoding="utf-8")

    assert all(f"| {code} | {meaning} |" in text for code, meaning in EXIT_CODES.items())


def test_the_table_of_errors_is_up_to_date_and_complete() -> None:
    text = DOCUMENT.with_name("errors.md").read_text(encoding="utf-8")

    assert text == render_errors(), "run: python -m dtp_deploy_cli.reference errors > docs/errors.md"
    for error in error_classes():
        assert f"| `{error.__name__}` |" in text
        assert error.exit_code in EXIT_CODES
    assert DtpError not in error_classes()
    assert len(error_classes()) == len(DtpError.__subclasses__())
