"""A network whose structures are exported once, and targets whose times follow from a formula."""

import copy
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.export.delivery import deliver
from dtp_deploy.graph import find_groups
from dtp_deploy.latency import LatencyProbe, LatencyTable, learn_table, structures
from dtp_deploy.latency.probe import PROBING
from dtp_deploy.prune import prove
from dtp_deploy.target import TargetSpec
from dtp_deploy.testing.blocks import conv_bn
from dtp_deploy.testing.zoo import randomise


def network() -> nn.Module:
    """Two convolutions, a depthwise one and a head, for (1, 3, 8, 8)."""
    model = nn.Sequential(
        conv_bn(3, 32),
        nn.ReLU(),
        conv_bn(32, 64, kernel=1),
        nn.ReLU(),
        conv_bn(64, 64, groups=64),
        nn.ReLU(),
        conv_bn(64, 48),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Linear(48, 10),
    )
    return randomise(model, 0).eval()


@pytest.fixture(scope="session")
def exported(tmp_path_factory: pytest.TempPathFactory) -> LatencyProbe:
    """Keeps the files of all structures that any test asks for."""
    folder = tmp_path_factory.mktemp("structures")
    model, inputs = network(), (torch.randn(1, 3, 8, 8),)
    groups = prove(model, find_groups(model, inputs))
    batches = [{"input": inputs[0].numpy()}]
    deliver(model, inputs, folder / "dense.onnx", batches, "dense")
    return LatencyProbe(model, groups, TargetSpec("cpu"), folder, folder / "dense.onnx", batches, PROBING)


def on_formulas(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let formula targets be found; they list the models that they measure in log.txt.

    Formulas have no noise: whole structures are measured in one process.
    """
    monkeypatch.setattr(structures, "_PROCESSES", 1)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("FORMULA_LOG", str(folder / "log.txt"))
    monkeypatch.setenv("FORMULA_FAULT", str(folder / "fault.txt"))


def probe_of(exported: LatencyProbe, name: str = "Formula", **options: object) -> LatencyProbe:
    """The probe of a formula target by its class and options."""
    probe = copy.copy(exported)
    probe.model = copy.deepcopy(exported.model)  # two threads must not trace one and the same
    probe.target = TargetSpec(f"formula_targets:{name}", options)
    return probe


@pytest.fixture
def probe_on(exported: LatencyProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    on_formulas(monkeypatch, tmp_path)
    return partial(probe_of, exported)


@dataclass(frozen=True)
class Learned:
    """What was learned of a target of step 8: its table, its cache, and the log of what was measured for it."""

    table: LatencyTable
    cache: Path
    log: str


@pytest.fixture(scope="session")
def learned(exported: LatencyProbe, tmp_path_factory: pytest.TempPathFactory) -> Learned:
    """Not to be written to: copy the cache."""
    folder = tmp_path_factory.mktemp("learned")
    with pytest.MonkeyPatch.context() as monkeypatch:
        on_formulas(monkeypatch, folder)
        table = learn_table(probe_of(exported, step=8), cache_folder=folder / "cache")
    return Learned(table, folder / "cache", (folder / "log.txt").read_text())
