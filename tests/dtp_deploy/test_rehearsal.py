"""A dry run says what a run would do, and does none of it."""

from pathlib import Path

import pytest
import torch
from torch import nn

from dtp_deploy.config import CompressConfig, ConfigFile
from dtp_deploy.errors import GraphError
from dtp_deploy.job import resolve
from dtp_deploy.order import make_order
from dtp_deploy.rehearsal import DryRun, rehearse


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save(nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Conv2d(4, 6, 3), nn.Flatten()), "net.pt")


def rehearsed(**given: object) -> DryRun:
    config = {"checkpoint": "net.pt", "input": "1x1x8x8", "trust": True, "dry_run": True, **given}
    return rehearse(resolve(make_order(CompressConfig.model_validate(config), ConfigFile())))


def test_everything_is_said() -> None:
    plan = rehearsed()

    assert plan.imports[0] == "torch.nn.modules.activation.ReLU"
    assert plan.files == ("net.pt",)
    assert plan.out == "net-compressed"
    assert plan.budgets == ("latency 50%",)
    assert [(name, width, reason is None) for name, width, reason in plan.groups] == [("0", 4, True), ("2", 6, False)]
    reach = {one.kind: one for one in plan.reach}
    # 6x6 positions of 3x3x1x4 weights, and 4x4 of 3x3x4x6; then one channel in place of the four.
    assert (reach["macs"].dense, reach["macs"].smallest) == (36 * 36 + 16 * 216, 36 * 9 + 16 * 54)
    assert (reach["params"].dense, reach["params"].smallest) == (40 + 222, 10 + 60)
    assert (reach["size"].dense, reach["channels"].smallest) == (4 * 262, 1)
    assert (reach["latency"].basis, reach["macs"].basis) == ("measured", "computed")
    assert reach["latency"].smallest > 0
    assert sorted(path.name for path in Path().iterdir()) == ["net.pt"]


def test_the_figures_are_those_of_the_smallest_network() -> None:
    from dtp_deploy.cost import count_macs

    small = nn.Sequential(nn.Conv2d(1, 1, 3), nn.ReLU(), nn.Conv2d(1, 6, 3), nn.Flatten())

    assert {one.kind: one.smallest for one in rehearsed().reach}["macs"] == count_macs(small, torch.zeros(1, 1, 8, 8))


def test_a_target_that_is_not_here_and_cannot_predict_is_no_error() -> None:
    plan = rehearsed(target="ssh")

    assert [one.kind for one in plan.reach] == ["macs", "params", "size", "channels"]
    assert plan.budgets == ("macs 50%",)
    assert any(note.startswith("What a latency budget can reach is not known. ") for note in plan.notes)


def test_a_model_without_anything_to_prune_is_refused() -> None:
    torch.save(nn.Sequential(nn.Flatten(), nn.Linear(64, 3)), "net.pt")

    with pytest.raises(GraphError, match=r"^Sequential has nothing to prune: "):
        rehearsed()
