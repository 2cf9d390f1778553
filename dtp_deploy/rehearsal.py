"""What a run would do, without any training: ``dtp-deploy compress --dry-run``."""

from __future__ import annotations

import copy
import tempfile
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from torch import nn

from dtp_deploy.budget import UNITS, Budget, BudgetKind, Granularity, amount, flag_of
from dtp_deploy.config import USER_TARGETS
from dtp_deploy.cost import count_parameters, macs_per_sample
from dtp_deploy.errors import TargetError
from dtp_deploy.export.delivery import Delivery, deliver
from dtp_deploy.forms import metadata_of, parity_batches
from dtp_deploy.granularity import find_prunable, zeros_before
from dtp_deploy.graph import Groups
from dtp_deploy.job import Job
from dtp_deploy.loading import inspect_checkpoint
from dtp_deploy.loading.idx import FASHION_MNIST
from dtp_deploy.order import Order
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import find_weights, remove_channels
from dtp_deploy.reach import Reach, latency_reach, smallest_plan
from dtp_deploy.train.loop import check_model


@dataclass(frozen=True)
class Verdict:
    """Whether a budget can be met.

    Attributes:
        budget: as it is typed: "--macs 50%".
        can_be_met: None if nobody can say.
        reason: in words.
    """

    budget: str
    can_be_met: bool | None
    reason: str

    def __str__(self) -> str:
        answer = {True: "can be met", False: "cannot be met", None: "not known"}[self.can_be_met]
        return f"{self.budget}: {answer}. {self.reason}"


@dataclass(frozen=True)
class DryRun:
    """What a run would do.

    Attributes:
        model: where the model came from.
        imports: "module.name" of everything that loading the model's file imports, and "module (--flag)" of what a
            flag names.
        files: the files and folders that are read.
        out: the folder that would be written.
        budgets: the limits, as typed.
        target: where latency would be measured.
        verdicts: one a budget; none where the model was not loaded.
        granularity: what would be pruned.
        groups: name, width, and why it may not be pruned (None if it may) of every channel group; where single weights
            are pruned, the same of every layer, its weights for a width.
        blocks: name of every residual block, and why it may not be removed as a whole (None if it may); none where that
            was not asked for.
        reach: of each kind of budget; latency is missing where it can be neither measured nor predicted.
        notes: what else to know.
    """

    model: str
    imports: tuple[str, ...]
    files: tuple[str, ...]
    out: str
    budgets: tuple[str, ...]
    target: str
    verdicts: tuple[Verdict, ...]
    granularity: Granularity
    groups: tuple[tuple[str, int, str | None], ...]
    blocks: tuple[tuple[str, str | None], ...]
    reach: tuple[Reach, ...]
    notes: tuple[str, ...]

    def values(self) -> dict[str, Any]:
        """As plain values, for JSON."""
        return asdict(self)


def untrusted(order: Order) -> DryRun | None:
    """What can be said of a model file that needs trust and has none, of which nothing is run; None for others.

    Raises:
        InputError: the file is damaged.
    """
    path = Path(order.checkpoint)
    if order.config.trust or not path.exists():
        return None
    info = inspect_checkpoint(path)
    if not (info.needs_trust and info.can_be_pruned):
        return None
    missing = (
        f"{path} needs code to load, and --trust is missing: nothing of it was run, so its channel groups, and which "
        "budgets can be met, are not known. Give --trust if you know where the file comes from."
    )
    return _dry_run(order, f"{path}, not loaded", notes=(missing,))


def rehearse(job: Job, progress: Progress = SILENT) -> DryRun:
    """Find the groups, prove them, and see what each kind of budget can reach; or the layers, and how few weights.

    Raises:
        InputError: the model does not fit the data.
        GraphError: the model cannot be followed or exported, or nothing in it may be pruned.
        ParityError: the exported model does not compute what the model computes.
    """
    order = job.order
    model = job.model.eval()
    check_model(model, job.inputs, job.data, job.task)
    if job.settings.granularity != "channels":
        return _rehearse_weights(job, model)
    with progress.task("groups"):
        groups = find_prunable(model, job.inputs, job.settings, progress)
    with progress.task("budget"), tempfile.TemporaryDirectory() as folder:
        reach, unknown = _reach(job, groups, Path(folder), progress)
    notes = [f"What a latency budget can reach is not known. {unknown}"] if unknown else []
    return _dry_run(
        order,
        job.loaded.origin,
        verdicts=tuple(_verdict(budget, reach, unknown) for budget in order.budgets),
        groups=tuple((group.name, group.width, group.frozen_because) for group in groups),
        blocks=tuple((block.name, block.kept_because) for block in groups.blocks),
        reach=reach,
        notes=(*job.notes, *notes, *job.data.notes),
    )


def _rehearse_weights(job: Job, model: nn.Module) -> DryRun:
    settings = job.settings
    layers = find_weights(model, job.inputs, settings.granularity, keep=settings.keep, only=settings.only)
    finished = count_parameters(job.finish(copy.deepcopy(model)))
    zeros = layers.count // 2 if layers.granularity == "2:4" else layers.count - len(layers.maskable)
    nonzero = finished - zeros_before(job.pruned_by, layers)
    reach = (Reach("params", "non-zero parameters", nonzero, min(nonzero, finished - zeros), "computed"),)
    return _dry_run(
        job.order,
        job.loaded.origin,
        verdicts=tuple(_verdict(budget, reach, "") for budget in job.order.budgets),
        groups=tuple((layer.name, layer.weights, layer.left_because) for layer in layers),
        reach=reach,
        notes=(*job.notes, *job.data.notes),
    )


def _dry_run(
    order: Order,
    model: str,
    *,
    verdicts: tuple[Verdict, ...] = (),
    groups: tuple[tuple[str, int, str | None], ...] = (),
    blocks: tuple[tuple[str, str | None], ...] = (),
    reach: tuple[Reach, ...] = (),
    notes: tuple[str, ...] = (),
) -> DryRun:
    budgets = tuple(f"{budget.kind} {budget}" for budget in order.budgets)
    return DryRun(
        model,
        _imports(order),
        _files(order),
        str(order.out),
        budgets,
        order.target.name,
        verdicts,
        order.config.granularity,
        groups,
        blocks,
        reach,
        notes,
    )


def _reach(job: Job, groups: Groups, folder: Path, progress: Progress) -> tuple[tuple[Reach, ...], str]:
    """What every kind of budget can reach; and why that is not known of latency, or ""."""
    plan = smallest_plan(job.model, groups, job.settings.masks.round_to)
    forms = {"dense": copy.deepcopy(job.model), "smallest": remove_channels(job.model, plan)}
    forms = {name: job.finish(model).eval() for name, model in forms.items()}
    batches = parity_batches(job.data, job.inputs, job.input_names)
    metadata = metadata_of(job.data)
    files: list[Delivery] = [
        deliver(model, job.inputs, folder / f"{name}.onnx", batches, name, metadata=metadata)
        for name, model in forms.items()
    ]
    pruned = [choice for choice in plan.groups if choice.frozen_because is None]
    figures: dict[BudgetKind, list[int]] = {
        "macs": [macs_per_sample(form, job.inputs) for form in forms.values()],
        "params": [count_parameters(form) for form in forms.values()],
        "size": [delivery.size_bytes for delivery in files],
        "channels": [sum(one.width_before for one in pruned), sum(one.width_after for one in pruned)],
    }
    counted = [Reach(kind, UNITS[kind], dense, least, "computed") for kind, (dense, least) in figures.items()]
    latency = next((one for one in job.budgets if one.kind == "latency"), Budget("latency", 1.0, relative=True))
    paths = {name: delivery.path for name, delivery in zip(forms, files, strict=True)}
    try:
        return (*counted, latency_reach(paths, job.order.target, latency, progress)), ""
    except TargetError as error:
        return tuple(counted), str(error)


def _verdict(budget: Budget, reach: Sequence[Reach], unknown: str) -> Verdict:
    typed = f"{flag_of(budget.kind)} {budget}"
    found = next((one for one in reach if one.kind == budget.kind), None)
    if found is None:
        return Verdict(typed, None, unknown)
    limit = budget.limit_for(found.dense)
    reason = f"The limit is {amount(limit, found.unit)}; the least possible is {amount(found.smallest, found.unit)}."
    return Verdict(typed, found.smallest <= limit, reason)


def _imports(order: Order) -> tuple[str, ...]:
    config, path = order.config, Path(order.checkpoint)
    in_file = inspect_checkpoint(path).imports if path.exists() else ()
    given = {"MODEL": order.checkpoint} | {
        f"--{name}": getattr(config, name) for name in ("model", "prepare", "finish", "data", "loss", "metric")
    }
    return *in_file, *(
        f"{text.partition(':')[0]} ({flag})"
        for flag, text in given.items()
        if text is not None and ":" in text and not Path(text).exists()
    )


def _files(order: Order) -> tuple[str, ...]:
    data = str(FASHION_MNIST) if order.config.data == "fashion-mnist" else order.config.data
    named = [order.config_path, USER_TARGETS.expanduser(), order.checkpoint, data]
    return tuple(str(path) for path in named if path is not None and Path(path).exists())
