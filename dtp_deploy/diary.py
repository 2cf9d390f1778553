"""How the masks stand, once an epoch: what a person looks at to see whether the mask phase went well.

Nothing of the training is touched: the model computes in eval mode without gradients, masks that are hardened for a
moment come back, and the random state is what it was.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from dtp_deploy.evaluate import evaluate_model
from dtp_deploy.findings import Findings
from dtp_deploy.loading.source import DataSource
from dtp_deploy.prune import ChannelMasks, WeightMasks
from dtp_deploy.ranks import by_first
from dtp_deploy.task import Task

_SAMPLES, _BATCH = 512, 128
"""Validation samples for the two accuracies, enough to see a gap and few enough to cost little beside an epoch; and at
most so many at a time."""


class MaskDiary:
    """Writes the findings' `mask_phase`.

    Args:
        findings: where entries go; one that was read from a checkpoint is continued.
        model: with the masks on.
        masks: of the model.
        data: to validate with.
        task: has the metric.
        steps_an_epoch: of the training.
        batch_size: of the training; more samples at a time may not fit into the memory.
    """

    def __init__(
        self,
        findings: Findings,
        model: nn.Module,
        masks: ChannelMasks | WeightMasks,
        data: DataSource,
        task: Task,
        steps_an_epoch: int,
        batch_size: int,
    ) -> None:
        self.findings, self.model, self.masks = findings, model, masks
        self.data, self.task, self.steps_an_epoch = data, task, steps_an_epoch
        self.batch_size = min(_BATCH, batch_size)
        if not findings.mask_phase:
            self._write(0)

    def after_step(self, step: int) -> dict[str, Any] | None:
        """Note the price of this step; and, after an epoch or the last step of the masks, all the rest, as returned."""
        if self.masks.price is not None:
            self.findings.prices.append(self.masks.price)
        if step % self.steps_an_epoch and self.masks.progress < 1:
            return None
        return self._write(step)

    def _write(self, step: int) -> dict[str, Any]:
        masks, prices = self.masks, self.findings.prices
        with masks.hardened():
            hard = self._accuracy()
        entry = {
            "step": step,
            "epoch": step / self.steps_an_epoch,
            "undecided": masks.undecided,
            "entropy_bits": masks.entropy_bits,
            "cost_share": masks.cost_share,
            "price": sum(prices) / len(prices) if prices else None,
            "accuracy_soft": self._accuracy(),
            "accuracy_hard": hard,
            "widths": list(masks.learned_widths().values()),
        }
        prices.clear()
        self.findings.mask_phase.append(entry)
        return entry

    def _accuracy(self) -> float | None:
        with torch.random.fork_rng(devices=[]):  # a loader of the user's own may draw from it
            return by_first(lambda: evaluate_model(self.model, self.data, self.task, self.batch_size, _SAMPLES))
