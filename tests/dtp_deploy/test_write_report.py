"""A report is replaced whole or not at all."""

import os
from pathlib import Path

import pytest

from dtp_deploy.artefact import REPORT_JSON, REPORT_MARKDOWN, write_report
from dtp_deploy.errors import InputError
from dtp_deploy.report import Report, read_report

SAMPLE = next((Path(__file__).parent / "report").rglob("*.json"))


@pytest.fixture
def report() -> Report:
    return read_report(SAMPLE)


def contents(folder: Path) -> dict[str, str]:
    return {path.name: path.read_text() for path in folder.iterdir()}


def test_nothing_else_is_left_in_the_folder(report: Report, tmp_path: Path) -> None:
    write_report(report, tmp_path)
    assert set(contents(tmp_path)) == {REPORT_JSON, REPORT_MARKDOWN}
    assert read_report(tmp_path / REPORT_JSON) == report


def test_a_full_disk_leaves_the_old_report_whole(
    report: Report, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    write_report(report, tmp_path)
    before = contents(tmp_path)

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(InputError) as caught:
        write_report(report.model_copy(update={"model": "another"}), tmp_path)
    assert str(caught.value) == (
        f"The report in {tmp_path} cannot be written (No space left on device). Free some space there, and see that "
        "you may write; what was there is as it was."
    )
    assert contents(tmp_path) == before


def test_a_folder_that_is_not_there_is_one_line(report: Report, tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"cannot be written \(No such file or directory\)\."):
        write_report(report, tmp_path / "missing")
