"""One run of ``compress``, from what the user named: model, data, task, inputs, settings, all loaded and checked."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtp_deploy.artefact import load_pruned, read_plan
from dtp_deploy.budget import Budget, flag_of
from dtp_deploy.config import CompressConfig
from dtp_deploy.errors import BudgetError, InputError, UsageError
from dtp_deploy.granularity import check_pruned_by
from dtp_deploy.graph import find_groups
from dtp_deploy.latency.timing import can_measure
from dtp_deploy.loading import (
    CheckpointInfo,
    InputSpec,
    LoadedModel,
    apply_hook,
    check_shapes,
    example_inputs,
    import_object,
    inspect_checkpoint,
    load_data,
    load_model,
    make_model,
    parse_input,
)
from dtp_deploy.loading.inputs import arrange_inputs
from dtp_deploy.loading.preprocessing import Preprocessing
from dtp_deploy.loading.source import DataSource
from dtp_deploy.loading.wording import cause, kind_text
from dtp_deploy.modules import Inputs
from dtp_deploy.order import HALF, Order
from dtp_deploy.pipeline import compress
from dtp_deploy.profile.measure import MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import MaskSettings, PruningPlan
from dtp_deploy.reach import why_not_predicted
from dtp_deploy.report import Report
from dtp_deploy.task import CLASSIFICATION, UNLABELLED, Task
from dtp_deploy.train import Settings
from dtp_deploy.train.losses import check_scores

Ask = Callable[[CheckpointInfo], bool]
"""Shows a person what a file would import, and asks whether to trust it."""

_PREPROCESSING_KEYS = ("resize", "crop", "letterbox", "mean", "std", "channels", "range")
ORIGIN = "compress"
"""Under which a run's checkpoints keep its configuration."""


@dataclass(frozen=True, eq=False)
class Job:
    """A run that is ready to start.

    Attributes:
        order: what was asked for.
        loaded: the model as it came.
        model: what is pruned: the same, prepared.
        pruned_by: the plan by which the model was pruned before; None for a dense one.
        data: to train and validate with.
        task: loss and metric.
        specs: the inputs, in the model's order.
        inputs: an example of them.
        settings: every hyper-parameter.
        notes: what a reader of the report should know of model and inputs.
    """

    order: Order
    loaded: LoadedModel
    model: nn.Module
    pruned_by: PruningPlan | None
    data: DataSource
    task: Task
    specs: tuple[InputSpec, ...]
    inputs: Inputs
    settings: Settings
    notes: tuple[str, ...]

    @property
    def budgets(self) -> tuple[Budget, ...]:
        """What the pruned model may cost."""
        return self.order.budgets

    @property
    def input_names(self) -> list[str] | None:
        """How the inputs are called; None where they have no names."""
        return [spec.name for spec in self.specs if spec.name is not None] or None

    def run(self, progress: Progress = SILENT, measuring: MeasureSettings | None = None) -> Report:
        """Prune, fine-tune, deliver, report: see `dtp_deploy.compress`, which raises what this raises."""
        try:
            return self._run(progress, measuring)
        except BudgetError as error:
            if not self.order.budget_is_default:
                raise
            (budget,) = self.budgets
            flag = flag_of(budget.kind)
            others = ", or --macs 50%" if budget.kind == "latency" else ""
            raise BudgetError(
                f"{error} {flag} {budget} is the default, because no budget was typed: type {flag} with what can be "
                f"reached{others}."
            ) from error

    def _run(self, progress: Progress, measuring: MeasureSettings | None) -> Report:
        order, config = self.order, self.order.config
        images = len(self.specs) == 1 and self.specs[0].dtype == "float32"
        return compress(
            self.model,
            data=self.data,
            budget=order.budgets,
            out=order.out,
            target=order.target,
            # One input is taken from the data, which show the parity of engines better than random numbers do.
            input_shape=self.specs[0].shape if images else None,
            inputs=None if images else self.inputs,
            input_names=self.input_names,
            task=self.task,
            settings=self.settings,
            finish=self.finish if config.finish is not None else None,
            require_measured=config.require_measured,
            force=config.force,
            resume=order.resume,
            checkpoint_minutes=config.checkpoint_every,
            measuring=measuring,
            log_dir=config.log_dir,
            device=config.device,
            origin={ORIGIN: config.values()},
            progress=progress,
            model_name=Path(order.checkpoint).name,
            notes=self.notes,
            pruned_by=self.pruned_by,
            pickled=config.save_module,
        )

    def finish(self, model: nn.Module) -> nn.Module:
        """The model as it is exported."""
        finish = self.order.config.finish
        return model if finish is None else apply_hook(finish, model, "--finish")


def ask_for_trust(config: CompressConfig, ask: Ask | None) -> CompressConfig:
    """The configuration with `trust` set, where the model file needs it and the person who is asked agrees.

    Args:
        config: as given.
        ask: None where nobody can be asked; then `resolve` refuses such a file and names --trust.

    Raises:
        InputError: the file is damaged.
    """
    if ask is None or config.trust or config.checkpoint is None or not Path(config.checkpoint).exists():
        return config
    info = inspect_checkpoint(config.checkpoint)
    if not (info.needs_trust and info.can_be_pruned):
        return config
    return config.model_copy(update={"trust": ask(info)})


def resolve(order: Order) -> Job:
    """Load everything that a run needs, and check that the parts fit.

    Raises:
        UsageError, InputError: something is missing or cannot be used.
    """
    config = order.config
    settings = Settings(
        epochs=config.epochs,
        batch_size=config.batch_size,
        learning_rate=config.lr,
        distill=config.distill,
        augment=config.augment,
        seed=config.seed,
        granularity=config.granularity,
        masks=MaskSettings(solver=config.solver, scores=config.scores, round_to=config.round_to),
        keep=config.keep,
        only=config.only,
        allow_depth=config.allow_depth,
    )
    given = tuple(parse_input(text) for text in config.input)
    loaded, pruned_by = _load(order)
    model = loaded.model
    if config.prepare is not None and pruned_by is None:
        model = apply_hook(config.prepare, model, "--prepare")
    notes = list(loaded.notes)
    if not given and loaded.suggested_input_shapes is not None:
        given = tuple(InputSpec(None, shape) for shape in loaded.suggested_input_shapes)
        notes.append(f"The input, {' and '.join(map(str, given))}, is the one that the model's configuration names.")
    if not given and config.data in (None, "synthetic"):
        raise UsageError(
            "No --input is given, and the model's configuration names none. Give --input 1x3x224x224, say."
        )
    specs = arrange_inputs(model, given) if given else ()
    data = load_data(
        config.data,
        preprocessing=_preprocessing(config, loaded.suggested_preprocessing, specs),
        options=[name for name in _PREPROCESSING_KEYS if getattr(config, name) is not None],
        input_shapes=[spec.shape for spec in specs] or None,
        val_split=config.val_split,
        seed=config.seed,
        workers=config.workers,
    )
    if specs:
        check_shapes(data, *(spec.shape for spec in specs))
    else:
        specs = tuple(InputSpec(None, (1, *shape)) for shape in data.sample_shapes)
    _check_types(specs, config)
    inputs = example_inputs(model, specs, config.seed)
    task = _task(config, data)
    check_scores(settings, task, data)
    job = Job(order, loaded, model, pruned_by, data, task, specs, inputs, settings, tuple(notes))
    return _with_default_budget(job) if order.budget_is_default else job


def _with_default_budget(job: Job) -> Job:
    """With a note of the budget that nobody typed; of MACs, where half of the latency is predicted and out of reach."""
    order, settings = job.order, job.settings
    (budget,) = order.budgets
    reason = None
    if budget.kind == "latency" and not can_measure(order.target):
        model = job.model.eval()
        groups = find_groups(model, job.inputs, keep=settings.keep, only=settings.only)
        reason = why_not_predicted(model, groups, order.target, budget, settings.masks.round_to, job.finish)
    if reason is not None:
        budget = order.config.budget("macs", HALF)
        reason = f" --latency {HALF} would have come first: {reason}"
    note = f"No budget was given: {flag_of(budget.kind)} {budget} was taken.{reason or ''}"
    return replace(job, order=replace(order, budgets=(budget,)), notes=(*job.notes, note))


def parse_size(text: str, option: str) -> tuple[int, int]:
    """(height, width) of a picture, from one number for a square or two joined by x.

    Raises:
        UsageError: the text is neither.

    >>> parse_size("224", "--crop"), parse_size("480x640", "--crop")
    ((224, 224), (480, 640))
    """
    sides = text.split("x")
    if len(sides) > 2 or not all(side.isdecimal() and int(side) > 0 for side in sides):
        raise UsageError(f"{option} {text!r} is not a size. Give pixels, such as 224, or HEIGHTxWIDTH: 480x640.")
    return int(sides[0]), int(sides[-1])


def _load(order: Order) -> tuple[LoadedModel, PruningPlan | None]:
    """The model; and the plan that gave it, where it lies in a folder that a run delivered."""
    config, path = order.config, Path(order.checkpoint)
    if not path.exists() or inspect_checkpoint(path).kind != "artefact":
        return load_model(order.checkpoint, factory=config.model, trust=config.trust), None
    if config.model is None:
        raise UsageError(
            f"{path} is a folder that dtp-deploy wrote: it holds weights and a plan, and no model. Give --model with "
            "the factory of the dense model that was pruned."
        )
    dense = make_model(config.model)
    if config.prepare is not None:
        dense = apply_hook(config.prepare, dense, "--prepare")
    plan = read_plan(path)
    check_pruned_by(config.granularity, plan)
    model = load_pruned(dense, path)
    before = ", ".join(f"{fingerprint[:12]}" for fingerprint in (plan.fingerprint, *plan.chain))
    note = (
        f"The model was pruned before: it was made by {config.model} with the plan in {path.name} (chain of models: "
        f"{before}). 'Dense' in this report is that pruned model; the plan delivered leads from {config.model} to the "
        "model delivered."
    )
    if plan.granularity != "channels":
        note += " Weights that were pruned to zero in it stay zero; percentages are of those that are not."
    loaded = LoadedModel(model, path.name, f"{config.model}, pruned in {path.name}", (note,), config.model)
    return loaded, plan


def _preprocessing(
    config: CompressConfig, suggested: Preprocessing | None, specs: Sequence[InputSpec]
) -> Preprocessing | None:
    """What the flags say, on top of what the model's own configuration says; None if neither says anything."""
    given: dict[str, Any] = {
        name: value for name in _PREPROCESSING_KEYS if (value := getattr(config, name)) is not None
    }
    for name in ("resize", "crop", "letterbox"):
        if name in given:
            size = parse_size(given[name], f"--{name}")
            given[name] = size[0] if name == "resize" and "x" not in given[name] else size
    if suggested is not None and specs:
        suggested = _scaled(suggested, specs[0].shape)
    if suggested is None:
        if given and specs and specs[0].shape[1:2] == (1,):
            given.setdefault("channels", "grey")
        return Preprocessing(**given) if given else None
    if "letterbox" in given:
        given = {"resize": None, "crop": None} | given
    return replace(suggested, **given)


def _scaled(preprocessing: Preprocessing, shape: tuple[int, ...]) -> Preprocessing:
    """A square resize and crop, for inputs of another size: the crop keeps its share of the picture."""
    if len(shape) != 4 or preprocessing.crop in (None, shape[2:]) or not isinstance(preprocessing.resize, int):
        return preprocessing
    assert preprocessing.crop is not None
    resize = round(preprocessing.resize * max(shape[2:]) / max(preprocessing.crop))
    return replace(preprocessing, resize=resize, crop=(shape[2], shape[3]))


def _check_types(specs: Sequence[InputSpec], config: CompressConfig) -> None:
    others = [str(spec) for spec in specs if spec.dtype != "float32"]
    if others and config.data in (None, "synthetic"):
        raise UsageError(
            f"--input {others[0]} is no float32, and random inputs are. Give --data pkg.module:factory, whose loaders "
            "make such inputs."
        )


def _task(config: CompressConfig, data: DataSource) -> Task:
    """What the model is trained for.

    Raises:
        UsageError: a loss or a metric without labels; or labels that are no classes, without a loss.
    """
    given = [f"--{name} {text}" for name, text in (("loss", config.loss), ("metric", config.metric)) if text]
    if not data.labelled:
        if given:
            raise UsageError(
                f"{given[0]} needs labels, and --data {data.name} has none. Leave it out: then the pruned model learns "
                "from the dense one; or give data with labels."
            )
        return UNLABELLED
    metric = None if config.metric is None else _Scored(config.metric, "--metric")
    if config.loss is not None:
        name = f"loss {config.loss}, metric {config.metric or 'none'}"
        return Task(name, _Scored(config.loss, "--loss"), metric)
    if data.num_classes is None:
        raise UsageError(
            f"--data {data.name} has targets that are no class indices, so cross-entropy does not apply. Give --loss "
            "pkg.module:function (and --metric), or loaders without targets to learn from the dense model alone."
        )
    if metric is None:
        return CLASSIFICATION
    return replace(CLASSIFICATION, name=f"classification, metric {config.metric}", metric=metric)


class _Scored:
    """A loss or a metric of the user's own; what goes wrong in it is told in one line.

    Raises:
        UsageError: there is no such function.
    """

    def __init__(self, spec: str, option: str) -> None:
        function = import_object(spec, option)
        if not callable(function):
            raise UsageError(
                f"{option} {spec} is {kind_text(function)}, which cannot be called. Give a function (outputs, targets)."
            )
        self.label, self.function, self.differentiable = f"{option} {spec}", function, option == "--loss"

    def __call__(self, outputs: Any, targets: Any) -> Any:  # noqa: ANN401 - a tensor for a loss, a float for a metric
        """Call the function.

        Raises:
            InputError: it raises, or returns something else than it should.
        """
        try:
            value = self.function(outputs, targets)
        except Exception as error:
            raise InputError(
                f"{self.label} raised {cause(error)}. Correct it; it is called with what the model returns and with "
                "what the data give as targets."
            ) from error
        if self.differentiable:
            if not isinstance(value, torch.Tensor) or value.ndim != 0:
                tensor = isinstance(value, torch.Tensor)
                kind = f"a tensor of shape {tuple(value.shape)}" if tensor else kind_text(value)
                raise InputError(f"{self.label} returned {kind}. Let it return a scalar tensor: the mean of the batch.")
            return value
        try:
            number = float(value)
        except (TypeError, ValueError, RuntimeError):
            number = -1.0
        if not 0 <= number <= 1:
            raise InputError(
                f"{self.label} returned {value!r}. Let it return a number from 0 to 1, the mean over the batch, higher "
                "is better."
            )
        return number
