"""Deliberately wrong removals, each of which the proof must catch in every group of every entry."""

from dataclasses import replace

import pytest
import torch

from dtp_deploy.errors import GraphError
from dtp_deploy.graph import find_groups, set_tensor, tensor_by_name
from dtp_deploy.prune import proof, prove, remove_channels
from dtp_deploy.testing.zoo import ZOO

from .proven import proven, prunable_entry


def wrong_units(model, plan):
    """Keeps the right number of channels everywhere, but each the next one."""
    tensors = {
        name: {
            dim: tuple(sorted((index + 1) % tensor_by_name(model, name).shape[dim] for index in kept))
            for dim, kept in dims.items()
        }
        for name, dims in plan.tensors.items()
    }
    return remove_channels(model, replace(plan, tensors=tensors))


def wrong_bias(model, plan):
    """Gives every channel the bias of its neighbour."""
    small = remove_channels(model, plan)
    for name in plan.tensors:
        if name.endswith("bias"):
            set_tensor(small, name, tensor_by_name(small, name).detach().roll(1))
    return small


def swapped_order(model, plan):
    """Writes the right channels in the wrong order."""
    tensors = {
        name: {
            dim: kept[::-1] if dim == 0 and tensor_by_name(model, name).ndim > 1 else kept for dim, kept in dims.items()
        }
        for name, dims in plan.tensors.items()
    }
    return remove_channels(model, replace(plan, tensors=tensors))


def forgotten_statistics(model, plan):
    """Removes the right channels and leaves the statistics of the wrong ones."""
    small = remove_channels(model, plan)
    for name in plan.tensors:
        if name.endswith(("running_mean", "running_var")):
            set_tensor(small, name, tensor_by_name(small, name).flip(0))
    return small


def nothing_removed(model, plan):
    return model


UNHARMED = {
    (wrong_bias, "concat"): {"features.7.conv"},  # no bias in it
    (swapped_order, "unet"): {"up2"},  # a transposed convolution has its outputs in dimension 1
}


@prunable_entry
@pytest.mark.parametrize("surgery", [wrong_units, wrong_bias, swapped_order, nothing_removed])
def test_a_wrong_surgery_freezes_every_group_that_it_harms(entry, surgery, monkeypatch):
    model, right = proven(entry)
    groups = find_groups(model, entry.inputs())
    monkeypatch.setattr(proof, "remove_channels", surgery)
    unharmed = UNHARMED.get((surgery, entry.name), set())
    if unharmed:
        assert {group.name for group in prove(model, groups).prunable} == unharmed
        assert unharmed < {group.name for group in right.prunable}
    else:
        with pytest.raises(GraphError, match="has nothing to prune: all"):
            prove(model, groups)


def test_wrong_statistics_freeze_the_groups_with_batch_normalisation(monkeypatch):
    entry = ZOO["plain"]
    model = entry.model()
    monkeypatch.setattr(proof, "remove_channels", forgotten_statistics)
    frozen = {group.name for group in prove(model, find_groups(model, entry.inputs())).frozen}
    assert frozen == {"0.0", "2.0", "8"}  # "6" has no normalisation


def test_the_reason_says_what_was_seen(monkeypatch):
    entry = ZOO["plain"]
    model = entry.model()
    monkeypatch.setattr(proof, "remove_channels", wrong_bias)
    with pytest.raises(GraphError) as caught:
        prove(model, find_groups(model, entry.inputs()))
    assert "0.0: masking and removing its channels gave different outputs (by " in str(caught.value)


def test_groups_that_hold_alone_and_not_together_are_frozen_from_the_second_on(monkeypatch):
    entry = ZOO["plain"]
    model = entry.model()

    def wrong_for_several(model, plan):
        return remove_channels(model, plan) if len(plan.groups) == 1 else wrong_bias(model, plan)

    monkeypatch.setattr(proof, "remove_channels", wrong_for_several)
    groups = {group.name: group.frozen_because for group in prove(model, find_groups(model, entry.inputs()))}
    assert groups["0.0"] is None
    for name in ("2.0", "6"):
        assert groups[name].startswith("together with other groups masking and removing its channels gave different")


def test_the_kept_units_of_a_trial_are_not_always_the_same():
    entry = ZOO["plain"]
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    tried = [proof._Trial(model, groups.inputs, seed)._some_units(groups.all[0]) for seed in (0, 0, 1)]
    assert tried[0] == tried[1] != tried[2]
    assert all(len(units) == 6 for units in tried)
    assert torch.tensor(tried).max() < 8
