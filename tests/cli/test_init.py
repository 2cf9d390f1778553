"""``dtp-deploy init``."""

import tomllib
from pathlib import Path

import pytest

from dtp_deploy.config import example_config, read_config


def test_an_example_is_written_that_sets_nothing(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)

    assert run_cli("init") == (
        0,
        "dtp-deploy.toml is written. Take the # away before what you want to set.\n",
        "",
    )
    assert Path("dtp-deploy.toml").read_text() == example_config()
    assert tomllib.loads(example_config()) == {"compress": {}}
    assert read_config().values == {}


def test_a_file_that_is_there_is_not_replaced(run_cli, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("dtp-deploy.toml").write_text("mine")

    assert run_cli("init") == (
        2,
        "",
        "Error: dtp-deploy.toml exists already and is not replaced. Edit it, or move it away.\n",
    )
    assert Path("dtp-deploy.toml").read_text() == "mine"
