"""What makes a run this run, so that no checkpoint is taken for another run's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice

import numpy as np
import torch
from torch import nn

from dtp_deploy.budget import Budget
from dtp_deploy.loading import Dataset
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs
from dtp_deploy.target import TargetSpec
from dtp_deploy.task import Task
from dtp_deploy.train import Settings

_LOOKED_AT = 64


def identity(
    model: nn.Module,
    data: DataSource,
    budgets: Sequence[Budget],
    target: TargetSpec,
    inputs: Inputs,
    settings: Settings,
    task: Task,
) -> dict[str, str]:
    """What makes a run this run, in short texts, so that no checkpoint is taken for another run's."""
    weights = hashlib.sha256()
    for name, tensor in sorted(model.state_dict().items()):
        weights.update(f"{name} {tuple(tensor.shape)} {tensor.dtype}".encode())
        weights.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return {
        "the model": weights.hexdigest(),
        "the data": _of_data(data),
        "the budget": str([asdict(budget) for budget in budgets]),
        "the target": str((target.name, dict(target.options))),
        "--input": str([tuple(tensor.shape) for tensor in inputs]),
        "the task": f"{task.name} {_name_of(task.loss)} {_name_of(task.metric)}",
    } | {f"the setting {name}": str(value) for name, value in asdict(settings).items()}


def _of_data(data: DataSource) -> str:
    """All arrays of data in memory; of others their sizes, and the first samples of both parts."""
    found = hashlib.sha256(str((data.name, data.validation_size, data.sample_shapes, data.class_names)).encode())
    if isinstance(data, Dataset):
        for array in (data.x_train, data.y_train, data.x_val, data.y_val):
            found.update(np.ascontiguousarray(array).tobytes())
        return found.hexdigest()
    stream = data.train(_LOOKED_AT, seed=0)
    found.update(str(len(stream)).encode())
    for batch, targets in (*islice(stream, 1), *islice(data.validation(_LOOKED_AT), 1)):
        for tensor in (*batch, *([targets] if isinstance(targets, torch.Tensor) else [])):
            found.update(tensor.contiguous().numpy().tobytes())
    return found.hexdigest()


def _name_of(function: object) -> str:
    return f"{getattr(function, '__module__', '')}.{getattr(function, '__qualname__', type(function).__name__)}"
