"""Progress is for people who watch."""

import io
import re

import pytest
from rich.console import Console

import dtp_deploy_cli.progress
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy_cli.progress import show_progress


def test_without_a_terminal_it_is_silent(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as progress, progress.task("masks", total=2) as advance:
        advance()
        progress.note("a note")

    assert progress is SILENT
    assert capsys.readouterr() == ("", "")


def test_verbose_is_a_line_a_stage_on_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(verbose=True) as progress, progress.task("masks", total=2) as advance:
        advance()
        progress.note("a note")

    out, err = capsys.readouterr()
    assert out == ""
    assert err.splitlines()[0] == "a note"
    assert err.splitlines()[1].startswith("masks: ")
    assert err.endswith(" s\n")


def test_a_stage_and_its_steps_are_one_line(capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress(verbose=True) as progress, progress.task("masks"):
        with progress.task("masks", total=2) as advance:
            advance()
        with progress.task("accuracy"):
            pass

    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["accuracy", "masks"]


def test_a_stage_is_told_although_a_step_of_it_failed(capsys: pytest.CaptureFixture[str]) -> None:
    def fail(progress: Progress) -> None:
        with progress.task("engine"):
            raise ValueError

    with show_progress(verbose=True) as progress:
        with progress.task("budget"), pytest.raises(ValueError):  # noqa: PT011 - our own
            fail(progress)
        with progress.task("masks"):
            pass
    assert [line.split(":")[0] for line in capsys.readouterr().err.splitlines()] == ["budget", "masks"]


@pytest.fixture
def terminal(monkeypatch: pytest.MonkeyPatch) -> io.StringIO:
    screen = io.StringIO()
    monkeypatch.setattr(
        dtp_deploy_cli.progress,
        "Console",
        lambda stderr: Console(file=screen, force_terminal=True, width=100, color_system=None),
    )
    return screen


def test_on_a_terminal_there_are_bars(terminal: io.StringIO, capsys: pytest.CaptureFixture[str]) -> None:
    with show_progress() as progress:
        with progress.task("masks", total=3) as advance:
            advance()
        with progress.task("export"):
            progress.note("group [stem] is frozen")

    text = terminal.getvalue()
    assert "group [stem] is frozen" in text
    assert re.search(r"✓ masks +━+ 1/1", text)
    assert re.search(r"✓ export +━+ 1/1", text)
    assert capsys.readouterr() == ("", "")


def test_what_passes_leaves_no_bar(terminal: io.StringIO) -> None:
    with show_progress() as progress:
        with progress.task("engine", total=3, passing=True) as advance:
            advance()
        with progress.task("export"):
            pass
    assert "✓ export" in terminal.getvalue()
    assert "✓ engine" not in terminal.getvalue()


def test_a_stage_that_failed_is_not_shown_as_done(terminal: io.StringIO) -> None:
    def fail() -> None:
        with show_progress() as progress, progress.task("masks", total=3) as advance:
            advance()
            raise ValueError

    with pytest.raises(ValueError):  # noqa: PT011 - our own, one line above
        fail()
    assert "1/3" in terminal.getvalue()
    assert "✓" not in terminal.getvalue()
