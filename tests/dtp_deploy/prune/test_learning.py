"""`ScoreLearner`: scores of a group learn against their own mean, and no step moves what is pruned of it."""

from dataclasses import replace
from unittest.mock import patch

import pytest
import torch

from dtp_deploy.budget import Budget
from dtp_deploy.cost import ChannelCount
from dtp_deploy.prune import ChannelMasks, MaskSettings, WeightMasks, find_weights
from dtp_deploy.prune.learning import ScoreLearner
from dtp_deploy.transport import Floors, LinearCost, TransportProblem, sinkhorn_step, solve_exact

from .tiny import UNITS, batch, groups_of, network, put_on, train

SETTINGS = MaskSettings().for_granularity("channels")
RATE = 0.03
HALF = Budget("macs", 0.5, relative=True)


def pruned_moved(model, masks):
    """How far one step moves what is pruned, by the group where it is most, summed over the group."""
    pruned, before = 1 - masks.result.masks.detach(), masks.scores.detach().clone()
    train(model, masks, 1)
    moved = torch.split(pruned * (masks.scores.detach() - before), UNITS)
    return max(abs(float(part.sum())) for part in moved)


@pytest.mark.parametrize("solver", ["exact", "sinkhorn-1"])
def test_no_step_moves_what_is_pruned_of_a_group_on_the_average(solver):
    model = network()
    masks = put_on(model, HALF, steps=20, solver=solver)
    start = masks.scores.detach().clone()
    assert max(pruned_moved(model, masks) for _ in range(20)) < 1e-9
    assert (masks.scores - start).abs().median() > 0.01


@pytest.mark.parametrize("share", [0.2, 0.8])
def test_a_group_of_which_the_loss_says_more_gets_more_of_the_budget(share):
    """Two groups alike, but that the gradients of the first are larger: it rises as a whole, whatever the budget."""
    start = torch.tensor([1.0, 0.4, -0.4, -1.0] * 2, dtype=torch.float64)
    scores = start.clone().requires_grad_()
    learner = ScoreLearner(scores, SETTINGS, torch.tensor([0] * 4 + [1] * 4))
    gradient = torch.tensor([-3.0, -1.0, 1.0, 3.0, -0.3, -0.1, 0.1, 0.3], dtype=torch.float64)
    for step in range(5):
        threshold = torch.quantile(scores.detach(), 1 - share)
        learner.step(torch.sigmoid(scores - threshold), gradient, 2.0, step, RATE)
    first, second = scores.detach().view(2, 4)
    assert (first[:2] > second[:2]).all()
    assert first.mean() > second.mean() + 0.01


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

    learner = ScoreLearner(scores, SETTINGS, group)
    torch.testing.assert_close(learner.slope(free, gradient, 0.7), wanted * (0.7 / 2))


def test_groups_whose_masks_are_all_hard_stay_where_they_are():
    scores = torch.tensor([-9.0, 9.0, 0.1, 0.2], dtype=torch.float64, requires_grad=True)
    before = scores.detach().clone()
    masks = torch.sigmoid(200 * scores)
    learner = ScoreLearner(scores, SETTINGS, torch.tensor([0, 0, 1, 1]))
    learner.step(masks, torch.ones(4, dtype=torch.float64), 0.01, 0, RATE)
    assert torch.equal(scores.detach()[:2], before[:2])
    assert scores.isfinite().all()


def moved(masks, gradients, group=None):
    """How far scores go in one step for each of the gradients."""
    logits = torch.logit(torch.tensor(masks, dtype=torch.float64))
    scores = logits.clone().requires_grad_()
    learner = ScoreLearner(scores, SETTINGS, None if group is None else torch.tensor(group))
    for step, gradient in enumerate(gradients):
        learner.step(torch.sigmoid(scores), torch.tensor(gradient, dtype=torch.float64), 2.0, step, RATE)
    return scores.detach() - logits


@pytest.mark.parametrize("size", [1e-30, 1.0, 1e30])
def test_half_kept_units_go_as_far_as_the_rate_says_whatever_the_size_of_the_gradient(size):
    distance = moved([0.5] * 4, [[size, -size, size, size]])
    torch.testing.assert_close(distance, torch.tensor([-RATE, RATE, -RATE, -RATE], dtype=torch.float64))


@pytest.mark.parametrize("group", [None, [0, 0, 0, 0]])
def test_hard_masks_do_not_change_how_fast_the_others_learn(group):
    masks = [0.2, 0.4, 0.6, 0.8]
    gradients = torch.randn(3, 4, generator=torch.Generator().manual_seed(0)).tolist()
    alone = moved(masks, gradients, group)
    beside = moved(
        masks + [1 - 1e-15] * 1000,
        [one + [1.0] * 1000 for one in gradients],
        None if group is None else group + [1] * 1000,
    )
    torch.testing.assert_close(beside[:4], alone)
    assert alone.abs().max() > 0.05


def test_units_that_are_alone_in_their_group_do_not_change_how_fast_the_others_learn():
    masks, gradients = [0.2, 0.4, 0.6, 0.8], [[1.0, -2.0, 0.5, 3.0]]
    alone = moved(masks, gradients, [0] * 4)
    beside = moved(masks + [0.5] * 100, [gradients[0] + [1.0] * 100], [0] * 4 + list(range(1, 101)))
    torch.testing.assert_close(beside[:4], alone)
    assert (beside[4:] == 0).all()


def test_free_units_are_what_independent_gradients_would_show():
    generator = torch.Generator().manual_seed(0)
    masks = torch.rand(7, dtype=torch.float64, generator=generator)
    group = torch.tensor([0, 0, 0, 0, 1, 1, 2])
    learner = ScoreLearner(torch.logit(masks).requires_grad_(), SETTINGS, group)
    gradients = torch.randn(20_000, 7, dtype=torch.float64, generator=generator)
    shown = torch.stack([learner.slope(masks, one, 2.0).square().sum() for one in gradients]).mean()
    assert learner.free_units(masks) == pytest.approx(16 * float(shown), rel=0.03)


def test_the_scale_follows_the_gradients():
    settings = replace(SETTINGS, rms_decay=0.5, score_momentum=0.0)
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    learner = ScoreLearner(scores, settings)
    signs = torch.tensor([1.0, -1.0, 1.0, -1.0], dtype=torch.float64)
    for step, size in enumerate([1.0] * 40 + [1e-3] * 40):
        before = scores.detach().clone()
        masks = 0.5 + 0.25 * (scores - scores.detach())  # at a half, with the slope of a sigmoid there
        learner.step(masks, size * signs, 2.0, step, RATE)
    torch.testing.assert_close((scores - before).abs().detach(), torch.full((4,), RATE).double())


def test_gradients_of_zero_for_ever_move_nothing():
    scores = torch.tensor([-1.0, 0.3, 0.5, 0.9], dtype=torch.float64, requires_grad=True)
    before = scores.detach().clone()
    learner = ScoreLearner(scores, replace(SETTINGS, rms_decay=0.01))
    learner.step(torch.sigmoid(scores), torch.ones(4).double(), 2.0, 0, 0.0)  # at the end, where the rate is zero
    for step in range(1, 400):
        learner.step(torch.sigmoid(scores), torch.zeros(4).double(), 2.0, step, 0.0)
    assert torch.equal(scores.detach(), before)


@pytest.mark.parametrize(("granularity", "share"), [("2:4", 0.1), ("channels", 1e-5)])
def test_the_first_units_to_be_doubted_are_not_thrown_about(granularity, share):
    """One channel of a group carries all that is missing then, and what is left of its slope is rounding."""
    model = network()
    if granularity == "2:4":
        masks = WeightMasks(model, find_weights(model, batch(size=1)[0], "2:4"), steps=2000)
    else:
        masks = put_on(model, HALF, steps=2000)
    before = masks.scores.detach().clone()
    train(model, masks, 1)
    rate = masks.settings.rate_at(0, 0.5 if granularity == "2:4" else masks.ratio)
    assert (masks.scores - before).abs().max() < share * rate


@pytest.mark.parametrize("granularity", ["channels", "weights"])
def test_masks_learn_at_the_rate_of_what_their_budget_leaves(granularity):
    model, budget = network(), Budget("params", 0.8, relative=True)
    if granularity == "channels":
        masks = put_on(model, budget, steps=4)
    else:
        masks = WeightMasks(model, find_weights(model, batch(size=1)[0], "weights"), budget, steps=4)
    rates = []
    with patch.object(masks._learner, "step", lambda *arguments: rates.append(arguments[-1])):
        train(model, masks, 1)
    left = masks.kept / masks.layers.count if granularity == "weights" else masks.ratio
    assert left > 0.7
    assert rates == [pytest.approx(masks.settings.score_rate * (1 - left) / left)]


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
        (
            Budget("latency", 0.5, relative=True, scope="per-layer"),
            {"cost": ChannelCount(torch.ones(3).double()), "settings": MaskSettings(learn_split=True)},
            False,
        ),
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
    assert masks.settings.learn_split is learned
    assert (max(pruned_moved(model, masks) for _ in range(20)) > 1e-3) is learned
