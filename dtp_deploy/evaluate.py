"""A task's metric on the validation data, of a PyTorch model and of a delivered engine."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs, device_of, evaluating
from dtp_deploy.nested import flatten_outputs, like_outputs, rows_of
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.target import Session
from dtp_deploy.task import Task

_BATCH = 256


def evaluate_model(
    model: nn.Module, data: DataSource, task: Task, batch_size: int = _BATCH, samples: int | None = None
) -> float | None:
    """Mean of the metric over all validation samples, in eval mode; None where the task has no metric.

    Args:
        model: to judge.
        data: has the samples.
        task: has the metric.
        batch_size: samples at a time.
        samples: how many to look at, from the first on, in whole batches; by default all.
    """
    if task.metric is None or not data.labelled:
        return None
    device = device_of(model)
    total, seen = 0.0, 0
    with evaluating(model), torch.no_grad():
        for inputs, targets in data.validation(batch_size):
            outputs = model(*(tensor.to(device) for tensor in inputs))
            outputs = like_outputs(outputs, [tensor.cpu() for tensor in flatten_outputs(outputs)])
            total += task.metric(outputs, targets) * len(inputs[0])
            seen += len(inputs[0])
            if samples is not None and seen >= samples:
                break
    return total / seen


def evaluate_session(
    session: Session, model: nn.Module, data: DataSource, task: Task, progress: Progress = SILENT
) -> float | None:
    """The same through an engine with a fixed batch size; the last batch is filled up with its last sample.

    Args:
        session: an engine of the model, with the same inputs and flattened outputs.
        model: its PyTorch form, which tells how outputs are nested.
        data: validation data.
        task: has the metric.
        progress: told of every batch.
    """
    if task.metric is None or not data.labelled:
        return None
    batch = session.inputs[0].shape[0]
    total = 0.0
    nesting: object = None
    with progress.task("accuracy on the target", total=data.validation_size) as advance:
        for inputs, targets in data.validation(batch):  # of targets that are no tensor in larger batches, of the user's
            if nesting is None:
                with evaluating(model), torch.no_grad():
                    nesting = model(*(tensor.to(device_of(model)) for tensor in inputs))
            count = len(inputs[0])
            parts = [_run(session, rows_of(inputs, slice(first, first + batch))) for first in range(0, count, batch)]
            tensors = [torch.cat(each) if each[0].ndim else each[0] for each in zip(*parts, strict=True)]
            total += task.metric(like_outputs(nesting, tensors), targets) * count
            for _ in range(count):
                advance()
    return total / data.validation_size


def _run(session: Session, inputs: Inputs) -> list[Tensor]:
    """The outputs for as many samples as the engine takes, or fewer."""
    batch, count = session.inputs[0].shape[0], len(inputs[0])
    arrays = {
        spec.name: _filled(tensor, batch).astype(spec.dtype, copy=False)
        for spec, tensor in zip(session.inputs, inputs, strict=True)
    }
    results = session.run(arrays)
    return [_rows(results[spec.name], batch, count) for spec in session.outputs]


def _filled(tensor: Tensor, batch: int) -> npt.NDArray[Any]:
    array = tensor.numpy()
    missing = batch - len(array)
    return np.concatenate([array, np.repeat(array[-1:], missing, axis=0)]) if missing else array


def _rows(array: npt.NDArray[Any], batch: int, count: int) -> Tensor:
    of_samples = array.ndim > 0 and len(array) == batch
    return torch.from_numpy(array[:count] if of_samples else array)
