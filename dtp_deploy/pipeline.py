"""One run of `compress`: groups -> masks -> removal -> fine-tuning -> ONNX -> target -> report."""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dtp_deploy.accuracy import accuracy_of_model, accuracy_of_session
from dtp_deploy.artefact import MODEL_ONNX, MODEL_PROGRAM, PLAN, WEIGHTS, open_artefact, save_weights, write_report
from dtp_deploy.budget import Budget
from dtp_deploy.cost import WidthFunction, count_macs, count_parameters, macs_cost, parameter_cost
from dtp_deploy.errors import BudgetError
from dtp_deploy.export.callables import torch_callable
from dtp_deploy.export.delivery import Delivery, deliver, require_parity
from dtp_deploy.export.onnx import export_program
from dtp_deploy.graph import find_groups
from dtp_deploy.latency import LatencyProbe, close_loop, learn_curve
from dtp_deploy.latency.calibrate import latency_against
from dtp_deploy.loading import Dataset, TrainBatches, check_shapes
from dtp_deploy.parity import ParityResult, compare
from dtp_deploy.profile.measure import LatencyReport, MeasureSettings, measure, median_ratio
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import ChannelMasks, PruningPlan, cost_of, prove, remove_channels
from dtp_deploy.prune.plan import fingerprint_of
from dtp_deploy.report import Report, hide_home
from dtp_deploy.target import Arrays, Engine, TargetSpec, find_target
from dtp_deploy.train import Settings, Trainer, reestimate_batchnorm
from dtp_deploy.train.loop import check_classifier

_PARITY_BATCHES = 4
_PROBE = MeasureSettings(min_seconds=0.5, max_seconds=5.0, repeats=1)
_FINAL_TRIES = 3
"""How often a latency that is just above its limit is measured afresh before it counts as not met."""


def compress(
    model: nn.Module,
    *,
    data: Dataset,
    budget: Budget,
    out: Path | str,
    target: TargetSpec | str = "cpu",
    input_shape: tuple[int, ...] | None = None,
    settings: Settings | None = None,
    force: bool = False,
    progress: Progress = SILENT,
    model_name: str | None = None,
) -> Report:
    """Prune a trained classifier to a budget, fine-tune it, and deliver it as ONNX with a report.

    Args:
        model: trained; (N, C, H, W) -> (N, classes). It is not changed.
        data: to learn masks and fine-tune with, and to validate on.
        budget: what the pruned model may cost.
        out: folder to write; it appears at the end, complete.
        target: where the delivered model is measured.
        input_shape: of the delivered model, (N, C, H, W); by default one sample of the data.
        settings: hyper-parameters.
        force: replace `out` if it is an earlier artefact.
        progress: told of every stage.
        model_name: for the report; by default the name of the model's class.

    Returns:
        The report, which is also in `out`.

    Raises:
        UsageError, InputError, GraphError: something given cannot be used.
        BudgetError: the budget cannot be met; or it was not met when measured at the end, and then `out` is written.
        TargetError: the target is missing or failed.
        ParityError: two forms of the model disagree.
    """
    settings = settings if settings is not None else Settings()
    spec = TargetSpec(target) if isinstance(target, str) else target
    shape = (1, *data.sample_shape) if input_shape is None else input_shape
    check_shapes(data, shape)
    with open_artefact(Path(out), force) as folder, tempfile.TemporaryDirectory() as scratch:
        with torch.random.fork_rng():
            torch.manual_seed(settings.seed)
            run = _Run(model, data, budget, spec, shape, settings, progress, folder, Path(scratch))
            report = run.report(model_name or type(model).__name__)
        write_report(report, folder)
    if report.budget.met is False:
        raise BudgetError(
            f"The budget was not met: {report.budget.achieved:.4g} {report.budget.unit} were reached, the limit is "
            f"{report.budget.limit:.4g} {report.budget.unit}. What was reached is in {out}; give a larger budget."
        )
    return report


@dataclass(frozen=True)
class _Form:
    """One delivered form of the model, dense or pruned, with all that is known about it."""

    delivery: Delivery
    engine: Engine
    accuracy: float
    macs: int
    params: int


class _Run:
    """The stages of one run, in order; `report` is the last."""

    def __init__(
        self,
        model: nn.Module,
        data: Dataset,
        budget: Budget,
        target: TargetSpec,
        shape: tuple[int, ...],
        settings: Settings,
        progress: Progress,
        folder: Path,
        scratch: Path,
    ) -> None:
        self.data, self.budget, self.target, self.settings = data, budget, target, settings
        self.progress, self.folder, self.scratch = progress, folder, scratch
        self.teacher = copy.deepcopy(model).eval().requires_grad_(False)
        self.student = copy.deepcopy(model).eval().requires_grad_(True)
        self.inputs = torch.from_numpy(data.x_val[:1]).expand(shape).contiguous()
        check_classifier(self.teacher, self.inputs, data.num_classes)
        self.batches = _parity_batches(data, shape)
        self.parity: list[ParityResult] = []
        self.accuracies: list[dict[str, Any]] = []
        self.stages: list[dict[str, Any]] = []

        with self.stage("groups"):
            groups = find_groups(self.teacher, self.inputs)
            self.groups = prove(self.teacher, groups, seed=settings.seed, progress=progress)
        with self.stage("dense model"):
            self.dense = self._form(self.teacher, scratch / "dense.onnx", "dense")
        with self.stage("budget"):
            cost, limit = self._cost_and_limit()
        trainer = Trainer(
            TrainBatches(
                data.x_train,
                data.y_train,
                settings.batch_size,
                settings.seed,
                augment=settings.augment != "none",
                flip=settings.augment == "shift-flip",
            ),
            settings,
            self.teacher,
        )
        with self.stage("masks"):
            masks = self._learn_masks(trainer, cost, limit)
        with self.stage("channels"):
            self.plan = self._choose(masks)
            self.small = self._remove(masks)
        with self.stage("fine-tuning"):
            rest = trainer.total_steps - trainer.step
            trainer.run(self.small, rest, name="fine-tuning", progress=progress)
            self._note_accuracy("after fine-tuning", self._accuracy(self.small))
        with self.stage("pruned model"):
            self.pruned = self._form(self.small, folder / MODEL_ONNX, "pruned")
            export_program(self.small, self.inputs, folder / MODEL_PROGRAM)
            save_weights(self.small, folder / WEIGHTS)
            (folder / PLAN).write_text(self.plan.to_json(), encoding="utf-8")
        with self.stage("measurement"):
            self.latencies = self._measure()

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it."""
        start = time.perf_counter()
        with self.progress.task(name):
            yield
        self.stages.append({"name": name, "seconds": time.perf_counter() - start})

    def _form(self, model: nn.Module, path: Path, label: str) -> _Form:
        """Export, prove, build for the target, and evaluate what was built."""
        delivery = deliver(model, self.inputs, path, self.batches, label)
        self.parity += delivery.parity
        engine = find_target(self.target).build(path)
        with engine.open() as session:
            (spec,) = session.inputs

            def run(arrays: Arrays) -> list[Any]:
                outputs = session.run({spec.name: next(iter(arrays.values()))})
                return [outputs[output.name] for output in session.outputs]

            engine_parity = compare(f"{label}: PyTorch to engine", torch_callable(model), run, self.batches)
            require_parity(engine_parity)
            self.parity.append(engine_parity)
            accuracy = accuracy_of_session(session, self.data.x_val, self.data.y_val, self.progress)
        self._note_accuracy("dense" if label == "dense" else "delivered", accuracy)
        return _Form(delivery, engine, accuracy, count_macs(model, self.inputs), count_parameters(model))

    def _cost_and_limit(self) -> tuple[WidthFunction, float]:
        """The cost that the masks are trained on, and its limit."""
        budget = self.budget
        if budget.kind == "size":
            embedded = self.dense.delivery.size_bytes - 4.0 * self.dense.params
            by_parameters = parameter_cost(self.teacher, self.groups, per_value=4.0, constant=embedded)
            return by_parameters, budget.limit_for(self.dense.delivery.size_bytes)
        if budget.kind != "latency":
            cost = cost_of(budget, self.teacher, self.groups)
            return cost, budget.limit_for(self._dense_value())
        self.probe = LatencyProbe(
            self.teacher,
            self.groups,
            self.target,
            self.scratch,
            self.dense.delivery.path,
            self.batches,
            _PROBE,
        )
        macs = macs_cost(self.teacher, self.groups)
        curve = learn_curve(self.probe, self.groups, macs, budget, fingerprint_of(self.teacher))
        return macs, curve.cost_at(curve.limit_ms)

    def _learn_masks(self, trainer: Trainer, cost: WidthFunction, limit: float) -> ChannelMasks:
        masks = ChannelMasks(
            self.student,
            self.groups,
            self.budget,
            steps=trainer.mask_steps,
            settings=self.settings.masks,
            cost=cost,
            limit=limit,
        )
        trainer.run(self.student, trainer.mask_steps, masks.step, name="masks", progress=self.progress)
        return masks

    def _choose(self, masks: ChannelMasks) -> PruningPlan:
        """The plan, checked against the real cost of what it gives."""
        if self.budget.kind == "latency":
            return close_loop(masks, self._latency_used, fill=0.93, aim=0.96)
        limit = masks.limit
        return close_loop(masks, lambda plan: self._value_of(plan) / limit, fill=0.99)

    def _latency_used(self, plan: PruningPlan) -> float:
        return latency_against(self.budget, self.probe.measure({"plan": plan}), "plan") / 0.99

    def _remove(self, masks: ChannelMasks) -> nn.Module:
        masks.harden(self.plan)
        self.student.eval()
        small = remove_channels(self.student, self.plan)
        removal = compare("masked to removed", torch_callable(self.student), torch_callable(small), self.batches)
        require_parity(removal)
        self.parity.append(removal)
        reestimate_batchnorm(small, self._batchnorm_inputs())
        self._note_accuracy("after hardening", self._accuracy(small))
        return small

    def _batchnorm_inputs(self) -> Iterator[Tensor]:
        size = max(2, self.settings.batch_size)
        for number in range(self.settings.batchnorm_batches):
            batch = self.data.x_train[number * size : (number + 1) * size]
            if len(batch) > 1:
                yield torch.from_numpy(batch)

    def _measure(self) -> dict[str, LatencyReport]:
        """Dense and pruned, interleaved. A latency just above its limit is measured afresh before it is believed."""
        files = {"dense": self.dense.delivery.path, "pruned": self.pruned.delivery.path}
        for _ in range(_FINAL_TRIES):
            reports = measure(files, self.target)
            if self.budget.kind != "latency" or latency_against(self.budget, reports, "pruned") <= 1:
                break
        return reports

    def _accuracy(self, model: nn.Module) -> float:
        return accuracy_of_model(model, self.data.x_val, self.data.y_val)

    def _note_accuracy(self, stage: str, accuracy: float) -> None:
        self.accuracies.append({"stage": stage, "accuracy": accuracy})

    def _dense_value(self) -> float:
        return {
            "macs": float(self.dense.macs),
            "params": float(self.dense.params),
            "size": float(self.dense.delivery.size_bytes),
            "channels": float(sum(group.width for group in self.groups.prunable)),
        }[self.budget.kind]

    def _value_of(self, plan: PruningPlan) -> float:
        """What a plan really costs, counted on the network that it gives."""
        if self.budget.kind == "channels":
            return float(sum(choice.width_after for choice in plan.groups if choice.frozen_because is None))
        small = remove_channels(self.teacher, plan)
        counted: dict[str, Callable[[], float]] = {
            "macs": lambda: count_macs(small, self.inputs),
            "params": lambda: count_parameters(small),
            "size": lambda: (
                deliver(small, self.inputs, self.scratch / "candidate.onnx", self.batches, "candidate").size_bytes
            ),
        }
        return float(counted[self.budget.kind]())

    def report(self, model_name: str) -> Report:
        """Everything that was found out."""
        info = self.pruned.engine.info
        entries: dict[str, Any] = hide_home(
            {
                "dtp_deploy_version": version("dtp-deploy"),
                "model": model_name,
                "onnx_sha256": self.pruned.delivery.sha256,
                "target": {
                    "name": self.target.name,
                    "runtime": info.runtime,
                    "runtime_version": info.runtime_version,
                    "device": info.device,
                    "threads": info.threads,
                },
                "budget": self._budget_entry(),
                "dense": self._model_entry(self.dense, self.latencies["dense"]),
                "pruned": self._model_entry(self.pruned, self.latencies["pruned"]),
                "latency_ratio": asdict(median_ratio(self.latencies["pruned"], self.latencies["dense"])),
                "accuracy_stages": self.accuracies,
                "groups": [
                    {
                        "name": choice.name,
                        "width_before": choice.width_before,
                        "width_after": choice.width_after,
                        "frozen_because": choice.frozen_because,
                    }
                    for choice in self.plan.groups
                ],
                "parity": [asdict(result) for result in self.parity],
                "passes": [
                    {"name": outcome.name, "applied": outcome.applied, "reason": outcome.reason}
                    for outcome in self.pruned.delivery.passes
                ],
                "stages": self.stages,
                "settings": asdict(self.settings)
                | {"input_shape": list(self.inputs.shape), "data": self.data.name, "scope": self.budget.scope},
                "environment": self.latencies["pruned"].environment | _versions(),
                "notes": self._notes(),
            }
        )
        return Report.model_validate(entries)

    def _budget_entry(self) -> dict[str, Any]:
        budget = self.budget
        if budget.kind == "latency":
            limit = budget.limit_for(self.latencies["dense"].p50_ms)
            achieved, basis = self.latencies["pruned"].p50_ms, "measured"
        else:
            limit, basis = budget.limit_for(self._dense_value()), "computed"
            achieved = self._achieved()
        return {
            "kind": budget.kind,
            "requested": str(budget),
            "relative": budget.relative,
            "limit": limit,
            "unit": budget.unit,
            "achieved": achieved,
            "met": achieved <= limit,
            "basis": basis,
        }

    def _achieved(self) -> float:
        if self.budget.kind == "size":
            return float(self.pruned.delivery.size_bytes)
        return {
            "macs": float(self.pruned.macs),
            "params": float(self.pruned.params),
            "channels": float(sum(choice.width_after for choice in self.plan.groups if choice.frozen_because is None)),
        }[self.budget.kind]

    def _model_entry(self, form: _Form, latency: LatencyReport) -> dict[str, Any]:
        return {
            "accuracy": form.accuracy,
            "macs": form.macs,
            "params": form.params,
            "size_bytes": form.delivery.size_bytes,
            "latency": {
                "p50_ms": latency.p50_ms,
                "p90_ms": latency.p90_ms,
                "p99_ms": latency.p99_ms,
                "samples_ms": latency.samples_ms,
                "stable": latency.stable,
                "coefficient_of_variation": latency.coefficient_of_variation,
                "outlier_share": latency.outlier_share,
                "drift": latency.drift,
                "spread": latency.spread,
            },
        }

    def _notes(self) -> list[str]:
        return [
            f"The pass '{outcome.name}' was skipped: {outcome.reason}"
            for outcome in self.pruned.delivery.passes
            if not outcome.applied
        ]


def _parity_batches(data: Dataset, shape: tuple[int, ...]) -> list[Arrays]:
    """Several batches of the delivered model's shape, from the validation data, repeated where it is small."""
    count = shape[0] * _PARITY_BATCHES
    rows = [index % len(data.x_val) for index in range(count)]
    chosen = data.x_val[rows]
    return [{"input": chosen[start : start + shape[0]]} for start in range(0, count, shape[0])]


def _versions() -> dict[str, Any]:
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "torch-pruning", "numpy")
    return {"packages": {name: version(name) for name in names}}
