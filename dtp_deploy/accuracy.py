"""Top-1 accuracy, of a PyTorch model and of a delivered engine."""

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import nn

from dtp_deploy.modules import evaluating
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.target import Session

_BATCH = 256


def accuracy_of_model(model: nn.Module, x: npt.NDArray[Any], y: npt.NDArray[np.int64]) -> float:
    """Share of samples whose highest score is their class, in eval mode.

    Args:
        model: (n, C, H, W) -> (n, classes).
        x: samples, float32 [n, C, H, W].
        y: classes, int64 [n].
    """
    device = next(model.parameters()).device
    right = 0
    with evaluating(model), torch.no_grad():
        for start in range(0, len(x), _BATCH):
            scores = model(torch.from_numpy(x[start : start + _BATCH]).to(device))
            right += int((scores.argmax(1).cpu().numpy() == y[start : start + _BATCH]).sum())
    return right / len(x)


def accuracy_of_session(
    session: Session, x: npt.NDArray[Any], y: npt.NDArray[np.int64], progress: Progress = SILENT
) -> float:
    """The same through an engine with a fixed batch size; the last batch is filled up with its last sample."""
    (spec,) = session.inputs
    batch = spec.shape[0]
    right = 0
    with progress.task("accuracy on the target", total=-(-len(x) // batch)) as advance:
        for start in range(0, len(x), batch):
            samples = x[start : start + batch]
            missing = batch - len(samples)
            filled = np.concatenate([samples, np.repeat(samples[-1:], missing, axis=0)]) if missing else samples
            scores = session.run({spec.name: filled.astype(spec.dtype, copy=False)})[session.outputs[0].name]
            right += int((scores[: len(samples)].argmax(1) == y[start : start + batch]).sum())
            advance()
    return right / len(x)
