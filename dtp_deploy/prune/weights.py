"""`WeightMasks`: differentiable transportation pruning of single weights, inside any training loop.

    layers = find_weights(model, inputs, "2:4")
    masks = WeightMasks(model, layers, steps=1000)
    for x, y in batches:                       # 1000 of them
        optimizer.zero_grad()
        loss_function(model(x), y).backward()
        optimizer.step()
        masks.step()
    plan = masks.harden()
    hold_zeros(model, plan)                    # and fine-tune

The same steps as of `ChannelMasks`, but that nothing is removed: what is pruned is a zero in its place. The masks
multiply the weights themselves. A BatchNorm behind a layer takes one factor of a whole filter out again, but not the
choice within it, and a mask of zero is a weight of zero whatever comes after.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrize

from dtp_deploy.budget import Budget, flag_of
from dtp_deploy.cost import count_parameters
from dtp_deploy.errors import BudgetError, UsageError
from dtp_deploy.graph import tensor_by_name
from dtp_deploy.modules import device_of, require_finite
from dtp_deploy.prune.importance import ScoreStart, log_shares
from dtp_deploy.prune.layers import WeightLayers
from dtp_deploy.prune.learning import ScoreLearner
from dtp_deploy.prune.parametrised import MaskedWeight, Parametrised
from dtp_deploy.prune.plan import LayerChoice, PruningPlan, fingerprint_of
from dtp_deploy.prune.schedule import MaskSettings
from dtp_deploy.prune.sharing import BlockSharing, SharedBudget, Sharing, Threshold
from dtp_deploy.prune.stepwise import StepsFor, StepwiseMasks, above_least, steps_of
from dtp_deploy.ranks import by_first, mean_over_ranks

_LEAST = 1e-12
"""A size below this, as a share of the largest in its layer, is as good as zero."""


class _WeightMask(MaskedWeight):
    """Multiplies a weight by its mask. The mask is no parameter: the optimiser of the weights leaves it alone."""

    def __init__(self, mask: Tensor) -> None:
        super().__init__()
        self.mask = mask

    def forward(self, weight: Tensor) -> Tensor:
        return weight * self.mask.to(weight.dtype)


class WeightMasks(StepwiseMasks):
    """Soft masks on single weights, learned by differentiable transportation.

    Args:
        model: on the device where it trains, since masks do not move with it. Changed in place while the masks are on:
            the weights of the layers become parametrised. `harden` takes the masks off again.
        layers: of this model, as `find_weights` gives them.
        budget: of kind "params": how many parameters may be other than zero, those that cannot be masked counted too.
            None for 2:4, which needs none.
        steps: as of `ChannelMasks`; a function gets the share of the weights that is kept.
        settings: hyper-parameters, none of which needs tuning.
        limit: the largest number of parameters other than zero; by default the budget's.

    Attributes:
        scores: one score a weight, all layers one after the other, shape [n,], float64.
        masks: of the present step, shape [n,].
        price: as of `ChannelMasks`, for as much more budget as all maskable weights; None for 2:4, too.

    Raises:
        UsageError: no steps, a budget that does not fit the granularity, or a solver that is of channels.
        BudgetError: not even one weight a layer meets the limit.
        InputError: weights hold NaN or infinity.
    """

    def __init__(
        self,
        model: nn.Module,
        layers: WeightLayers,
        budget: Budget | None = None,
        *,
        steps: int | StepsFor,
        settings: MaskSettings | None = None,
        limit: float | None = None,
    ) -> None:
        self.model, self.layers, self.budget = model, layers, budget
        self.settings = (settings if settings is not None else MaskSettings()).for_granularity(layers.granularity)
        for layer in layers.maskable:
            if parametrize.is_parametrized(layer.module(model), "weight"):
                raise UsageError(
                    f"{type(model).__name__} has masks already, on '{layer.name}'. Call harden() or detach() of them "
                    "before you make others."
                )
        require_finite(model)
        self._fingerprint = fingerprint_of(model)  # before the masks rename tensors
        device = device_of(model)
        weights = [layer.weight_of(model) for layer in layers.maskable]
        frozen = [torch.full((weight.numel(),), not weight.requires_grad, device=device) for weight in weights]
        self._frozen = torch.cat(frozen)
        self._sharing = self._make_sharing(limit, device)
        self.steps = steps_of(steps, self._sharing.ratio)
        self.scores = initial_scores([self._flat(weight.detach()) for weight in weights], self.settings.scores)
        self.scores.requires_grad_()
        self._learner = ScoreLearner(self.scores, self.settings, self._sharing.group)
        self.price: float | None = None
        self._step, self._epsilon = 0, 1.0
        # What is zero already does not count on the way down either.
        nonzero = sum(int(torch.count_nonzero(weight)) for weight in weights) / layers.count
        self._first_ratio = 1.0 if layers.granularity == "2:4" else max(nonzero, self._sharing.ratio)
        self._threshold: Threshold = None
        self._start: Threshold = None
        self._masks = [torch.ones(weight.shape, device=device, requires_grad=True) for weight in weights]
        self.masks = self._solve()
        self._parametrised = [
            Parametrised.put_on(layer.module(model), "weight", _WeightMask(mask))
            for layer, mask in zip(layers.maskable, self._masks, strict=True)
        ]
        self._write()

    def _make_sharing(self, limit: float | None, device: torch.device) -> Sharing:
        layers, budget = self.layers, self.budget
        if layers.granularity == "2:4":
            if budget is not None:
                raise UsageError(
                    f"{flag_of(budget.kind)} {budget} does not go with 2:4, which keeps two of every four weights "
                    "whatever the budget. Leave it out."
                )
            return BlockSharing(layers.count, device)
        if budget is None or budget.kind != "params":
            given = "no budget" if budget is None else f"{flag_of(budget.kind)} {budget}"
            raise UsageError(f"WeightMasks() got {given}. Give single weights a budget of parameters: --params 20%.")
        dense = count_parameters(self.model)
        limit = budget.limit_for(float(dense)) if limit is None else limit
        others = dense - layers.count
        least = others + len(layers.maskable)
        whole = limit / budget.limit if budget.relative else dense
        if limit < least:
            raise BudgetError(
                f"--params {budget} is a limit of {limit:,.6g}, but one weight in every layer, with the {others:,} "
                f"parameters that are no weights of such layers, makes {least:,} of the dense {dense:,}. "
                f"Give {math.ceil(1000 * least / whole) / 10:g}% or more."
            )
        kept = min(math.floor(limit) - others, layers.count)
        sizes = [layer.weights for layer in layers.maskable]
        return SharedBudget(sizes, kept, budget.scope, self.settings.floor_share, device)

    @property
    def kept(self) -> int:
        """How many of the weights that may be masked are left in the end."""
        return self._sharing.kept

    def _present(self) -> Tensor:
        return self.masks

    def _in_model(self) -> list[Tensor]:
        return self._masks

    def _least_softness(self) -> float:
        return self._sharing.least_softness(self.cost_share)

    @property
    def cost_share(self) -> float:
        """The mean mask: the share of the weights that is kept now."""
        return float(self.masks.detach().mean())

    def learned_widths(self) -> dict[str, int]:
        """Weights of every maskable layer whose masks are 0.5 or more."""
        return {
            layer.name: int((mask.detach() >= 0.5).sum())
            for layer, mask in zip(self.layers.maskable, self._masks, strict=True)
        }

    def step(self) -> None:
        """Learn from the gradients that have gathered since the last call, and move on by one step of the schedule.

        As `ChannelMasks.step`.

        Raises:
            TrainingError: the gradients hold NaN or infinity.
        """
        if self._step >= self.steps:
            return
        if any(mask.grad is not None for mask in self._masks):
            gradients = [mask.grad if mask.grad is not None else torch.zeros_like(mask) for mask in self._masks]
            gradient = mean_over_ranks(torch.cat([self._flat(gradient) for gradient in gradients]))
            gradient = gradient.to(self.scores)
            rate = self.settings.rate_at(self.progress, self._sharing.ratio)
            self._learner.step(self.masks, gradient, self._epsilon, self._step, rate)
            self.price = self._sharing.price(gradient)
            self.zero_grad()
        self._step += 1
        self.masks = self._solve()
        self._write()

    def zero_grad(self) -> None:
        """Forget the gradients that have gathered since the last step."""
        for mask in self._masks:
            mask.grad = None

    def _ratio_now(self) -> float:
        return self.settings.budget_at(self.progress, self._sharing.ratio, self._first_ratio)

    def _solve(self) -> Tensor:
        """The next step's epsilon, and its transport."""
        ratio = self._ratio_now()
        wanted = self.settings.softness_at(self.progress, self._sharing.ratio, ratio)
        least = self._sharing.least_softness(ratio)
        wanted = above_least(wanted, least, ratio)
        epsilon = self._epsilon_that_follows(wanted)
        if epsilon is None:
            epsilon = self._sharing.epsilon_for(self.scores, self._epsilon, ratio, wanted)
        if self._threshold is not None:
            self._start = self._threshold * (self._epsilon / epsilon)  # logits scale with 1 / epsilon
        self._epsilon = epsilon
        masks, self._threshold = self._sharing.solve(self.scores, epsilon, ratio, self._start)
        return masks

    def _flat(self, tensor: Tensor) -> Tensor:
        """The values of a weight in a row; for 2:4 with the inputs next to each other, shape [numel,]."""
        return (tensor.movedim(1, -1) if self.layers.granularity == "2:4" else tensor).reshape(-1)

    def _put(self, values: Tensor) -> None:
        """Write values, one a weight, into the masks."""
        with torch.no_grad():
            parts = torch.split(values, [layer.weights for layer in self.layers.maskable])
            for mask, part in zip(self._masks, parts, strict=True):
                laid_out = mask.movedim(1, -1) if self.layers.granularity == "2:4" else mask
                laid_out.copy_(part.view(laid_out.shape))

    def _write(self) -> None:
        self._put(self.masks.detach())

    def state(self) -> dict[str, Any]:
        """Everything that `step` changes, in plain values and tensors; weights are the model's own."""
        return {
            "step": self._step,
            "epsilon": self._epsilon,
            "threshold": self._threshold,
            "start": self._start,
            **self._learner.state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where masks of the same model, layers, budget and steps were; what follows is the same bit for bit."""
        self._step, self._epsilon = state["step"], state["epsilon"]
        self._threshold, self._start = (_moved(state[name], self.scores) for name in ("threshold", "start"))
        self._learner.load_state(state)
        self.masks, _ = self._sharing.solve(self.scores, self._epsilon, self._ratio_now(), self._start)
        self._write()

    def harden(self) -> PruningPlan:
        """Take the masks off: kept weights keep their last mask as a factor, all others become exactly zero.

        Returns:
            The plan. Train on with `hold_zeros(model, plan)`.
        """
        keep = by_first(lambda: self._sharing.choose(self.scores).cpu()).to(self.masks.device)
        # A kept weight that was undecided counts as kept: a tiny factor would only slow its fine-tuning. A frozen one
        # could not make up for any.
        self._put(keep * self.masks.detach().clamp_min(0.5).masked_fill(self._frozen, 1.0))
        self.detach()
        with torch.no_grad():
            for layer in self.layers.maskable:
                weight = layer.weight_of(self.model)
                weight.masked_fill_(weight == 0, 0.0)  # no zero is a minus zero
        choices = (LayerChoice(layer.name, layer.weights, layer.weights, layer.left_because) for layer in self.layers)
        plan = PruningPlan((), {}, self._fingerprint, granularity=self.layers.granularity, layers=tuple(choices))
        return counted(plan, self.model)


def initial_scores(weights: Sequence[Tensor], start: ScoreStart = "l2") -> Tensor:
    """One score a weight, all layers one after the other, shape [n,], float64.

    "l2" is the size of a weight relative to the norm of all weights of its layer that are not smaller: `log_shares`. It
    is free of the scale of a layer, and the last weights of a layer weigh more the fewer they are, so that one
    threshold gives every layer a share of its own. Of the same size, the weight that comes first counts more. What is
    zero comes last, however the others start.

    Args:
        weights: flat, one tensor a layer.
        start: "l2" or "uniform".
    """
    sizes = [weight.abs().to("cpu", torch.float64) for weight in weights]
    starts = [_zeros_last(size) if start == "uniform" else log_shares(size, _LEAST) for size in sizes]
    scores = torch.cat(starts)
    places = [
        (torch.arange(len(size), dtype=torch.float64) + number / len(sizes)) / len(size)
        for number, size in enumerate(sizes)
    ]
    return (scores - 1e-4 * torch.cat(places)).to(weights[0].device)


def _zeros_last(sizes: Tensor) -> Tensor:
    return torch.where(sizes > 0, 0.0, math.log(_LEAST))


def counted(plan: PruningPlan, model: nn.Module) -> PruningPlan:
    """The plan, with the number of weights that are not zero in the model."""
    layers = tuple(
        replace(layer, kept=int(torch.count_nonzero(tensor_by_name(model, layer.tensor)))) for layer in plan.layers
    )
    return replace(plan, layers=layers)


def hold_zeros(model: nn.Module, plan: PruningPlan) -> None:
    """From now on, no training changes a weight that is zero in a layer of the plan that was masked.

    Its gradient is zero, so that momentum and weight decay leave it alone, too. What is zero says the weight itself:
    there is no mask to keep, and a model that is read back goes on in the same way.
    """
    for layer in plan.layers:
        if layer.left_because is None:
            weight = tensor_by_name(model, layer.tensor)
            learns = weight.requires_grad
            # A weight that does not learn now takes no hook, and may learn later.
            weight.requires_grad_().register_hook(_ZeroWhere(weight))  # type: ignore[no-untyped-call]
            weight.requires_grad_(learns)


class _ZeroWhere:
    """A gradient without what belongs to weights that are zero."""

    def __init__(self, weight: Tensor) -> None:
        self.weight = weight

    def __call__(self, gradient: Tensor) -> Tensor:
        return gradient * (self.weight != 0)


def _moved(value: Threshold, like: Tensor) -> Threshold:
    return value.to(like.device) if isinstance(value, Tensor) else value
