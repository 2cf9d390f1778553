"""What makes a run this run, so that no checkpoint is taken for another run's."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import asdict
from itertools import islice

import torch
from torch import nn

from dtp_deploy.budget import Budget
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs
from dtp_deploy.target import TargetSpec
from dtp_deploy.task import Task
from dtp_deploy.train import Settings


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
    samples = hashlib.sha256(str((data.name, data.validation_size, data.sample_shapes)).encode())
    for batch, _ in islice(data.validation(64), 1):
        for tensor in batch:
            samples.update(tensor.contiguous().numpy().tobytes())
    return {
        "the model": weights.hexdigest(),
        "the data": samples.hexdigest(),
        "the budget": str([asdict(budget) for budget in budgets]),
        "the target": str((target.name, dict(target.options))),
        "--input": str([tuple(tensor.shape) for tensor in inputs]),
        "the task": task.name,
    } | {f"the setting {name}": str(value) for name, value in asdict(settings).items()}
