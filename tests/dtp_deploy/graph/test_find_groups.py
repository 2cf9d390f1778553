"""Structures that the zoo does not have: odd couplings, and models that cannot be followed."""

import warnings

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dtp_deploy.errors import GraphError
from dtp_deploy.graph import find_groups, set_tensor, tensor_by_name
from dtp_deploy.prune import prove
from dtp_deploy.testing.zoo import randomise

IMAGE = torch.randn(1, 3, 8, 8, generator=torch.Generator().manual_seed(0))


class Split(nn.Module):
    """A convolution of 12 channels whose output `parts` divides; every part has a reader, and some are joined."""

    def __init__(self, parts, widths, joined=False) -> None:
        super().__init__()
        self.parts, self.joined = parts, joined
        self.entry = nn.Conv2d(3, 12, 3)
        self.readers = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in widths)
        self.exit = nn.Conv2d(4 * len(widths) + (12 if joined else 0), 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        parts = self.parts(self.entry(x))
        read = [reader(part) for reader, part in zip(self.readers, parts, strict=True)]
        return self.exit(torch.cat([*parts, *read] if self.joined else read, dim=1))


def groups_of(model, inputs=IMAGE):
    return {group.name: group for group in find_groups(model, inputs)}


@pytest.mark.parametrize("joined", [False, True])
@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        (lambda y: y.chunk(2, dim=1), (6, 6)),
        (lambda y: y.chunk(3, dim=1), (4, 4, 4)),
        (lambda y: y.chunk(2, dim=-3), (6, 6)),
        (lambda y: y.split([y.shape[1] // 2] * 2, dim=1), (6, 6)),
        (lambda y: y.split(y.shape[1] // 4, dim=1), (3, 3, 3, 3)),
    ],
    ids=["chunk 2", "chunk 3", "chunk 2 of dimension -3", "split in halves", "split in quarters"],
)
def test_the_parts_of_an_even_split_are_pruned_alike(parts, widths, joined):
    model = randomise(Split(parts, widths, joined), 0)
    group = {group.name: group for group in prove(model, find_groups(model, IMAGE))}["entry"]
    assert group.frozen_because is None
    assert (group.units, group.channels_per_unit) == (widths[0], len(widths))
    (writer,) = [piece for piece in group.slices if piece.tensor == "entry.weight"]
    assert writer.unit_of_index == tuple(range(widths[0])) * len(widths)


@pytest.mark.parametrize(
    ("parts", "widths"),
    [
        (lambda y: y.split([4, 8], dim=1), (4, 8)),
        (lambda y: y.split(5, dim=1), (5, 5, 2)),
        (lambda y: y.split(6, dim=1), (6, 6)),
    ],
    ids=["uneven sizes", "a smaller rest", "a fixed size"],
)
def test_a_split_that_does_not_follow_the_width_is_frozen_and_the_rest_is_not(parts, widths):
    model = randomise(Split(parts, widths), 0)
    groups = {group.name: group for group in prove(model, find_groups(model, IMAGE))}
    assert groups["entry"].frozen_because is not None
    assert all(groups[f"readers.{number}"].frozen_because is None for number in range(len(widths)))


class Folded(nn.Module):
    """The halves of one convolution are added to each other, then to themselves in reverse order of the halves."""

    def __init__(self) -> None:
        super().__init__()
        self.entry, self.middle, self.exit = nn.Conv2d(3, 8, 1), nn.Conv2d(4, 8, 1), nn.Conv2d(8, 2, 1)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.entry(x).chunk(2, dim=1)
        y = self.middle(left * right)
        return self.exit(y + torch.cat([left + right, right - left], dim=1))


def test_channels_that_fold_onto_each_other_are_one_unit():
    model = randomise(Folded(), 0)
    groups = {group.name: group for group in prove(model, find_groups(model, IMAGE))}
    assert list(groups) == ["entry", "exit"]
    assert groups["entry"].frozen_because is None
    assert (groups["entry"].units, groups["entry"].channels_per_unit) == (4, 2)


class SplitTwice(nn.Module):
    """Halves of which one is halved again."""

    def __init__(self) -> None:
        super().__init__()
        self.entry = nn.Conv2d(3, 16, 1)
        self.readers = nn.ModuleList(nn.Conv2d(width, 4, 1) for width in (8, 4, 4))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        left, right = self.entry(x).chunk(2, dim=1)
        return tuple(reader(part) for reader, part in zip(self.readers, (left, *right.chunk(2, 1)), strict=True))


def test_a_part_that_is_split_again_stays_even_too():
    model = randomise(SplitTwice(), 0)
    entry = {group.name: group for group in prove(model, find_groups(model, IMAGE))}["entry"]
    assert entry.frozen_because is None
    assert (entry.units, entry.channels_per_unit) == (4, 4)


def test_bias_and_statistics_belong_to_their_unit():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.PReLU(4), nn.Flatten(), nn.Linear(4 * 64, 2))
    found = groups_of(model)["0"].slices
    roles = {(piece.tensor, piece.dim): piece.role for piece in found}
    passing = ["0.bias", "1.weight", "1.bias", "1.running_mean", "1.running_var", "2.weight"]
    assert roles == {("0.weight", 0): "writer", **{(name, 0): "through" for name in passing}, ("4.weight", 1): "reader"}
    (reader,) = groups_of(model)["0"].readers
    assert reader.unit_of_index == tuple(index // 64 for index in range(256))


def test_a_single_unit_is_kept():
    model = nn.Sequential(nn.Conv2d(3, 1, 1), nn.ReLU(), nn.Conv2d(1, 4, 1), nn.Conv2d(4, 2, 1))
    groups = groups_of(model)
    assert groups["0"].frozen_because == "it has a single unit, and the last one cannot be removed"
    assert groups["2"].frozen_because is None


def test_a_model_without_layers_that_write_channels():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.ReLU())
    with pytest.raises(GraphError) as caught:
        find_groups(model, IMAGE)
    assert str(caught.value) == (
        "Sequential has nothing to prune: no convolution or linear layer was found whose output channels another "
        "layer reads."
    )


class NeedsTwo(nn.Module):
    def forward(self, x: Tensor, y: Tensor) -> Tensor:
        return x + y


@pytest.mark.parametrize(
    ("model", "inputs", "problem"),
    [
        (nn.Conv2d(5, 4, 1), IMAGE, "Given groups=1, weight of size [4, 5, 1, 1]"),
        (NeedsTwo(), IMAGE, "missing 1 required positional argument: 'y'"),
    ],
    ids=["wrong input", "two inputs"],
)
def test_a_model_that_does_not_run_is_one_message_with_the_cause(model, inputs, problem):
    with pytest.raises(GraphError) as caught:
        find_groups(model, inputs)
    text = str(caught.value)
    assert text.startswith(
        f"The channels of {type(model).__name__} could not be followed with inputs of shape (1, 3, 8, 8) ("
    )
    assert problem in text
    assert text.endswith("Check --input; code that autograd cannot trace cannot be pruned.")
    assert caught.value.__cause__ is not None


def test_tensors_are_found_and_replaced_by_name_and_stay_what_they_were():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4))
    model[0].weight.requires_grad_(False)
    set_tensor(model, "0.weight", torch.ones(2, 3, 1, 1))
    set_tensor(model, "1.running_mean", torch.ones(2))
    assert isinstance(model[0].weight, nn.Parameter)
    assert not model[0].weight.requires_grad
    assert torch.equal(tensor_by_name(model, "1.running_mean"), torch.ones(2))
    assert "running_mean" in dict(model[1].named_buffers())


def test_layers_with_computed_weights_keep_their_channels():
    inner = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), inner, nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    reasons = {group.name: group.frozen_because for group in find_groups(model, torch.zeros(1, 1, 8, 8))}
    assert reasons["2"] is None
    for name in ("0", "1"):
        assert reasons[name].startswith("'1.weight' is computed, as by weight_norm; to prune it, take that off first: ")


def test_a_model_that_cannot_be_copied_is_refused_with_the_reason():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv2d(1, 4, 3)), nn.Conv2d(4, 2, 1))
    model(torch.zeros(1, 1, 8, 8))
    with pytest.raises(
        GraphError, match=r"^Sequential cannot be copied \(Only Tensors created .*remove_weight_norm, say"
    ):
        find_groups(model, torch.zeros(1, 1, 8, 8))


def test_channels_that_go_in_circles_are_refused_in_time():
    class Recurrent(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.entry, self.cell, self.head = nn.Conv1d(3, 8, 3), nn.GRU(8, 8, batch_first=True), nn.Linear(8, 2)

        def forward(self, x: Tensor) -> Tensor:
            return self.head(self.cell(self.entry(x).transpose(1, 2))[0][:, -1])

    with pytest.raises(GraphError, match=r"^The channels of Recurrent could not be followed .*in circles, as in a GRU"):
        find_groups(Recurrent(), torch.zeros(1, 3, 6))
