"""Locking a Jetson's clocks at the maxima of its power mode for one measurement, and always undoing it."""

from __future__ import annotations

import os
import shlex
from pathlib import Path
from typing import TYPE_CHECKING

from dtp_deploy_targets.runner.processes import run

if TYPE_CHECKING:
    from collections.abc import Sequence

ON_EXIT = "on-exit"
"""A script in the runner's folder that restores the clocks. Who removes the folder runs it first, so that the clocks
come back even if the runner is killed."""


class LockedClocks:
    """``with LockedClocks(folder): ...`` locks the clocks with jetson_clocks, as root or by sudo without a password.

    Raises:
        RuntimeError: on entering, the clocks cannot be locked: they are then as they were.
    """

    def __init__(self, folder: Path) -> None:
        self._store = folder / "clocks.store"
        self._script = folder / ON_EXIT
        self._program = ["jetson_clocks"] if os.geteuid() == 0 else ["sudo", "-n", "jetson_clocks"]

    def __enter__(self) -> LockedClocks:
        self._call(["--store", str(self._store)], "store")
        self._script.write_text(" ".join(shlex.quote(word) for word in self._restore()) + "\n")
        try:
            self._call([], "lock")
        except RuntimeError:
            self.restore()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the clocks back. Doing it twice does no harm.

        Raises:
            RuntimeError: jetson_clocks failed; the script to restore them stays.
        """
        if self._script.exists():
            self._call(["--restore", str(self._store)], "restore")
            self._script.unlink()

    def _restore(self) -> Sequence[str]:
        return [*self._program, "--restore", str(self._store)]

    def _call(self, options: Sequence[str], what: str) -> None:
        done = run([*self._program, *options], timeout_s=60)
        if done.status != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(
                f"cannot {what} the clocks: {said[-1] if said else 'jetson_clocks failed'}. "
                "It needs root, or sudo without a password for jetson_clocks; or leave lock_clocks out"
            )
