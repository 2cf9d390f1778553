import pytest
import torch
from torch import nn

from dtp_deploy.export.callables import onnx_callable, torch_callable
from dtp_deploy.export.onnx import export_onnx, export_program
from dtp_deploy.nested import flatten_outputs
from dtp_deploy.parity import compare
from dtp_deploy.testing import zoo
from dtp_deploy.testing.zoo import ZOO, randomise

NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

every_entry = pytest.mark.parametrize("entry", ZOO.values(), ids=str)


@every_entry
def test_exports_with_parity(entry, tmp_path):
    model = entry.model()
    export_onnx(model, entry.inputs(), tmp_path / "model.onnx")
    batches = [{"input": entry.inputs(seed).numpy()} for seed in (1, 2)]
    runtime = onnx_callable(tmp_path / "model.onnx")
    assert compare("onnx", torch_callable(model), runtime, batches).passed
    assert not compare("another model", torch_callable(entry.model(seed=1)), runtime, batches).passed


@every_entry
def test_exports_as_a_program(entry, tmp_path):
    model, path = entry.model(), tmp_path / "model.pt2"
    export_program(model, entry.inputs(), path)
    module = torch.export.load(path).module()
    batch = {"input": entry.inputs(1).numpy()}
    expected = torch_callable(model)(batch)
    given = [tensor.detach().numpy() for tensor in flatten_outputs(module(entry.inputs(1)))]
    assert compare("program", lambda _: expected, lambda _: given, [None], tolerance=1e-6).passed


@every_entry
def test_is_tiny_and_its_outputs_are_alive(entry):
    model = entry.model()
    assert max(m.out_channels for m in model.modules() if isinstance(m, nn.Conv1d | nn.Conv2d)) <= 32
    for output in flatten_outputs(model(entry.inputs())):
        assert output.isfinite().all()
        assert 0.1 < output.abs().max() < 100
        assert output.std() > 0.05


@every_entry
def test_a_seed_makes_the_same_model_and_input_whatever_came_before(entry):
    first = entry.model(3).state_dict()
    torch.rand(1)
    second = entry.model(3).state_dict()
    other = entry.model(4).state_dict()
    assert all(torch.equal(first[name], second[name]) for name in first)
    assert not any(torch.equal(first[name], other[name]) for name in first if not name.endswith("num_batches_tracked"))
    assert torch.equal(entry.inputs(3), entry.inputs(3))
    assert not torch.equal(entry.inputs(3), entry.inputs(4))


@every_entry
def test_batch_statistics_and_affine_parameters_are_not_trivial(entry):
    model = entry.model()
    assert not any(module.training for module in model.modules())
    for norm in (module for module in model.modules() if isinstance(module, NORMS)):
        assert norm.running_mean.abs().max() > 0.1
        assert 0.5 <= norm.running_var.min() < norm.running_var.max() <= 2
        assert 0.5 <= norm.weight.min() < norm.weight.max() <= 1.5
        assert norm.bias.abs().max() > 0.05


def test_a_fresh_model_would_not_pass_as_randomised():
    fresh = zoo.residual()
    assert all(norm.running_mean.abs().max() == 0 for norm in fresh.modules() if isinstance(norm, NORMS))


def test_randomise_works_in_place_and_returns_the_model():
    model = zoo.plain()
    assert randomise(model, 0) is model


def test_each_entry_is_a_factory_of_the_module_under_its_name():
    assert len(ZOO) == 16
    for name, entry in ZOO.items():
        assert (entry.name, str(entry), getattr(zoo, name)) == (name, name, entry.make)
        assert entry.make.__doc__


def test_the_detector_has_a_map_at_each_stride():
    entry = ZOO["detector"]
    outputs = entry.model()(entry.inputs())
    assert [tuple(output.shape) for output in outputs] == [(1, 9, 16, 16), (1, 9, 8, 8), (1, 9, 4, 4)]
