"""What a run would do, without any training: ``dtp-deploy compress --dry-run``."""

from __future__ import annotations

import copy
import tempfile
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch

from dtp_deploy.budget import UNITS, Budget, BudgetKind
from dtp_deploy.errors import TargetError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.graph import Groups, find_groups
from dtp_deploy.job import Job
from dtp_deploy.latency.timing import is_predicted, time_models
from dtp_deploy.loading import inspect_checkpoint
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import cost_of, make_plan, prove, remove_channels
from dtp_deploy.prune.plan import fingerprint_of

_QUICKLY = MeasureSettings(min_seconds=0.3, max_seconds=3.0, repeats=0)
_COUNTED: tuple[BudgetKind, ...] = ("macs", "params", "size", "channels")


@dataclass(frozen=True)
class Reach:
    """How far a budget of one kind can go.

    Attributes:
        kind: of the budget.
        unit: of the figures.
        dense: the cost of the model as it is.
        smallest: the cost with one unit left in every group that may be pruned.
        basis: "computed", "measured" or "predicted".
    """

    kind: BudgetKind
    unit: str
    dense: float
    smallest: float
    basis: str


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        model: where the model came from.
        imports: "module.name" of everything that loading the model's file imports.
        files: the files and folders that are read.
        out: the folder that would be written.
        budgets: the limits, as typed.
        target: where latency would be measured.
        groups: name, width, and why it may not be pruned (None if it may) of every channel group.
        reach: of each kind of budget; latency is missing where it can be neither measured nor predicted.
        notes: what else to know.
    """

    model: str
    imports: tuple[str, ...]
    files: tuple[str, ...]
    out: str
    budgets: tuple[str, ...]
    target: str
    groups: tuple[tuple[str, int, str | None], ...]
    reach: tuple[Reach, ...]
    notes: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def rehearse(job: Job, progress: Progress = SILENT) -> DryRun:
    """Find the groups, prove them, and see what each kind of budget can reach.

    Raises:
        GraphError: the model cannot be followed, or nothing in it may be pruned.
    """
    order = job.order
    model = job.model.eval()
    with progress.task("groups"):
        groups = prove(model, find_groups(model, job.inputs), seed=job.settings.seed, progress=progress)
    reach = [_counted(kind, job, groups) for kind in _COUNTED]
    notes = list(job.notes)
    with progress.task("latency"):
        try:
            reach.append(_timed(job, groups))
        except TargetError as error:
            notes.append(f"What a latency budget can reach is not known. {error}")
    path = Path(order.checkpoint)
    imports = inspect_checkpoint(path).imports if path.exists() else ()
    return DryRun(
        model=job.loaded.origin,
        imports=imports,
        files=_files(job),
        out=str(order.out),
        budgets=tuple(f"{budget.kind} {budget}" for budget in order.budgets),
        target=order.target.name,
        groups=tuple((group.name, group.width, group.frozen_because) for group in groups),
        reach=tuple(reach),
        notes=(*notes, *job.data.notes),
    )


def _counted(kind: BudgetKind, job: Job, groups: Groups) -> Reach:
    cost = cost_of(Budget(kind, 1.0, relative=True), job.model, groups)
    units = torch.tensor([float(group.units) for group in groups.prunable], dtype=torch.float64)
    dense, smallest = (float(cost(widths)[0]) for widths in (units, torch.ones_like(units)))
    return Reach(kind, UNITS[kind], dense, smallest, "computed")


def _timed(job: Job, groups: Groups) -> Reach:
    kept = {group.name: (0,) for group in groups.prunable}
    plan = make_plan(groups, kept, fingerprint_of(job.model))
    forms = {"dense": job.model, "smallest": remove_channels(job.model, plan)}
    with tempfile.TemporaryDirectory() as folder:
        files = {name: Path(folder) / f"{name}.onnx" for name in forms}
        for name, model in forms.items():
            export_onnx(job.finish(copy.deepcopy(model)), job.inputs, files[name])
        reports = time_models(files, job.order.target, _QUICKLY)
    basis = "predicted" if is_predicted(reports["dense"]) else "measured"
    return Reach("latency", UNITS["latency"], reports["dense"].p50_ms, reports["smallest"].p50_ms, basis)


def _files(job: Job) -> tuple[str, ...]:
    order = job.order
    named = [order.checkpoint, job.data.name if order.config.data is None else order.config.data]
    files = [text for text in named if Path(text).exists()]
    return tuple(files if order.config_path is None else [str(order.config_path), *files])
