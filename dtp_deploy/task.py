"""What a model is trained for: its loss and its metric, and how one model's outputs are pulled towards another's."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from dtp_deploy.nested import flatten_outputs

Loss = Callable[[Any, Any], Tensor]
Metric = Callable[[Any, Any], float]


@dataclass(frozen=True)
class Task:
    """A loss and a metric on a model's outputs.

    Attributes:
        name: for the report.
        loss: (outputs, targets) -> scalar; None where there are no labels, and only the dense model teaches.
        metric: (outputs, targets) -> mean over the batch, in [0, 1], higher is better; None where it is unknown.
        classes: whether the outputs are class scores (batch, classes), and targets class indices (batch,).
    """

    name: str
    loss: Loss | None
    metric: Metric | None
    classes: bool = False

    def distance(self, outputs: Any, wanted: Any, temperature: float) -> Tensor:  # noqa: ANN401
        """How far outputs are from those of the teacher, differentiable.

        For class scores the Kullback-Leibler divergence of softened probabilities, times the temperature squared, for
        the gradients of soft targets shrink with it (Hinton et al., "Distilling the knowledge in a neural network",
        2015). For anything else the squared error of every output, relative to the spread of the teacher's.
        """
        if self.classes:
            soft = functional.log_softmax(outputs / temperature, 1), functional.log_softmax(wanted / temperature, 1)
            return temperature**2 * functional.kl_div(*soft, reduction="batchmean", log_target=True)
        pairs = zip(flatten_outputs(outputs), flatten_outputs(wanted), strict=True)
        parts = [
            (a - b).square().mean() / b.var(correction=0).clamp_min(1e-12) for a, b in pairs if b.is_floating_point()
        ]
        return torch.stack(parts).mean()


def top_1(outputs: Tensor, targets: Tensor) -> float:
    """Share of samples whose highest score is their class.

    >>> top_1(torch.tensor([[0.1, 0.9], [0.8, 0.2]]), torch.tensor([1, 1]))
    0.5
    """
    return float((outputs.argmax(1) == targets).double().mean())


CLASSIFICATION = Task("classification", functional.cross_entropy, top_1, classes=True)
UNLABELLED = Task("distillation only", None, None)
