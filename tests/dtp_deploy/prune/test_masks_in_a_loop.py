"""`ChannelMasks` in a loop that is not ours: the budget at every step, hard at the end, the same from run to run."""

import itertools
from dataclasses import replace

import pytest
import torch
from torch import nn
from torch.func import functional_call

from dtp_deploy.budget import Budget
from dtp_deploy.cost import count_macs, count_parameters
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import ChannelMasks, MaskSettings, prove, remove_channels
from dtp_deploy.prune.proof import outputs_of, relative_difference
from dtp_deploy.transport import solve_exact

from .tiny import UNITS, batch, groups_of, network, put_on, train


def constraints_of(masks) -> int:
    """Each threshold can leave one unit between: that of the budget, and those of the groups at their floor."""
    return int(masks.result.at_floor.sum()) + (masks.budget.scope == "global")


def undecided_units(masks) -> int:
    values = masks.result.masks.detach()
    return int(((values > 0.02) & (values < 0.98)).sum())


@pytest.mark.parametrize(("steps", "share"), [*itertools.product((1, 2, 7), (0.1, 0.3, 0.7)), (50, 0.3), (300, 0.3)])
@pytest.mark.parametrize(("scope", "scores"), [("global", "l2"), ("global", "uniform"), ("per-layer", "l2")])
def test_masks_are_hard_at_the_end_for_any_number_of_steps(steps, share, scope, scores):
    model = network()
    masks = put_on(model, Budget("macs", share, relative=True, scope=scope), steps, scores=scores)
    train(model, masks, steps)
    assert masks.progress == 1
    assert undecided_units(masks) <= max(constraints_of(masks), 0.01 * sum(UNITS))
    assert masks.undecided == pytest.approx(undecided_units(masks) / sum(UNITS))
    chosen = torch.zeros(sum(UNITS), dtype=torch.bool)
    offsets = (0, UNITS[0], UNITS[0] + UNITS[1])
    for offset, choice in zip(offsets, masks.choose().groups[:3], strict=True):
        chosen[[offset + unit for unit in choice.kept_units]] = True
    values = masks.result.masks.detach()
    lost = ~chosen & (values > 0.98)  # by rounding to whole units alone
    if lost.sum() > constraints_of(masks):  # they make room for an undecided one, which with what fits costs more
        stays = chosen & (values <= 0.98)
        assert (values[stays] > 0.02).any()
        costs = masks._unit_cost(chosen.double())[1]
        assert costs[stays].sum() > costs[lost].sum()


@pytest.mark.parametrize("kind", ["macs", "params", "size", "channels"])
@pytest.mark.parametrize("scope", ["global", "per-layer"])
def test_the_exact_solver_keeps_the_budget_at_every_step(kind, scope):
    model = network()
    masks = put_on(model, Budget(kind, 0.3, relative=True, scope=scope), 40)
    costs = []

    def look():
        values = masks.result.masks.detach()
        widths = torch.stack([part.sum() for part in values.split(UNITS)])
        cost = float(masks.cost(widths)[0])
        wanted = masks.settings.budget_at(masks.progress, masks.limit, masks.dense_cost)
        assert cost == pytest.approx(wanted, rel=1e-6)
        assert 0 <= values.min() <= values.max() <= 1
        if scope == "per-layer":
            ratios = widths / torch.tensor(UNITS)
            assert ratios.max() - ratios.min() < 1e-6
        costs.append(cost)

    look()
    train(model, masks, 40, look)
    assert costs[0] == pytest.approx(masks.limit + 0.999 * (masks.dense_cost - masks.limit))
    assert all(later < 1.000001 * earlier for earlier, later in itertools.pairwise(costs))
    assert costs[-1] == pytest.approx(masks.limit, rel=1e-6)


@pytest.mark.parametrize(("scope", "solver"), [("global", "exact"), ("global", "sinkhorn-1"), ("per-layer", "exact")])
@pytest.mark.parametrize("kind", ["macs", "params", "size", "channels"])
def test_the_plan_keeps_the_budget_and_the_model_becomes_it(kind, scope, solver):
    model = network()
    images = batch()[0]
    count = {
        "macs": lambda m: count_macs(m, images[:1]),
        "params": count_parameters,
        "size": lambda m: 4 * count_parameters(m),
        "channels": lambda m: m[0].out_channels + m[3].out_channels + m[6].out_channels,
    }[kind]
    limit = 0.4 * count(model)
    masks = put_on(model, Budget(kind, 0.4, relative=True, scope=scope), 12, solver=solver)
    train(model, masks, 12)
    plan = masks.harden()
    small = remove_channels(model.eval(), plan)
    assert 0.9 * limit < count(small) <= limit
    assert count(small) == pytest.approx(masks.cost_of_plan(plan))
    assert relative_difference(outputs_of(model, (images,)), outputs_of(small, (images,))) < 1e-4


def test_sinkhorn_masks_are_hard_and_within_the_budget_at_the_end():
    model = network()
    masks = put_on(model, Budget("channels", 0.1, relative=True), 50, solver="sinkhorn-1")
    train(model, masks, 50)
    assert masks.result.cost <= masks.limit * (1 + 1e-6)
    assert undecided_units(masks) <= constraints_of(masks)


def test_sinkhorn_says_how_far_it_is_off():
    model = network()
    masks = put_on(model, Budget("macs", 0.3, relative=True), 20, solver="sinkhorn-1")
    lags = []

    def look():
        wanted = masks.settings.budget_at(masks.progress, masks.limit, masks.dense_cost)
        widths = torch.stack([part.sum() for part in masks.result.masks.detach().split(UNITS)])
        off = float(masks.cost(widths)[0]) / wanted - 1
        assert masks.result.marginal_error == pytest.approx(off, abs=1e-9)
        lags.append(abs(off))

    train(model, masks, 19, look)
    assert 1e-3 < max(lags) <= 0.1  # an exact solver would not lag at all


@pytest.mark.parametrize("solver", ["exact", "sinkhorn-1"])
def test_a_group_that_is_worth_nothing_keeps_its_floor_while_masks_learn(solver):
    model = network()
    masks = put_on(model, Budget("macs", 0.3, relative=True), 20, solver=solver)
    with torch.no_grad():
        masks.scores[: UNITS[0]] -= 100
    floor = int(0.5 * masks.ratio * UNITS[0])
    assert floor > 2
    undecided = []

    def look():
        if masks.progress > 0.5:
            kept = float(masks.result.masks.detach()[: UNITS[0]].sum())
            assert kept == pytest.approx(floor, rel=1e-6)
            assert masks.result.at_floor.tolist() == [True, False, False]
            undecided.append(undecided_units(masks))

    train(model, masks, 19, look)
    assert undecided[0] > 1


@pytest.mark.parametrize("held", [False, True])
@pytest.mark.parametrize("kind", ["macs", "params"])
def test_the_price_is_what_the_loss_falls_by_as_the_budget_grows(kind, held):
    """Per cost of the full widths, at the masks that the gradient was of; the loss is that of an unmasked network."""
    plain, model = network().double().eval(), network()
    groups = groups_of(model)
    masks = ChannelMasks(model, groups, Budget(kind, 0.3, relative=True), steps=10)
    model.double()
    if held:
        with torch.no_grad():
            masks.scores[: UNITS[0]] -= 100
    for _ in range(5 if held else 2):
        masks.step()
    problem = masks._problem(masks._epsilon)
    assert bool(masks.result.at_floor.any()) is held
    images, labels = batch(size=64)[0].double(), batch(size=64)[1]

    @torch.no_grad()
    def loss(budget):
        result = solve_exact(replace(problem, scores=masks.scores.detach().clone(), budget=budget))
        first, second, third = result.masks.split(UNITS)
        weights = {
            "3.weight": plain[3].weight * first[:, None, None],
            "6.weight": plain[6].weight * second[:, None, None],
            "9.weight": plain[9].weight * third.repeat_interleave(4),
        }
        return float(nn.functional.cross_entropy(functional_call(plain, weights, (images,)), labels))

    change = 1e-6 * problem.budget
    expected = (loss(problem.budget - change) - loss(problem.budget + change)) / (2 * change) * masks.dense_cost
    assert abs(expected) > 0.01
    nn.functional.cross_entropy(model.eval()(images), labels).backward()
    masks.step()
    assert masks.price == pytest.approx(expected, rel=1e-4)


def test_one_seed_gives_the_same_masks():
    results = []
    for _ in range(2):
        model = network()
        masks = put_on(model, Budget("macs", 0.3, relative=True), 15)
        train(model, masks, 15)
        results.append((masks.scores.detach(), masks.result.masks.detach(), masks.harden(), model.state_dict()))
    first, second = results
    assert torch.equal(first[0], second[0])
    assert torch.equal(first[1], second[1])
    assert first[2] == second[2]
    assert all(torch.equal(first[3][name], second[3][name]) for name in first[3])


def test_the_optimizer_may_be_made_before_or_after_the_masks():
    results = []
    for before in (True, False):
        model = network()
        optimizer = torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9) if before else None
        masks = put_on(model, Budget("macs", 0.3, relative=True), 8)
        optimizer = optimizer or torch.optim.SGD(model.parameters(), lr=0.02, momentum=0.9)
        model.train()
        for step in range(8):
            images, labels = batch(step)
            nn.functional.cross_entropy(model(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            masks.step()
        masks.harden()
        trained = {id(parameter) for group in optimizer.param_groups for parameter in group["params"]}
        assert trained == {id(parameter) for parameter in model.parameters()}  # it goes on after the masks are off
        results.append(model.state_dict())
    assert all(torch.equal(results[0][name], results[1][name]) for name in results[0])


def test_gradients_of_several_backward_passes_add_up():
    scores = []
    for parts in (1, 2):
        model = network().eval()
        masks = put_on(model, Budget("macs", 0.3, relative=True), 6)
        for step in range(5):
            images, labels = batch(step)
            for some, classes in zip(images.chunk(parts), labels.chunk(parts), strict=True):
                (nn.functional.cross_entropy(model(some), classes) / parts).backward()
            masks.step()
            model.zero_grad()
        scores.append(masks.scores.detach())
    torch.testing.assert_close(scores[0], scores[1], atol=1e-4, rtol=1e-4)


def test_a_step_without_a_gradient_moves_the_budget_only():
    model = network()
    masks = put_on(model, Budget("macs", 0.3, relative=True), 4)
    before, cost = masks.scores.detach().clone(), masks.result.cost
    masks.step()
    assert torch.equal(masks.scores.detach(), before)
    assert masks.result.cost < cost


def test_steps_beyond_the_last_change_nothing():
    model = network()
    masks = put_on(model, Budget("macs", 0.3, relative=True), 3)
    train(model, masks, 3)
    values = masks.result.masks.detach().clone()
    train(model, masks, 2)
    assert torch.equal(masks.result.masks.detach(), values)
    assert masks.progress == 1


@pytest.mark.parametrize("solver", ["exact", "sinkhorn-1"])
def test_a_run_that_is_taken_up_again_goes_on_bit_for_bit(solver):
    budget = Budget("macs", 0.3, relative=True)
    model = network()
    masks = put_on(model, budget, 10, solver=solver)
    model.train()
    states, weights = None, None
    for step in range(10):
        if step == 4:
            states = masks.state()
            weights = {name: value.clone() for name, value in model.state_dict().items()}
        nn.functional.cross_entropy(model(batch(step)[0]), batch(step)[1]).backward()
        masks.step()
        model.zero_grad()
    again = network()
    resumed = put_on(again, budget, 10, solver=solver)
    again.train()
    again.load_state_dict(weights)
    resumed.load_state(states)
    for step in range(4, 10):
        nn.functional.cross_entropy(again(batch(step)[0]), batch(step)[1]).backward()
        resumed.step()
        again.zero_grad()
    assert torch.equal(resumed.scores.detach(), masks.scores.detach())
    assert torch.equal(resumed.result.masks.detach(), masks.result.masks.detach())


def test_masks_before_a_batch_norm_would_be_cancelled_and_ours_are_not():
    images, labels = batch(size=64)
    model = network().train()
    filters = torch.full((UNITS[0],), 0.7, requires_grad=True)
    weight = model[0].weight * filters[:, None, None, None]
    nn.functional.cross_entropy(functional_call(model, {"0.weight": weight}, (images,)), labels).backward()

    model = network().train()
    masks = put_on(model, Budget("channels", 0.7, relative=True), 10)
    nn.functional.cross_entropy(model(images), labels).backward()
    readers = masks._padded.grad[: UNITS[0]]
    assert readers.abs().median() > 1e-4
    assert filters.grad.abs().max() < 1e-3 * readers.abs().median()


class Sum(nn.Module):
    """The sum of 8 rectified inputs, each through a unit of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.units, self.sum = nn.Linear(8, 8), nn.Linear(8, 1)
        with torch.no_grad():
            self.units.weight.copy_(torch.eye(8))
            self.units.bias.zero_()
            self.sum.weight.fill_(1)
            self.sum.bias.zero_()

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        total: torch.Tensor = self.sum(torch.relu(self.units(x)))
        return total


@pytest.mark.parametrize("solver", ["exact", "sinkhorn-1"])
@pytest.mark.parametrize("useful", [[4, 5, 6, 7], [1, 3, 4, 6]])
def test_the_masks_learn_which_units_matter(useful, solver):
    model = Sum()
    groups = prove(model, find_groups(model, torch.zeros(1, 8)))
    budget, settings = Budget("channels", 4), MaskSettings(solver=solver, scores="uniform")
    masks = ChannelMasks(model, groups, budget, steps=120, settings=settings)
    generator = torch.Generator().manual_seed(0)
    for _ in range(120):
        x = torch.randn(32, 8, generator=generator)
        wanted = torch.relu(x[:, useful]).sum(1, keepdim=True)
        (model(x) - wanted).square().mean().backward()
        masks.step()
    assert list(masks.harden().groups[0].kept_units) == useful


def test_a_masked_step_costs_no_extra_forward_pass():
    model = network()
    calls = []
    model[9].register_forward_hook(lambda *_: calls.append(1))
    masks = put_on(model, Budget("macs", 0.3, relative=True), 5)
    calls.clear()
    train(model, masks, 5)
    assert len(calls) == 5


def test_groups_of_the_tiny_network_are_what_the_tests_assume():
    assert [(group.name, group.units) for group in groups_of(network()).prunable] == [("0", 16), ("3", 24), ("6", 20)]


def test_with_a_ratio_for_each_layer_masks_learn_to_the_end():
    model = network()
    masks = put_on(model, Budget("macs", 0.3, relative=True, scope="per-layer"), 60)
    widths = [units * masks.ratio for units in UNITS]
    assert all(0.05 < width % 1 < 0.95 for width in widths)  # in each one unit stays in part, whatever epsilon
    epsilons = []
    train(model, masks, 60, lambda: epsilons.append(masks._epsilon))
    assert min(epsilons) > 1e-6  # at the bottom of its range no score moves
    assert undecided_units(masks) <= constraints_of(masks)


@pytest.mark.parametrize("limit", [1.0, 0.999])
def test_with_a_ratio_for_each_layer_all_may_be_kept(limit):
    model = network()
    masks = put_on(model, Budget("macs", limit, relative=True, scope="per-layer"), 5)
    train(model, masks, 5)
    widths = {choice.name: choice.width_after for choice in masks.harden().groups}
    lost = [units - widths[str(layer)] for layer, units in zip((0, 3, 6), UNITS, strict=True)]
    assert lost == [0, 0, 0] if limit == 1 else all(0 <= units <= 1 for units in lost)
