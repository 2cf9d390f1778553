"""The latency of a network as a function of its widths."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from dtp_deploy.cost import ChannelSum, LatencyCost, LayerTime, Spill, TimedLayer, channel_sum
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.graph.groups import TensorSlice

UNITS = (32, 20)


def staircase(step: int = 8) -> LatencyCost:
    """Group 0 feeds a layer that writes group 1; both are read by a third."""

    def table(inputs: tuple[int, ...], outputs: tuple[int, ...]) -> LayerTime:
        up = [[-(-i // step) * step * -(-o // step) * step * 0.001 + 0.1 for o in outputs] for i in inputs]
        return LayerTime(inputs, outputs, tuple(tuple(row) for row in up))

    layers = [
        TimedLayer(table((3,), (1, 8, 16, 32)), ChannelSum(3.0, (0.0, 0.0)), ChannelSum(0.0, (1.0, 0.0))),
        TimedLayer(table((1, 8, 32), (1, 8, 20)), ChannelSum(0.0, (1.0, 0.0)), ChannelSum(0.0, (0.0, 1.0))),
        TimedLayer(table((1, 16, 52), (10,)), ChannelSum(0.0, (1.0, 1.0)), ChannelSum(10.0, (0.0, 0.0))),
    ]
    spill = Spill((0.5, 1.0, 9.0), capacity=2000.0, ms=0.001)
    return LatencyCost(layers, UNITS, constant_ms=0.5, steps=(step, step), spill=spill)


widths = st.tuples(st.floats(1.0, 32.0), st.floats(1.0, 20.0))


@given(widths, st.integers(0, 1))
def test_gradient_is_that_of_finite_differences(point: tuple[float, float], axis: int) -> None:
    cost, x, step = staircase(), torch.tensor(point, dtype=torch.float64), 1e-6
    x = x.clamp_max(torch.tensor(UNITS) - 1.1 * step).clamp_min(1 + 1.1 * step)
    moved = torch.zeros(2, dtype=torch.float64).index_fill(0, torch.tensor(axis), step)
    sides = [float((cost(x + sign * moved)[0] - cost(x)[0]) / (sign * step)) for sign in (1, -1)]
    gradient = float(cost(x)[1][axis])
    assert min(sides) - 1e-6 <= gradient <= max(sides) + 1e-6  # at an edge of the grid it may be that of either side


@given(widths, st.tuples(st.floats(0.01, 5.0), st.floats(0.0, 5.0)))
def test_cost_rises_with_every_width(point: tuple[float, float], more: tuple[float, float]) -> None:
    cost, x = staircase(), torch.tensor(point, dtype=torch.float64)
    larger = torch.minimum(x + torch.tensor(more, dtype=torch.float64), torch.tensor(UNITS, dtype=torch.float64))
    assert float(cost(larger)[0]) >= float(cost(x)[0])
    assert (cost(x)[1] > 0).all()


@given(st.tuples(st.integers(2, 32), st.integers(2, 20)))
def test_exact_is_the_cost_of_the_next_step(point: tuple[int, int]) -> None:
    cost = staircase()
    exact = cost.exact(torch.tensor(point, dtype=torch.float64))
    assert exact >= float(cost(torch.tensor(point, dtype=torch.float64))[0]) * 0.99
    on_step = torch.tensor([min(-(-w // 8) * 8, full) for w, full in zip(point, UNITS, strict=True)]).double()
    assert exact <= cost.exact(on_step) + 1e-12


def test_preferred_widths_are_the_steps_and_the_full_width() -> None:
    first, second = staircase(8).preferred_widths()
    assert set(first) >= {8, 16, 24, 32}
    assert second[-1] == 20
    assert all(width % 8 in (0, 4) for width in first if width > 1)  # 52 = 32 + 20 of the concatenation is a step too


def test_a_layer_that_is_never_faster_keeps_its_width() -> None:
    level = LayerTime((3,), (1, 16), ((2.0, 2.0),))
    falls = LayerTime((1, 16), (10,), ((4.0,), (2.0,))).rising()
    layers = [
        TimedLayer(level, ChannelSum(3.0, (0.0,)), ChannelSum(0.0, (1.0,))),
        TimedLayer(falls, ChannelSum(0.0, (1.0,)), ChannelSum(10.0, (0.0,))),
    ]
    assert LatencyCost(layers, (16,), 0.0).preferred_widths() == [(16,)]


def test_json_gives_an_equal_function() -> None:
    cost = staircase()
    again = LatencyCost.from_json(cost.to_json())
    for point in ([1.0, 1.0], [17.3, 4.4], [32.0, 20.0]):
        x = torch.tensor(point, dtype=torch.float64)
        assert torch.equal(again(x)[0], cost(x)[0])
        assert torch.equal(again(x)[1], cost(x)[1])
        assert again.exact(x) == cost.exact(x)
    assert again.to_json() == cost.to_json()


@given(st.lists(st.lists(st.floats(0.01, 10.0), min_size=3, max_size=3), min_size=1, max_size=4))
def test_rising_never_falls_and_keeps_what_rises(rows: list[list[float]]) -> None:
    table = LayerTime(tuple(range(len(rows))), (1, 2, 3), tuple(map(tuple, rows)))
    risen = np.array(table.rising().ms)
    assert (np.diff(risen, axis=0) >= 0).all()
    assert (np.diff(risen, axis=1) >= 0).all()
    assert np.allclose(np.array(table.rising().rising().ms), risen)
    assert np.array(table.ms).min() - 1e-12 <= risen.min()
    assert risen.max() <= np.array(table.ms).max() + 1e-12


def test_channels_follow_from_the_slices_of_a_group() -> None:
    piece = TensorSlice("conv.weight", 1, (0, 1, 2, 0, 1, 2, -1), "reader")
    group = ChannelGroup("before", 3, 1, (piece,))
    assert channel_sum("conv.weight", 1, 7, [group]) == ChannelSum(1.0, (2.0,))
    assert channel_sum("conv.weight", 1, 7, [group], factor=4) == ChannelSum(4.0, (8.0,))
    assert channel_sum("conv.weight", 0, 7, [group]) == ChannelSum(7.0, (0.0,))


def test_weights_cost_only_beyond_the_capacity() -> None:
    with_spill = staircase()
    without = LatencyCost(with_spill.layers, UNITS, 0.5, with_spill.steps)

    def more(*point: float) -> float:
        x = torch.tensor(point, dtype=torch.float64)
        return with_spill.exact(x) - without.exact(x)

    assert more(8, 8) == 0.0  # 12 + 64 + 1440 weights
    assert np.isclose(more(32, 20), 0.001 * (0.5 * 3 * 32 + 32 * 20 + 9 * 52 * 10 - 2000))
