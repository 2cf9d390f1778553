"""The training loop: one schedule over the whole run, which outlives the removal of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dtp_deploy.errors import InputError, TrainingError
from dtp_deploy.loading.source import Batch, DataSource, TrainStream
from dtp_deploy.modules import Inputs, device_of, evaluating, rows_of, shapes_of
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.ranks import world_size
from dtp_deploy.task import Task
from dtp_deploy.train.losses import task_loss, to_device
from dtp_deploy.train.settings import Settings


class Trainer:
    """Trains a model, and then the smaller model that it becomes, along one learning rate schedule.

    Args:
        stream: of the training data; gone through `settings.epochs` times in all.
        task: has the loss.
        settings: hyper-parameters.
        teacher: the dense model, in eval mode, or None for no distillation.

    Attributes:
        total_steps: steps of the whole run.
        step: steps done so far.
        loss: of the last step.
        parts: in how many parts a batch goes through the model; more than one after the memory was too small.

    Raises:
        InputError: there is nothing to learn from, neither labels nor a teacher.
    """

    def __init__(self, stream: TrainStream, task: Task, settings: Settings, teacher: nn.Module | None) -> None:
        self.stream, self.task, self.settings = stream, task, settings
        self.teacher = teacher if settings.distill else None
        if self.teacher is None and task.loss is None:
            raise InputError(
                "There is nothing to learn from: the data have no labels, and distillation is off. Give labelled data, "
                "or leave --no-distill out."
            )
        self.total_steps = settings.epochs * len(stream)
        self.step = 0
        self.loss = math.nan
        self.parts = 1
        self._progress = SILENT
        self._batches = self._endless()
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None

    @property
    def mask_steps(self) -> int:
        """Steps of the mask phase."""
        return self.settings.mask_steps(self.total_steps)

    def run(
        self,
        model: nn.Module,
        until: int,
        after_step: Callable[[], None] = lambda: None,
        *,
        forget: Callable[[], None] = lambda: None,
        name: str = "training",
        progress: Progress = SILENT,
    ) -> None:
        """Train up to step `until` with a fresh optimiser, and leave the model in eval mode.

        Args:
            model: changed in place.
            until: the step of the whole run to stop at.
            after_step: called after every step.
            forget: drops gradients that somebody else than the optimiser collects.
            name: of the stage.
            progress: told of every step, and of a batch that had to be halved.

        Raises:
            TrainingError: the loss is not finite.
            InputError: a single sample is too much for the memory, or the loss cannot be computed from the model's
                outputs and the targets.
        """
        settings = self.settings
        parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
        optimizer = torch.optim.SGD(
            parameters,
            lr=settings.learning_rate,
            momentum=settings.momentum,
            nesterov=settings.momentum > 0,
            weight_decay=settings.weight_decay,
        )
        if self._optimizer_state is not None:
            optimizer.load_state_dict(self._optimizer_state)
            self._optimizer_state = None
        self._optimizer, self._progress = optimizer, progress
        device = device_of(model)

        def start_over() -> None:
            optimizer.zero_grad(set_to_none=True)
            forget()

        forward = DistributedDataParallel(model, find_unused_parameters=True) if world_size() > 1 else model
        model.train()
        with progress.task(name, total=until - self.step) as advance:
            while self.step < until:
                inputs, targets = next(self._batches)
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate_at(self.step / self.total_steps)
                moved = tuple(tensor.to(device, non_blocking=True) for tensor in inputs), to_device(targets, device)
                self.loss = self._backward(forward, *moved, start_over)
                if not math.isfinite(self.loss):
                    raise TrainingError(
                        f"The loss is {self.loss} at step {self.step} of {self.total_steps}: training broke down. "
                        f"Lower --lr (now {settings.learning_rate:g})."
                    )
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                self.step += 1
                after_step()
                advance()
        self._optimizer = None
        model.eval()

    def state(self) -> dict[str, Any]:
        """Where the run is, in plain values and tensors: the step, the data, the optimiser of the present phase."""
        return {
            "step": self.step,
            "stream": self.stream.state(),
            "optimizer": self._optimizer.state_dict() if self._optimizer is not None else None,
            "torch_generator": torch.get_rng_state(),
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where a trainer of the same data and settings was; the next `run` goes on with its optimiser."""
        self.step = state["step"]
        self.stream.load_state(state["stream"])
        self._batches = self._endless()
        self._optimizer_state = state["optimizer"]
        torch.set_rng_state(state["torch_generator"])

    def _backward(self, model: nn.Module, inputs: Inputs, targets: Any, start_over: Callable[[], None]) -> float:  # noqa: ANN401
        """Loss and gradients of a batch, in as many parts as the memory asks for; the mean loss."""
        count = len(inputs[0])
        while True:
            size = -(-count // self.parts)
            total = 0.0
            try:
                for first in range(0, count, size):
                    rows = slice(first, first + size)
                    part = rows_of(inputs, rows)
                    with self._autocast(part[0].device):
                        loss = self._loss(model, part, rows_of(targets, rows)) * (len(part[0]) / count)
                    loss.backward()  # type: ignore[no-untyped-call]
                    total += float(loss.detach())
                return total
            except torch.OutOfMemoryError as error:
                start_over()
                if world_size() > 1:
                    raise InputError(
                        f"Out of memory at {size} samples in one of {world_size()} processes. Give a smaller "
                        "--batch-size, and go on with --resume."
                    ) from error
                if size == 1:
                    raise InputError(
                        f"A single sample of shape {shapes_of(inputs)} does not fit into the memory of "
                        f"{inputs[0].device}. Give smaller inputs, or a larger device."
                    ) from error
                self.parts *= 2
                self._progress.note(
                    f"Out of memory at {size} samples: batches go on in {self.parts} parts, their gradients added up."
                )

    def _autocast(self, device: torch.device) -> torch.autocast:
        """Mixed precision where the device is made for it: bfloat16 on CUDA devices that have it."""
        usable = device.type == "cuda" and torch.cuda.is_bf16_supported()
        return torch.autocast(device.type, torch.bfloat16, enabled=self.settings.mixed_precision and usable)

    def _loss(self, model: nn.Module, inputs: Inputs, targets: Any) -> Tensor:  # noqa: ANN401 - the user's own
        outputs = model(*inputs)
        loss = None
        if self.task.loss is not None:
            loss = task_loss(self.task, outputs, targets)
        if self.teacher is None:
            assert loss is not None
            return loss
        with torch.no_grad():
            wanted = self.teacher(*inputs)
        distance = self.task.distance(outputs, wanted, self.settings.temperature)
        weight = self.settings.distill_weight
        return distance if loss is None else (1 - weight) * loss + weight * distance

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self.stream


def check_model(model: nn.Module, inputs: Inputs, data: DataSource, task: Task) -> None:
    """Raise unless the model runs on the inputs and, for a classification, gives one score a class.

    Raises:
        InputError: the model raises, or its output does not fit the task.
    """
    try:
        with evaluating(model), torch.no_grad():
            output = model(*inputs)
    except Exception as error:
        message = str(error).strip().splitlines()
        raise InputError(
            f"{type(model).__name__} does not run on inputs of shape {shapes_of(inputs)} ({type(error).__name__}: "
            f"{message[0] if message else 'no message'}). Check --input and --data against the shape that the model "
            "was trained with."
        ) from error
    if not task.classes:
        return
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs[0]):
        given = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"{type(model).__name__} returns {given} for inputs of shape {shapes_of(inputs)}. Training with "
            "cross-entropy needs one tensor of shape (batch, classes). Give --loss and --metric of your own."
        )
    if data.num_classes is not None and output.shape[1] < data.num_classes:
        raise InputError(
            f"{type(model).__name__} gives {output.shape[1]} class scores, but the labels go up to "
            f"{data.num_classes - 1}. Give the data that the model was trained for."
        )
