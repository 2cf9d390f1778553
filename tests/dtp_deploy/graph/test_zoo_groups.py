"""Which groups each entry of the zoo prunes, and what it keeps: written down, so that nothing is frozen in silence."""

import copy

import pytest
import torch
from torch import nn

from dtp_deploy.errors import GraphError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import prove
from dtp_deploy.testing.zoo import ZOO

OUTPUT = "no layer with weights reads its channels, as with an output of the model"
HEADS = (
    "the model does not run without some of its channels "
    "(RuntimeError: shape '[1, 16, 3, 2, -1]' is invalid for input of size 528)"
)

# Entry -> prunable group -> its units, or its units and the channels of one unit.
PRUNABLE = {
    "plain": {"0.0": 8, "2.0": 16, "6": 24},
    "residual": {
        "features.0.0.0": 8,
        "features.1.conv1.0": 8,
        "features.2.conv1.0": 16,
        "features.2.conv2.0": 16,
        "features.3.conv1.0": 16,
    },
    "bottleneck": {
        "features.0.0.0": 8,
        "features.1.reduce.0": 8,
        "features.1.conv.0": 8,
        "features.1.expand.0": 32,
        "features.2.reduce.0": 8,
        "features.2.conv.0": 8,
    },
    "depthwise": {
        "features.0.0.0": 8,
        "features.1.expand.0": 16,
        "features.2.expand.0": 16,
        "features.2.project.0": 16,
        "features.3.expand.0": 32,
    },
    "grouped": {
        "features.0.0.0": 16,
        "features.1.reduce.0": (4, 4),
        "features.1.conv.0": (4, 4),
        "features.1.expand.0": 32,
        "features.2.reduce.0": (4, 4),
        "features.2.conv.0": (4, 4),
    },
    "concat": {"features.0": 8, "features.1.conv": 8, "features.2.conv": 8, "features.5": 12, "features.7.conv": 8},
    "split": {
        "features.0.0": 16,
        "features.2.entry.0": (8, 2),
        "features.2.exit.0": 16,
        "features.2.conv1.0": 8,
        "features.3.0": 32,
        "features.4.entry.0": (16, 2),
        "features.4.exit.0": 32,
        "features.4.conv1.0": 16,
    },
    "squeeze_excite": {
        "features.0.0.0": 16,
        "features.0.2.squeeze": 8,
        "features.1.expand.0": 32,
        "features.2.squeeze": 8,
        "features.3.0": 24,
    },
    "attention": {"blocks.0.fc1": 32, "blocks.1.fc1": 32},
    "convnext": {"features.1.fc1": 32, "features.2.fc1": 32},
    "group_norm": {},
    "unet": {"down1.0": 8, "down2.0": 16, "middle.0": 24, "up2": 16, "merge2.0": 16, "merge1.0": 8},
    "detector": {
        "stem.0.0": 8,
        "stage1.entry.0": (8, 2),
        "stage1.exit.0": 16,
        "stage1.conv1.0": 8,
        "stage2.0.0": 16,
        "stage2.2.entry.0": (12, 2),
        "stage2.2.exit.0": 24,
        "stage2.2.conv1.0": 12,
        "stage3.0.0": 32,
        "stage3.2.entry.0": 16,
        "stage3.2.exit.0": 32,
        "neck2.entry.0": (8, 2),
        "neck2.exit.0": 16,
        "neck2.conv1.0": 8,
        "neck1.entry.0": (8, 2),
        "neck1.exit.0": 16,
        "neck1.conv1.0": 8,
    },
    "shared": {"features.stem.0": 16, "features.exit.0": 8},
    "prelu": {"features.0.0": 16, "features.2.0": 24},
    "conv1d": {"features.0": 16, "features.3": 24},
}
# Entry -> frozen group -> why. All the others freeze their head only, whose channels are the output.
FROZEN = {
    "plain": {"8": OUTPUT},
    "attention": {
        "patches": "LayerNorm 'blocks.0.norm1' normalises across its channels",
        "blocks.0.qkv": HEADS,
        "blocks.1.qkv": HEADS,
        "head": OUTPUT,
    },
    "convnext": {"features.0": "LayerNorm 'features.1.norm' normalises across its channels", "head": OUTPUT},
    "group_norm": {
        "features.0": "GroupNorm 'features.1' normalises across its channels",
        "features.3": "GroupNorm 'features.4' normalises across its channels",
        "head": OUTPUT,
    },
    "detector": {f"heads.{number}": OUTPUT for number in range(3)},
}

every_entry = pytest.mark.parametrize("entry", ZOO.values(), ids=str)


@every_entry
def test_prunes_what_the_table_says_and_freezes_the_rest_with_its_reason(entry):
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    if PRUNABLE[entry.name]:
        groups = prove(model, groups)
    else:
        with pytest.raises(GraphError, match="has nothing to prune: all 3 channel groups are frozen"):
            prove(model, groups)
    units = {group.name: (group.units, group.channels_per_unit) for group in groups.prunable}
    expected = {name: size if isinstance(size, tuple) else (size, 1) for name, size in PRUNABLE[entry.name].items()}
    assert units == expected
    assert {group.name: group.frozen_because for group in groups.frozen} == FROZEN.get(entry.name, {"head": OUTPUT})


@every_entry
@pytest.mark.parametrize("seed", [1, 2])
def test_proof_does_not_depend_on_the_weights_or_on_luck(entry, seed):
    if not PRUNABLE[entry.name]:
        pytest.skip("nothing to prune")
    model = entry.model(seed)
    groups = prove(model, find_groups(model, entry.inputs(seed)), seed=seed)
    assert {group.name for group in groups.prunable} == set(PRUNABLE[entry.name])


@every_entry
def test_every_output_channel_of_every_layer_is_in_exactly_one_group(entry):
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    names = [group.name for group in groups]
    assert len(set(names)) == len(names)
    for name, layer in model.named_modules():
        if not isinstance(layer, nn.Linear | nn.modules.conv._ConvNd):
            continue
        dim = 1 if getattr(layer, "transposed", False) else 0
        owners = [0] * layer.weight.shape[dim]
        for group in groups:
            for piece in group.slices:
                if piece.tensor == f"{name}.weight" and piece.dim == dim and piece.role != "reader":
                    for index, unit in enumerate(piece.unit_of_index):
                        owners[index] += unit >= 0
        assert owners == [1] * len(owners), name


@every_entry
def test_a_group_is_named_after_the_first_layer_that_writes_its_channels(entry):
    model = entry.model()
    order = [name for name, _ in model.named_modules()]
    groups = find_groups(model, entry.inputs())
    for group in groups:
        writers = {piece.tensor.removesuffix(".weight") for piece in group.slices if piece.role == "writer"}
        assert group.name == min(writers, key=order.index)
    places = [order.index(group.name) for group in groups]
    assert places == sorted(places)


@every_entry
def test_finding_and_proving_leave_the_model_as_it_was(entry):
    model = entry.model()
    first = next(module for module in model.modules() if isinstance(module, nn.Linear | nn.modules.conv._ConvNd))
    first.train()  # a mode of its own
    next(model.parameters()).requires_grad_(False)
    before = copy.deepcopy(model.state_dict())
    modes = [module.training for module in model.modules()]
    trainable = [parameter.requires_grad for parameter in model.parameters()]
    random = torch.get_rng_state()
    groups = find_groups(model, entry.inputs())
    if groups.prunable:
        prove(model, groups)
    after = model.state_dict()
    assert list(after) == list(before)
    assert all(torch.equal(after[name], before[name]) for name in before)
    assert [module.training for module in model.modules()] == modes
    assert [parameter.requires_grad for parameter in model.parameters()] == trainable
    assert all(parameter.grad is None for parameter in model.parameters())
    assert not any(module._forward_hooks for module in model.modules())
    assert torch.equal(torch.get_rng_state(), random)
