"""The promise: a masked and a removed channel give the same outputs."""

import copy
from dataclasses import replace

import pytest
import torch
from torch import nn

from dtp_deploy.errors import InputError
from dtp_deploy.prune import make_plan, masked, remove_channels
from dtp_deploy.prune.plan import BlockChoice, LayerChoice, fingerprint_of
from dtp_deploy.prune.proof import outputs_of, relative_difference
from dtp_deploy.testing.zoo import ZOO

from .proven import proven, prunable_entry

TOLERANCE = 1e-4


def random_keep(groups, share, seed):
    """Units that are left when a share of each group is removed at random, at least one."""
    generator = torch.Generator().manual_seed(seed)
    return {
        group.name: torch.randperm(group.units, generator=generator)[min(round(share * group.units), group.units - 1) :]
        .sort()
        .values.tolist()
        for group in groups.prunable
    }


@prunable_entry
@pytest.mark.parametrize("share", [0.25, 0.6])
@pytest.mark.parametrize("seed", [0, 1])
def test_masked_is_removed_for_all_groups_at_once(entry, share, seed):
    model, groups = proven(entry, seed)
    kept = random_keep(groups, share, seed)
    inputs = torch.randn(3, *entry.input_shape[1:])
    if entry.name == "attention":
        inputs = inputs[:1]  # its positions are for one image
    dense = outputs_of(model, (inputs,))
    with masked(model, groups, kept):
        wanted = outputs_of(model, (inputs,))
    small = remove_channels(model, make_plan(groups, kept, fingerprint_of(model)))
    found = outputs_of(small, (inputs,))
    assert relative_difference(wanted, found) < TOLERANCE
    assert relative_difference(dense, found) > 0.01  # the removal does something at all


@prunable_entry
def test_the_model_given_is_not_changed(entry):
    model, groups = proven(entry)
    model.train()
    list(model.modules())[-1].eval()
    before, modes = copy.deepcopy(model.state_dict()), [module.training for module in model.modules()]
    kept = random_keep(groups, 0.5, 0)
    with masked(model, groups, kept):
        pass
    small = remove_channels(model, make_plan(groups, kept, fingerprint_of(model)))
    with torch.no_grad():
        for tensor in (*small.parameters(), *small.buffers()):
            tensor.fill_(7)
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    assert [module.training for module in model.modules()] == modes
    assert [module.training for module in small.modules()] == modes


@prunable_entry
def test_layers_know_their_new_widths(entry):
    model, groups = proven(entry)
    small = remove_channels(model, make_plan(groups, random_keep(groups, 0.5, 0), fingerprint_of(model)))
    for module in small.modules():
        if isinstance(module, nn.modules.conv._ConvNd):
            sides = (module.in_channels, module.out_channels // module.groups)
            if not module.transposed:
                sides = (module.out_channels, module.in_channels // module.groups)
            assert tuple(module.weight.shape[:2]) == sides
            assert module.bias is None or len(module.bias) == module.out_channels
        elif isinstance(module, nn.Linear):
            assert tuple(module.weight.shape) == (module.out_features, module.in_features)
        elif isinstance(module, nn.modules.batchnorm._BatchNorm):
            assert len(module.weight) == len(module.running_var) == module.num_features
        elif isinstance(module, nn.PReLU):
            assert len(module.weight) == module.num_parameters
    assert all(parameter.is_leaf and parameter.is_contiguous() for parameter in small.parameters())


@prunable_entry
def test_the_removed_model_trains(entry):
    model, groups = proven(entry)
    small = remove_channels(model, make_plan(groups, random_keep(groups, 0.5, 0), fingerprint_of(model))).train()
    inputs = entry.inputs() if entry.name == "attention" else torch.randn(2, *entry.input_shape[1:])
    outputs = small(inputs)
    sum(tensor.square().mean() for tensor in (outputs if isinstance(outputs, tuple) else [outputs])).backward()
    assert all(parameter.grad is not None for parameter in small.parameters())


def test_a_plan_that_keeps_all_gives_an_equal_model():
    entry = ZOO["residual"]
    model, groups = proven(entry)
    plan = make_plan(groups, {}, fingerprint_of(model))
    assert plan.tensors == {}
    same = remove_channels(model, plan)
    assert same is not model
    assert relative_difference(outputs_of(model, (entry.inputs(),)), outputs_of(same, (entry.inputs(),))) == 0


def test_frozen_parameters_stay_frozen():
    model, groups = proven(ZOO["residual"])
    model.features[1].conv1[0].weight.requires_grad_(False)
    small = remove_channels(model, make_plan(groups, random_keep(groups, 0.5, 0), fingerprint_of(model)))
    trainable = {name for name, parameter in small.named_parameters() if not parameter.requires_grad}
    assert trainable == {"features.1.conv1.0.weight"}


def test_a_plan_for_another_model_is_refused():
    model, groups = proven(ZOO["residual"])
    plan = make_plan(groups, random_keep(groups, 0.5, 0), fingerprint_of(model))
    with pytest.raises(InputError) as caught:
        remove_channels(ZOO["bottleneck"].model(), plan)
    assert str(caught.value) == (
        "The pruning plan was made for another model: the tensor names or shapes of _Classifier differ. Give the "
        "factory, unchanged, that the dense model came from."
    )
    with pytest.raises(InputError):
        remove_channels(remove_channels(model, plan), plan)  # removed twice


@pytest.mark.parametrize("kept", [(0, 999), (-1, 0), (0, 0, 0), (1, 0), ()])
@pytest.mark.parametrize("place", ["the first", "a dimension too many", "a tensor too many"])
def test_a_plan_that_names_what_is_not_there_is_refused(kept, place):
    model, groups = proven(ZOO["residual"])
    plan = make_plan(groups, random_keep(groups, 0.5, 0), fingerprint_of(model))
    name, dims = next(iter(plan.tensors.items()))
    dim = next(iter(dims)) if place == "the first" else 7
    name = "no.weight" if place == "a tensor too many" else name
    damaged = replace(plan, tensors={**plan.tensors, name: {dim: kept if place == "the first" else (0,)}})
    with pytest.raises(InputError, match=f"damaged: dimension {dim} of '{name}' has "):
        remove_channels(model, damaged)


def test_a_plan_of_layers_or_blocks_that_are_not_there_is_refused():
    model, groups = proven(ZOO["residual"])
    plan = make_plan(groups, {}, fingerprint_of(model))
    for damaged, what in (
        (replace(plan, layers=(LayerChoice("nowhere", 4, 2),)), "nowhere.weight"),
        (replace(plan, blocks=(BlockChoice("b", ("no.body",), removed=True, reason=""),)), "no.body"),
    ):
        with pytest.raises(InputError, match=f"damaged: there is no '{what}'"):
            remove_channels(model, damaged)


def test_masks_are_taken_off_even_where_the_model_fails():
    entry = ZOO["residual"]
    model, groups = proven(entry)
    before = copy.deepcopy(model.state_dict())

    def run_masked():
        with masked(model, groups, random_keep(groups, 0.5, 0)):
            assert (model.head.weight == 0).all(0).sum() == 8
            model(torch.zeros(1, 5, 16, 16))

    with pytest.raises(RuntimeError, match="expected input"):
        run_masked()
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


def test_only_named_groups_are_masked():
    entry = ZOO["residual"]
    model, groups = proven(entry)
    with masked(model, groups, {"features.0.0.0": [0, 1]}):
        assert (model.features[1].conv1[0].weight == 0).flatten(2).all(2).all(0).tolist() == [False] * 2 + [True] * 6
        assert (model.head.weight != 0).any(0).all()
