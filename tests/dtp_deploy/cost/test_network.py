"""The formulas against the counters: cost of widths = cost of the network that really has these widths."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations

from dtp_deploy.cost import ChannelCount, count_macs, count_parameters, macs_cost, parameter_cost
from dtp_deploy.graph import find_groups
from dtp_deploy.prune import make_plan, prove, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.testing.zoo import ZOO

every_entry = pytest.mark.parametrize("entry", ZOO.values(), ids=str)
prunable_entry = pytest.mark.parametrize("entry", [e for e in ZOO.values() if e.name != "group_norm"], ids=str)
both_costs = pytest.mark.parametrize("formula", [macs_cost, parameter_cost])


def frozen_by_hand(groups):
    """Groups without those that only the proof freezes; their removal would not run."""
    kept = tuple(group for group in groups.all if not group.name.endswith("qkv"))
    return type(groups)(kept, groups.inputs)


def draw(groups, generator) -> tuple[dict[str, list[int]], Tensor]:
    """Random units of every prunable group, and how many."""
    kept = {}
    for group in groups.prunable:
        count = int(torch.randint(1, group.units + 1, (), generator=generator))
        kept[group.name] = torch.randperm(group.units, generator=generator)[:count].tolist()
    return kept, torch.tensor([float(len(units)) for units in kept.values()], dtype=torch.float64)


@every_entry
def test_the_formulas_count_what_the_removed_network_has(entry):
    model, generator = entry.model(), torch.Generator().manual_seed(1)
    groups = frozen_by_hand(find_groups(model, entry.inputs()))
    macs, parameters = macs_cost(model, groups), parameter_cost(model, groups)
    for _ in range(4):
        kept, widths = draw(groups, generator)
        small = remove_channels(model, make_plan(groups, kept, fingerprint_of(model)))
        assert macs(widths)[0].item() == pytest.approx(count_macs(small, entry.inputs()), rel=1e-12)
        assert parameters(widths)[0].item() == pytest.approx(count_parameters(small), rel=1e-12)


@every_entry
def test_at_full_width_they_count_the_dense_network(entry):
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    full = torch.tensor([float(group.units) for group in groups.prunable], dtype=torch.float64)
    assert macs_cost(model, groups)(full)[0].item() == pytest.approx(count_macs(model, entry.inputs()), rel=1e-12)
    assert parameter_cost(model, groups)(full)[0].item() == pytest.approx(count_parameters(model), rel=1e-12)


@prunable_entry
@both_costs
def test_gradients_are_those_of_finite_differences_and_of_autograd(entry, formula):
    model, generator = entry.model(), torch.Generator().manual_seed(2)
    groups = find_groups(model, entry.inputs())
    cost = formula(model, groups)
    full = torch.tensor([float(group.units) for group in groups.prunable], dtype=torch.float64)
    widths = (full * (0.2 + 0.6 * torch.rand(len(full), generator=generator, dtype=torch.float64))).requires_grad_()
    value, gradient = cost(widths)
    (by_autograd,) = torch.autograd.grad(value, widths)
    torch.testing.assert_close(gradient, by_autograd, rtol=1e-12, atol=0)
    steps = torch.eye(len(full), dtype=torch.float64) * 0.5
    with torch.no_grad():  # exact: no width appears with a power above two
        differences = torch.stack([cost(widths + step)[0] - cost(widths - step)[0] for step in steps])
    torch.testing.assert_close(gradient.detach(), differences, rtol=1e-9, atol=0)


@prunable_entry
@both_costs
def test_costs_rise_strictly_with_every_width(entry, formula):
    model, generator = entry.model(), torch.Generator().manual_seed(3)
    groups = find_groups(model, entry.inputs())
    cost = formula(model, groups)
    _, widths = draw(groups, generator)
    value, gradient = cost(widths)
    assert (gradient > 0).all()
    for number in range(len(widths)):
        wider = widths.clone()
        wider[number] += 1
        assert cost(wider)[0] > value


def test_macs_of_a_chain_by_hand():
    model = nn.Sequential(nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 5, 1), nn.Flatten(), nn.Linear(20, 2))
    cost = macs_cost(model, find_groups(model, torch.zeros(1, 3, 2, 2)))
    value, gradient = cost(torch.tensor([3.0, 2.0], dtype=torch.float64))
    # 4 positions: 4 * 27 a + 4 * a b + 4 b * 2
    assert value.item() == 4 * 27 * 3 + 4 * 3 * 2 + 4 * 2 * 2
    assert gradient.tolist() == [4 * 27 + 4 * 2, 4 * 3 + 4 * 2]


def test_macs_are_counted_for_the_groups_own_input():
    entry = ZOO["residual"]
    model = entry.model()
    small = macs_cost(model, find_groups(model, entry.inputs()))
    large = macs_cost(model, find_groups(model, torch.zeros(1, 3, 32, 32)))
    widths = torch.tensor([4.0] * 5, dtype=torch.float64)
    head = 4 * 10  # after the pooling
    assert large(widths)[0] - head == 4 * (small(widths)[0] - head)


def test_bytes_are_parameters_with_a_factor_and_a_rest():
    entry = ZOO["concat"]
    model = entry.model()
    groups = find_groups(model, entry.inputs())
    widths = torch.tensor([3.0, 2.0, 5.0, 7.0, 1.0], dtype=torch.float64)
    values, _ = parameter_cost(model, groups)(widths)
    size, gradient = parameter_cost(model, groups, per_value=4.0, constant=1000.0)(widths)
    assert size == 4 * values + 1000
    assert torch.equal(gradient, 4 * parameter_cost(model, groups)(widths)[1])


def test_channel_count():
    cost = ChannelCount(torch.tensor([1.0, 4.0], dtype=torch.float64))
    value, gradient = cost(torch.tensor([3.0, 2.0], dtype=torch.float64))
    assert value.item() == 11
    assert gradient.tolist() == [1, 4]


def test_the_perceptrons_of_a_transformer_are_functions_of_their_widths():
    layer = nn.TransformerEncoderLayer(32, 4, 64, batch_first=True)
    model, inputs = nn.TransformerEncoder(layer, 2), torch.zeros(1, 16, 32)
    groups = find_groups(model, inputs)
    halved = {group.name: list(range(group.units // 2)) for group in groups.prunable if "linear1" in group.name}
    assert len(halved) == 2
    widths = [float(len(halved.get(group.name, range(group.units)))) for group in groups.prunable]
    cost = macs_cost(model, groups)(torch.tensor(widths, dtype=torch.float64))[0]
    assert count_macs(model, inputs) - cost.item() == 2 * 16 * 2 * 32 * 32


def test_a_layer_with_a_computed_weight_is_part_of_the_rest() -> None:
    inner = parametrizations.weight_norm(nn.Conv2d(4, 4, 3))
    model = nn.Sequential(nn.Conv2d(1, 4, 3), inner, nn.Conv2d(4, 6, 1), nn.ReLU(), nn.Conv2d(6, 2, 1))
    inputs = torch.randn(1, 1, 8, 8)
    groups = prove(model, find_groups(model, inputs))
    assert [group.units for group in groups.prunable] == [6]
    cost = macs_cost(model, groups)
    assert float(cost(torch.tensor([6.0], dtype=torch.float64))[0]) == count_macs(model, inputs)
