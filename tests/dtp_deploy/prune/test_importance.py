import pytest
import torch
from torch import nn

from dtp_deploy.errors import UsageError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune.importance import initial_scores, unit_norms
from dtp_deploy.testing.zoo import ZOO

from .proven import proven


def chain():
    """Linear 2 -> 4 -> 1 with known weights."""
    model = nn.Sequential(nn.Linear(2, 4), nn.ReLU(), nn.Linear(4, 1))
    with torch.no_grad():
        model[0].weight.copy_(torch.tensor([[3.0, 0], [0, 1], [0, 0], [1, 1]]))
        model[0].bias.copy_(torch.tensor([0.0, 2, 0, 1]))
        model[2].weight.copy_(torch.tensor([[4.0, 2, 0, 1]]))
    return model, find_groups(model, torch.zeros(1, 2))


def test_the_norm_of_a_unit_holds_its_writers_bias_and_readers():
    model, groups = chain()
    assert unit_norms(model, groups.prunable[0]).tolist() == [5, 3, 0, 2]


def test_scores_start_with_the_relative_norm_or_equal():
    model, groups = chain()
    (scores,) = initial_scores(model, groups.prunable)
    relative = torch.tensor([1.0, 0.2, -1.0, -0.2], dtype=torch.float64)
    torch.testing.assert_close(scores, relative / relative.std(correction=0), atol=1.1e-4, rtol=0)
    (equal,) = initial_scores(model, groups.prunable, "uniform")
    assert equal.abs().max() <= 1e-4


@pytest.mark.parametrize("start", ["l2", "uniform"])
@pytest.mark.parametrize("name", ["residual", "grouped", "detector", "attention"])
def test_no_two_scores_are_equal_even_if_all_weights_are(name, start):
    entry = ZOO[name]
    model, groups = proven(entry)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.fill_(0.5)
    scores = initial_scores(model, groups.prunable, start)
    together = torch.cat(scores)
    assert len(together.unique()) == len(together)
    # Among equals every layer keeps the same share, its first units.
    best = together > together.median()
    for score, kept in zip(scores, best.split([len(score) for score in scores]), strict=True):
        assert abs(int(kept.sum()) - len(score) / 2) <= 1
        assert kept.tolist() == sorted(kept.tolist(), reverse=True)
        assert score.dtype == torch.float64


def test_the_scale_of_a_layer_does_not_count():
    entry = ZOO["plain"]
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    before = initial_scores(model, groups.prunable)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.mul_(8.0)
    for old, new in zip(before, initial_scores(model, groups.prunable), strict=True):
        torch.testing.assert_close(old, new)


def test_an_unknown_start():
    model, groups = chain()
    with pytest.raises(UsageError, match=r"^Initial scores 'l1' are unknown. Give one of l2, uniform\.$"):
        initial_scores(model, groups.prunable, "l1")
