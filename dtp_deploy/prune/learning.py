"""How scores learn: by momentum on a gradient that one number scales for all, so that layers stay comparable.

That number is the root mean square over what is undecided. Over all units it would fall with the share of those that
are, and the last few to be decided, like the first few to be doubted, would be thrown about by single batches.

Where the split of the budget between groups is not learned, a group's scores learn against their own mean: see "The
null direction" in docs/method.md.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from dtp_deploy.errors import TrainingError
from dtp_deploy.prune.schedule import MaskSettings


class ScoreLearner:
    """Moves scores along their gradient, divided by its running root mean square over the undecided units.

    A unit counts by v^2, for v = m (1 - m) of its mask m. So hard masks, of which the loss says nothing, change nothing
    about how fast the others learn.

    Args:
        scores: shape [n,], changed in place.
        settings: rate, momentum and decay.
        group: group of each score, shape [n,], int64, where the mean score of every group shall stay as it is; None
            where all scores learn freely. The masks are one for each score then.
    """

    def __init__(self, scores: Tensor, settings: MaskSettings, group: Tensor | None = None) -> None:
        self.scores, self.settings, self.group = scores, settings, group
        self._velocity = torch.zeros_like(scores, requires_grad=False)
        self._squares = 0.0
        self._undecided = 0.0

    def step(self, masks: Tensor, gradient: Tensor, epsilon: float, step: int, progress: float) -> None:
        """One step.

        Args:
            masks: a function of the scores, of any shape.
            gradient: of the loss by the masks, in their shape.
            epsilon: of the transport that gave the masks. It only scales the slope of all units alike; it is taken
                out, so that annealing does not change how fast scores learn.
            step: how many steps there were before.
            progress: share of the mask phase that is over.

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
        self._undecided = decay * self._undecided + self.undecided(masks.detach())
        if self._squares > 0:
            scale = math.sqrt(self._undecided / self._squares)
            self._velocity.mul_(self.settings.score_momentum).add_(slope, alpha=scale)
            with torch.no_grad():
                self.scores.sub_(self._velocity, alpha=self.settings.rate_at(progress))

    def undecided(self, masks: Tensor) -> float:
        """How many units count: one that is half kept as one, a hard one as none."""
        return float((4 * masks * (1 - masks)).square_().sum())

    def slope(self, masks: Tensor, gradient: Tensor, epsilon: float) -> Tensor:
        """The gradient that scores follow downhill, shape [n,], without epsilon's factor; arguments as in `step`."""
        if self.group is None:
            (slope,) = torch.autograd.grad(masks, self.scores, gradient)
            return slope * (epsilon / 2)
        # The gradient for groups that keep their mass. All units of a group cost the same, so no price is left in it.
        kept = masks.detach()
        v = (1 - kept).mul_(kept)
        zeros = torch.zeros(int(self.group.max()) + 1, dtype=v.dtype, device=v.device)
        spread = zeros.index_add(0, self.group, v)
        mean = torch.where(spread > 0, zeros.index_add(0, self.group, v * gradient) / spread, 0.0)
        return v * (gradient - mean[self.group])

    def state(self) -> dict[str, Any]:
        """Everything that `step` changes."""
        return {
            "scores": self.scores.detach().clone(),
            "velocity": self._velocity.clone(),
            "squares": self._squares,
            "undecided": self._undecided,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where a learner of as many scores was."""
        self._squares, self._undecided = state["squares"], state["undecided"]
        self._velocity.copy_(state["velocity"])
        with torch.no_grad():
            self.scores.copy_(state["scores"])
