"""The latency of a network as a function of its widths."""

import numpy as np
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dtp_deploy.cost import ChannelSum, LatencyCost, LayerTime, Spill, Staircase, TimedLayer, channel_sum
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
        TimedLayer(table((1, 8, 52), (10,)), ChannelSum(0.0, (1.0, 1.0)), ChannelSum(10.0, (0.0, 0.0))),
    ]
    spill = Spill((0.5, 1.0, 9.0), capacity=2000.0, ms=0.001)
    return LatencyCost(layers, UNITS, constant_ms=0.5, stairs=(Staircase(step, (float(step),)),) * 2, spill=spill)


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
    (a, b), step = point, 8
    up = [-(-width // step) * step for width in (3, a, b, a + b, 10)]
    layers = 0.3 + 0.001 * (up[0] * up[1] + up[1] * up[2] + up[3] * up[4])
    a, b, both = (min(width, full) for width, full in zip((*up[1:3], up[3]), (*UNITS, sum(UNITS)), strict=True))
    spilled = max(0.0, 0.001 * (0.5 * 3 * a + a * b + 9 * both * 10 - 2000))
    assert np.isclose(staircase(step).exact(torch.tensor(point, dtype=torch.float64)), 0.5 + layers + spilled)


UNEVEN = Staircase(8, (18.0, 22.0, 25.0, 32.0))


def uneven(full: int) -> LatencyCost:
    """One group that a layer writes and another reads; time rises unevenly with the outputs."""
    grid = tuple(width for width in (1, 8, 32, 64, 96, 128, full) if width <= full)
    written = UNEVEN.effective(torch.tensor(grid, dtype=torch.float64)).tolist()
    layers = [
        TimedLayer(LayerTime((3,), grid, (tuple(written),)), ChannelSum(3.0, (0.0,)), ChannelSum(0.0, (1.0,))),
        TimedLayer(
            LayerTime(grid, (10,), tuple((float(-(-width // 8) * 8 if width > 1 else 1),) for width in grid)),
            ChannelSum(0.0, (1.0,)),
            ChannelSum(10.0, (0.0,)),
        ),
    ]
    return LatencyCost(layers, (full,), 0.0, (Staircase(8, (8.0,)), UNEVEN))


@given(st.integers(2, 100))
def test_exact_is_what_a_width_is_worth(width: int) -> None:
    inputs = -(-width // 8) * 8
    worth = (width - 1) // 32 * 32 + (18, 22, 25, 32)[(width - 1) % 32 // 8]
    assert np.isclose(uneven(100).exact(torch.tensor([width], dtype=torch.float64)), inputs + worth)


def test_even_steps_and_surroundings_do_not_know_how_high_the_steps_are() -> None:
    grid, whole = (1, 8, 32, 64), ChannelSum(0.0, (1.0,))
    own = LayerTime((3,), grid, (tuple(map(float, grid)),))
    around = LayerTime((3,), grid, (tuple(100.0 * width for width in grid),))
    stairs = (Staircase(8, (8.0,)), UNEVEN)
    three = ChannelSum(3.0, (0.0,))
    for even, expected in ((False, 32 + 18 + 4000.0), (True, 40 + 4000.0)):
        cost = LatencyCost([TimedLayer(own, three, whole, around, even)], (64,), 0.0, stairs)
        assert np.isclose(cost.exact(torch.tensor([37.0], dtype=torch.float64)), expected)
        assert LatencyCost.from_json(cost.to_json()).to_json() == cost.to_json()


def test_of_full_widths_on_one_step_the_largest_holds() -> None:
    table = LayerTime((3,), (100, 104), ((5.0, 7.0),))
    layer = TimedLayer(table, ChannelSum(3.0, (0.0,)), ChannelSum(0.0, (1.0,)))
    cost = LatencyCost([layer], (104,), 0.0, (Staircase(8, (8.0,)),) * 2)
    assert np.isclose(cost.exact(torch.tensor([101.0], dtype=torch.float64)), 7.0)


def test_widths_dearer_than_a_mix_of_others_are_not_preferred() -> None:
    assert uneven(128).preferred_widths() == [(1, 8, 16, 24, 32, 56, 64, 88, 96, 112, 120, 128)]


@given(st.lists(st.floats(0.1, 8.0), min_size=1, max_size=8), st.sampled_from([1, 4, 8]), st.integers(1, 200))
def test_what_widths_are_worth_never_falls(rises: list[float], step: int, width: int) -> None:
    worth = np.cumsum(rises) * step * len(rises) / sum(rises)
    assume(worth[0] >= 1)
    stairs = Staircase(step, (*worth[:-1].tolist(), float(step * len(rises))))
    here, next_ = stairs.effective(torch.tensor([width, width + 1], dtype=torch.float64)).tolist()
    assert here <= next_ + 1e-9
    later = stairs.effective(torch.tensor([width + 1 + stairs.period], dtype=torch.float64))
    assert np.isclose(float(later), next_ + stairs.period)


def test_preferred_widths_are_the_steps_and_the_full_width() -> None:
    with_spill = staircase(8)
    cost = LatencyCost(with_spill.layers, UNITS, 0.5, with_spill.stairs)
    # 4 because 24 = 20 + 4 of the concatenation is a step too; 12 and so on are dearer than a mix of 8 and 16.
    assert cost.preferred_widths() == [(4, 8, 16, 24, 32), (8, 16, 20)]


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
    without = LatencyCost(with_spill.layers, UNITS, 0.5, with_spill.stairs)

    def more(*point: float) -> float:
        x = torch.tensor(point, dtype=torch.float64)
        return with_spill.exact(x) - without.exact(x)

    assert more(8, 8) == 0.0  # 12 + 64 + 1440 weights
    assert np.isclose(more(32, 20), 0.001 * (0.5 * 3 * 32 + 32 * 20 + 9 * 52 * 10 - 2000))
