"""The baselines of the benchmark of single weights."""

from itertools import pairwise

import pytest
import torch
from torch import nn

from benchmarks.single_weights import SCORES, ByScore
from dtp_deploy.prune import find_weights


@pytest.mark.parametrize("score", SCORES)
def test_gradual_pruning_ends_at_two_of_every_four_and_lets_no_zero_come_back(score: str) -> None:
    torch.manual_seed(0)
    model = nn.Sequential(nn.Conv2d(8, 12, 3), nn.Flatten(), nn.Linear(12 * 4, 10))
    by_score = ByScore(model, find_weights(model, torch.zeros(1, 8, 4, 4), "2:4"), 0.5, SCORES[score])
    kept = []
    for ratio in (0.9, 0.7, 0.55, 0.5):
        by_score.choose(ratio)
        kept.append(torch.cat([(weight != 0).flatten() for weight in by_score.weights]))
        assert int(kept[-1].sum()) == round(ratio * len(kept[-1]))
    assert all(bool((after <= before).all()) for before, after in pairwise(kept))
    for weight in by_score.weights:
        assert int((weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1).max()) == 2


def test_what_is_zero_gets_no_gradient() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(16, 10))
    by_score = ByScore(model, find_weights(model, torch.zeros(1, 16)), 0.25, SCORES["magnitude"])
    by_score.choose(0.25)
    model(torch.randn(3, 16)).square().sum().backward()
    (weight,) = by_score.weights
    assert weight.grad is not None
    assert bool((weight.grad[weight == 0] == 0).all())
    assert int(torch.count_nonzero(weight.grad)) == 40
