"""A delivered form of the model: exported, proven, built for the target, evaluated."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import torch
from torch import nn

from dtp_deploy.cost import count_parameters, macs_per_sample
from dtp_deploy.evaluate import evaluate_session
from dtp_deploy.export.callables import torch_callable
from dtp_deploy.export.delivery import Delivery, deliver, require_parity
from dtp_deploy.export.onnx import default_input_names
from dtp_deploy.latency.timing import predict
from dtp_deploy.loading.preprocessing import METADATA_KEY
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs
from dtp_deploy.parity import ParityResult, compare
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.target import Arrays, EngineInfo, PredictedLatency, TargetSpec, find_target
from dtp_deploy.task import Task

_PARITY_BATCHES = 4
_STAND_IN = "cpu"
_TOLERANCES = {"fp16": 2e-2, "bf16": 5e-2, "int8": 0.2}
"""Largest relative error of an engine that computes in less than single precision."""


@dataclass(frozen=True)
class Form:
    """One form of the model, dense or pruned, with all that is known about it.

    Attributes:
        delivery: the ONNX file, and its proof.
        engine: what runs it.
        parity: of every step from PyTorch to the engine.
        accuracy: the task's metric on the delivered engine, or None where it is unknown.
        macs: of one sample.
        params: number of parameters.
    """

    delivery: Delivery
    engine: EngineInfo
    parity: tuple[ParityResult, ...]
    accuracy: float | None
    macs: int
    params: int


def make_form(
    model: nn.Module,
    inputs: Inputs,
    path: Path,
    batches: Sequence[Arrays],
    label: str,
    target: TargetSpec,
    data: DataSource,
    task: Task,
    progress: Progress = SILENT,
    accuracy: float | None = None,
) -> Form:
    """Export a model, prove it, build it for the target, and evaluate what was built.

    Args:
        model: in eval mode.
        inputs: an example with the delivered shapes.
        path: the ONNX file to write.
        batches: for parity.
        label: "dense" or "pruned".
        target: to build for.
        data: to evaluate on.
        task: has the metric.
        progress: told of the build, where it takes long, and of the evaluation.
        accuracy: known from an earlier run; then it is not evaluated again.

    Raises:
        GraphError, ParityError, TargetError: it cannot be exported, proven or built; or the target is missing, and does
            not predict either.
    """
    delivery = deliver(model, inputs, path, batches, label, metadata=metadata_of(data))
    found = find_target(target)
    runs_here = found.availability().available
    # A device that is not at hand cannot evaluate: the same file does, on this machine.
    engine = (found if runs_here else find_target(_STAND_IN)).build(path, progress)
    prediction = None if runs_here else predict(path, target)
    with engine.open() as session:

        def run(arrays: Arrays) -> list[Any]:
            outputs = session.run(arrays)
            return [outputs[output.name] for output in session.outputs]

        place = "engine" if runs_here else f"engine on {_STAND_IN}"
        parity = compare(f"{label}: PyTorch to {place}", torch_callable(model), run, batches, _tolerance(engine.info))
        require_parity(parity)
        if accuracy is None:
            accuracy = evaluate_session(session, model, data, task, progress)
    return Form(
        delivery=delivery,
        engine=engine.info if prediction is None else _not_run(prediction),
        parity=(*delivery.parity, parity),
        accuracy=accuracy,
        macs=macs_per_sample(model, inputs),
        params=count_parameters(model),
    )


def metadata_of(data: DataSource) -> dict[str, str]:
    """What a delivered file says of how its inputs are made."""
    return {METADATA_KEY: json.dumps(data.preprocessing, sort_keys=True)} if data.preprocessing else {}


def _tolerance(engine: EngineInfo) -> float:
    return _TOLERANCES.get(engine.precision, 1e-4)


def _not_run(prediction: PredictedLatency) -> EngineInfo:
    return EngineInfo("predicted, not measured", "", prediction.device, None, "")


def parity_batches(data: DataSource, inputs: Inputs, names: Sequence[str] | None = None) -> list[Arrays]:
    """Several batches of the delivered shape from the validation data, repeated where there are few samples.

    Args:
        data: validation data.
        inputs: an example with the delivered shapes.
        names: of the inputs.
    """
    names = list(names or default_input_names(len(inputs)))
    size = len(inputs[0])
    wanted = size * _PARITY_BATCHES
    rows: list[Inputs] = []
    for batch, _ in islice(data.validation(size), _PARITY_BATCHES):
        rows += zip(*(tensor.unbind() for tensor in batch), strict=True)
    rows = [rows[index % len(rows)] for index in range(wanted)]
    return [
        {
            name: torch.stack([row[position] for row in rows[start : start + size]]).numpy()
            for position, name in enumerate(names)
        }
        for start in range(0, wanted, size)
    ]
