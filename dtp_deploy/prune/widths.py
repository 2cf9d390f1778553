"""The widths that groups may take: multiples, floors, and the same share of every group."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from dtp_deploy.cost import WidthFunction
from dtp_deploy.graph import ChannelGroup

_FAR = 1.5
"""How many times the floor a width may be and still stand for it."""


@dataclass(frozen=True)
class WidthLevels:
    """The widths that a group may take.

    Attributes:
        units: allowed numbers of units, ascending, at least one of them.
    """

    units: tuple[int, ...]

    def at_most(self, count: int) -> int:
        """Position of the largest allowed width not above `count`, or of the smallest allowed."""
        position = 0
        for candidate, units in enumerate(self.units):
            if units <= count:
                position = candidate
        return position

    def only(self, preferred: Collection[int]) -> WidthLevels:
        """Those of them that are preferred, and the largest.

        >>> WidthLevels((2, 4, 6, 8)).only({4, 5}).units
        (4, 8)
        """
        return WidthLevels(tuple(units for units in self.units if units in preferred or units == self.units[-1]))

    def from_floor(self, floor: int) -> WidthLevels:
        """Those from a floor up. Where the next one is far above it, the one below the floor is the least.

        >>> WidthLevels((2, 4, 8, 16)).from_floor(3).units, WidthLevels((2, 8, 16)).from_floor(3).units
        ((4, 8, 16), (2, 8, 16))
        """
        above = tuple(units for units in self.units if units >= floor)
        below = tuple(units for units in self.units if units < floor)
        return WidthLevels(below[-1:] + above if above[0] > _FAR * floor else above)


def allowed_widths(group: ChannelGroup, floor: int, round_to: int = 1) -> WidthLevels:
    """Multiples of `round_to` channels from the floor up, and the full width.

    >>> allowed_widths(ChannelGroup("conv", 20, 1, ()), floor=3, round_to=8).units
    (8, 16, 20)
    """
    step = round_to // math.gcd(round_to, group.channels_per_unit)
    widths = [units for units in range(step, group.units + 1, step) if units >= floor]
    return WidthLevels(tuple(sorted({*widths, group.units})))


def uniform_ratio(cost: WidthFunction, units: Tensor, limit: float) -> float:
    """The r in [0, 1] with cost(r * units) = limit; 0 or 1 where there is none.

    Args:
        cost: of the kept units of each group.
        units: full number of units a group, shape [G,], float64.
        limit: wanted cost.
    """
    if float(cost(units)[0]) <= limit:
        return 1.0
    # Newton steps inside a bracket: the cost rises with r, and is a smooth function of it.
    low, high, ratio = 0.0, 1.0, 0.5
    for _ in range(60):
        value, gradient = cost(units * ratio)
        excess = float(value) - limit
        low, high = (low, ratio) if excess > 0 else (ratio, high)
        newton = ratio - excess / float(gradient @ units)
        if abs(newton - ratio) <= 1e-15:  # before the bracket is asked: its ends are the root by then
            break
        ratio = newton if low < newton < high else (low + high) / 2
    return ratio


def floor_units(
    groups: Sequence[ChannelGroup], cost: WidthFunction, limit: float, share: float, least: int
) -> list[int]:
    """Least units of every group: a share of its width at the uniform ratio, at least `least`, while the limit allows.

    Where that is too much, fewer than `least`; where even that is, one unit each.

    >>> from dtp_deploy.cost import ChannelCount
    >>> groups = [ChannelGroup("a", 16, 1, ()), ChannelGroup("b", 6, 1, ())]
    >>> floor_units(groups, ChannelCount(torch.ones(2, dtype=torch.float64)), 11, share=0.5, least=2)
    [4, 2]
    """
    units = torch.tensor([float(group.units) for group in groups], dtype=torch.float64)
    ratio = uniform_ratio(cost, units, limit)
    for fewest in range(least, 0, -1):
        wanted = [min(max(fewest, int(share * ratio * group.units)), group.units) for group in groups]
        if float(cost(torch.tensor(wanted, dtype=torch.float64))[0]) <= limit:
            return wanted
    return [1] * len(groups)


def raised_to_floors(
    levels: Sequence[WidthLevels], floors: Sequence[int], cost: WidthFunction, limit: float
) -> list[WidthLevels]:
    """Without the widths far below the floors, as far as the limit allows; the one that is furthest below goes first.

    A width below stands in where the next one is far above the floor. A layer left with 1 of 8 channels costs more
    accuracy than what its other channels would take from the rest, so that is for where nothing else fits. A width that
    is not far below is as good as the floor.

    >>> from dtp_deploy.cost import ChannelCount
    >>> levels, count = [WidthLevels((1, 8)), WidthLevels((8, 32))], ChannelCount(torch.ones(2, dtype=torch.float64))
    >>> [[level.units for level in raised_to_floors(levels, [2, 12], count, limit)] for limit in (15, 30, 40)]
    [[(1, 8), (8, 32)], [(8,), (8, 32)], [(8,), (32,)]]
    """
    least = [level.units[0] for level in levels]
    below = [
        number for number, floor in enumerate(floors) if least[number] * _FAR <= floor and len(levels[number].units) > 1
    ]
    for number in sorted(below, key=lambda number: least[number] / floors[number]):
        raised = [*least[:number], levels[number].units[1], *least[number + 1 :]]
        if float(cost(torch.tensor(raised, dtype=torch.float64))[0]) <= limit:
            least = raised
    return [
        WidthLevels(tuple(units for units in level.units if units >= low))
        for level, low in zip(levels, least, strict=True)
    ]


def even_widths(level: WidthLevels, count: float) -> WidthLevels:
    """The two allowed widths around `count` units: all that is left to choose where every layer keeps the same ratio.

    >>> even_widths(WidthLevels((2, 4, 6, 8)), 5.2).units
    (4, 6)
    """
    position = level.at_most(math.floor(count))
    return WidthLevels(level.units[position : position + 2])
