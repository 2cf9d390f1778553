"""A network whose structures are exported once, and targets whose times follow from a formula."""

import copy
from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.export.delivery import deliver
from dtp_deploy.graph import find_groups
from dtp_deploy.latency import LatencyProbe, structures
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


@pytest.fixture
def probe_on(exported: LatencyProbe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """Makes the probe of a formula target by its class and options; models measured are listed in log.txt.

    Formulas have no noise: whole structures are measured in one process.
    """
    monkeypatch.setattr(structures, "_PROCESSES", 1)
    monkeypatch.syspath_prepend(Path(__file__).parent)
    monkeypatch.setenv("FORMULA_LOG", str(tmp_path / "log.txt"))
    monkeypatch.setenv("FORMULA_FAULT", str(tmp_path / "fault.txt"))

    def make(name: str = "Formula", **options: object) -> LatencyProbe:
        probe = copy.copy(exported)
        probe.model = copy.deepcopy(exported.model)  # two threads must not trace one and the same
        probe.target = TargetSpec(f"formula_targets:{name}", options)
        return probe

    return make
