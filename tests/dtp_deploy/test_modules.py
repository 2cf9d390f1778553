"""What the library needs of modules."""

import pytest
import torch
from torch import nn

from dtp_deploy.modules import evaluating, train_only, trainable_names


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


def test_what_was_frozen_stays_so_and_what_was_frozen_as_a_whole_learns():
    model = nn.Sequential(nn.Linear(2, 2), nn.Linear(2, 2))
    model.register_parameter("counts", nn.Parameter(torch.arange(3), requires_grad=False))
    model[1].bias.requires_grad_(False)
    names = trainable_names(model)
    assert names == {"0.weight", "0.bias", "1.weight"}
    train_only(model.requires_grad_(False), names)
    assert trainable_names(model) == names
    assert trainable_names(model.requires_grad_(False)) == names | {"1.bias"}
