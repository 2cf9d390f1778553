"""`dtp` with one of its parts taken out or changed, as methods for `benchmarks.accuracy`.

    python -m benchmarks.accuracy --data fashion.npz --stem-stride 2 --budgets 10 --methods dtp dtp-no-floor dtp-adam

Some reach into the masks, as nothing that users can set takes those parts out.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager as Context
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtp_deploy import ChannelMasks
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune import MaskSettings
from dtp_deploy.prune.importance import l2
from dtp_deploy.prune.learning import ScoreLearner
from dtp_deploy.train import Settings

AfterStep = Callable[[], None]


def _with(masks: MaskSettings) -> Callable[[Settings], Settings]:
    return lambda settings: replace(settings, masks=masks)


CHANGED: dict[str, Callable[[Settings], Settings]] = {
    "dtp-sinkhorn-1": _with(MaskSettings(solver="sinkhorn-1")),
    "dtp-fixed-scores": _with(MaskSettings(score_rate=0.0)),
    "dtp-rate-0.05": _with(MaskSettings(score_rate=0.05)),
    "dtp-uniform-start": _with(MaskSettings(scores="uniform")),
    "dtp-at-once": _with(MaskSettings(budget_reached=1e-6)),
    "dtp-no-floor": _with(MaskSettings(floor_share=0.0)),
    "dtp-floor-0.7": _with(MaskSettings(floor_share=0.7)),
    "dtp-floor-0.9": _with(MaskSettings(floor_share=0.9)),
    "dtp-learned-split": _with(MaskSettings(learn_split=True)),
    "dtp-learned-split-floor-0.7": _with(MaskSettings(learn_split=True, floor_share=0.7)),
    "dtp-learned-split-no-floor": _with(MaskSettings(learn_split=True, floor_share=0.0)),
    # Remedies for the null direction: they can only help a split that is learned.
    "dtp-straight-through": _with(MaskSettings(learn_split=True)),
    "dtp-running-statistics": _with(MaskSettings(learn_split=True)),
    "dtp-mask-15": lambda settings: replace(settings, mask_share=0.15),
    "dtp-mask-24": lambda settings: replace(settings, mask_share=0.24),
    "dtp-mask-40": lambda settings: replace(settings, mask_share=0.4),
    "dtp-no-distill": lambda settings: replace(settings, distill=False),
}
"""What becomes of the settings of a run. Shares of the mask phase are of the steps where half or less is kept."""


class _Adam(ScoreLearner):
    """Scores that Adam moves, every one as fast as any other; what is pruned of a group moves, too."""

    def step(self, masks: Tensor, gradient: Tensor, epsilon: float, step: int, rate: float) -> None:
        if step == 0:
            self._adam = torch.optim.Adam([self.scores])
        self.scores.grad = self.slope(masks, gradient, epsilon)
        self._adam.param_groups[0]["lr"] = rate
        self._adam.step()


class _MeanOverAll(ScoreLearner):
    """Divided by the root mean square over all units: the fewer are undecided, the faster they move."""

    def free_units(self, masks: Tensor) -> float:
        return float(masks.numel())


class _AgainstMean(ScoreLearner):
    """The mean score of every group stays, not that of what is pruned of it."""

    def _against_pruned(self, masks: Tensor) -> Tensor:
        return self._velocity


@contextmanager
def _against_mean(student: nn.Module, masks: ChannelMasks) -> Iterator[AfterStep]:
    masks._learner = _AgainstMean(masks.scores, masks.settings, masks._learner.group)
    yield masks.step


@contextmanager
def _over_all(student: nn.Module, masks: ChannelMasks) -> Iterator[AfterStep]:
    masks._learner = _MeanOverAll(masks.scores, masks.settings, masks._learner.group)
    yield masks.step


@contextmanager
def _by_adam(student: nn.Module, masks: ChannelMasks) -> Iterator[AfterStep]:
    masks._learner = _Adam(masks.scores, masks.settings, masks._learner.group)
    yield masks.step


@contextmanager
def _straight_through(student: nn.Module, masks: ChannelMasks) -> Iterator[AfterStep]:
    """Hard masks forward, the soft ones' gradient backward."""

    def step() -> None:
        masks.step()
        with torch.no_grad():
            for tensor in masks._in_model():
                tensor.copy_((tensor >= 0.5).to(tensor))

    yield step


@contextmanager
def _running_statistics(student: nn.Module, masks: ChannelMasks) -> Iterator[AfterStep]:
    """BatchNorm by its running statistics, which follow the batches: then scaling all masks of a group shows."""
    norms = [module for module in student.modules() if isinstance(module, nn.BatchNorm2d)]

    def forward(norm: nn.BatchNorm2d, x: Tensor) -> Tensor:
        assert norm.running_mean is not None
        assert norm.running_var is not None
        if norm.training:
            with torch.no_grad():
                variance, mean = torch.var_mean(x, dim=(0, 2, 3))
                norm.running_mean.lerp_(mean, 0.1)
                norm.running_var.lerp_(variance, 0.1)
        # Copies: the next batch changes the statistics, and the gradient of this one needs them.
        statistics = norm.running_mean.clone(), norm.running_var.clone()
        return functional.batch_norm(x, *statistics, norm.weight, norm.bias, False, 0.0, norm.eps)

    for norm in norms:
        norm.forward = partial(forward, norm)  # type: ignore[method-assign]
    try:
        yield masks.step
    finally:
        for norm in norms:
            del norm.forward


LEARNED: dict[str, Callable[[nn.Module, ChannelMasks], Context[AfterStep]]] = {
    "dtp-adam": _by_adam,
    "dtp-against-mean": _against_mean,
    "dtp-mean-over-all": _over_all,
    "dtp-straight-through": _straight_through,
    "dtp-running-statistics": _running_statistics,
}
"""How masks are learned in place of the usual way; the context gives what is called after every step."""


def _from_means(model: nn.Module, groups: Sequence[ChannelGroup], *_: object) -> tuple[Tensor, ...]:
    """Norms relative to the mean of their group, scaled to unit spread together."""
    relative = [norms / norms.mean() - 1 for norms in l2(model, groups)]
    spread = torch.cat(relative).std(correction=0)
    return tuple(norms / spread for norms in relative)


STARTED: dict[str, Callable[..., tuple[Tensor, ...]]] = {"dtp-from-means": _from_means}
"""What scores start from in place of `initial_scores`."""


def as_usual(student: nn.Module, masks: ChannelMasks) -> Context[AfterStep]:
    """The default of `LEARNED`."""
    return nullcontext(masks.step)
