"""The command line, run as a user would, but in this process."""

import json
import signal
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from torch import nn

import dtp_deploy.job
from dtp_deploy.report import Report
from dtp_deploy_cli.main import main


class Outcome(NamedTuple):
    code: int
    out: str
    err: str


RunCli = Callable[..., Outcome]


@pytest.fixture
def run_cli(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Iterator[RunCli]:
    """Runs ``dtp-deploy`` with the given words, and gives its exit code and what it wrote."""
    handler = signal.getsignal(signal.SIGTERM)

    def run(*words: str | Path) -> Outcome:
        monkeypatch.setattr(sys, "argv", ["dtp-deploy", *map(str, words)])
        with pytest.raises(SystemExit) as left:
            main()
        captured = capsys.readouterr()
        assert isinstance(left.value.code, int)
        return Outcome(left.value.code, captured.out, captured.err)

    yield run
    signal.signal(signal.SIGTERM, handler)


@pytest.fixture
def onnx_file(tmp_path: Path) -> Path:
    """A model of one matrix product."""
    weight = numpy_helper.from_array(np.eye(8, dtype=np.float32), "weight")
    shape = [1, 8]
    graph = helper.make_graph(
        [helper.make_node("MatMul", ["input", "weight"], ["output"])],
        "tiny",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, shape)],
        [weight],
    )
    path = tmp_path / "tiny.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def sample_report() -> dict[str, object]:
    """The document of a report."""
    path = Path(__file__).parents[1] / "dtp_deploy" / "report" / "sample_report.json"
    document = json.loads(path.read_text(encoding="utf-8"))
    assert isinstance(document, dict)
    return document


FACTORY = """
from torch import nn

def tiny():
    return nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 10))

def same(model):
    return model
"""


@pytest.fixture
def job(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """A command that lacks only a budget. The working directory holds the factory and the checkpoint."""
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

    monkeypatch.setattr(dtp_deploy.job, "compress", answer)
    return seen
