"""Masks on single weights, and on two of every four: counts, ties, hardness, zeros that stay."""

import copy
import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn.utils import prune

from dtp_deploy.budget import Budget, Granularity, parse_budget
from dtp_deploy.cost import count_parameters
from dtp_deploy.errors import BudgetError, InputError, TrainingError, UsageError
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import (
    ChannelMasks,
    MaskSettings,
    PruningPlan,
    WeightLayers,
    WeightMasks,
    find_weights,
    hold_zeros,
    prove,
    remove_channels,
)
from dtp_deploy.prune.proof import outputs_of, relative_difference
from dtp_deploy.prune.sharing import BlockSharing, SharedBudget, even_counts
from dtp_deploy.prune.weights import initial_scores
from dtp_deploy.transport import softness
from tests.dtp_deploy.prune.tiny import batch, network

FIFTH = parse_budget("params", "20%")


def put_on(model: nn.Module, granularity: Granularity, steps: int, budget: Budget | None = None) -> WeightMasks:
    layers = find_weights(model, batch(size=1)[0], granularity)
    return WeightMasks(model, layers, budget or (FIFTH if granularity == "weights" else None), steps=steps)


def train(
    model: nn.Module, steps: int, after_step: Callable[[], None] = lambda: None, **optimiser: float
) -> torch.optim.Optimizer:
    optimizer = torch.optim.SGD(model.parameters(), lr=0.02, **({"momentum": 0.9} | optimiser))
    model.train()
    for step in range(steps):
        images, labels = batch(step)
        nn.functional.cross_entropy(model(images), labels).backward()
        optimizer.step()
        optimizer.zero_grad()
        after_step()
    return optimizer


def weights_of(model: nn.Module, layers: WeightLayers) -> list[Tensor]:
    return [layer.weight_of(model).detach() for layer in layers.maskable]


def not_zero(model: nn.Module) -> int:
    return sum(int(torch.count_nonzero(parameter)) for parameter in model.parameters())


def undecided_mass(masks: WeightMasks) -> float:
    """Of the mass that is kept, what lies in masks that are neither 0 nor 1."""
    values = masks.masks.detach()
    return float(values[(values > 0.02) & (values < 0.98)].sum() / values.sum())


def largest_kept_of_four(weight: Tensor) -> int:
    return int((weight.movedim(1, -1).reshape(-1, 4) != 0).sum(1).max())


@pytest.mark.parametrize("steps", [1, 2, 25])
@pytest.mark.parametrize("granularity", ["weights", "2:4"])
def test_masks_are_hard_after_any_number_of_steps_and_the_whole_budget_is_used(
    granularity: Granularity, steps: int
) -> None:
    model = network()
    masks = put_on(model, granularity, steps)
    train(model, steps, masks.step)
    assert undecided_mass(masks) <= 0.01
    assert masks.cost_share == pytest.approx(masks.kept / masks.layers.count, rel=1e-9)
    soft = masks.masks.detach()
    plan = masks.harden()
    kept = sum(layer.kept for layer in plan.layers if layer.left_because is None)
    assert kept == masks.kept
    assert sum(int(torch.count_nonzero(weight)) for weight in weights_of(model, masks.layers)) == masks.kept
    if granularity == "weights":
        assert not_zero(model) == int(0.2 * count_parameters(model))
        assert int((soft > 0.5).sum()) == pytest.approx(masks.kept, abs=1)
    else:
        assert all(largest_kept_of_four(weight) == 2 for weight in weights_of(model, masks.layers))


@pytest.mark.parametrize("steps", [1, 25])
@pytest.mark.parametrize("budget", ["20%", "2%", "0.5%"])
def test_however_few_weights_are_kept_most_of_their_mass_is_decided(budget: str, steps: int) -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 500, bias=False), nn.ReLU(), nn.Linear(500, 5, bias=False))
    masks = put_on(model, "weights", steps, parse_budget("params", budget))
    train(model, steps, masks.step)
    assert undecided_mass(masks) <= 0.025


@pytest.mark.parametrize("granularity", ["weights", "2:4"])
def test_every_step_keeps_the_mass_of_the_schedule_between_zero_and_one(granularity: Granularity) -> None:
    model = network()
    masks = put_on(model, granularity, 20)
    shares = [masks.cost_share]

    def after_step() -> None:
        masks.step()
        shares.append(masks.cost_share)
        assert bool(((masks.masks >= 0) & (masks.masks <= 1)).all())

    train(model, 20, after_step)
    ratio = masks.kept / masks.layers.count
    wanted = [MaskSettings().budget_at(step / 20, ratio, 1.0) for step in range(21)]
    assert shares == pytest.approx(wanted, rel=1e-9)


def test_what_the_masks_leave_is_what_the_model_computed_with_them() -> None:
    """Masked = zeroed: with hard masks on, and after they are taken off."""
    model = network()
    masks = put_on(model, "2:4", 8)
    train(model, 8, masks.step)
    model.eval()
    images, _ = batch(99)
    keep = masks._sharing.choose(masks.scores)
    masks._put(keep * masks.masks.detach().clamp_min(0.5))
    masked = model(images)
    masks.harden()
    torch.testing.assert_close(model(images), masked, rtol=0, atol=0)
    assert [name for name, _ in model.named_parameters()] == [name for name, _ in network().named_parameters()]


@pytest.mark.parametrize("granularity", ["weights", "2:4"])
def test_what_the_last_masks_leave_out_is_zero_and_what_they_keep_is_as_the_model_saw_it(
    granularity: Granularity,
) -> None:
    """Against the masks of the last step themselves; PyTorch's own pruning tells which are the largest of them."""
    model = network()
    masks = put_on(model, granularity, 25)
    train(model, 25, masks.step)
    model.eval()
    images, _ = batch(99)
    last = [mask.detach().clone() for mask in masks._masks]
    seen, outputs = weights_of(model, masks.layers), outputs_of(model, (images,))
    masks.harden()
    left = weights_of(model, masks.layers)
    for mask, before, after in zip(last, seen, left, strict=True):
        assert torch.equal(after[mask > 0.98], before[mask > 0.98])
        assert not after[mask < 0.02].any()
    assert relative_difference(outputs_of(model, (images,)), outputs) < 0.05
    if granularity == "weights":
        layers = [nn.Linear(1, 1) for _ in last]
        for layer, mask in zip(layers, last, strict=True):
            layer.weight = nn.Parameter(torch.ones_like(mask))
        slots = [(layer, "weight") for layer in layers]
        scores = dict(zip(slots, last, strict=True))
        prune.global_unstructured(slots, prune.L1Unstructured, scores, amount=masks.layers.count - masks.kept)
        assert all(torch.equal(layer.weight == 0, after == 0) for layer, after in zip(layers, left, strict=True))


def test_masks_before_a_batchnorm_in_training_learn() -> None:
    """A BatchNorm cancels a factor on a whole filter, but not the choice within it."""
    model = network()
    masks = put_on(model, "weights", 10)
    before = masks.scores.detach().clone()
    train(model, 5, masks.step)
    moved = (masks.scores.detach() - before).abs()
    assert float(moved[: 16 * 9].mean()) > 0.001  # the first convolution, with a BatchNorm behind it


@pytest.mark.parametrize("granularity", ["weights", "2:4"])
@pytest.mark.parametrize("optimiser", [{"momentum": 0.9, "weight_decay": 0.1}, {"momentum": 0.9, "nesterov": True}])
def test_zeros_stay_zero_in_training(granularity: Granularity, optimiser: dict[str, float]) -> None:
    model = network()
    masks = put_on(model, granularity, 5)
    train(model, 5, masks.step)
    plan = masks.harden()
    before = [weight.clone() for weight in weights_of(model, masks.layers)]
    hold_zeros(model, plan)
    train(model, 10, **optimiser)
    for old, new in zip(before, weights_of(model, masks.layers), strict=True):
        assert torch.equal(old == 0, new == 0)
        assert not torch.equal(old, new)


def test_without_holding_them_zeros_do_not_stay() -> None:
    model = network()
    masks = put_on(model, "weights", 5)
    train(model, 5, masks.step)
    masks.harden()
    train(model, 2)
    assert not_zero(model) > FIFTH.limit * count_parameters(model)


def test_a_run_that_is_cut_off_goes_on_bit_for_bit() -> None:
    for granularity in ("weights", "2:4"):
        whole, first = network(), network()
        whole_masks, masks = put_on(whole, granularity, 12), put_on(first, granularity, 12)
        train(whole, 12, whole_masks.step, momentum=0.0)
        train(first, 7, masks.step, momentum=0.0)
        second = network()
        resumed = put_on(second, granularity, 12)
        second.load_state_dict(first.state_dict())
        resumed.load_state(copy.deepcopy(masks.state()))
        assert torch.equal(resumed.masks, masks.masks)
        optimizer = torch.optim.SGD(second.parameters(), lr=0.02)
        second.train()
        for step in range(7, 12):
            images, labels = batch(step)
            nn.functional.cross_entropy(second(images), labels).backward()
            optimizer.step()
            optimizer.zero_grad()
            resumed.step()
        assert resumed.harden() == whole_masks.harden()
        assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), second.parameters(), strict=True))


def test_per_layer_keeps_the_same_ratio_in_every_layer() -> None:
    model = network()
    masks = put_on(model, "weights", 10, parse_budget("params", "30%", "per-layer"))
    train(model, 10, masks.step)
    plan = masks.harden()
    ratio = masks.kept / masks.layers.count
    for layer in plan.layers:
        assert layer.kept == pytest.approx(ratio * layer.weights, abs=1)
    assert sum(layer.kept for layer in plan.layers) == masks.kept


def test_a_layer_of_weights_that_are_small_keeps_its_floor_while_masks_learn_and_in_the_end() -> None:
    model = network()
    masks = put_on(model, "weights", 10)
    with torch.no_grad():
        masks.scores[: 16 * 9] = -100.0
    floor = int(0.5 * masks.kept / masks.layers.count * 16 * 9)
    assert floor > 2
    held = []

    def after_step() -> None:
        masks.step()
        held.append(float(masks.masks.detach()[: 16 * 9].sum()))

    train(model, 10, after_step)
    assert held[-5:] == pytest.approx([floor] * 5, rel=1e-6)
    (first, *_) = masks.harden().layers
    assert first.kept == floor


@given(st.lists(st.integers(1, 30), min_size=1, max_size=6), st.integers(0, 10**6), st.booleans())
def test_of_equal_scores_the_first_are_kept_and_the_count_is_exact(sizes: list[int], seed: int, even: bool) -> None:
    kept = len(sizes) + seed % (sum(sizes) - len(sizes) + 1)
    sharing = SharedBudget(sizes, kept, "per-layer" if even else "global", 0.5)
    keep = sharing.choose(torch.zeros(sum(sizes), dtype=torch.float64))
    assert int(keep.sum()) == kept
    for part in torch.split(keep, sizes):
        assert bool(part[0])
        assert not bool((part[1:] & ~part[:-1]).any()), "a later one is kept, and an earlier one is not"


@given(st.lists(st.integers(1, 50), min_size=1, max_size=6), st.integers(0, 10**6))
def test_even_counts_are_exact_and_leave_no_layer_empty(sizes: list[int], seed: int) -> None:
    kept = len(sizes) + seed % (sum(sizes) - len(sizes) + 1)
    counts = even_counts(sizes, kept)
    assert sum(counts) == kept
    assert all(1 <= count <= size for count, size in zip(counts, sizes, strict=True))


@given(st.lists(st.sampled_from([0.0, 0.5, 1.0]), min_size=4, max_size=32).filter(lambda values: len(values) % 4 == 0))
def test_two_of_every_four_are_kept_and_of_equal_scores_the_first(values: list[float]) -> None:
    keep = BlockSharing(len(values)).choose(torch.tensor(values, dtype=torch.float64))
    for block, kept in zip(torch.tensor(values).view(-1, 4), keep.view(-1, 4), strict=True):
        expected = sorted(range(4), key=lambda index: (-float(block[index]), index))[:2]
        assert torch.nonzero(kept).flatten().tolist() == sorted(expected)


@pytest.mark.parametrize("ratio", [0.999, 0.8, 0.75, 0.6875, 0.501, 0.5])
def test_of_every_block_one_weight_is_kept_in_part_at_any_epsilon(ratio: float) -> None:
    sharing = BlockSharing(400)
    scores = torch.randn(400, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    masks, _ = sharing.solve(scores, 1e-9, ratio, None)
    assert sharing.least_softness(ratio) == pytest.approx(softness(masks), rel=1e-6, abs=1e-12)


def test_all_along_the_way_more_than_one_weight_of_four_is_undecided_until_masks_are_to_be_hard() -> None:
    """While the mass is between whole numbers, masks are softer than a schedule that does not know of it asks for."""
    model = network()
    masks = put_on(model, "2:4", 60)
    moved, epsilons = [], []

    def after_step() -> None:
        before = masks.scores.detach().clone()
        masks.step()
        moved.append(float((masks.scores.detach() - before).abs().mean()))
        epsilons.append(masks._epsilon)

    train(model, 60, after_step)
    spread = float(masks.scores.detach().std())
    assert min(epsilons) > 1e-3 * spread
    assert min(moved[5:30]) > 1e-4 * spread
    assert softness(masks.masks) == pytest.approx(MaskSettings().softness_end, rel=0.3)


@pytest.mark.parametrize("floor_share", [0.0, 0.9])
def test_the_price_is_what_the_loss_falls_by_as_more_weights_are_kept(floor_share: float) -> None:
    scores = torch.linspace(-1, 1, 40, dtype=torch.float64)  # the floor of the first layer holds with 0.9
    gradient = torch.cos(torch.arange(40, dtype=torch.float64))
    sharing = SharedBudget([20, 20], 16, "global", floor_share)

    def loss(ratio: float) -> float:
        return float(gradient @ sharing.solve(scores, 0.4, ratio, None)[0])

    slope = (loss(0.4 + 1e-6) - loss(0.4 - 1e-6)) / 2e-6
    loss(0.4)
    assert sharing.price(gradient) == pytest.approx(-slope, rel=1e-5)


def test_the_price_is_known_where_weights_share_one_budget() -> None:
    for granularity, budget, known in (
        ("weights", FIFTH, True),
        ("weights", parse_budget("params", "20%", scope="per-layer"), False),
        ("2:4", None, False),
    ):
        model = network()
        masks = put_on(model, granularity, 3, budget)
        assert masks.price is None
        train(model, 1, masks.step)
        assert (masks.price is not None) is known


def test_weights_all_equal_are_decided_by_the_end() -> None:
    model = nn.Sequential(nn.Flatten(), nn.Linear(36, 5, bias=False))
    nn.init.constant_(model[1].weight, 0.1)
    masks = WeightMasks(model, find_weights(model, batch(size=1)[0]), parse_budget("params", "50%"), steps=4)
    for _ in range(4):
        masks.step()
    assert masks.undecided <= 1.5 / 180
    assert masks.harden().layers[0].kept == 90


def test_scores_start_as_the_layer_adaptive_magnitude_by_its_definition() -> None:
    """LAMP of a weight: its square over the sum of the squares that are not smaller, in the same layer."""
    layers = [torch.tensor([1.0, -2.0, 3.0]), torch.tensor([100.0, 200.0, -300.0, 50.0, -150.0])]
    wanted = [[1 / 14, 4 / 13, 1.0], [1 / 16.25, 4 / 13, 1.0, 0.25 / 16.5, 2.25 / 15.25]]
    for scores, lamp in zip(initial_scores(layers).split([3, 5]), wanted, strict=True):
        torch.testing.assert_close(scores, torch.tensor(lamp).double().log() / 2, rtol=0, atol=2.1e-4)
    assert initial_scores(layers, "uniform").abs().max() <= 2e-4


def test_of_equal_scores_what_is_zero_already_still_comes_last() -> None:
    scores = initial_scores([torch.tensor([0.0, 2.0, 0.0, 1.0])], "uniform")
    assert max(scores[0], scores[2]) < min(scores[1], scores[3]) - 10


def test_the_mass_comes_down_from_what_is_not_zero() -> None:
    model = network()
    with torch.no_grad():
        model[3].weight[:, ::2] = 0
    layers = find_weights(model, batch(size=1)[0], "weights")
    nonzero = sum(int(torch.count_nonzero(weight)) for weight in weights_of(model, layers)) / layers.count
    masks = WeightMasks(model, layers, FIFTH, steps=20)
    assert nonzero < 0.99
    assert masks.cost_share == pytest.approx(nonzero, abs=2e-3)


def test_weights_that_are_zero_already_come_last_of_all_layers() -> None:
    dead, alive = initial_scores([torch.zeros(30), torch.cat([torch.zeros(5), torch.full((15,), 1e-3)])]).split(
        [30, 20]
    )
    assert max(float(dead.max()), float(alive[:5].max())) < float(alive[5:].min())


@pytest.mark.parametrize("layer", [[0.0, 0.0, 0.0], [1e-30, 0.0, 1e30], [0.5, 0.5, 0.5, -0.5], [0.0, 3.0, 0.0, -3.0]])
def test_scores_start_finite_and_of_equal_sizes_the_first_counts_more(layer: list[float]) -> None:
    weight = torch.tensor(layer, dtype=torch.float64)
    scores = initial_scores([weight, torch.ones(2)])[: len(layer)]
    assert bool(torch.isfinite(scores).all())
    by_size = sorted(range(len(layer)), key=lambda index: (-abs(layer[index]), index))
    assert scores.argsort(descending=True).tolist() == by_size


def test_the_plan_tells_counts_and_reads_back_and_removes_nothing() -> None:
    model = network()
    masks = put_on(model, "2:4", 2)
    train(model, 2, masks.step)
    plan = masks.harden()
    assert plan.granularity == "2:4"
    assert [(layer.name, layer.weights, layer.kept, layer.left_because) for layer in plan.layers] == [
        ("0", 144, 144, "four does not divide its 1 inputs"),
        ("3", 3456, 1728, None),
        ("6", 480, 240, None),
        ("9", 400, 200, None),
    ]
    assert PruningPlan.from_json(plan.to_json()) == plan
    assert len(plan.to_json()) < 1000
    same = remove_channels(model, plan)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), same.parameters(), strict=True))


def test_gradients_that_are_not_finite_end_the_training() -> None:
    model = network()
    masks = put_on(model, "weights", 3)
    (model(batch()[0]).sum() * torch.nan).backward()
    with pytest.raises(TrainingError, match="NaN or infinity at step 0"):
        masks.step()


def test_what_does_not_fit_is_refused() -> None:
    model = network()
    images, _ = batch(size=1)
    weights, blocks = find_weights(model, images), find_weights(model, images, "2:4")
    with pytest.raises(UsageError, match=r"got --macs 50%. Give single weights a budget"):
        WeightMasks(model, weights, parse_budget("macs", "50%"), steps=1)
    with pytest.raises(UsageError, match="got no budget"):
        WeightMasks(model, weights, steps=1)
    with pytest.raises(UsageError, match="--params 20% does not go with 2:4"):
        WeightMasks(model, blocks, FIFTH, steps=1)
    with pytest.raises(UsageError, match="steps is 0"):
        WeightMasks(model, blocks, steps=0)
    with pytest.raises(UsageError, match="--solver sinkhorn-1 is of channels"):
        WeightMasks(model, blocks, steps=1, settings=MaskSettings(solver="sinkhorn-1"))
    with pytest.raises(BudgetError, match=r"makes 109 of the dense 4,585. Give 2.4% or more"):
        WeightMasks(model, weights, parse_budget("params", "1%"), steps=1)
    masks = WeightMasks(model, blocks, steps=1)
    with pytest.raises(UsageError, match="has masks already, on '3'"):
        WeightMasks(model, blocks, steps=1)
    groups = prove(network(), find_groups(network(), images))
    with pytest.raises(UsageError, match="has masks already, on '3'"):
        ChannelMasks(model, groups, parse_budget("macs", "50%"), steps=1)
    masks.detach()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_weights_that_are_not_finite_are_named(value: float) -> None:
    model = network()
    groups = prove(model, find_groups(model, batch(size=1)[0]))
    with torch.no_grad():
        model[3].weight[0, 0] = value
    with pytest.raises(InputError, match=r"weights of Sequential hold NaN or infinity, in '3\.weight'"):
        put_on(model, "weights", 1)
    with pytest.raises(InputError, match=r"weights of Sequential hold NaN or infinity, in '3\.weight'"):
        ChannelMasks(model, groups, parse_budget("macs", "50%"), steps=1)


def test_zeros_of_a_layer_that_learns_again_later_stay() -> None:
    model = network()
    weight = model[3].weight.requires_grad_(False)
    masks = put_on(model, "weights", 1)
    masks.step()
    hold_zeros(model, masks.harden())
    weight = model[3].weight
    zeros = weight == 0
    weight.requires_grad_(True)
    train(model, 3)
    assert zeros.any()
    assert torch.equal(weight == 0, zeros)


def test_a_frozen_weight_becomes_zero_or_keeps_its_value() -> None:
    model = network()
    model[3].weight.requires_grad_(False)
    before = model[3].weight.detach().clone()
    masks = put_on(model, "weights", 10, parse_budget("params", "30%"))
    for _ in range(3):
        masks.step()  # masks are still soft
    masks.harden()
    after = model[3].weight.detach()
    assert 0 < int((after == 0).sum()) < after.numel()
    assert torch.equal(after[after != 0], before[after != 0])
