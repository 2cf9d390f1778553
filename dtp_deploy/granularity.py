"""How a run prunes: whole channels within limits, or single weights to zero."""

from __future__ import annotations

import abc
import zlib
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from torch import nn

from dtp_deploy.budget import Budget, Granularity
from dtp_deploy.cost import count_parameters
from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.export.zeros import require_zeros
from dtp_deploy.forms import Form
from dtp_deploy.graph import Groups, find_blocks, find_groups, tensor_by_name
from dtp_deploy.latency import close_loop, explain_deviations
from dtp_deploy.limits import Limits
from dtp_deploy.modules import Inputs
from dtp_deploy.profile.measure import LatencyReport
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import ChannelMasks, Depth, MaskSettings, PruningPlan, WeightLayers, WeightMasks, prove
from dtp_deploy.prune.importance import Losses
from dtp_deploy.prune.stepwise import StepsFor
from dtp_deploy.ranks import by_first
from dtp_deploy.report.table import size
from dtp_deploy.train import Settings

Masks = ChannelMasks | WeightMasks

_UNIT = "non-zero parameters"


def check_pruned_by(granularity: Granularity, plan: PruningPlan | None) -> None:
    """Raise where an earlier run left zeros among the weights and this one would prune channels, and fill them again.

    Args:
        granularity: of this run.
        plan: by which the model was pruned before; None for a dense one.

    Raises:
        UsageError: it is so.
    """
    if granularity == "channels" and plan is not None and plan.layers:
        raise UsageError(
            f"The model was pruned by --granularity {plan.granularity} before, and --granularity channels does not "
            f"keep its {plan.zeros:,} zeros. Prune the channels of the dense model, and single weights after that; or "
            f"give --granularity {plan.granularity} to go on with this one."
        )


def zeros_before(plan: PruningPlan | None, layers: WeightLayers) -> int:
    """Zeros that an earlier run left in layers that this one masks; they stay.

    Args:
        plan: of that run; None where there was none.
        layers: of this run.

    Raises:
        UsageError: it left zeros in a layer that this run does not mask, and would lose count of.
    """
    if plan is None:
        return 0
    left_because = {layer.name: layer.left_because for layer in layers}
    for one in plan.layers:
        left = left_because.get(one.name, "it is no layer of this model")
        if one.left_because is None and left is not None:
            same = plan.granularity == layers.granularity
            advice = "Leave --keep and --only out." if same else f"Give --granularity {plan.granularity}."
            raise UsageError(
                f"An earlier run left zeros in '{one.name}', which this one would not keep: {left}. {advice}"
            )
    return plan.zeros


def find_prunable(model: nn.Module, inputs: Inputs, settings: Settings, progress: Progress = SILENT) -> Groups:
    """The channel groups of a model, and its residual blocks where removing them is allowed, all of them proven.

    Raises:
        GraphError: the model cannot be followed, nothing in it may be pruned, or blocks may go and it has none.
    """
    groups = find_groups(model, inputs, keep=settings.keep, only=settings.only)
    if settings.allow_depth:
        groups = replace(groups, blocks=find_blocks(model, inputs, keep=settings.keep, only=settings.only))
    groups = prove(model, groups, seed=settings.seed, progress=progress)
    if settings.allow_depth and not groups.removable:
        reasons = "; ".join(f"{block.name}: {block.kept_because}" for block in groups.blocks[:5])
        found = f"none of its {len(groups.blocks)} may go ({reasons})" if reasons else "it has none"
        raise GraphError(
            f"--allow-depth: {type(model).__name__} has no residual block that could be removed as a whole: {found}. "
            "A block is x + f(x), where f ends in a module of its own. Leave --allow-depth out."
        )
    return groups


class Pruning(abc.ABC):
    """What is pruned, and by which budgets.

    Attributes:
        notes: what a reader of the report should know.
        dense_nonzero: parameters of the dense model that are not zero, where an earlier run left zeros among them.
    """

    notes: tuple[str, ...] = ()
    dense_nonzero: int | None = None

    @abc.abstractmethod
    def in_force(self, settings: MaskSettings) -> MaskSettings:
        """Settings with all decided that does not depend on what the budget leaves."""

    @abc.abstractmethod
    def masks(self, student: nn.Module, steps: StepsFor, settings: MaskSettings) -> Masks:
        """Masks on the student."""

    @abc.abstractmethod
    def harden(self, masks: Any) -> tuple[PruningPlan, list[str]]:  # noqa: ANN401 - the masks that `masks` gave
        """Take the masks off: the plan, and what differs from what was learned, in words."""

    @abc.abstractmethod
    def entries(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> list[dict[str, Any]]:
        """What came of each budget, in the schema's terms; at least one."""

    def decisions(self) -> list[dict[str, Any]]:
        """What was found out by measuring, so that a run that goes on later need not measure again."""
        return []


class ChannelPruning(Pruning):
    """Channels are removed until the limits are kept.

    Args:
        groups: proven.
        limits: of the run.
        predicted: whether latency is.
        losses: what scores by "taylor" start from.
    """

    def __init__(self, groups: Groups, limits: Limits, predicted: bool, losses: Losses) -> None:
        self.groups, self.limits, self.predicted, self.losses = groups, limits, predicted, losses
        self.notes = limits.notes

    def in_force(self, settings: MaskSettings) -> MaskSettings:
        """With the rate of the scores and the split of the budget decided."""
        preferred = self.limits.preferred is not None
        return settings.for_granularity("channels").with_split_decided(
            self.limits.all[0].budget, preferred=preferred, depth=bool(self.groups.blocks)
        )

    def masks(self, student: nn.Module, steps: StepsFor, settings: MaskSettings) -> ChannelMasks:
        """On the readers of the groups."""
        limits = self.limits
        return ChannelMasks(
            student,
            self.groups,
            limits.all[0].budget,
            steps=steps,
            settings=settings,
            cost=limits.cost,
            limit=limits.limit,
            preferred=limits.preferred,
            losses=self.losses,
            depth=Depth(self.groups, limits.cost_without) if self.groups.blocks else None,
        )

    def harden(self, masks: ChannelMasks) -> tuple[PruningPlan, list[str]]:
        """With the plan whose real cost is within the limits."""
        limits = self.limits
        plan = by_first(lambda: close_loop(masks, limits.used, fill=limits.fill, aim=limits.aim))
        deviations = explain_deviations(
            masks.learned_widths(), plan, limits.preferred, self.groups, predicted=self.predicted
        )
        masks.harden(plan)
        return plan, deviations

    def entries(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> list[dict[str, Any]]:
        """One a limit."""
        return [one.entry(pruned, plan, latencies) for one in self.limits.all]

    def decisions(self) -> list[dict[str, Any]]:
        """Of the limits."""
        return self.limits.decisions()


class WeightPruning(Pruning):
    """Single weights, or two of every four, become zero; nothing is removed.

    Args:
        layers: of the dense model.
        budget: of parameters; None for 2:4.
        params: of the dense model, as it is pruned.
        dense: its delivered form. What finishing it adds or takes is a constant.
        zeros: of the dense model that an earlier run left in these layers; percentages are of what is not zero.
    """

    def __init__(self, layers: WeightLayers, budget: Budget | None, params: int, dense: Form, zeros: int) -> None:
        self.layers, self.budget = layers, budget
        nonzero = dense.params - zeros
        half = layers.count // 2
        self.dense_nonzero = nonzero if zeros else None
        self.limit = float(dense.params - half) if budget is None else budget.limit_for(float(nonzero))
        self._finishing = params - dense.params

    def in_force(self, settings: MaskSettings) -> MaskSettings:
        """With the rate of the scores decided."""
        return settings.for_granularity(self.layers.granularity)

    def masks(self, student: nn.Module, steps: StepsFor, settings: MaskSettings) -> WeightMasks:
        """On the weights of the layers."""
        limit = self.limit + self._finishing
        return WeightMasks(student, self.layers, self.budget, steps=steps, settings=settings, limit=limit)

    def harden(self, masks: WeightMasks) -> tuple[PruningPlan, list[str]]:
        """As many weights as the budget has."""
        return masks.harden(), []

    def entries(self, pruned: Form, plan: PruningPlan, latencies: Mapping[str, LatencyReport]) -> list[dict[str, Any]]:
        """The parameters that are not zero."""
        achieved = pruned.params - plan.zeros
        return [
            {
                "kind": "params",
                "requested": self.layers.granularity if self.budget is None else str(self.budget),
                "relative": self.budget is not None and self.budget.relative,
                "limit": self.limit,
                "unit": _UNIT,
                "achieved": achieved,
                "met": achieved <= self.limit,
                "basis": "computed",
            }
        ]


def make_weight_pruning(
    layers: WeightLayers, budgets: Sequence[Budget], model: nn.Module, dense: Form, pruned_by: PruningPlan | None
) -> WeightPruning:
    """Of the one budget of single weights, or of none."""
    zeros = zeros_before(pruned_by, layers)
    return WeightPruning(layers, budgets[0] if budgets else None, count_parameters(model), dense, zeros)


def check_zeros(path: Path, model: nn.Module, plan: PruningPlan) -> None:
    """Raise unless the zeros of the pruned model are in the delivered file.

    Args:
        path: the ONNX file.
        model: before it was finished.
        plan: by which it was pruned; where channels were, there is nothing to check.

    Raises:
        ParityError: zeros are missing, or a layer is not 2:4.
    """
    zeros = {
        layer.name: (tensor_by_name(model, layer.tensor).detach().cpu() == 0).numpy()
        for layer in plan.layers
        if layer.left_because is None
    }
    if zeros:
        require_zeros(path, zeros, two_of_four=plan.granularity == "2:4")


def gains(plan: PruningPlan, dense: Path, pruned: Path) -> list[str]:
    """Who gains from a model of zeros, in words; nothing where channels were removed."""
    if plan.granularity == "channels":
        return []
    before, after = (size(len(zlib.compress(path.read_bytes()))) for path in (dense, pruned))
    stored = (
        f"The ONNX file stores a zero like any other value: it is as large as the dense one. Compressed (deflate), as "
        f"for a download, it is {after} of the dense {before}."
    )
    if plan.granularity == "2:4":
        return [
            "2:4 sparsity: TensorRT can run such layers on the sparse tensor cores of NVIDIA GPUs from Ampere on, if "
            "it builds with sparse weights, as the targets tensorrt and jetson do. All other runtimes compute as much "
            "as before.",
            stored,
        ]
    return ["Single weights are zero: no target computes faster for it.", stored]
