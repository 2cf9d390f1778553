"""docs/first-hour.md is typed out, block after block, as its three people would."""

import re
import shlex
import sys
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import onnx
import pytest

from dtp_deploy.report import read_report
from dtp_deploy_cli.main import main

PAGE = (Path(__file__).parents[1] / "docs" / "first-hour.md").read_text(encoding="utf-8")
SECTIONS = re.split(r"^## ", PAGE, flags=re.MULTILINE)[1:]


@pytest.fixture(autouse=True)
def desk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """An empty working directory, from which `examples` can be imported."""
    import signal

    handler = signal.getsignal(signal.SIGTERM)
    monkeypatch.chdir(tmp_path)
    yield
    signal.signal(signal.SIGTERM, handler)


def typed(section: str, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Run every block of a section; what its Python blocks define."""
    names: dict[str, Any] = {}
    for language, block in re.findall(r"^```(python|sh)[^\n]*\n(.+?)^```$", section, re.MULTILINE | re.DOTALL):
        if language == "python":
            exec(block, names)
            continue
        for line in block.splitlines():
            words = shlex.split(line)
            short = ["--epochs", "1", "--batch-size", "16"] if words[1] == "compress" else []
            monkeypatch.setattr(sys, "argv", [*words, *short])
            with pytest.raises(SystemExit) as left:
                main()
            assert left.value.code == 0, line
    return names


@pytest.mark.slow
def test_the_detector(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    typed(SECTIONS[0], monkeypatch)

    out = capsys.readouterr().out
    report = read_report(Path("small-detector/report.json"))
    assert "Imports: examples.yolo_like." in out
    assert report.budget.met
    assert report.dense.accuracy is None
    assert any("accuracy was not measured" in note for note in report.notes)
    (output,) = onnx.load("small-detector/model.onnx").graph.output
    assert [size.dim_value for size in output.type.tensor_type.shape.dim] == [1, 7, 84]
    assert Path("dtp-deploy.toml").is_file()


@pytest.mark.slow
@pytest.mark.skipif(find_spec("timm") is None, reason="timm is not installed")
def test_the_classifier(monkeypatch: pytest.MonkeyPatch) -> None:
    typed(SECTIONS[1], monkeypatch)

    first, second = (read_report(Path(folder) / "report.json") for folder in ("small-resnet", "smaller-resnet"))
    assert first.budget.basis == "measured"
    assert second.dense.params == first.pruned.params


def test_the_loop(monkeypatch: pytest.MonkeyPatch) -> None:
    from dtp_deploy.cost import count_macs

    names = typed(SECTIONS[2], monkeypatch)

    dense, small = (count_macs(names[name], names["x"][:1]) for name in ("model", "small"))
    assert 0.45 * dense < small <= 0.5 * dense


def test_every_command_of_the_page_is_run() -> None:
    assert len(SECTIONS) == 3
    assert sum(len(re.findall(r"^dtp-deploy ", section, re.MULTILINE)) for section in SECTIONS) == 6
