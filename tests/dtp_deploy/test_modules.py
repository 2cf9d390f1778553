"""What the library needs of modules and of nested tensors."""

from collections import UserDict
from typing import NamedTuple

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.modules import evaluating, like_outputs, rows_of, train_only, trainable_names


def mixed_model():
    model = nn.Sequential(nn.Linear(2, 2), nn.Sequential(nn.BatchNorm1d(2), nn.Dropout()), nn.BatchNorm1d(2)).train()
    model[2].eval()
    return model


def modes(model):
    return [module.training for module in model.modules()]


def test_all_modules_evaluate_inside_and_have_their_own_mode_outside():
    model = mixed_model()
    before = modes(model)
    with evaluating(model):
        assert not any(modes(model))
    assert modes(model) == before
    assert True in before
    assert False in before


def test_an_error_inside_gives_the_modes_back_too():
    model = mixed_model()
    before = modes(model)
    with pytest.raises(RuntimeError, match="inside"), evaluating(model):
        raise RuntimeError("inside")
    assert modes(model) == before


class Labels(UserDict[str, Tensor]):
    def areas(self) -> Tensor:
        return self["boxes"].square()


class Lines(list[Tensor]):
    pass


def test_classes_of_a_users_own_stay():
    labels = Labels(boxes=torch.arange(4))
    found = rows_of((labels, Lines([torch.arange(4)])), slice(1, 3))
    assert found[0].areas().tolist() == [1, 4]
    assert type(found[1]) is Lines
    assert labels["boxes"].tolist() == [0, 1, 2, 3]


class Boxes(NamedTuple):
    corners: Tensor
    scale: object


def test_rows_keep_the_nesting_named_tuples_too():
    batch = {"boxes": Boxes(torch.arange(4), 2.0), "others": [torch.arange(4), (torch.tensor(7),)]}
    found = rows_of(batch, slice(1, 3))
    assert isinstance(found["boxes"], Boxes)
    assert found["boxes"].corners.tolist() == [1, 2]
    assert found["boxes"].scale == 2.0
    assert [found["others"][0].tolist(), int(found["others"][1][0])] == [[1, 2], 7]
    assert type(found["others"][1]) is tuple


def test_tensors_are_nested_like_outputs_again():
    found = like_outputs(Boxes(torch.zeros(1), {"a": torch.zeros(1), "none": None}), [torch.ones(1), torch.ones(2)])
    assert isinstance(found, Boxes)
    assert (len(found.corners), len(found.scale["a"]), found.scale["none"]) == (1, 2, None)


def test_what_was_frozen_stays_so_and_what_was_frozen_as_a_whole_learns():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_parameter("counts", nn.Parameter(torch.arange(3), requires_grad=False))
    model[1].bias.requires_grad_(False)
    names = trainable_names(model)
    assert names == {"0.weight", "0.bias", "1.weight"}
    train_only(model.requires_grad_(False), names)
    assert trainable_names(model) == names
    assert trainable_names(model.requires_grad_(False)) == names | {"1.bias"}
