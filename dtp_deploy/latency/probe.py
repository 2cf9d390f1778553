"""Measuring structures: what a pruning plan costs on the target, before any training.

The time of a network does not depend on the values of its weights, so a plan can be measured as soon as it is known.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from torch import nn

from dtp_deploy.export.delivery import deliver
from dtp_deploy.graph import Groups
from dtp_deploy.latency.timing import time_models
from dtp_deploy.profile.measure import LatencyReport, MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.prune import PruningPlan, remove_channels
from dtp_deploy.target import Arrays, TargetSpec

DENSE = "dense"
PROBING = MeasureSettings(min_seconds=0.5, max_seconds=5.0, max_warm_up_seconds=0.5, repeats=0)
"""How structures are measured."""


class LatencyProbe:
    """Exports plans of one dense model and measures them, always in turns with the dense model itself.

    Args:
        model: the dense model.
        groups: its groups.
        target: where to measure.
        folder: for the ONNX files.
        dense_onnx: the dense model's own file, ready to measure; None: it is made when it is first needed.
        batches: for the parity of every export.
        settings: of the measurements.
        finish: what is done to a network before it is delivered.
        progress: told of builds that take a while.
    """

    def __init__(
        self,
        model: nn.Module,
        groups: Groups,
        target: TargetSpec,
        folder: Path,
        dense_onnx: Path | None,
        batches: Sequence[Arrays],
        settings: MeasureSettings,
        finish: Callable[[nn.Module], nn.Module] = lambda model: model,
        progress: Progress = SILENT,
    ) -> None:
        self.finish, self.progress = finish, progress
        self.model, self.groups, self.target, self.folder = model, groups, target, folder
        self.dense_onnx, self.batches, self.settings = dense_onnx, batches, settings
        self._files: dict[object, Path] = {}

    def measure(
        self, plans: Mapping[str, PruningPlan], settings: MeasureSettings | None = None
    ) -> dict[str, LatencyReport]:
        """A report for every plan, and first one under `DENSE` for the dense model, all measured in turns in one fresh
        process; with other settings than the probe's, if given.
        """
        models = {DENSE: self.dense()} | {name: self._file(plan) for name, plan in plans.items()}
        return time_models(models, self.target, settings or self.settings, self.progress)

    def dense(self) -> Path:
        """The dense model's file.

        Raises:
            GraphError: the model cannot be exported.
        """
        if self.dense_onnx is None:
            self.dense_onnx = self._deliver(self.model, DENSE)
        return self.dense_onnx

    def _file(self, plan: PruningPlan) -> Path:
        structure = plan.structure
        if structure not in self._files:
            network = self.finish(remove_channels(self.model, plan)).eval()
            self._files[structure] = self._deliver(network, f"structure-{len(self._files)}")
        return self._files[structure]

    def _deliver(self, network: nn.Module, name: str) -> Path:
        path = self.folder / f"{name}.onnx"
        deliver(network, self.groups.inputs, path, self.batches, name)
        return path
