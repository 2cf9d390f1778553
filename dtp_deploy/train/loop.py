"""The training loop: one schedule over the whole run, which outlives the removal of channels."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from dtp_deploy.errors import InputError, TrainingError
from dtp_deploy.loading.batches import all_finite
from dtp_deploy.loading.source import Batch, DataSource, TrainStream
from dtp_deploy.memory import freed_memory_kept
from dtp_deploy.modules import Inputs, device_of, evaluating, shapes_of
from dtp_deploy.nested import map_tensors, rows_of
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.ranks import any_rank, mean_over_ranks, world_size
from dtp_deploy.task import Task
from dtp_deploy.train.layout import channels_last, gains_from_channels_last, laid_out
from dtp_deploy.train.losses import task_loss, to_device
from dtp_deploy.train.settings import Settings
from dtp_deploy.train.together import trained_together

_COPIES_LATER = 2
"""How often the parameters will lie in memory besides: as the optimiser's momentum, and in what processes share."""


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
        loss: of the last step, of all processes together.
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
        self._images_last = False
        self._batches = self._endless()
        self._optimizer: torch.optim.Optimizer | None = None
        self._optimizer_state: dict[str, Any] | None = None
        self._cuda: torch.device | None = None
        self._cuda_state: Tensor | None = None

    def mask_steps(self, ratio: float) -> int:
        """Steps of the mask phase, where the budget leaves that share of the units."""
        return self.settings.mask_steps(self.total_steps, ratio)

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
        self._cuda = device if device.type == "cuda" else None
        if self._cuda is not None and self._cuda_state is not None:
            torch.cuda.set_rng_state(self._cuda_state, self._cuda)
        self._cuda_state = None

        def start_over() -> None:
            optimizer.zero_grad(set_to_none=True)
            forget()

        model.train()
        with progress.task(name, until - self.step, passing=True) as advance, ExitStack() as stack:
            stack.enter_context(freed_memory_kept())
            forward: nn.Module | None = None
            while self.step < until:
                inputs, targets = next(self._batches)
                inputs, targets = tuple(x.to(device, non_blocking=True) for x in inputs), to_device(targets, device)
                if forward is None:
                    forward = stack.enter_context(self._prepared(model, inputs, targets, start_over))
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate_at(self.step / self.total_steps)
                loss = self._backward(forward, inputs, targets, start_over)
                self.loss = float(mean_over_ranks(torch.tensor(loss, dtype=torch.float64)))
                if not math.isfinite(self.loss):
                    if any_rank(not all_finite(inputs)):
                        raise InputError(
                            f"The training batch of step {self.step} holds NaN or infinite inputs. Replace or drop "
                            "those samples, or correct the preprocessing (a division by zero, say)."
                        )
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
            "parts": self.parts,
            "stream": self.stream.state(),
            "optimizer": self._optimizer.state_dict() if self._optimizer is not None else None,
            "torch_generator": torch.get_rng_state(),
            "cuda_generator": torch.cuda.get_rng_state(self._cuda) if self._cuda is not None else None,
        }

    def load_state(self, state: Mapping[str, Any]) -> None:
        """Go to where a trainer of the same data and settings was; the next `run` goes on with its optimiser."""
        self.step, self.parts = state["step"], state["parts"]
        self.stream.load_state(state["stream"])
        self._batches = self._endless()
        self._optimizer_state = state["optimizer"]
        torch.set_rng_state(state["torch_generator"])
        self._cuda_state = state["cuda_generator"]

    @contextmanager
    def _prepared(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Any,  # noqa: ANN401
        start_over: Callable[[], None],
    ) -> Iterator[nn.Module]:
        """The model as it is to be called in training, after the first batch told how that can be done.

        Channels are last in memory unless the model cannot take that: one that calls `view` on a feature map, say.
        """
        self._images_last = gains_from_channels_last(model, inputs)
        if self._images_last:
            rows = slice(2)
            with channels_last(model):
                failure = self._rehearse(model, rows_of(inputs, rows), rows_of(targets, rows), start_over)
            self._images_last = not any_rank(failure is not None)
        with ExitStack() as stack:
            if self._images_last:
                stack.enter_context(channels_last(model))
                if self.teacher is not None:
                    stack.enter_context(channels_last(self.teacher))
            if world_size() > 1:
                self._fit_all(model, inputs, targets, start_over)
            yield stack.enter_context(trained_together(model))

    def _fit_all(self, model: nn.Module, inputs: Inputs, targets: Any, start_over: Callable[[], None]) -> None:  # noqa: ANN401
        """Agree on parts that fit into the memory of every process.

        That is done before they are bound together: from then on, one that runs out of memory in the middle of a step
        leaves the others waiting for it.
        """
        while any_rank(self._rehearse(model, inputs, targets, start_over) is torch.OutOfMemoryError):
            self._halve(inputs)

    def _rehearse(
        self,
        model: nn.Module,
        inputs: Inputs,
        targets: Any,  # noqa: ANN401
        start_over: Callable[[], None],
    ) -> type[Exception] | None:
        """What goes wrong, if anything, when a batch goes forward and back; afterwards everything is as it was."""
        before = [buffer.clone() for buffer in model.buffers()]
        device = inputs[0].device
        try:
            with torch.random.fork_rng([device] if device.type == "cuda" else []):
                later = [torch.empty_like(parameter) for parameter in model.parameters() for _ in range(_COPIES_LATER)]
                self._pass(model, inputs, targets)
                del later
        except Exception as error:  # where it is a fault of the user's, the step itself says so
            return type(error)  # alone: with its traceback it would hold the memory
        finally:
            start_over()
            with torch.no_grad():
                for buffer, value in zip(model.buffers(), before, strict=True):
                    buffer.copy_(value)
        return None

    def _backward(
        self,
        forward: nn.Module,
        inputs: Inputs,
        targets: Any,  # noqa: ANN401
        start_over: Callable[[], None],
    ) -> float:
        """Loss and gradients of a batch, in as many parts as the memory asks for; the mean loss."""
        while True:
            try:
                return self._pass(forward, inputs, targets)
            except torch.OutOfMemoryError as error:
                start_over()
                if world_size() > 1:
                    raise InputError(
                        f"Out of memory in one of {world_size()} processes at step {self.step}, although the first "
                        "batch fitted. Go on with --resume when more memory is free, or start over with --force and a "
                        "smaller --batch-size."
                    ) from error
                self._halve(inputs)

    def _pass(self, forward: nn.Module, inputs: Inputs, targets: Any) -> float:  # noqa: ANN401
        """Forward and back, part by part; processes share what they found after the last one."""
        count = len(inputs[0])
        size = -(-count // self.parts)
        total = 0.0
        for first in range(0, count, size):
            rows = slice(first, first + size)
            part = rows_of(inputs, rows)
            part = laid_out(part, torch.channels_last if self._images_last else torch.contiguous_format)
            bound = isinstance(forward, DistributedDataParallel)
            with forward.no_sync() if bound and first + size < count else nullcontext():  # type: ignore[operator]
                loss = self._loss(forward, part, rows_of(targets, rows)) * (len(part[0]) / count)
                loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total

    def _halve(self, inputs: Inputs) -> None:
        """Let batches go on in twice as many parts.

        Raises:
            InputError: they are single samples already.
        """
        size = -(-len(inputs[0]) // self.parts)
        if size == 1:
            raise InputError(
                f"A single sample of shape {shapes_of(inputs)} does not fit into the memory of {inputs[0].device}. "
                "Give smaller inputs, or a larger device."
            )
        self.parts *= 2
        self._progress.note(
            f"Out of memory at {size} samples: batches go on in {self.parts} parts, their gradients added up."
        )

    def _half(self, device: torch.device) -> bool:
        """Whether models compute in bfloat16: on CUDA devices that are made for it and do not emulate it."""
        if not self.settings.mixed_precision or device.type != "cuda":
            return False
        with torch.cuda.device(device):
            return bool(torch.cuda.is_bf16_supported(including_emulation=False))

    def _loss(self, model: nn.Module, inputs: Inputs, targets: Any) -> Tensor:  # noqa: ANN401 - the user's own
        device = inputs[0].device
        half = self._half(device)
        wanted = None
        with torch.autocast(device.type, torch.bfloat16, enabled=half):
            outputs = model(*inputs)
            if self.teacher is not None:
                with torch.no_grad():
                    wanted = self.teacher(*inputs)
        if half:  # losses compute in float32, and some refuse less
            outputs, wanted = map_tensors(_in_float32, outputs), map_tensors(_in_float32, wanted)
        loss = task_loss(self.task, outputs, targets) if self.task.loss is not None else None
        if self.teacher is None:
            assert loss is not None
            return loss
        distance = self.task.distance(outputs, wanted, self.settings.temperature)
        weight = self.settings.distill_weight
        return distance if loss is None else (1 - weight) * loss + weight * distance

    def _endless(self) -> Iterator[Batch]:
        while True:
            yield from self.stream


def _in_float32(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.bfloat16 else tensor


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
        doubles = [name for name, parameter in model.named_parameters() if parameter.dtype == torch.float64]
        if doubles and not any(tensor.dtype == torch.float64 for tensor in inputs):
            raise InputError(
                f"{type(model).__name__} does not run on inputs of float32: it has weights of float64 "
                f"('{doubles[0]}'). Give model.float()."
            ) from error
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
