"""Whole runs that prune single weights, or two of every four, on real data."""

import dataclasses
from functools import partial
from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from onnx import numpy_helper
from torch import nn

import dtp_deploy
from dtp_deploy.artefact import read_plan
from dtp_deploy.budget import Budget, Granularity, parse_budget
from dtp_deploy.checkpoints import CheckpointFolder
from dtp_deploy.cost import count_parameters
from dtp_deploy.errors import ParityError, UsageError
from dtp_deploy.export.zeros import most_of_four
from dtp_deploy.loading import Dataset
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.report import Report, render_markdown, summary_rows
from dtp_deploy.train import Settings
from dtp_deploy_targets.prepare import prepare
from tests.test_resume import CutOff, StopsAt, cut

QUICKLY = MeasureSettings(min_samples=20, min_seconds=0.05, blocks=5, warm_up_seconds=0.01, repeats=0)
BUDGETS: dict[Granularity, tuple[Budget, ...]] = {"weights": (parse_budget("params", "20%"),), "2:4": ()}
MASKED = {"weights": ["0", "3", "7"], "2:4": ["3", "7"]}


def make_model() -> nn.Module:
    """BatchNorm before and after, one convolution of a single channel."""
    return nn.Sequential(
        nn.Conv2d(1, 8, 3, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Conv2d(8, 8, 3, stride=2, padding=1, bias=False),
        nn.BatchNorm2d(8),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(128, 10),
    )


@pytest.fixture(scope="module")
def dense() -> nn.Module:
    torch.manual_seed(0)
    return make_model()


@dataclasses.dataclass(frozen=True)
class Finished:
    granularity: Granularity
    report: Report
    out: Path


def settings(granularity: Granularity) -> Settings:
    return Settings(epochs=2, batch_size=128, granularity=granularity)


def run(granularity: Granularity, dense: nn.Module, data: Dataset, out: Path, **further: object) -> Report:
    job = partial(dtp_deploy.compress, dense, data=data, out=out, measuring=QUICKLY)
    return job(**{"budget": BUDGETS.get(granularity), "settings": settings(granularity)} | further)


@pytest.fixture(scope="module", params=["weights", "2:4"])
def finished(
    request: pytest.FixtureRequest, dense: nn.Module, data: Dataset, tmp_path_factory: pytest.TempPathFactory
) -> Finished:
    out = tmp_path_factory.mktemp("runs") / "out"
    return Finished(request.param, run(request.param, dense, data, out), out)


def test_the_budget_is_used_to_the_last_weight(finished: Finished, dense: nn.Module) -> None:
    report, total = finished.report, count_parameters(dense)
    masked = [layer for layer in report.layers if layer.left_because is None]
    assert [layer.name for layer in masked] == MASKED[finished.granularity]
    model = dtp_deploy.load_pruned(make_model, finished.out)
    kept = {layer.name: int(torch.count_nonzero(model.get_submodule(layer.name).weight)) for layer in report.layers}
    assert kept == {layer.name: layer.kept for layer in report.layers}
    wanted = int(0.2 * total) if finished.granularity == "weights" else total - (8 * 72 + 1280) // 2
    assert report.budget.met is True
    assert report.budget.achieved == report.pruned.nonzero_params == wanted
    assert report.budget.unit == "non-zero parameters"
    assert (report.pruned.params, report.pruned.macs) == (report.dense.params, report.dense.macs)


def test_the_zeros_are_in_the_onnx_after_batchnorm_was_folded(finished: Finished) -> None:
    model = dtp_deploy.load_pruned(make_model, finished.out)
    graph = onnx.load(finished.out / "model.onnx").graph
    assert not any(node.op_type == "BatchNormalization" for node in graph.node)
    weights = [numpy_helper.to_array(tensor) for tensor in graph.initializer]
    for name in MASKED[finished.granularity]:
        expected = model.get_submodule(name).weight.detach().numpy()
        (found,) = [one for one in weights if one.shape == expected.shape]
        np.testing.assert_array_equal(found == 0, expected == 0)
        if finished.granularity == "2:4":
            assert most_of_four(found) == 2


def test_the_loaded_model_computes_what_the_onnx_computes(finished: Finished, data: Dataset) -> None:
    model = dtp_deploy.load_pruned(make_model, finished.out)
    session = onnxruntime.InferenceSession(finished.out / "model.onnx", providers=["CPUExecutionProvider"])
    x = data.x_val[:1]
    with torch.no_grad():
        np.testing.assert_allclose(session.run(None, {"input": x})[0], model(torch.from_numpy(x)).numpy(), atol=1e-4)


def test_every_face_of_the_report_says_what_was_pruned_and_who_gains(finished: Finished) -> None:
    report, granularity = finished.report, finished.granularity
    assert report.granularity == read_plan(finished.out).granularity == granularity
    assert f"not zero ({granularity})" in [row.quantity for row in summary_rows(report)]
    text = render_markdown(report)
    assert f"## Layers ({granularity})" in text
    assert any("stores a zero like any other value" in note for note in report.notes)
    gain = "no target computes faster" if granularity == "weights" else "sparse tensor cores of NVIDIA GPUs from Ampere"
    assert gain in text
    if granularity == "2:4":
        assert "four does not divide its 1 inputs" in text
        assert report.budget.requested == "2:4"


def test_tensorrt_is_told_of_two_of_four(finished: Finished, tmp_path: Path) -> None:
    """Its target lets TensorRT use sparse kernels where the facts name such weights."""
    facts = prepare(finished.out / "model.onnx", "fp16", tmp_path / "half.onnx")
    assert len(facts.sparse_2_4) == (len(MASKED["2:4"]) if finished.granularity == "2:4" else 0)


def test_a_resumed_run_ends_bit_for_bit_where_the_uninterrupted_one_does(
    finished: Finished, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    # Masks of both are cut off in their own test; here one is cut off while they are learned, one with zeros held.
    stage, steps = ("masks", 5) if finished.granularity == "weights" else ("fine-tuning", 7)
    out = tmp_path / "out"
    with pytest.raises(CutOff):
        run(finished.granularity, dense, data, out, checkpoint_minutes=0.0, progress=StopsAt(stage, steps, cut))
    torch.manual_seed(99)
    run(finished.granularity, dense, data, out, resume=True)
    for name in ("pruning_plan.json", "model.safetensors", "model.onnx"):
        assert (out / name).read_bytes() == (finished.out / name).read_bytes(), name


def test_a_finish_that_loses_the_zeros_is_not_delivered(dense: nn.Module, data: Dataset, tmp_path: Path) -> None:
    def shift(model: nn.Module) -> nn.Module:
        with torch.no_grad():
            model[3].weight.add_(0.01)
        return model

    with pytest.raises(ParityError, match=r"The zeros of layer '3' are not in model\.onnx") as caught:
        run("2:4", dense, data, tmp_path / "out", finish=shift)
    assert caught.value.exit_code == 6
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("granularity", "budgets", "message"),
    [
        ("weights", "latency=5ms", "--latency 5ms cannot be kept by --granularity weights: no runtime is faster"),
        ("weights", "size=1MB", "--size 1MB cannot be kept by --granularity weights: the ONNX file stores zeros"),
        ("weights", "macs=50%", "a runtime multiplies by zeros"),
        ("weights", "channels=50%", "--channel-count 50% cannot be kept by .*it removes no channels. Give --params"),
        ("2:4", "params=50%", "--params 50% does not go with --granularity 2:4"),
        ("weights", "", r"got the budgets \[\]"),
        ("channels", "", r"got the budgets \[\]"),
    ],
)
def test_a_budget_that_zeros_cannot_keep_is_refused(
    granularity: Granularity, budgets: str, message: str, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    kind, _, text = budgets.partition("=")
    budget = [parse_budget(kind, text)] if kind else []  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=message):
        run(granularity, dense, data, tmp_path / "out", budget=budget)


def test_zeros_of_an_earlier_run_stay_and_percentages_are_of_what_is_not_zero(
    finished: Finished, dense: nn.Module, data: Dataset, tmp_path: Path
) -> None:
    before = dtp_deploy.load_pruned(make_model(), finished.out)
    plan, nonzero = read_plan(finished.out), finished.report.pruned.nonzero_params
    assert nonzero is not None
    budget = (parse_budget("params", "80%"),)
    report = run("weights", before, data, tmp_path / "again", budget=budget, pruned_by=plan)
    assert report.dense.nonzero_params == nonzero
    assert report.budget.limit == pytest.approx(0.8 * nonzero)
    assert report.budget.achieved == int(0.8 * nonzero)
    after = dtp_deploy.load_pruned(make_model(), tmp_path / "again")
    for layer in plan.layers:
        if layer.left_because is None:
            first, second = (model.state_dict()[layer.tensor] for model in (before, after))
            assert not second[first == 0].any()


def test_channels_after_single_weights_are_refused(finished: Finished, data: Dataset, tmp_path: Path) -> None:
    before = dtp_deploy.load_pruned(make_model(), finished.out)
    with pytest.raises(UsageError, match=rf"pruned by --granularity {finished.granularity} before.*does not keep its"):
        run(
            "channels",
            before,
            data,
            tmp_path / "out",
            budget=parse_budget("macs", "50%"),
            pruned_by=read_plan(finished.out),
        )


def test_zeros_of_an_earlier_run_stay_while_masks_are_learned(
    finished: Finished, data: Dataset, tmp_path: Path
) -> None:
    before = dtp_deploy.load_pruned(make_model(), finished.out)
    budget, stop = (parse_budget("params", "80%"),), StopsAt("masks", 4, cut)
    with pytest.raises(CutOff):
        run(
            "weights",
            before,
            data,
            tmp_path / "out",
            budget=budget,
            pruned_by=read_plan(finished.out),
            checkpoint_minutes=0.0,
            progress=stop,
        )
    saved = CheckpointFolder(tmp_path / "out.partial" / "checkpoints").newest()
    assert saved is not None
    for name in MASKED[finished.granularity]:
        first, now = before.state_dict()[f"{name}.weight"], saved["model"][f"{name}.parametrizations.weight.original"]
        assert not torch.equal(first, now)
        assert not now[first == 0].any()


def test_zeros_that_would_be_lost_count_of_are_refused(finished: Finished, data: Dataset, tmp_path: Path) -> None:
    before = dtp_deploy.load_pruned(make_model(), finished.out)
    only = dataclasses.replace(settings(finished.granularity), only=("7",))
    with pytest.raises(UsageError, match=r"zeros in '.', .* not named by --only '7'\. Leave --keep and --only out"):
        run(finished.granularity, before, data, tmp_path / "out", settings=only, pruned_by=read_plan(finished.out))
    if finished.granularity == "weights":
        with pytest.raises(UsageError, match=r"zeros in '0', .* would not keep: .*\. Give --granularity weights\."):
            run("2:4", before, data, tmp_path / "out", pruned_by=read_plan(finished.out))
