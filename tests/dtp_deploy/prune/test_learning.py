"""`ScoreLearner`: scores of a group learn against their own mean."""

import pytest
import torch

from dtp_deploy.budget import Budget
from dtp_deploy.cost import ChannelCount
from dtp_deploy.prune import ChannelMasks, MaskSettings
from dtp_deploy.prune.learning import ScoreLearner
from dtp_deploy.transport import Floors, LinearCost, TransportProblem, sinkhorn_step, solve_exact

from .tiny import UNITS, groups_of, network, put_on, train

HALF = Budget("macs", 0.5, relative=True)


def means(masks):
    return torch.stack([scores.mean() for scores in masks.group_scores()])


@pytest.mark.parametrize("solver", ["exact", "sinkhorn-1"])
def test_the_mean_score_of_every_group_stays(solver):
    model = network()
    masks = put_on(model, HALF, steps=20, solver=solver)
    before, scores = means(masks), masks.scores.detach().clone()
    train(model, masks, 20)
    assert (masks.scores - scores).abs().median() > 0.01
    torch.testing.assert_close(means(masks), before, rtol=0, atol=1e-4)


@pytest.mark.parametrize("solve", [solve_exact, lambda problem: sinkhorn_step(problem, 0.3)])
def test_the_slope_within_groups_is_that_of_groups_that_keep_their_mass(solve):
    """The reference is the implicit gradient of a transport in which every group is at its floor."""
    generator = torch.Generator().manual_seed(0)
    group = torch.tensor([0] * 5 + [1] * 9 + [2] * 3)
    costs = torch.tensor([1.0, 7.0, 0.2], dtype=torch.float64)[group]
    scores = torch.randn(17, dtype=torch.float64, generator=generator).requires_grad_()
    gradient = torch.randn(17, dtype=torch.float64, generator=generator)

    free = solve(TransportProblem(scores, 0.7, LinearCost(costs), 0.4 * float(costs.sum()))).masks
    mass = torch.zeros(3, dtype=torch.float64).index_add(0, group, free.detach())
    held = solve_exact(TransportProblem(scores, 0.7, LinearCost(costs), 0.0, Floors(group, mass))).masks
    torch.testing.assert_close(held.detach(), free.detach())
    (wanted,) = torch.autograd.grad(held, scores, gradient)

    learner = ScoreLearner(scores, MaskSettings(), group)
    torch.testing.assert_close(learner.slope(free, gradient, 0.7), wanted * (0.7 / 2))


def test_groups_whose_masks_are_all_hard_stay_where_they_are():
    scores = torch.tensor([-9.0, 9.0, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    before = scores.detach().clone()
    masks = torch.sigmoid(200 * scores)
    learner = ScoreLearner(scores, MaskSettings(), torch.tensor([0, 0, 1, 1]))
    learner.step(masks, torch.ones(4, dtype=torch.float64), 0.01, 0, 0.0)
    assert torch.equal(scores.detach()[:2], before[:2])
    assert scores.isfinite().all()


def test_hard_masks_do_not_change_how_fast_the_others_learn():
    generator = torch.Generator().manual_seed(0)
    moved = []
    for hard in (0, 1000):
        logits = torch.cat([torch.tensor([-1.0, -0.2, 0.3, 0.9]), torch.full((hard,), 80.0)]).double()
        scores = logits.clone().requires_grad_()
        learner = ScoreLearner(scores, MaskSettings(), None)
        for step in range(5):
            gradient = torch.randn(4, dtype=torch.float64, generator=generator.manual_seed(step))
            gradient = torch.cat([gradient, torch.ones(hard, dtype=torch.float64)])
            learner.step(torch.sigmoid(scores), gradient, 2.0, step, 0.0)
        moved.append((scores.detach() - logits)[:4])
    torch.testing.assert_close(moved[1], moved[0])
    assert moved[0].abs().max() > 0.1


def test_no_score_is_thrown_about_when_the_first_units_are_doubted():
    """Nearly all masks are one then: few units carry the whole gradient of one batch."""
    model = network()
    masks = put_on(model, HALF, steps=1000)
    before = masks.scores.detach().clone()
    train(model, masks, 1)
    assert 0 < (masks.scores - before).abs().max() <= MaskSettings().score_rate


def test_the_tiny_network_has_groups_of_unlike_cost():
    masks = put_on(network(), HALF, steps=1)
    _, costs = masks.cost(torch.tensor([float(units) for units in UNITS], dtype=torch.float64))
    assert max(costs) > 2 * min(costs)


@pytest.mark.parametrize(
    ("budget", "given", "learned"),
    [
        (HALF, {}, False),
        (HALF, {"preferred": [range(1, units + 1) for units in UNITS]}, True),
        (HALF, {"settings": MaskSettings(learn_split=True)}, True),
        (HALF, {"depth": object()}, True),
        (Budget("params", 0.5, relative=True), {}, False),
        (Budget("size", 0.5, relative=True), {}, False),
        (Budget("channels", 0.5, relative=True), {}, False),
        (Budget("macs", 0.5, relative=True, scope="per-layer"), {}, False),
        (Budget("latency", 0.5, relative=True), {"cost": ChannelCount(torch.ones(3).double())}, True),
        (
            Budget("latency", 0.5, relative=True),
            {"cost": ChannelCount(torch.ones(3).double()), "settings": MaskSettings(learn_split=False)},
            False,
        ),
    ],
)
def test_a_latency_is_split_by_its_price_and_what_is_asked_for_counts(budget, given, learned):
    model = network()
    masks = ChannelMasks(model, groups_of(model), budget, steps=20, **given)
    before = means(masks)
    train(model, masks, 20)
    assert bool((means(masks) - before).abs().max() > 0.01) is learned
