"""Ways to prune a classifier to a share of its MACs, all along one training schedule: see `benchmarks.accuracy`."""

from __future__ import annotations

import copy
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from itertools import islice
from unittest.mock import patch

import torch
import torch_pruning as tp
from torch import Tensor, nn
from torch.optim.optimizer import register_optimizer_step_pre_hook

from benchmarks.ablations import CHANGED, LEARNED, STARTED, as_usual
from benchmarks.classifiers import accuracy
from dtp_deploy import ChannelMasks, parse_budget, remove_channels
from dtp_deploy.cost import macs_cost, macs_per_sample
from dtp_deploy.graph import Groups
from dtp_deploy.loading import Dataset
from dtp_deploy.prune import make_plan
from dtp_deploy.prune import masks as masks_module
from dtp_deploy.prune.choice import choose_channels
from dtp_deploy.prune.importance import batchnorm_scale, l2
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.prune.widths import allowed_widths, even_widths, uniform_ratio
from dtp_deploy.task import CLASSIFICATION
from dtp_deploy.train import Settings, Trainer, reestimate_batchnorm


@dataclass(frozen=True)
class Job:
    """What every method gets.

    Attributes:
        base: the trained model, not to be changed.
        groups: its proven groups.
        data: to learn from and to be judged on.
        share: of the dense MACs that may be left.
        settings: of the training; the same for all methods.
        strength: of a sparsity-inducing method's regularisation; None for its own default.
    """

    base: nn.Module
    groups: Groups
    data: Dataset
    share: float
    settings: Settings
    strength: float | None = None

    @property
    def limit(self) -> float:
        """Largest number of MACs allowed."""
        return self.share * macs_per_sample(self.base, self.groups.inputs)


@dataclass(frozen=True)
class Outcome:
    """A pruned model after its last step, and its accuracy right after the channels were removed."""

    model: nn.Module
    accuracy_at_hardening: float


_GROWS_EVERY = 10
"""Steps between two rises of the growing regularisation: importance is as dear as a training step."""

_SPARSE_SHARE = 0.4
"""Of the steps, in which torch-pruning's methods learn with their regularisation."""

Reducer = Callable[[Job, Trainer], nn.Module]
"""Trains for a while, or not at all, and returns the network without its channels."""


def prune(method: str, job: Job) -> Outcome:
    """Prune by a method and fine-tune: the same number of steps in all, whatever the method does before removal."""
    job = replace(job, settings=CHANGED.get(method, lambda settings: settings)(job.settings))
    torch.manual_seed(job.settings.seed)
    stream = job.data.train(job.settings.batch_size, job.settings.seed, job.settings.augment)
    trainer = Trainer(stream, CLASSIFICATION, job.settings, copy.deepcopy(job.base).eval().requires_grad_(False))
    small = METHODS[method](job, trainer).requires_grad_(True)
    settings = job.settings
    if method != "scratch":
        fresh = job.data.train(settings.batch_size, settings.seed, settings.augment)
        reestimate_batchnorm(small, (inputs for inputs, _ in islice(fresh, settings.batchnorm_batches)))
    at_hardening = accuracy(small, job.data)
    trainer.run(small, trainer.total_steps)
    return Outcome(small.eval(), at_hardening)


def _student(job: Job) -> nn.Module:
    return copy.deepcopy(job.base).requires_grad_(True)


# ---- differentiable transportation ----------------------------------------------------------------------------------


def _dtp(job: Job, trainer: Trainer, learning: str = "") -> nn.Module:
    student = _student(job)
    masks = ChannelMasks(
        student,
        job.groups,
        parse_budget("macs", f"{100 * job.share:g}%"),
        steps=trainer.mask_steps,
        settings=job.settings.masks,
    )
    with LEARNED.get(learning, as_usual)(student, masks) as after_step:
        trainer.run(student, masks.steps, after_step, forget=masks.zero_grad)
    return remove_channels(student, masks.harden())


def _dtp_started(job: Job, trainer: Trainer, start: str) -> nn.Module:
    with patch.object(masks_module, "initial_scores", STARTED[start]):
        return _dtp(job, trainer)


# ---- one shot: scores without training ------------------------------------------------------------------------------


def _remove(job: Job, scores: list[Tensor], uniform: bool) -> nn.Module:
    """The highest scores within the budget: the same ratio in every layer, or one threshold for all layers."""
    groups = job.groups.prunable
    cost = macs_cost(job.base, job.groups)
    levels = [allowed_widths(group, 1) for group in groups]
    if uniform:
        ratio = uniform_ratio(cost, torch.tensor([float(group.units) for group in groups]).double(), job.limit)
        levels = [even_widths(level, ratio * group.units) for level, group in zip(levels, groups, strict=True)]
    kept = choose_channels(groups, scores, cost, job.limit, levels)
    return remove_channels(job.base, make_plan(job.groups, kept, fingerprint_of(job.base)))


def _random(job: Job, _: Trainer) -> nn.Module:
    generator = torch.Generator().manual_seed(job.settings.seed)
    scores = [torch.rand(group.units, generator=generator).double() for group in job.groups.prunable]
    return _remove(job, scores, uniform=True)


def _l2(job: Job, _: Trainer, *, uniform: bool) -> nn.Module:
    norms = l2(job.base, job.groups.prunable)
    return _remove(job, [norm / norm.mean() for norm in norms], uniform)


def _bn_scale(job: Job, _: Trainer) -> nn.Module:
    """Mean |gamma| of a unit's BatchNorms, one threshold for all layers (Liu et al., 2017, without its penalty)."""
    return _remove(job, batchnorm_scale(job.base, job.groups.prunable), uniform=False)


# ---- torch-pruning's own pruners ------------------------------------------------------------------------------------


def _torch_pruning(job: Job, trainer: Trainer, make: type[tp.pruner.BasePruner], strength: float) -> nn.Module:
    """Sparse learning for a share of the steps, then removal in small steps until the MACs are within the limit.

    Global pruning with group importance, as in the scripts that reproduce DepGraph's results.
    """
    student = _student(job)
    example = job.groups.inputs[0]
    last = [module for module in student.modules() if isinstance(module, nn.Linear)]
    pruner = make(
        student,
        example,
        importance=tp.importance.GroupMagnitudeImportance(p=2, normalizer="max", group_reduction="mean"),
        global_pruning=True,
        pruning_ratio=1.0,
        iterative_steps=400,
        ignored_layers=last,
    )
    steps = max(1, round(_SPARSE_SHARE * trainer.total_steps))
    step = _regulariser(pruner, student, strength, steps)
    student.train()
    hook = register_optimizer_step_pre_hook(lambda *_: step())
    try:
        trainer.run(student, steps)
    finally:
        hook.remove()
    while macs_per_sample(student, job.groups.inputs) > job.limit:
        pruner.step()
    return student


def _regulariser(pruner: tp.pruner.BasePruner, student: nn.Module, strength: float, steps: int) -> Callable[[], None]:
    """What a pruner adds to the gradients before each step."""
    if isinstance(pruner, tp.pruner.GrowingRegPruner):
        pruner.delta_reg = strength * _GROWS_EVERY / steps  # up to `strength` by the end, for any number of steps
        taken = 0

        def grow() -> None:
            nonlocal taken
            if taken % _GROWS_EVERY == 0:
                pruner.update_reg()
            taken += 1
            pruner.regularize(student)

        return grow
    pruner.reg = strength
    return lambda: pruner.regularize(student)


def _group_norm(job: Job, trainer: Trainer) -> nn.Module:
    return _torch_pruning(job, trainer, tp.pruner.GroupNormPruner, _or(job.strength, STRENGTHS["groupnorm"][0]))


def _growing_reg(job: Job, trainer: Trainer) -> nn.Module:
    return _torch_pruning(job, trainer, tp.pruner.GrowingRegPruner, _or(job.strength, STRENGTHS["growing-reg"][0]))


def _or(value: float | None, default: float) -> float:
    return default if value is None else value


# ---- without the base's weights -------------------------------------------------------------------------------------


def _scratch(job: Job, trainer: Trainer) -> nn.Module:
    """The shape that `dtp` chooses, with fresh weights and all steps to learn in."""
    small = _dtp(job, Trainer(trainer.stream, CLASSIFICATION, job.settings, trainer.teacher))
    for module in small.modules():
        if isinstance(module, nn.Conv2d | nn.Linear | nn.BatchNorm2d):
            module.reset_parameters()
    trainer.settings = replace(job.settings, learning_rate=0.1)
    return small


METHODS: dict[str, Reducer] = {
    "dtp": _dtp,
    **dict.fromkeys(CHANGED, _dtp),
    **{name: partial(_dtp, learning=name) for name in LEARNED},
    **{name: partial(_dtp_started, start=name) for name in STARTED},
    "random": _random,
    "l2-uniform": partial(_l2, uniform=True),
    "l2-global": partial(_l2, uniform=False),
    "bn-scale": _bn_scale,
    "groupnorm": _group_norm,
    "growing-reg": _growing_reg,
    "scratch": _scratch,
}

STRENGTHS: dict[str, tuple[float, ...]] = {
    "groupnorm": (5e-4, 5e-3, 2e-2),
    "growing-reg": (1e-2, 1e-1, 5e-1),
}
"""Of the regularisation: the published one first, then what is tried beside it when tuning."""
