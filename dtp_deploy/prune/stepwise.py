"""What masks of channels and of single weights have in common: where they stand, and how they come off."""

from __future__ import annotations

import abc
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager

from torch import Tensor

from dtp_deploy.errors import UsageError
from dtp_deploy.prune.parametrised import Parametrised, rounded
from dtp_deploy.transport import entropy_bits, softness

StepsFor = Callable[[float], int]
"""Steps of a mask phase after which the share given is left of all units."""


def steps_of(steps: int | StepsFor, ratio: float) -> int:
    """The number of steps.

    Raises:
        UsageError: there is none.
    """
    number = steps(ratio) if callable(steps) else steps
    if number < 1:
        raise UsageError(f"steps is {number}; the mask phase needs at least one training step.")
    return number


def above_least(wanted: float, least: float, ratio: float) -> float:
    """A softness above the least that masks of the mean `ratio` can have: the same share of the way from equal masks to
    masks as hard as they can be.

    >>> above_least(0.5, 0.25, 0.5)
    0.375
    """
    if least <= 0:
        return wanted
    return wanted * max(1 - least / (4 * ratio * (1 - ratio)), 1e-6)  # of groups of one unit nothing is above


class StepwiseMasks(abc.ABC):
    """Soft masks that harden over a number of steps.

    Attributes:
        steps: of the mask phase.
        price: what the last step's loss would have fallen by, to first order, for as much more budget as all units
            cost; None before the first gradient, and where they do not share one budget.
    """

    steps: int
    price: float | None
    _step: int
    _epsilon: float
    _parametrised: list[Parametrised]

    @abc.abstractmethod
    def _present(self) -> Tensor:
        """The masks of the present step, shape [n,]."""

    @abc.abstractmethod
    def _in_model(self) -> Sequence[Tensor]:
        """The tensors that the model reads them from."""

    @property
    def progress(self) -> float:
        """Share of the mask phase that is over, in [0, 1]."""
        return min(1.0, self._step / self.steps)

    @property
    def undecided(self) -> float:
        """Share of the masks in (0.02, 0.98)."""
        masks = self._present().detach()
        return float(((masks > 0.02) & (masks < 0.98)).double().mean())

    @property
    def entropy_bits(self) -> float:
        """Mean entropy of the masks, see `dtp_deploy.transport.entropy_bits`."""
        return entropy_bits(self._present())

    def _least_softness(self) -> float:
        """What of the present masks' softness no epsilon can take away."""
        return 0.0

    @contextmanager
    def hardened(self) -> Iterator[None]:
        """Within the context, masks of 0.5 or more are 1 in the model, and the others 0; scores stay as they are."""
        with rounded(self._in_model()):
            yield

    def detach(self) -> None:
        """Take the masks off and leave the weights as the masks make them now."""
        for parametrised in self._parametrised:
            parametrised.take_off()
        self._parametrised = []

    def _epsilon_that_follows(self, wanted: float) -> float | None:
        """The epsilon of the wanted softness, from the last step's; None where that is not near enough to tell.

        Masks that are half decided have a softness in proportion to epsilon, so the last step says what this one needs.
        Exact softness matters at the end, where masks must be hard, and not on the way.

        Args:
            wanted: above what no epsilon can take away.
        """
        if 0 < self._step < self.steps:
            last = softness(self._present()) - self._least_softness()
            if last > 0 and 0.8 < wanted / last < 1.25:
                return min(max(self._epsilon * wanted / last, 1e-9), 1e6)
        return None
