"""BatchNorm statistics estimated anew: plain averages over batches, and nothing else moved."""

import copy

import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.train import reestimate_batchnorm


def network() -> nn.Sequential:
    """Two BatchNorms whose statistics are far from what their inputs have, with a dropout between them."""
    model = nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4, momentum=0.3),
        nn.ReLU(),
        nn.Dropout(0.5),
        nn.Conv2d(4, 6, 3),
        nn.BatchNorm2d(6, momentum=0.01),
    )
    for norm in (model[1], model[5]):
        nn.init.uniform_(norm.weight, 0.5, 2)
        nn.init.uniform_(norm.bias, 0.5, 1)
        norm.running_mean.fill_(7)
        norm.running_var.fill_(9)
        norm.num_batches_tracked.fill_(100)
    return model


@pytest.fixture
def batches() -> list[tuple[Tensor]]:
    return [(torch.randn(size, 1, 7, 7) * size,) for size in (8, 5, 2)]


def by_hand(norm: nn.Module, features: list[Tensor]) -> tuple[list[Tensor], list[Tensor], list[Tensor]]:
    """Of every batch its mean, its unbiased variance, and what it becomes when normalised by its own statistics."""
    means = [x.mean((0, 2, 3)) for x in features]
    variances = [x.transpose(0, 1).flatten(1).var(1) for x in features]
    biased = [x.transpose(0, 1).flatten(1).var(1, correction=0) for x in features]
    scaled = [
        (x - mean[:, None, None]) / (variance[:, None, None] + norm.eps).sqrt()
        for x, mean, variance in zip(features, means, biased, strict=True)
    ]
    return means, variances, [norm.weight[:, None, None] * x + norm.bias[:, None, None] for x in scaled]


@torch.no_grad()
@pytest.mark.parametrize("training", [True, False])
def test_statistics_become_the_averages_over_the_batches(training: bool, batches: list[tuple[Tensor]]) -> None:
    model = network().train(training)
    features = [model[0](x) for (x,) in batches]
    for conv, norm in ((4, model[1]), (None, model[5])):
        means, variances, normalised = by_hand(norm, features)
        norm.wanted = torch.stack(means).mean(0), torch.stack(variances).mean(0)
        if conv is not None:
            features = [model[conv](x.relu()) for x in normalised]
    reestimate_batchnorm(model, batches)
    for norm in (model[1], model[5]):
        torch.testing.assert_close((norm.running_mean, norm.running_var), norm.wanted, rtol=1e-4, atol=1e-5)
        assert norm.num_batches_tracked == len(batches)


def test_all_else_is_as_it_was_and_the_model_ends_in_eval_mode(batches: list[tuple[Tensor]]) -> None:
    model = network().train()
    before = copy.deepcopy(model)
    reestimate_batchnorm(model, batches)
    assert not any(module.training for module in model.modules())
    assert [model[place].momentum for place in (1, 5)] == [0.3, 0.01]
    for (name, old), new in zip(before.named_parameters(), model.parameters(), strict=True):
        assert torch.equal(old, new), name
        assert new.grad is None
    assert model(batches[0][0]).requires_grad


def test_without_statistics_to_keep_a_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4, track_running_stats=False), nn.GroupNorm(2, 4)).train()
    reestimate_batchnorm(model, iter([]))
    assert model.training
