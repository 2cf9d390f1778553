"""How far a budget can go: what the dense model costs, and the narrowest one that pruning may leave of it."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from dtp_deploy.budget import UNITS, Budget, BudgetKind
from dtp_deploy.errors import TargetError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.graph import Groups
from dtp_deploy.latency.timing import is_predicted, time_models
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import PruningPlan, make_plan, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.prune.widths import allowed_widths
from dtp_deploy.target import TargetSpec

_QUICKLY = MeasureSettings(min_seconds=0.3, max_seconds=3.0, repeats=0)


@dataclass(frozen=True)
class Reach:
    """How far a budget of one kind can go.

    Attributes:
        kind: of the budget.
        unit: of the figures.
        dense: the cost of the model as it is.
        smallest: the cost with the narrowest widths allowed in every group that may be pruned.
        basis: "computed", "measured" or "predicted".
    """

    kind: BudgetKind
    unit: str
    dense: float
    smallest: float
    basis: str


def smallest_plan(model: nn.Module, groups: Groups, round_to: int = 1) -> PruningPlan:
    """The plan that leaves one unit in every group, or the fewest that `round_to` allows."""
    kept = {group.name: range(allowed_widths(group, 1, round_to).units[0]) for group in groups.prunable}
    return make_plan(groups, kept, fingerprint_of(model))


def latency_reach(files: Mapping[str, Path], target: TargetSpec, budget: Budget, progress: Progress = SILENT) -> Reach:
    """The latencies of ONNX models called "dense" and "smallest", measured for a short time, or predicted.

    Args:
        files: both.
        target: where they run.
        budget: of kind "latency"; its statistic is what counts.
        progress: told of builds that take a while.

    Raises:
        TargetError: the target can neither measure here nor predict, or it failed.
    """
    reports = time_models(files, target, _QUICKLY, progress)
    basis = "predicted" if is_predicted(reports["dense"]) else "measured"
    dense, smallest = (budget.latency_of(reports[name]) for name in ("dense", "smallest"))
    return Reach("latency", UNITS["latency"], dense, smallest, basis)


def why_not_predicted(
    model: nn.Module,
    groups: Groups,
    target: TargetSpec,
    budget: Budget,
    round_to: int = 1,
    finish: Callable[[nn.Module], nn.Module] = lambda model: model,
) -> str | None:
    """Why the prediction of a target that cannot run here does not reach a latency, in a sentence; None if it does.

    Args:
        model: the dense one.
        groups: its channel groups.
        target: one that predicts.
        budget: of kind "latency".
        round_to: widths are multiples of it.
        finish: what is done to a network before it is exported.
    """
    small = remove_channels(model, smallest_plan(model, groups, round_to))
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in ("dense", "smallest")}
        for path, network in zip(files.values(), (copy.deepcopy(model), small), strict=True):
            export_onnx(finish(network).eval(), groups.inputs, path)
        try:
            reach = latency_reach(files, target, budget)
        except TargetError as error:
            return str(error)
    if reach.smallest <= budget.limit_for(reach.dense):
        return None
    return (
        f"On {target.name} the narrowest network that pruning may leave is predicted to take "
        f"{reach.smallest / reach.dense:.0%} of the dense {reach.dense:.4g} ms."
    )
