"""What a run has found out so far: saved with every checkpoint, told by the report at the end."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

from dtp_deploy.memory import PeakMemory
from dtp_deploy.parity import ParityResult
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.ranks import by_first


@dataclass
class Findings:
    """Parity, accuracy, time and memory by stage.

    Attributes:
        parity: results by stage, as plain values.
        accuracies: fractions by stage; None where the data have no labels.
        stages: seconds and peak memory by stage.
        mask_phase: how the masks stood after each epoch, as plain values.
        prices: of the budget, in the steps since the last of these.
        deviations: what differs from what was learned or asked for, and why, in words.
        resumed_from_step: the step that the run went on from; None where it was not cut off.
        progress: told of every stage.
    """

    parity: dict[str, dict[str, Any]] = field(default_factory=dict)
    accuracies: dict[str, float | None] = field(default_factory=dict)
    stages: dict[str, dict[str, Any]] = field(default_factory=dict)
    mask_phase: list[dict[str, Any]] = field(default_factory=list)
    prices: list[float] = field(default_factory=list)
    deviations: list[str] = field(default_factory=list)
    resumed_from_step: int | None = None
    progress: Progress = SILENT

    def state(self) -> dict[str, Any]:
        """Plain values, for a checkpoint."""
        return {
            "parity": self.parity,
            "accuracies": self.accuracies,
            "stages": self.stages,
            "mask_phase": self.mask_phase,
            "prices": self.prices,
            "deviations": self.deviations,
        }

    def load_state(self, state: Mapping[str, Any], step: int) -> None:
        """Go on from what an earlier part of the run had found out by `step`."""
        self.parity, self.accuracies = state["parity"], state["accuracies"]
        self.stages, self.deviations = state["stages"], state["deviations"]
        self.mask_phase, self.prices = state["mask_phase"], state["prices"]
        self.resumed_from_step = step

    def add_parity(self, results: Iterable[ParityResult]) -> None:
        """Keep results; one of the same stage is replaced."""
        self.parity |= {result.stage: asdict(result) for result in results}

    def note_accuracy(self, stage: str, accuracy: Callable[[], float | None]) -> None:
        """Measure the accuracy at a stage, unless it is known; one process does it for all."""
        if stage not in self.accuracies:
            self.accuracies[stage] = by_first(accuracy)

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Time a stage and tell of it. A stage that a cut-off run had begun goes on counting."""
        memory, start = PeakMemory(), time.perf_counter()
        memory.start()
        try:
            with self.progress.task(name):
                yield
        finally:
            before = self.stages.get(name, {"seconds": 0.0, "peak_memory_bytes": 0, "peak_gpu_memory_bytes": None})
            on_gpu = (before["peak_gpu_memory_bytes"], memory.gpu_bytes())
            self.stages[name] = {
                "seconds": before["seconds"] + time.perf_counter() - start,
                "peak_memory_bytes": max(before["peak_memory_bytes"], memory.bytes()),
                "peak_gpu_memory_bytes": max((peak for peak in on_gpu if peak is not None), default=None),
            }
