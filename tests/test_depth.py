"""Whole runs that may remove residual blocks, on real data, with nothing replaced."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import onnx
import pytest
import torch
from torch import Tensor, nn

import dtp_deploy
from dtp_deploy.artefact import read_plan
from dtp_deploy.budget import parse_budget
from dtp_deploy.errors import GraphError, StoppedError, UsageError
from dtp_deploy.loading import Dataset
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.report import Report
from dtp_deploy.testing.blocks import BasicBlock, conv_bn
from dtp_deploy.testing.zoo import randomise
from dtp_deploy.train import Settings

QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)
SETTINGS = Settings(epochs=1, batch_size=256, allow_depth=True)
BLOCKS = 4
compress = partial(dtp_deploy.compress, measuring=QUICKLY)


def make_model() -> nn.Module:
    """Residual blocks of 8 channels; in two of them one holds nearly all, so that the others are worth little."""
    model = nn.Sequential(
        conv_bn(1, 8), nn.ReLU(), *(BasicBlock(8, 8) for _ in range(BLOCKS)), nn.AvgPool2d(4), nn.Flatten(),
        nn.Linear(32, 10),
    )  # fmt: skip
    randomise(model, 0)
    for block in (model[3], model[5]):
        (conv, norm), reader = block.conv1, block.conv2[0]
        for units in (conv.weight, norm.weight, norm.bias, reader.weight.transpose(0, 1)):
            nn.init.constant_(units[1:], 0.01)
    return model


@pytest.fixture(scope="module")
def run(data: Dataset, tmp_path_factory: pytest.TempPathFactory) -> tuple[Report, Path]:
    out = tmp_path_factory.mktemp("runs") / "deep"
    report = compress(make_model(), data=data, budget=parse_budget("macs", "12%"), out=out, settings=SETTINGS)
    return report, out


def test_blocks_go_and_the_budget_is_met_and_used(run: tuple[Report, Path]) -> None:
    report, out = run
    removed = [block.name for block in report.blocks if block.removed]

    assert len(report.blocks) == BLOCKS
    assert removed
    assert report.budget.met
    assert report.budget.achieved > 0.9 * report.budget.limit
    for group in report.groups:
        assert (group.width_after == 0) == any(group.name.startswith(f"{name}.") for name in removed)
    text = (out / "report.md").read_text(encoding="utf-8")
    assert "## Residual blocks" in text
    assert f"| {removed[0]} | removed | it costs " in text
    assert {parity.stage for parity in report.parity if parity.passed} >= {"masked to removed"}


def test_the_delivered_file_has_nothing_of_them(run: tuple[Report, Path]) -> None:
    report, out = run
    graph = onnx.load(out / "model.onnx").graph
    left = sum(not block.removed for block in report.blocks)
    program = torch.export.load(out / "model.pt2")

    assert sum(node.op_type == "Add" for node in graph.node) == left
    assert sum(node.op_type == "Conv" for node in graph.node) == 1 + 2 * left
    names = [*(tensor.name for tensor in graph.initializer), *program.state_dict]
    removed = [f"{block.name}." for block in report.blocks if block.removed]
    assert not [name for name in names if name.startswith(tuple(removed))]


def test_it_reloads_and_is_compressed_again(run: tuple[Report, Path], data: Dataset, tmp_path: Path) -> None:
    report, out = run
    small = dtp_deploy.load_pruned(make_model, out)
    images = next(iter(data.validation(8)))[0]
    program = torch.export.load(out / "model.pt2").module()
    assert torch.allclose(small(*[images[0][:1]]), program(images[0][:1]), atol=1e-5)

    again = tmp_path / "again"
    compress(
        small.requires_grad_(True),
        data=data,
        budget=parse_budget("macs", "70%"),
        out=again,
        settings=SETTINGS,
        pruned_by=read_plan(out),
    )

    plan = read_plan(again)
    assert {block.name for block in plan.removed_blocks} >= {block.name for block in report.blocks if block.removed}
    assert dtp_deploy.load_pruned(make_model, again)(images[0]).shape == (8, 10)


class Stops:
    """A listener that stops the run in fine-tuning."""

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        def advance() -> None:
            if name == "fine-tuning":
                raise StoppedError("stopped", 15)

        yield advance

    def note(self, message: str) -> None:
        pass


def test_a_run_that_was_cut_off_after_the_removal_goes_on(
    run: tuple[Report, Path], data: Dataset, tmp_path: Path
) -> None:
    out = tmp_path / "deep"
    given: dict[str, Any] = {"data": data, "budget": parse_budget("macs", "12%"), "out": out, "settings": SETTINGS}
    with pytest.raises(StoppedError):
        compress(make_model(), progress=Stops(), **given)

    report = compress(make_model(), resume=True, **given)

    assert report.blocks == run[0].blocks
    assert report.onnx_sha256 == run[0].onnx_sha256


class Halved(nn.Module):
    """A branch that ends in an operation."""

    def __init__(self) -> None:
        super().__init__()
        self.conv = nn.Conv2d(8, 8, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        return x + self.conv(x) / 2


def test_a_model_without_blocks_is_refused(data: Dataset, tmp_path: Path) -> None:
    def refused(between: nn.Module) -> str:
        model = nn.Sequential(
            nn.Conv2d(1, 8, 3), nn.ReLU(), between, nn.Conv2d(8, 8, 3), nn.Flatten(), nn.Linear(128, 10)
        )
        with pytest.raises(GraphError) as error:
            compress(model, data=data, budget=parse_budget("macs", "50%"), out=tmp_path / "out", settings=SETTINGS)
        return str(error.value)

    end = "A block is x + f(x), where f ends in a module of its own. Leave --allow-depth out."
    start = "--allow-depth: Sequential has no residual block that could be removed as a whole: "
    assert refused(nn.ReLU()) == f"{start}it has none. {end}"
    why = "its branch ends in an operation (div) that is no module's output"
    assert refused(Halved()) == f"{start}none of its 1 may go (2: {why}). {end}"


def test_other_granularities_and_one_ratio_for_all_are_refused(data: Dataset, tmp_path: Path) -> None:
    for granularity, budgets in (("weights", [parse_budget("params", "50%")]), ("2:4", [])):
        settings = replace(SETTINGS, granularity=granularity)
        with pytest.raises(UsageError, match=f"--allow-depth removes layers, and --granularity {granularity} sets"):
            compress(make_model(), data=data, budget=budgets, out=tmp_path / "out", settings=settings)
    budget = parse_budget("macs", "50%", "per-layer")
    with pytest.raises(UsageError, match="--per-layer keeps the same ratio in every layer"):
        compress(make_model(), data=data, budget=budget, out=tmp_path / "out", settings=SETTINGS)
