"""Latency as a function of the widths: one table a layer, and their weights
together. Who fills them in is not asked here.

A table holds the time of a layer over its numbers of input and output channels. Between the points of its grid the
time is bilinear, which is exact for a layer whose time is a + b i + c o + d i o. On a staircase, i and o are what the
widths are worth there, and only edges of steps are chosen in the end.
"""

from __future__ import annotations

import json
from collections.abc import Collection, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from dtp_deploy.cost.preferred import worth_their_time
from dtp_deploy.cost.stairs import EVEN, Staircase, Stairs
from dtp_deploy.graph import ChannelGroup

Floats = npt.NDArray[np.float64]

_RISE = 1e-3
"""Share of the dense latency that the envelope adds for all groups together, so that no width is free of charge."""


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer over its widths.

    Attributes:
        inputs: grid of input channels, ascending, at least one. One alone stands for "does not depend on it".
        outputs: grid of output channels, likewise.
        ms: milliseconds, one row for each of `inputs`.
    """

    inputs: tuple[int, ...]
    outputs: tuple[int, ...]
    ms: tuple[tuple[float, ...], ...]

    def rising(self) -> LayerTime:
        """The same with times that never fall along either axis.

        The mean of the smallest such table above this one and the largest below it: what is out of order gets level.

        >>> LayerTime((1,), (8, 16, 32), ((2.0, 1.0, 3.0),)).rising().ms
        ((1.5, 1.5, 3.0),)
        """
        table = np.array(self.ms)
        above = np.maximum.accumulate(np.maximum.accumulate(table, axis=0), axis=1)
        reverse = table[::-1, ::-1]
        below = np.minimum.accumulate(np.minimum.accumulate(reverse, axis=0), axis=1)[::-1, ::-1]
        return LayerTime(self.inputs, self.outputs, _rows((above + below) / 2))


@dataclass(frozen=True)
class ChannelSum:
    """A number of channels as a function of the units kept: offset + sum of slope * units.

    Attributes:
        offset: channels that no group prunes.
        slopes: one a prunable group, [G,].
    """

    offset: float
    slopes: tuple[float, ...]


def channel_sum(tensor: str, dim: int, size: int, groups: Sequence[ChannelGroup], factor: int = 1) -> ChannelSum:
    """How the size of one dimension of a weight follows from the groups.

    Args:
        tensor: the weight's name.
        dim: the dimension.
        size: its size in the dense model.
        groups: the prunable groups, G of them.
        factor: channels that one index of the dimension stands for (the groups of a grouped convolution).
    """
    slopes = [0.0] * len(groups)
    for number, group in enumerate(groups):
        for piece in group.slices:
            if (piece.tensor, piece.dim) == (tensor, dim):
                slopes[number] = factor * sum(unit >= 0 for unit in piece.unit_of_index) / group.units
    pruned = sum(slope * group.units for slope, group in zip(slopes, groups, strict=True))
    return ChannelSum(factor * size - pruned, tuple(slopes))


@dataclass(frozen=True)
class TimedLayer:
    """One layer of the network.

    Attributes:
        time: its table, of the target's staircase.
        inputs, outputs: how its widths follow from the groups.
        around: milliseconds on the same grid that rise with every channel alike; none by default.
        even_steps: whether all steps are equally high for it, as for a depthwise layer.
    """

    time: LayerTime
    inputs: ChannelSum
    outputs: ChannelSum
    around: LayerTime | None = None
    even_steps: bool = False


@dataclass(frozen=True)
class Spill:
    """What it costs to fetch weights that do not fit into the target's cache, anew for every run.

    Attributes:
        each: weights for every pair of an input and an output channel, one a layer, [L,].
        capacity: weights that fit.
        ms: for every weight beyond.
    """

    each: tuple[float, ...]
    capacity: float
    ms: float


class LatencyCost:
    """Milliseconds of a network as a function of the widths, with its gradient: a `WidthFunction`.

    As called it is a continuous envelope that rises with every width, to train against. `exact` is what the target is
    believed to take: every width costs what it is worth on the target's staircase.

    Args:
        layers: all timed layers of the network, at least one.
        units: units of each prunable group in the dense model, [G,].
        constant_ms: time that no width changes.
        stairs: of the target.
        spill: of the weights of all layers together; none by default.
    """

    def __init__(
        self,
        layers: Sequence[TimedLayer],
        units: Sequence[int],
        constant_ms: float,
        stairs: Stairs = EVEN,
        spill: Spill | None = None,
    ) -> None:
        self.layers, self.constant_ms, self.stairs = tuple(layers), constant_ms, stairs
        self.spill = spill or Spill((0.0,) * len(self.layers), 0.0, 0.0)
        self._weights_each = torch.tensor(self.spill.each, dtype=torch.float64)
        self._units = torch.tensor([float(count) for count in units], dtype=torch.float64)
        even = torch.tensor([layer.even_steps for layer in layers])
        self._sides = (
            _Side([(layer.inputs, layer.time.inputs) for layer in layers], stairs[0], even),
            _Side([(layer.outputs, layer.time.outputs) for layer in layers], stairs[1], even),
        )
        rows, columns = (side.length for side in self._sides)
        # Grids have different lengths; a table is continued with its last row and column, which nothing reaches.
        self._ms = torch.stack([_padded(layer.time.ms, rows, columns) for layer in layers])
        self._around_ms = torch.stack(
            [
                _padded(layer.around.ms, rows, columns) if layer.around else torch.zeros(rows, columns)
                for layer in layers
            ]
        )
        self._rise = torch.zeros_like(self._units)
        self._rise = _RISE * float(self(self._units)[0]) / (len(units) * self._units)

    def __call__(self, widths: Tensor) -> tuple[Tensor, Tensor]:
        value, gradient = self._value(widths)
        return value + self._rise @ widths, gradient + self._rise

    def without(self, places: Collection[int]) -> LatencyCost:
        """The same network without the layers at these places; what is around them still costs what it did."""
        kept = [place for place in range(len(self.layers)) if place not in places]
        spill = replace(self.spill, each=tuple(self.spill.each[place] for place in kept))
        units = [int(count) for count in self._units.tolist()]
        return LatencyCost([self.layers[place] for place in kept], units, self.constant_ms, self.stairs, spill)

    def exact(self, widths: Tensor) -> float:
        """Milliseconds at whole widths, [G,], float64, each layer on its step of the staircase."""
        return float(self._value(widths, stepped=True)[0])

    def to_json(self) -> str:
        """As text; `from_json` gives an equal function."""
        return json.dumps(
            {
                "layers": [asdict(layer) for layer in self.layers],
                "units": [int(count) for count in self._units.tolist()],
                "constant_ms": self.constant_ms,
                "stairs": [asdict(stairs) for stairs in self.stairs],
                "spill": asdict(self.spill),
            }
        )

    @staticmethod
    def from_json(text: str) -> LatencyCost:
        """Read what `to_json` wrote."""
        raw = json.loads(text)
        layers = [
            TimedLayer(
                _time_from(layer["time"]),
                ChannelSum(layer["inputs"]["offset"], tuple(layer["inputs"]["slopes"])),
                ChannelSum(layer["outputs"]["offset"], tuple(layer["outputs"]["slopes"])),
                _time_from(layer["around"]) if layer["around"] else None,
                layer["even_steps"],
            )
            for layer in raw["layers"]
        ]
        inputs, outputs = (Staircase(stairs["step"], tuple(stairs["worth"])) for stairs in raw["stairs"])
        spill = Spill(tuple(raw["spill"]["each"]), raw["spill"]["capacity"], raw["spill"]["ms"])
        return LatencyCost(layers, raw["units"], raw["constant_ms"], (inputs, outputs), spill)

    def _value(self, widths: Tensor, stepped: bool = False) -> tuple[Tensor, Tensor]:
        """Milliseconds and, unless stepped, their gradient."""
        channels = [side.channels(widths) for side in self._sides]
        if stepped:
            own, _ = self._interpolate(self._ms, channels, stepped=True)
            channels = [side.up(each) for side, each in zip(self._sides, channels, strict=True)]
            around, gradient = self._interpolate(self._around_ms, channels)
            value = own + around
        else:
            value, gradient = self._interpolate(self._ms + self._around_ms, channels)
        inputs, outputs = channels
        excess = (self._weights_each * inputs * outputs).sum() - self.spill.capacity
        if excess > 0:
            by_input, by_output = self._weights_each * outputs, self._weights_each * inputs
            slopes = by_input @ self._sides[0].slopes + by_output @ self._sides[1].slopes
            value, gradient = value + self.spill.ms * excess, gradient + self.spill.ms * slopes
        return value + self.constant_ms, gradient

    def _interpolate(self, ms: Tensor, channels: Sequence[Tensor], stepped: bool = False) -> tuple[Tensor, Tensor]:
        (row, down, down_slope), (column, right, right_slope) = (
            side.place(each, stepped) for side, each in zip(self._sides, channels, strict=True)
        )
        layer = torch.arange(len(ms))
        a, b = ms[layer, row, column], ms[layer, row, column + 1]
        c, d = ms[layer, row + 1, column], ms[layer, row + 1, column + 1]
        upper, lower = a + right * (b - a), c + right * (d - c)
        by_row = (lower - upper) * down_slope
        by_column = ((b - a) + down * ((d - c) - (b - a))) * right_slope
        value = (upper + down * (lower - upper)).sum()
        return value, by_row @ self._sides[0].slopes + by_column @ self._sides[1].slopes

    def preferred_widths(self) -> list[tuple[int, ...]]:
        """For every prunable group the numbers of units that are worth having, ascending; the full one is the last.

        All other groups are full. A width is left out where a larger one is not slower: there, pruning would only cost
        accuracy. That gives the steps of the staircase, and all of a layer whose time does not fall at all. And it is
        left out where a smaller and a larger width near it, mixed, give as many units for clearly less time.
        """
        preferred = []
        for number, units in enumerate(self._units.tolist()):
            widths = self._units.clone()
            kept: list[tuple[int, float]] = []
            fastest = float("inf")
            for count in range(int(units), 0, -1):
                widths[number] = count
                now = self.exact(widths)
                if now < fastest * (1 - 1e-9):
                    kept.append((count, now))
                    fastest = now
            kept.reverse()
            slopes = torch.cat([side.slopes[:, number] for side in self._sides])
            channels_per_unit = float(slopes[slopes > 0].min()) if bool((slopes > 0).any()) else 1.0
            period = max(stairs.period for stairs in self.stairs) / channels_per_unit
            preferred.append(tuple(worth_their_time(kept, period)))
        return preferred


class _Side:
    """The input or the output side of all layers: channels from widths, and their place in each layer's grid.

    Attributes:
        slopes: shape [L, G].
        length: of all grids, K >= 2; shorter ones are continued by what nothing reaches.
    """

    def __init__(self, layers: Sequence[tuple[ChannelSum, tuple[int, ...]]], stairs: Staircase, even: Tensor) -> None:
        self.stairs, self._even = stairs, even
        self.offsets = torch.tensor([channels.offset for channels, _ in layers], dtype=torch.float64)
        self.slopes = torch.tensor([channels.slopes for channels, _ in layers], dtype=torch.float64)
        self.length = max(2, *(len(grid) for _, grid in layers))
        grids = [torch.tensor(grid, dtype=torch.float64) for _, grid in layers]
        self._grid = self._continued(grids)
        self._stepped = self._continued(
            [
                _rising(stairs.up(grid) if is_even else stairs.effective(grid))
                for grid, is_even in zip(grids, even.tolist(), strict=True)
            ]
        )

    def _continued(self, grids: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
        """Grids of one length, [L, K], strictly rising, and the last real point of each, [L,]."""
        after = [grid[-1] + 1 + torch.arange(self.length - len(grid)) for grid in grids]
        longer = torch.stack([torch.cat(parts) for parts in zip(grids, after, strict=True)])
        return longer, torch.stack([grid[-1] for grid in grids])

    def channels(self, widths: Tensor) -> Tensor:
        """Channels of every layer, [L,]."""
        return self.offsets + self.slopes @ widths

    def up(self, channels: Tensor) -> Tensor:
        """To the next step, or the full width, [L,]."""
        return torch.minimum(self.stairs.up(channels), self._grid[1])

    def place(self, channels: Tensor, stepped: bool) -> tuple[Tensor, Tensor, Tensor]:
        """Interval of the grid, position in it in [0, 1], and the slope of that position; each [L,].

        Args:
            channels: of every layer, [L,].
            stepped: whether what they are worth counts, in place of themselves.
        """
        grid, largest = self._stepped if stepped else self._grid
        worth = channels
        if stepped:
            worth = torch.where(self._even, self.stairs.up(channels), self.stairs.effective(channels))
        inside = worth.clamp(grid[:, 0].contiguous(), largest)
        index = (torch.searchsorted(grid, inside[:, None]) - 1).clamp_min(0)
        low, high = grid.gather(1, index)[:, 0], grid.gather(1, index + 1)[:, 0]
        return index[:, 0], (inside - low) / (high - low), 1 / (high - low)


def _rising(points: Tensor) -> Tensor:
    """With the least changes that make them rise strictly. Where several are on one step, the last holds there."""
    values = points.tolist()
    for place in reversed(range(len(values) - 1)):
        values[place] = min(values[place], values[place + 1] - 1e-6)
    return torch.tensor(values, dtype=torch.float64)


def _time_from(raw: Mapping[str, Any]) -> LayerTime:
    """As JSON has it."""
    return LayerTime(tuple(raw["inputs"]), tuple(raw["outputs"]), tuple(tuple(row) for row in raw["ms"]))


def _padded(table: Sequence[Sequence[float]], rows: int, columns: int) -> Tensor:
    array = np.array(table)
    padding = ((0, rows - array.shape[0]), (0, columns - array.shape[1]))
    return torch.from_numpy(np.pad(array, padding, mode="edge"))


def _rows(table: Floats) -> tuple[tuple[float, ...], ...]:
    return tuple(tuple(float(value) for value in row) for row in table)
