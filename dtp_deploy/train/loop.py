"""The training loop: one schedule over the whole run, which outlives the removal of channels."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import torch
from torch import Tensor, nn
from torch.nn import functional

from dtp_deploy.errors import InputError, TrainingError
from dtp_deploy.loading.batches import TrainBatches
from dtp_deploy.modules import evaluating
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.train.settings import Settings


class Trainer:
    """Trains a model, and then the smaller model that it becomes, along one learning rate schedule.

    Args:
        batches: of the training data; gone through `settings.epochs` times in all.
        settings: hyper-parameters.
        teacher: the dense model, in eval mode, or None for no distillation.

    Attributes:
        total_steps: steps of the whole run.
        step: steps done so far.
    """

    def __init__(self, batches: TrainBatches, settings: Settings, teacher: nn.Module | None) -> None:
        self.batches, self.settings = batches, settings
        self.teacher = teacher if settings.distill else None
        self.total_steps = settings.epochs * len(batches)
        self.step = 0
        self._stream = self._endless()

    @property
    def mask_steps(self) -> int:
        """Steps of the mask phase."""
        return self.settings.mask_steps(self.total_steps)

    def run(
        self,
        model: nn.Module,
        steps: int,
        after_step: Callable[[], None] = lambda: None,
        *,
        name: str = "training",
        progress: Progress = SILENT,
    ) -> None:
        """Train for `steps` steps with a fresh optimiser, and leave the model in eval mode.

        Args:
            model: changed in place.
            steps: how many.
            after_step: called after every step of the optimiser.
            name: of the stage.
            progress: told of every step.

        Raises:
            TrainingError: the loss is not finite.
            InputError: the model's outputs are no class scores for the labels.
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
        device = parameters[0].device
        model.train()
        with progress.task(name, total=steps) as advance:
            for _ in range(steps):
                x, y = next(self._stream)
                for group in optimizer.param_groups:
                    group["lr"] = settings.rate_at(self.step / self.total_steps)
                loss = self._loss(model, x.to(device), y.to(device))
                if not bool(torch.isfinite(loss)):
                    raise TrainingError(
                        f"The loss is {loss.item()} at step {self.step} of {self.total_steps}: training broke down. "
                        f"Lower --lr (now {settings.learning_rate:g})."
                    )
                loss.backward()  # type: ignore[no-untyped-call]
                nn.utils.clip_grad_norm_(parameters, settings.clip_norm)
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
                after_step()
                self.step += 1
                advance()
        model.eval()

    def _loss(self, model: nn.Module, x: Tensor, y: Tensor) -> Tensor:
        logits = model(x)
        loss = functional.cross_entropy(logits, y)
        if self.teacher is None:
            return loss
        with torch.no_grad():
            wanted = self.teacher(x)
        heat, weight = self.settings.temperature, self.settings.distill_weight
        distance = functional.kl_div(
            functional.log_softmax(logits / heat, 1),
            functional.log_softmax(wanted / heat, 1),
            reduction="batchmean",
            log_target=True,
        )
        # The gradients of soft targets shrink with the square of the temperature; the factor gives it back.
        return (1 - weight) * loss + weight * heat**2 * distance

    def _endless(self) -> Iterator[tuple[Tensor, Tensor]]:
        while True:
            yield from self.batches


def check_classifier(model: nn.Module, inputs: Tensor, classes: int) -> None:
    """Raise unless the model gives one score a class.

    Args:
        model: to be tried in eval mode.
        inputs: an example input, shape (N, C, ...).
        classes: number of classes in the data.

    Raises:
        InputError: the model raises, or returns something else than a tensor of shape (N, at least `classes`).
    """
    try:
        with evaluating(model), torch.no_grad():
            output = model(inputs)
    except Exception as error:
        raise InputError(
            f"{type(model).__name__} does not run on an input of shape {tuple(inputs.shape)} "
            f"({type(error).__name__}: {str(error).strip().splitlines()[0] if str(error).strip() else 'no message'}). "
            "Check --input and --data against the shape that the model was trained with."
        ) from error
    if not isinstance(output, Tensor) or output.ndim != 2 or len(output) != len(inputs):
        shape = tuple(output.shape) if isinstance(output, Tensor) else type(output).__name__
        raise InputError(
            f"{type(model).__name__} returns {shape} for an input of shape {tuple(inputs.shape)}. Training with "
            "cross-entropy needs one tensor of shape (batch, classes)."
        )
    if output.shape[1] < classes:
        raise InputError(
            f"{type(model).__name__} gives {output.shape[1]} class scores, but the labels go up to {classes - 1}. "
            "Give the data that the model was trained for."
        )
