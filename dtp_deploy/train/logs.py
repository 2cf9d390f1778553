"""Scalars of a run while it goes on: one line of JSON a record, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, TextIO

from dtp_deploy.errors import UsageError

JSON_LINES = "scalars.jsonl"


class RunLog:
    """Writes records of scalars into a folder; each is on disk before the next step.

    Args:
        folder: made if it is not there; an existing log is continued.
        every: steps from one record to the next.

    Raises:
        UsageError: the folder cannot be written.
    """

    def __init__(self, folder: Path, every: int = 10) -> None:
        self.every = every
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._file: TextIO = (folder / JSON_LINES).open("a", encoding="utf-8")
        except OSError as error:
            raise UsageError(
                f"--log-dir {folder} cannot be written ({error.strerror}). Give another folder."
            ) from error
        self._board: Any = None
        if find_spec("tensorboard") is not None:
            from torch.utils.tensorboard import SummaryWriter

            self._board = SummaryWriter(str(folder))

    def write(self, step: int, stage: str, scalars: dict[str, float]) -> None:
        """Write one record, if it is time for one."""
        if step % self.every == 0:
            self._record(step, stage, scalars)

    def write_epoch(self, step: int, stage: str, values: Mapping[str, Any]) -> None:
        """Write a record of an epoch, whatever the step: its numbers, those in lists too, and nothing where none is."""
        scalars = {name: value for name, value in values.items() if isinstance(value, int | float) and name != "step"}
        lists = {name: value for name, value in values.items() if isinstance(value, list)}
        scalars |= {f"{name}/{place}": one for name, value in lists.items() for place, one in enumerate(value)}
        self._record(step, stage, scalars)

    def _record(self, step: int, stage: str, scalars: dict[str, float]) -> None:
        record = {"step": step, "stage": stage, "time_s": round(time.time(), 3), **scalars}
        self._file.write(json.dumps(record) + "\n")
        self._file.flush()
        if self._board is not None:
            for name, value in scalars.items():
                self._board.add_scalar(f"{stage}/{name}", value, step)

    def close(self) -> None:
        """Close the files."""
        self._file.close()
        if self._board is not None:
            self._board.close()
