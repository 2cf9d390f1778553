"""The task's loss of a model: on one batch, and on the batches that first scores are made of."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import islice
from typing import Any

import torch
from torch import Tensor, nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import device_of
from dtp_deploy.nested import map_tensors
from dtp_deploy.prune.importance import Losses
from dtp_deploy.task import Task
from dtp_deploy.train.settings import Settings


def task_loss(task: Task, outputs: Any, targets: Any) -> Tensor:  # noqa: ANN401 - the user's own
    """The loss of a batch; the task has one.

    Raises:
        InputError: it cannot be computed from the model's outputs and the targets.
    """
    assert task.loss is not None, task.name
    try:
        return task.loss(outputs, targets)
    except (torch.OutOfMemoryError, DtpError):  # the latter says already what is wrong
        raise
    except Exception as error:
        raise InputError(
            f"The loss of '{task.name}' could not be computed ({type(error).__name__}: {error}). "
            "Check that --loss fits the model's outputs and the targets of --data."
        ) from error


def to_device(targets: Any, device: torch.device) -> Any:  # noqa: ANN401 - whatever the user's loader gives
    """Targets on the device, where they are tensors or plain containers of tensors."""
    return map_tensors(lambda tensor: tensor.to(device), targets)


def losses_on(data: DataSource, task: Task, settings: Settings) -> Losses:
    """The task's loss on the first batches of the training data, which are the same in every process."""

    def losses(model: nn.Module) -> Iterator[Tensor]:
        device = device_of(model)
        stream = data.train(settings.batch_size, settings.seed, settings.augment)
        for inputs, targets in islice(stream, settings.masks.score_batches):
            yield task_loss(task, model(*(tensor.to(device) for tensor in inputs)), to_device(targets, device))

    return losses


def check_scores(settings: Settings, task: Task, data: DataSource) -> None:
    """Raise where the masks' first scores need a loss, and there is none.

    Raises:
        UsageError: as said.
    """
    if settings.masks.scores == "taylor" and task.loss is None:
        raise UsageError(
            f"--scores taylor needs labels, and --data {data.name} has none. Leave it out, for l2, which needs none; "
            "or give data with labels."
        )
