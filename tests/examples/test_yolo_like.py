from pathlib import Path

import pytest
import torch

from dtp_deploy import PruningPlan, find_groups, prove, remove_channels
from dtp_deploy.export.callables import onnx_callable
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.loading import apply_hook, inspect_checkpoint, load_model
from dtp_deploy.prune.plan import fingerprint_of, make_plan
from dtp_deploy.testing.zoo import randomise
from examples.yolo_like import YoloLike, finish, make_model, prepare

INPUTS = torch.randn(1, 3, 64, 64, generator=torch.Generator().manual_seed(0))


@pytest.fixture
def model() -> YoloLike:
    network = make_model()
    randomise(network, 0)
    return network.eval()


def test_is_small() -> None:
    assert sum(parameter.numel() for parameter in make_model().parameters()) < 1_000_000


def test_fusing_and_unfusing_change_no_output(model: YoloLike) -> None:
    wanted = model(INPUTS)
    for fused in (True, True, False, False):
        model.set_fused(fused)
        for found, each in zip(model(INPUTS), wanted, strict=True):
            torch.testing.assert_close(found, each, rtol=1e-4, atol=1e-5)


def test_prepare_undoes_what_finish_does(model: YoloLike) -> None:
    names = list(model.state_dict())
    finish(model)
    assert model(INPUTS).shape == (1, 7, 8 * 8 + 4 * 4 + 2 * 2)
    assert len(model.state_dict()) < len(names)
    prepare(model)
    assert list(model.state_dict()) == names


@pytest.mark.parametrize("state", ["trained", "fused", "export"])
def test_only_the_outputs_are_frozen(model: YoloLike, state: str) -> None:
    model.set_fused(state == "fused")
    model.export = state == "export"
    groups = prove(model, find_groups(model, INPUTS))
    assert len(groups.prunable) == 36
    assert {group.frozen_because for group in groups.frozen} == {"its channels are an output of the model"}
    assert not any(group.name.endswith("classes.1") for group in groups.prunable)


def test_a_pickled_detector_from_prepare_to_finish(model: YoloLike, tmp_path: Path) -> None:
    path = tmp_path / "detector.pt"
    torch.save({"epoch": 90, "ema": finish(model).half().requires_grad_(False)}, path)
    assert inspect_checkpoint(path).model_class == "examples.yolo_like.YoloLike"

    loaded = load_model(path, trust=True)
    dense = apply_hook("examples.yolo_like:prepare", loaded.model, "--prepare")
    groups = prove(dense, find_groups(dense, INPUTS))
    kept = {group.name: range(group.units // 2) for group in groups.prunable}
    plan: PruningPlan = make_plan(groups.prunable, kept, fingerprint_of(dense))
    small = apply_hook("examples.yolo_like:finish", remove_channels(dense, plan).eval(), "--finish")
    export_onnx(small, INPUTS, tmp_path / "m.onnx")

    (boxes,) = onnx_callable(tmp_path / "m.onnx")({"input": INPUTS.numpy()})
    torch.testing.assert_close(torch.from_numpy(boxes), small(INPUTS), rtol=1e-4, atol=1e-3)
    assert sum(p.numel() for p in small.parameters()) < 0.3 * sum(p.numel() for p in dense.parameters())
