"""One run of `compress`: groups -> masks -> removal -> fine-tuning -> ONNX -> target -> report."""

from __future__ import annotations

import copy
import hashlib
import shutil
import tempfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from dtp_deploy.artefact import (
    CHECKPOINTS,
    MODEL_ONNX,
    MODEL_PROGRAM,
    MODULE,
    PLAN,
    WEIGHTS,
    add_report,
    open_artefact,
    save_module,
    save_weights,
)
from dtp_deploy.budget import Budget, amount, check_budgets, check_depth, flag_of
from dtp_deploy.checkpoints import CheckpointFolder, Keeper
from dtp_deploy.diary import MaskDiary
from dtp_deploy.errors import BudgetError, TargetError, TrainingError, UsageError
from dtp_deploy.evaluate import evaluate_model
from dtp_deploy.export.callables import torch_callable
from dtp_deploy.export.delivery import require_parity
from dtp_deploy.export.onnx import export_program
from dtp_deploy.findings import Findings
from dtp_deploy.forms import Form, make_form, metadata_of, parity_batches
from dtp_deploy.granularity import (
    ChannelPruning,
    Masks,
    Pruning,
    check_pruned_by,
    check_zeros,
    find_prunable,
    gains,
    make_weight_pruning,
)
from dtp_deploy.graph import Groups
from dtp_deploy.identity import identity
from dtp_deploy.latency.timing import can_measure, time_models
from dtp_deploy.latency.verdict import PROCESSES, share_of_limit
from dtp_deploy.limits import Limits, Workbench, make_limits
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs, train_only, trainable_names
from dtp_deploy.parity import compare
from dtp_deploy.profile.measure import LatencyReport, MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import PruningPlan, WeightLayers, blocks_silenced, find_weights, hold_zeros, remove_channels
from dtp_deploy.prune.plan import compose
from dtp_deploy.prune.weights import counted
from dtp_deploy.ranks import by_first, default_device, joined, rank
from dtp_deploy.report import Report
from dtp_deploy.summary import Outcome
from dtp_deploy.target import TargetSpec, find_target, parse_target
from dtp_deploy.task import CLASSIFICATION, UNLABELLED, Task
from dtp_deploy.train import Settings, Trainer, reestimate_batchnorm
from dtp_deploy.train.logs import RunLog
from dtp_deploy.train.loop import check_model
from dtp_deploy.train.losses import check_scores, losses_on
from dtp_deploy.train.stream import open_stream

_RUN_AWAY = 1e12


def compress(
    model: nn.Module,
    *,
    data: DataSource,
    budget: Budget | Sequence[Budget] = (),
    out: Path | str,
    target: TargetSpec | str = "cpu",
    input_shape: tuple[int, ...] | None = None,
    inputs: Inputs | None = None,
    input_names: Sequence[str] | None = None,
    task: Task | None = None,
    settings: Settings | None = None,
    finish: Callable[[nn.Module], nn.Module] | None = None,
    require_measured: bool = False,
    force: bool = False,
    resume: bool = False,
    checkpoint_minutes: float = 10.0,
    measuring: MeasureSettings | None = None,
    log_dir: Path | str | None = None,
    device: str | torch.device | None = None,
    origin: Mapping[str, Any] | None = None,
    notes: Sequence[str] = (),
    pickled: bool = False,
    pruned_by: PruningPlan | None = None,
    progress: Progress = SILENT,
    model_name: str | None = None,
) -> Report:
    """Prune a trained model to one budget or several, fine-tune it, and deliver it as ONNX with a report.

    Args:
        model: trained. It is not changed.
        data: to learn masks and fine-tune with, and to validate on.
        budget: what the pruned model may cost; all of several budgets are kept. None where two of every four weights
            are kept (`settings.granularity`).
        out: folder to write; it appears at the end, complete.
        target: where the delivered model is measured.
        input_shape: of the delivered model's only input, batch first; by default one sample of the data.
        inputs: an example of all inputs of the delivered model, in place of `input_shape`.
        input_names: how the ONNX model calls its inputs.
        task: loss and metric; by default classification for labelled data, distillation alone for others.
        settings: hyper-parameters.
        finish: applied to a copy of the dense and of the pruned model before either is exported.
        require_measured: fail where the target cannot run here, in place of a prediction.
        force: replace `out` if it is an earlier artefact, and forget checkpoints of an earlier run.
        resume: go on from the newest checkpoint of a run that was cut off. All other arguments must be as they were.
        checkpoint_minutes: time between two checkpoints; one is also written at the end of every stage.
        measuring: how long and how carefully the delivered models are measured.
        log_dir: folder for scalars of the training, as lines of JSON and for TensorBoard.
        device: where to train; by default the first CUDA device, or else the CPU.
        origin: plain values that a later run may want to find in the checkpoints (`read_origin`): the command line's
            options, say.
        notes: for the report, before its own.
        pickled: write the pruned module as a pickle too, for those who trust pickles.
        pruned_by: the plan that made `model` from what the user's factory gives, where it was pruned before; the plan
            that is written is then the way from the factory's model. Zeros that it left among the weights stay.
        progress: told of every stage.
        model_name: for the report; by default the name of the model's class.

    Returns:
        The report, which is also in `out`.

    Raises:
        UsageError, InputError, GraphError: something given cannot be used.
        StoppedError: SIGINT or SIGTERM came during training; everything is saved.
        BudgetError: the budget cannot be met; or it was not met when measured at the end, and then `out` is written.
        TargetError: the target is missing or failed.
        ParityError: two forms of the model disagree.
    """
    if not isinstance(model, nn.Module):
        raise UsageError(
            f"compress() got a {type(model).__name__} for its model. Give the torch.nn.Module itself: an instance of "
            "your class, say, after its load_state_dict(torch.load(path))."
        )
    settings = settings if settings is not None else Settings()
    spec = parse_target(target) if isinstance(target, str) else target
    budgets = (budget,) if isinstance(budget, Budget) else tuple(budget)
    check_budgets(settings.granularity, budgets)
    check_pruned_by(settings.granularity, pruned_by)
    if settings.allow_depth:
        check_depth(settings.granularity, budgets)
    found = find_target(spec)
    state = found.availability()
    if require_measured and not state.available:
        raise TargetError(f"--require-measured: target '{spec.name}' {state.fault}.")
    if not found.predicts:
        found.require_available()
    task = task if task is not None else CLASSIFICATION if data.labelled else UNLABELLED
    check_scores(settings, task, data)
    given = inputs if inputs is not None else _examples(data, input_shape)
    examples = tuple(tensor.cpu() for tensor in given)
    place = torch.device(device) if device is not None else default_device()
    with joined(), ExitStack() as stack:
        folder = by_first(lambda: stack.enter_context(open_artefact(Path(out), force, resume)))
        scratch = stack.enter_context(tempfile.TemporaryDirectory())
        made_of = identity(model, data, budgets, spec, examples, settings, task)
        keeper = Keeper(
            CheckpointFolder(folder / CHECKPOINTS), Path(out), 60 * checkpoint_minutes, made_of, dict(origin or {})
        )
        with torch.random.fork_rng([place] if place.type == "cuda" else []):
            torch.manual_seed(settings.seed)
            log = RunLog(Path(log_dir)) if log_dir is not None and rank() == 0 else None
            run = _Run(
                data=data,
                task=task,
                budgets=budgets,
                target=spec,
                inputs=examples,
                input_names=input_names,
                settings=settings,
                finish=finish if finish is not None else lambda model: model,
                progress=progress,
                keeper=keeper,
                measuring=measuring,
                log=log,
                device=place,
                notes=(*notes, *frozen_note(model)),
                pickled=pickled,
                pruned_by=pruned_by,
            )
            if log is not None:
                stack.callback(log.close)
            run.go(model, folder, Path(scratch), keeper.load() if resume else None)
            report = by_first(lambda: run.outcome(model_name or type(model).__name__).report())
        by_first(lambda: add_report(report, folder))
    for entry in (report.budget, *report.further_budgets):
        if entry.met is False:
            known = "are predicted" if entry.basis == "predicted" else "were reached"
            raise BudgetError(
                f"{flag_of(entry.kind)} {entry.requested} was not met: {amount(entry.achieved or 0.0, entry.unit)} "
                f"{known}, the limit is {amount(entry.limit, entry.unit)}. What was reached is in {out}; give a "
                "larger budget."
            )
    return report


def frozen_note(model: nn.Module) -> list[str]:
    """That some parameters are not trained, where it is so, for the report."""
    learning = trainable_names(model)
    every = [name for name, parameter in model.named_parameters() if parameter.is_floating_point()]
    frozen = [name for name in every if name not in learning]
    if not frozen:
        return []
    some = ", ".join(f"'{name}'" for name in frozen[:3]) + (", ..." if len(frozen) > 3 else "")
    return [
        f"{len(frozen)} of {len(every)} parameters of the model require no gradient ({some}). They were pruned with "
        "the others, and not trained."
    ]


@dataclass
class _Run:
    """One run: `go` is its table of contents, `outcome` what came of it."""

    data: DataSource
    task: Task
    budgets: Sequence[Budget]
    target: TargetSpec
    inputs: Inputs
    input_names: Sequence[str] | None
    settings: Settings
    finish: Callable[[nn.Module], nn.Module]
    progress: Progress
    keeper: Keeper
    measuring: MeasureSettings | None
    log: RunLog | None
    device: torch.device
    notes: Sequence[str]
    pickled: bool
    pruned_by: PruningPlan | None

    def __post_init__(self) -> None:
        self.batches = parity_batches(self.data, self.inputs, self.input_names)
        self.findings = Findings(progress=self.progress)

    def go(self, model: nn.Module, folder: Path, scratch: Path, saved: dict[str, Any] | None) -> None:
        """All stages, in order; from a checkpoint, those that are over are taken from it."""
        settings = self.settings
        if saved is not None:
            self.findings.load_state(saved["findings"], saved["trainer"]["step"])
        dense = copy.deepcopy(model).cpu().eval().requires_grad_(False)
        self.learning = trainable_names(model)
        check_model(dense, self.inputs, self.data, self.task)
        with self.findings.stage("groups"):
            found = self._find(dense)
        with self.findings.stage("dense model"):
            self.dense = by_first(lambda: self._form(dense, scratch / "dense.onnx", "dense"))
        with self.findings.stage("budget"):
            self.pruning = self._pruning(dense, found, scratch, saved)
        self.settings = settings = replace(settings, masks=self.pruning.in_force(settings.masks))
        stream = open_stream(self.data, settings, self.device)
        teacher = copy.deepcopy(dense).to(self.device)
        trainer = Trainer(stream, self.task, settings, teacher)
        if saved is not None:
            trainer.load_state(saved["trainer"])
        if saved is None or saved["plan"] is None:
            small = self._prune(dense, trainer, saved)
        else:
            self.plan = PruningPlan.from_json(saved["plan"])
            small = train_only(remove_channels(dense, self.plan), self.learning)
            small.load_state_dict(saved["model"])
        small.to(self.device)
        hold_zeros(small, self.plan)
        with self.findings.stage("fine-tuning"):
            self._train(trainer, small, trainer.total_steps, "fine-tuning")
        self.findings.note_accuracy("after fine-tuning", lambda: self._accuracy(small))
        small.cpu()
        by_first(lambda: self._deliver(small, folder))

    def _find(self, dense: nn.Module) -> Groups | WeightLayers:
        """What may be pruned."""
        settings = self.settings
        if settings.granularity != "channels":
            return find_weights(dense, self.inputs, settings.granularity, keep=settings.keep, only=settings.only)
        return find_prunable(dense, self.inputs, settings, self.progress)

    def _pruning(
        self, dense: nn.Module, found: Groups | WeightLayers, scratch: Path, saved: dict[str, Any] | None
    ) -> Pruning:
        """How it is pruned, within the budgets."""
        if isinstance(found, WeightLayers):
            return make_weight_pruning(found, self.budgets, dense, self.dense, self.pruned_by)
        bench = Workbench(
            dense,
            found,
            self.dense,
            self.batches,
            scratch,
            self.target,
            self.finish,
            metadata_of(self.data),
            self.progress,
        )
        limits = self._limits(bench, saved["limits"] if saved else None)
        losses = losses_on(self.data, self.task, self.settings)
        return ChannelPruning(found, limits, predicted=not can_measure(self.target), losses=losses)

    def _limits(self, bench: Workbench, decided: Sequence[Mapping[str, Any]] | None) -> Limits:
        """The limits; what must be measured for them is measured by one process."""
        first: list[Limits] = []

        def decide() -> list[dict[str, Any]]:
            first.append(make_limits(self.budgets, bench, decided))
            return first[0].decisions()

        decisions = by_first(decide)
        return first[0] if first else make_limits(self.budgets, bench, decisions)

    def _deliver(self, small: nn.Module, folder: Path) -> None:
        """Write what is delivered, and measure it."""
        with self.findings.stage("pruned model"):
            self.pruned = self._form(small, folder / MODEL_ONNX, "pruned")
            check_zeros(folder / MODEL_ONNX, small, self.plan)
            self.plan = counted(self.plan, small)
            export_program(self.finish(copy.deepcopy(small)), self.inputs, folder / MODEL_PROGRAM)
            save_weights(small, folder / WEIGHTS)
            plan = self.plan if self.pruned_by is None else compose(self.pruned_by, self.plan)
            sha256 = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
            plan = replace(plan, preprocessing=self.data.preprocessing, weights_sha256=sha256)
            (folder / PLAN).write_text(plan.to_json(), encoding="utf-8")
            if self.pickled:
                save_module(small, folder / MODULE)
            if not can_measure(self.target):
                shutil.copy(self.dense.delivery.path, folder / "dense.onnx")
                find_target(self.target).write_bundle(folder, folder / MODEL_ONNX)
        with self.findings.stage("measurement"):
            self.latencies = self._measure()

    def _prune(self, dense: nn.Module, trainer: Trainer, saved: dict[str, Any] | None) -> nn.Module:
        """Learn masks, choose, remove: the network that is left."""
        student = train_only(copy.deepcopy(dense), self.learning).to(self.device)
        if self.pruned_by is not None:
            hold_zeros(student, self.pruned_by)
        masks = self.pruning.masks(student, trainer.mask_steps, self.settings.masks)
        if saved is not None:
            student.load_state_dict(saved["model"])
            masks.load_state(saved["masks"])
        with self.findings.stage("masks"):
            steps = len(trainer.stream)
            diary = MaskDiary(self.findings, student, masks, self.data, self.task, steps, self.settings.batch_size)
            self._train(trainer, student, masks.steps, "masks", masks, diary)
        with self.findings.stage("choice"):
            self.plan, self.findings.deviations = self.pruning.harden(masks)
            student.cpu()
            small = self._remove(student, self.plan)
        self._save(trainer, small)
        return small

    def _train(
        self,
        trainer: Trainer,
        model: nn.Module,
        until: int,
        name: str,
        masks: Masks | None = None,
        diary: MaskDiary | None = None,
    ) -> None:
        """Train up to a step, with a checkpoint from time to time and one at the end."""

        def after_step() -> None:
            scalars = {"loss": trainer.loss, "learning_rate": self.settings.rate_at(trainer.step / trainer.total_steps)}
            if masks is not None:
                masks.step()
                scalars |= {"undecided": masks.undecided, "cost_share": masks.cost_share}
            if self.log is not None:
                self.log.write(trainer.step, name, scalars)
            if diary is not None and (entry := diary.after_step(trainer.step)) and self.log is not None:
                self.log.write_epoch(trainer.step, "mask phase", entry)
            self.keeper.after_step(trainer.step, trainer.total_steps, lambda: self._state(trainer, model, masks))

        with self.keeper.interruption.deferred():
            forget = masks.zero_grad if masks is not None else lambda: None
            trainer.run(model, until, after_step, forget=forget, name=name, progress=self.progress)
        self._save(trainer, model, masks)
        self.keeper.stop_if_asked(trainer.step, trainer.total_steps)

    def _save(self, trainer: Trainer, model: nn.Module, masks: Masks | None = None) -> None:
        by_first(lambda: self.keeper.save(trainer.step, self._state(trainer, model, masks)))

    def _state(self, trainer: Trainer, model: nn.Module, masks: Masks | None = None) -> dict[str, Any]:
        return {
            "trainer": trainer.state(),
            "model": {name: tensor.detach().cpu().clone() for name, tensor in model.state_dict().items()},
            "masks": masks.state() if masks is not None else None,
            "plan": self.plan.to_json() if masks is None else None,
            "limits": self.pruning.decisions(),
            "findings": self.findings.state(),
        }

    def _form(self, model: nn.Module, path: Path, label: str) -> Form:
        finished = self.finish(copy.deepcopy(model)).eval()
        stage = "dense" if label == "dense" else "delivered"
        form = make_form(
            finished,
            self.inputs,
            path,
            self.batches,
            label,
            self.target,
            self.data,
            self.task,
            self.progress,
            self.findings.accuracies.get(stage),
        )
        self.findings.add_parity(form.parity)
        self.findings.accuracies[stage] = form.accuracy
        return form

    def _remove(self, masked: nn.Module, plan: PruningPlan) -> nn.Module:
        """The network without its channels, proven equal to the masked one, with BatchNorm statistics of its own."""
        masked.eval()
        self._check_alive(masked)
        small = remove_channels(masked, plan)
        if plan.granularity == "channels":  # of single weights nothing is removed
            with blocks_silenced(masked, [block.modules[-1] for block in plan.removed_blocks]):
                removal = compare("masked to removed", torch_callable(masked), torch_callable(small), self.batches)
            require_parity(removal)
            self.findings.add_parity([removal])
        settings = self.settings
        stream = self.data.train(max(2, settings.batch_size), settings.seed, settings.augment)
        reestimate_batchnorm(small, (inputs for inputs, _ in islice(stream, settings.batchnorm_batches)))
        self.findings.note_accuracy("after hardening", lambda: self._accuracy(small))
        return small

    def _accuracy(self, model: nn.Module) -> float | None:
        # What fits into the memory in training does so here, too.
        return evaluate_model(model, self.data, self.task, self.settings.batch_size)

    def _check_alive(self, model: nn.Module) -> None:
        """Raise where training ran away without the loss telling: nothing can be compared with such a model.

        Raises:
            TrainingError: outputs are not finite, or larger than any that the dense model's parity allows for.
        """
        for output in torch_callable(model)(self.batches[0]):
            if not np.isfinite(output).all() or np.abs(output).max(initial=0.0) > _RUN_AWAY:
                raise TrainingError(
                    f"The network's outputs are as large as {np.abs(output).max():.3g} after the masks were learned: "
                    f"training broke down. Lower --lr (now {self.settings.learning_rate:g})."
                )

    def _measure(self) -> dict[str, LatencyReport]:
        """Dense and pruned, in turns; in several fresh processes where a latency is promised, and all samples count."""
        files = {"dense": self.dense.delivery.path, "pruned": self.pruned.delivery.path}
        budget = next((one for one in self.budgets if one.kind == "latency"), None)
        processes = PROCESSES if budget is not None and can_measure(self.target) else 1
        settings = self.measuring or MeasureSettings()
        if processes > 1:  # they are repeats enough
            settings = replace(settings, repeats=0)
        attempts = [time_models(files, self.target, settings, self.progress) for _ in range(processes - 1)]
        attempts.append(time_models(files, self.target, replace(settings, layers=True), self.progress))
        if budget is not None and processes > 1:
            shares = [share_of_limit(budget, attempt["pruned"], attempt["dense"]) for attempt in attempts]
            self.findings.deviations.append(
                f"Latency was measured in {processes} fresh processes: {min(shares):.1%} to {max(shares):.1%} of its "
                "limit."
            )
        return {name: LatencyReport.pooled([attempt[name] for attempt in attempts]) for name in files}

    def _budget_entries(self, latencies: dict[str, LatencyReport]) -> list[dict[str, Any]]:
        return self.pruning.entries(self.pruned, self.plan, latencies)

    def outcome(self, model_name: str) -> Outcome:
        """Everything that was found out."""
        return Outcome(
            model_name,
            self.data,
            self.task,
            self.budgets,
            self.target,
            self.inputs,
            self.settings,
            self.dense,
            self.pruned,
            self.plan,
            self.latencies,
            self._budget_entries(self.latencies),
            self.findings,
            self.pruning.dense_nonzero,
            [
                *self.notes,
                *self.data.notes,
                *self.pruning.notes,
                *gains(self.plan, self.dense.delivery.path, self.pruned.delivery.path),
            ],
        )


def _examples(data: DataSource, input_shape: tuple[int, ...] | None) -> Inputs:
    """Example inputs of the delivered model: real samples of the validation data.

    Raises:
        UsageError: the shape is not one of the data's samples with a batch in front.
    """
    shapes = data.sample_shapes
    if input_shape is not None and (len(shapes) > 1 or tuple(input_shape[1:]) != tuple(shapes[0])):
        samples = " and ".join("x".join(map(str, shape)) for shape in shapes)
        raise UsageError(
            f"--input {'x'.join(map(str, input_shape))} does not fit the data: a sample of {data.name} is {samples}. "
            f"Give --input 1x{samples}, or other data."
        )
    count = 1 if input_shape is None else input_shape[0]
    inputs, _ = next(iter(data.validation(1)))
    return tuple(tensor[:1].expand(count, *tensor.shape[1:]).contiguous() for tensor in inputs)
