"""How scores learn: by momentum on a gradient that one number scales for all, so that layers stay comparable.

That number is the root mean square over the units that are free to learn. Over all units it would fall with the share
of those that are, and the last few to be decided, like the first few to be doubted, would be thrown about by the noise
of single batches.

Where the split of the budget between groups is not learned by its price, a group's scores learn against their own mean,
and no step moves what is pruned of a group then, on the average: a unit that is gone is worth nothing in any group, so
these are the zero that all groups share. See "The null direction" in docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtp_deploy.errors import TrainingError
from dtp_deploy.prune.schedule import MaskSettings

_NOTHING = 1e-9
"""Of a group that has lost less than this many units, nothing is pruned."""


class ScoreLearner:
    """Moves scores along their gradient, divided by its running root mean square over the units that are free to learn.

    How many these are, `free_units` says. Hard masks, of which the loss says nothing, change nothing about how fast the
    others learn.

    Args:
        scores: shape [n,], changed in place.
        settings: momentum and decay.
        group: group of each score, shape [n,], int64, where no step shall move what is pruned of a group then, on
            the average, or every group keeps its mass anyway; None where all scores learn freely. Masks are one for
            each score.
    """

    def __init__(self, scores: Tensor, settings: MaskSettings, group: Tensor | None = None) -> None:
        self.scores, self.settings, self.group = scores, settings, group
        self._groups = 0 if group is None else int(group.max()) + 1
        self._velocity = torch.zeros_like(scores, requires_grad=False)
        self._squares = 0.0
        self._free = 0.0

    def step(self, masks: Tensor, gradient: Tensor, epsilon: float, step: int, rate: float) -> None:
        """One step.

        Args:
            masks: a function of the scores, of any shape.
            gradient: of the loss by the masks, in their shape.
            epsilon: of the transport that gave the masks. It only scales the slope of all units alike; it is taken
                out, so that annealing does not change how fast scores learn.
            step: how many steps there were before.
            rate: how far a unit that is half kept goes, at a gradient of the root mean square and with no momentum.

        Raises:
            TrainingError: the gradient holds NaN or infinity.
        """
        if not bool(torch.isfinite(gradient).all()):
            raise TrainingError(
                f"The masks' gradients hold NaN or infinity at step {step}. Lower --lr, or check the data."
            )
        slope = self.slope(masks, gradient, epsilon)
        decay = self.settings.rms_decay
        self._squares = decay * self._squares + float(slope.square().sum())
        self._free = decay * self._free + self.free_units(masks.detach())
        if self._squares > 0:
            scale = math.sqrt(self._free) / math.sqrt(self._squares)
            self._velocity.mul_(self.settings.score_momentum).add_(slope, alpha=scale)
            with torch.no_grad():
                self.scores.sub_(self._against_pruned(masks.detach()), alpha=rate)

    def _against_pruned(self, masks: Tensor) -> Tensor:
        """The velocity, less its mean over what is pruned of the group."""
        if self.group is None:
            return self._velocity
        pruned = 1 - masks
        total = self._by_group(pruned)
        mean = torch.where(total > _NOTHING, self._by_group(pruned * self._velocity) / total, 0.0)
        return self._velocity - mean[self.group]

    def free_units(self, masks: Tensor) -> float:
        """How many units are free to learn: among many, one that is half kept counts as one and a hard one as none.

        It is 16 times what the squares of `slope` add up to, on the average, for gradients of variance one that are
        independent of each other. With v = m (1 - m) that is v^2 for a unit that learns freely; and for one of a group
        that keeps its mass v^2 ((1 - w)^2 + the sum of w^2 over the others), w = v / sum(v). So a unit that alone is
        undecided in its group, whose slope is nothing but rounding, does not count.
        """
        v = (1 - masks).mul_(masks)
        if self.group is None:
            return 16 * float(v.square().sum())
        first, second, third = (self._by_group(power) for power in (v, v.square(), v.pow(3)))
        share = torch.where(first > 0, 1 / first, 0.0)
        return 16 * float((second - 2 * third * share + (second * share).square()).clamp_min(0).sum())

    def slope(self, masks: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
        """The gradient that scores follow downhill, shape [n,], without epsilon's factor; arguments as in `step`."""
        if self.group is None:
            (slope,) = torch.autograd.grad(masks, self.scores, gradient)
            return slope * (epsilon / 2)
        # The gradient for groups that keep their mass. All units of a group cost the same, so no price is left in it.
        kept = masks.detach()
        v = (1 - kept).mul_(kept)
        spread = self._by_group(v)
        mean = torch.where(spread > 0, self._by_group(v * gradient) / spread, 0.0)
        return v * (gradient - mean[self.group])

    def _by_group(self, values: Tensor) -> Tensor:
        """Sums, one a group."""
        assert self.group is not None
        return torch.zeros(self._groups, dtype=values.dtype, device=values.device).index_add(0, self.group, values)

    def state(self) -> dict[str, Any]:
        """Everything that `step` changes."""
        return {
            "scores": self.scores.detach().clone(),
            "velocity": self._velocity.clone(),
            "squares": self._squares,
            "free": self._free,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where a learner of as many scores was."""
        self._squares, self._free = state["squares"], state["free"]
        self._velocity.copy_(state["velocity"])
        with torch.no_grad():
            self.scores.copy_(state["scores"])
