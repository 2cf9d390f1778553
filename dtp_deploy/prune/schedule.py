"""How budget, softness and learning rate of the masks move with the progress p = step / steps of the mask phase."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Literal, get_args

from dtp_deploy.budget import Budget, Granularity
from dtp_deploy.errors import UsageError
from dtp_deploy.prune.importance import ScoreStart, WeightStart

Solver = Literal["exact", "sinkhorn-1"]

_RATES: dict[Granularity, float] = {"channels": 0.03, "weights": 0.005, "2:4": 0.005}
"""First learning rate of the scores."""


_LARGEST_END = 0.005
"""Of the softness of equal masks, at p = 1: in a mean over many masks, the few that are kept could all be undecided."""


@dataclass(frozen=True)
class MaskSettings:
    """Every hyper-parameter of the mask phase. The defaults hold for any number of steps; none needs tuning by hand.

    Attributes:
        solver: "exact", or "sinkhorn-1" for one Sinkhorn iteration a step.
        scores: how scores start: "l2", norms of weights; "bn", scales of BatchNorm; "taylor", the loss's slope, which
            needs data; "uniform", all the same.
        score_batches: batches that "taylor" looks at.
        score_rate: learning rate of the scores at p = 0; it falls as sqrt(1 - p). Let r be the share of its units that
            every layer would keep if all kept the same and met the budget: where it is more than half, (1 - r) / r
            times that. None: that of the granularity, 0.03 for channels, 0.005 for single weights, of each of which the
            loss says less.
        score_momentum: of the scores' updates.
        rms_decay: of the running mean square by which the scores' gradient is divided: over all undecided units of the
            network, so that layers stay comparable.
        budget_reached: the p at which the budget has come down to its limit.
        softness_start: softness at p = 0, as a share of that of equal masks at the budget.
        softness_end: softness at p = 1, or 0.5 % of that of equal masks at the budget where that is less. At 0.0005, at
            most 0.7 % of the masks can lie in (0.02, 0.98).
        sinkhorn_softness: with "sinkhorn-1", the share of the first softness that is left when the budget is reached.
        learn_split: whether scores learn, by the price of the budget, how it is split between groups of channels, or
            each group's scores against those of its pruned channels. None: learned where a latency counts or widths
            are preferred, and where blocks may go as a whole. Single weights and budgets of each layer have no such
            split.
        floor_share: least width of a group, as a share of its width at the uniform ratio that meets the budget; of a
            layer's weights likewise.
        floor_units: least number of units of a group, whatever the share.
        round_to: widths are multiples of this many channels, or the full width.
    """

    solver: Solver = "exact"
    scores: ScoreStart = "l2"
    score_batches: int = 20
    score_rate: float | None = None
    score_momentum: float = 0.9
    rms_decay: float = 0.99
    budget_reached: float = 0.7
    softness_start: float = 0.9
    softness_end: float = 0.0005
    sinkhorn_softness: float = 0.25
    learn_split: bool | None = None
    floor_share: float = 0.5
    floor_units: int = 2
    round_to: int = 1

    def __post_init__(self) -> None:
        if self.solver not in ("exact", "sinkhorn-1"):
            raise UsageError(f"--solver {self.solver!r} is unknown. Give exact or sinkhorn-1.")
        if self.scores not in get_args(ScoreStart):
            raise UsageError(f"--scores {self.scores!r} is unknown. Give one of {', '.join(get_args(ScoreStart))}.")
        if self.score_rate is not None and not 0 <= self.score_rate < math.inf:
            raise UsageError(f"score_rate is {self.score_rate}; give a number of 0 or more, or None for the default.")
        if self.round_to < 1:
            raise UsageError(f"--round-to {self.round_to} is not allowed. Give 1 or more channels.")
        for name in ("budget_reached", "softness_start", "softness_end", "sinkhorn_softness"):
            self._check(name, "a number above 0 and at most 1", lambda value: 0 < value <= 1)
        for name in ("score_momentum", "rms_decay"):
            self._check(name, "a number from 0 to below 1", lambda value: 0 <= value < 1)
        self._check("floor_share", "a number from 0 to 1", lambda value: 0 <= value <= 1)
        for name in ("floor_units", "score_batches"):
            self._check(name, "1 or more", lambda value: value >= 1)

    def _check(self, name: str, allowed: str, holds: Callable[[float], bool]) -> None:
        value = getattr(self, name)
        if not holds(value):
            raise UsageError(f"{name} is {value}; give {allowed}.")

    def for_granularity(self, granularity: Granularity) -> MaskSettings:
        """These settings, with the rate of the scores decided.

        Raises:
            UsageError: single weights, and something that is of channels only.
        """
        self.check_granularity(granularity)
        return replace(self, score_rate=_RATES[granularity]) if self.score_rate is None else self

    def check_granularity(self, granularity: Granularity) -> None:
        """Raise unless these settings can be of masks of that granularity.

        Raises:
            UsageError: single weights, and something that is of channels only.
        """
        if granularity == "channels":
            return
        given = [f"--solver {self.solver}"] * (self.solver != "exact")
        given += [f"--round-to {self.round_to}"] * (self.round_to > 1)
        given += [f"MaskSettings(learn_split={self.learn_split})"] * (self.learn_split is not None)
        if given:
            raise UsageError(f"{given[0]} is of channels. Leave it out with --granularity {granularity}.")
        if self.scores not in get_args(WeightStart):
            raise UsageError(
                f"--scores {self.scores} is of channels; with --granularity {granularity} scores start from "
                f"{' or '.join(get_args(WeightStart))}. Give one of these, or leave --scores out."
            )

    def with_split_decided(self, budget: Budget, *, preferred: bool, depth: bool) -> MaskSettings:
        """These settings, with `learn_split` true or false; where every layer has a budget of its own, false.

        Args:
            budget: of the run.
            preferred: whether the target likes some widths better than others.
            depth: whether residual blocks may go as a whole.
        """
        learned = self.learn_split
        if learned is None:
            learned = budget.kind == "latency" or preferred or depth
        return replace(self, learn_split=learned and budget.scope == "global")

    def budget_at(self, progress: float, limit: float, dense: float) -> float:
        """The cost that the masks shall have: from just below the dense network down to the limit, and then the limit.

        The start is not the dense cost itself, where all masks are 1 and the price of the budget is 0/0.
        """
        left = max(0.0, 1.0 - progress / self.budget_reached) ** 3
        return limit + (dense - limit) * min(left, 1 - 1e-3)

    def softness_at(self, progress: float, ratio_at_limit: float, ratio_now: float) -> float:
        """Wanted mean of 4 m (1 - m): falls geometrically, and stays below what equal masks would have now.

        Args:
            progress: p.
            ratio_at_limit: the uniform mask that meets the limit.
            ratio_now: the uniform mask that meets the budget of this step.
        """
        equal = 4 * ratio_at_limit * (1 - ratio_at_limit)
        start, end = self.softness_start * equal, min(self.softness_end, _LARGEST_END * equal)
        if start <= end:
            return max(end, 1e-9)
        falling = self._falling(progress, start, end)
        return max(min(falling, self.softness_start * 4 * ratio_now * (1 - ratio_now)), 1e-9)

    def _falling(self, progress: float, start: float, end: float) -> float:
        if self.solver == "exact":
            return float(start * (end / start) ** progress)
        # One Sinkhorn iteration moves the mass less the harder the masks are. They stay soft until the budget has come
        # down, so that the mass can follow, and harden after that.
        held = max(self.sinkhorn_softness * start, end)
        if progress < self.budget_reached:
            return float(start * (held / start) ** (progress / self.budget_reached))
        after = (progress - self.budget_reached) / max(1 - self.budget_reached, 1e-9)
        return float(held * (end / held) ** min(after, 1.0))

    def rate_at(self, progress: float, ratio_at_limit: float) -> float:
        """Learning rate of the scores, once it is decided.

        Where more units are kept than pruned it is smaller in that proportion: else what the noise of batches does to
        scores near the threshold would exchange a larger share of those that go.

        Args:
            progress: p.
            ratio_at_limit: the uniform mask that meets the limit.
        """
        assert self.score_rate is not None
        return float(self.score_rate * pruned_per_kept(ratio_at_limit) * max(0.0, 1.0 - progress) ** 0.5)


def pruned_per_kept(ratio: float) -> float:
    """Units that go for each one that stays, at most one, where a share `ratio` of them stays.

    >>> [pruned_per_kept(ratio) for ratio in (0.1, 0.5, 0.75, 1.0)]
    [1.0, 1.0, 0.3333333333333333, 0.0]
    """
    return 1.0 if ratio <= 0.5 else (1 - ratio) / ratio
