"""How the time of a layer rises with a number of channels: in steps, which need not be equally high.

A runtime works on blocks of channels, and on several blocks at once. Where they run out, the last few blocks cost more
than their share: with blocks of 8, four at once, 40 channels may take as long as 50 would in proportion.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Staircase:
    """The steps of one side of a target's layers, its inputs or its outputs.

    Attributes:
        step: channels; between two multiples of it the time of the upper one holds.
        worth: of 1, 2, ... steps, how many channels would take as long if time rose in proportion; never falling. The
            last are a whole period, which is worth itself; then it all begins anew.

    >>> stairs = Staircase(8, (18.0, 21.0, 26.0, 32.0))
    >>> [stairs.effective(torch.tensor([float(count)])).item() for count in (1, 5, 8, 9, 32, 40)]
    [1.0, 18.0, 18.0, 21.0, 32.0, 50.0]
    """

    step: int = 1
    worth: tuple[float, ...] = (1.0,)

    def __post_init__(self) -> None:
        assert self.worth[0] >= 1
        assert self.worth[-1] == self.step * len(self.worth)
        assert all(low <= high for low, high in zip(self.worth, self.worth[1:], strict=False))

    @property
    def period(self) -> int:
        """Channels after which the steps are the same again."""
        return self.step * len(self.worth)

    def effective(self, channels: Tensor) -> Tensor:
        """Channels that would take as long if time rose in proportion; a single one stays one.

        Args:
            channels: of any shape, float64.
        """
        worth = torch.tensor(self.worth, dtype=torch.float64)
        steps = (channels / self.step - 1e-9).ceil().clamp_min(1.0).long() - 1
        whole = torch.div(steps, len(self.worth), rounding_mode="floor")
        value = self.period * whole + worth[steps - whole * len(self.worth)]
        return torch.where(channels <= 1, channels, value)

    def up(self, channels: Tensor) -> Tensor:
        """To the next multiple of the step; a single channel stays one."""
        return torch.where(channels <= 1, channels, (channels / self.step - 1e-9).ceil() * self.step)

    def __str__(self) -> str:
        """For people, before "channels".

        >>> str(Staircase(8, (8.0,))), str(Staircase(8, (18.0, 21.0, 26.0, 32.0)))
        ('multiples of 8', 'multiples of 8 (best: of 32)')
        """
        best = f" (best: of {self.period})" if len(self.worth) > 1 else ""
        return f"multiples of {self.step}{best}"


Stairs = tuple[Staircase, Staircase]
"""Of the input and of the output channels of all layers of a target."""

EVEN: Stairs = (Staircase(), Staircase())
"""Time rises with every channel alike."""
