"""Learning a network's latency before it is needed: what `compress` then finds in the cache."""

from __future__ import annotations

import tempfile
from pathlib import Path

from torch import nn

from dtp_deploy.export.onnx import default_input_names
from dtp_deploy.graph import find_groups
from dtp_deploy.latency.learn import TIME_CAP_S, LatencyTable, learn_table
from dtp_deploy.latency.probe import PROBING, LatencyProbe
from dtp_deploy.modules import Inputs
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import prove
from dtp_deploy.target import TargetSpec


def calibrate(
    model: nn.Module,
    inputs: Inputs,
    target: TargetSpec,
    *,
    time_cap_s: float = TIME_CAP_S,
    cache_folder: Path | None = None,
    progress: Progress = SILENT,
) -> LatencyTable:
    """Learn the latency of a model on a target, as a run of `compress` with a latency budget does.

    A run that was cut off goes on where it was: every layer is kept as soon as it is measured.

    Args:
        model: not changed; its weights do not matter.
        inputs: an example with the delivered shapes.
        target: where to measure.
        time_cap_s: no further layer is measured after this time.
        cache_folder: see `MeasurementCache`.
        progress: told of every stage.

    Raises:
        GraphError: nothing may be pruned, or the model cannot be exported.
        TargetError: the target is missing, crashed, hung or gave no result.
    """
    with tempfile.TemporaryDirectory() as folder, progress.task("model"):
        groups = prove(model, find_groups(model, inputs), progress=progress)
        names = default_input_names(len(inputs))
        batches = [{name: tensor.numpy() for name, tensor in zip(names, inputs, strict=True)}]
        probe = LatencyProbe(model, groups, target, Path(folder), None, batches, PROBING, progress=progress)
        return learn_table(probe, time_cap_s=time_cap_s, cache_folder=cache_folder, progress=progress)
