"""Scalars of a run while it goes on: one line of JSON a record, and TensorBoard where it is installed."""

from __future__ import annotations

import json
import time
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
        if step % self.every:
            return
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
