"""Locking a Jetson's clocks at the maxima of its power mode for one measurement, and always undoing it."""

from __future__ import annotations

import os
import shlex
import subprocess
from contextlib import suppress
from typing import TYPE_CHECKING

from dtp_deploy_targets.runner.processes import run
from dtp_deploy_targets.runner.signals import signals_later

if TYPE_CHECKING:
    from collections.abc import Sequence
    from pathlib import Path

ON_EXIT = "on-exit"
"""A script in the runner's folder that restores the clocks. The guard runs it if the runner is killed, and who removes
the folder runs it first, so that they come back even if both are."""

# A process of its own waits for ours to end, however it ends, and runs the script if that is still there.
_GUARD = 'trap "" HUP INT TERM; cat > /dev/null; if [ -f "$1" ]; then exec sh "$1"; fi'
_GUARD_S = 60


class LockedClocks:
    """``with LockedClocks(folder, keep): ...`` locks the clocks with jetson_clocks, as root or by sudo without a
    password.

    Args:
        folder: of the runner; it goes with it.
        keep: a folder that stays. What the clocks were is written there, and removed only when they are so again: if
            putting them back fails, it can still be done by hand.

    Raises:
        RuntimeError: on entering, the clocks cannot be locked: they are then as they were.
    """

    def __init__(self, folder: Path, keep: Path) -> None:
        self._store = keep / f"clocks-{os.getpid()}.store"
        self._script = folder / ON_EXIT
        self._guard: subprocess.Popen[bytes] | None = None
        self._program = ["jetson_clocks"] if os.geteuid() == 0 else ["sudo", "-n", "jetson_clocks"]

    def __enter__(self) -> LockedClocks:
        self._store.parent.mkdir(parents=True, exist_ok=True)
        self._remove_store()  # jetson_clocks asks before it writes over one
        try:
            self._call(["--store", str(self._store)], "store")
            restore = " ".join(shlex.quote(word) for word in self._restore())
            self._script.write_text(f"{restore} && rm -f {shlex.quote(str(self._store))}\n")
            self._guard = subprocess.Popen(
                ["/bin/sh", "-c", _GUARD, "sh", str(self._script)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                start_new_session=True,
            )
            self._call([], "lock")
        except BaseException:  # an interrupt too: the clocks may be locked already
            self.restore()
            raise
        return self

    def __exit__(self, *details: object) -> None:
        self.restore()

    def restore(self) -> None:
        """Put the clocks back; signals wait until that is done. Doing it twice does no harm.

        Raises:
            RuntimeError: jetson_clocks failed; the script to restore them stays, and what they were.
        """
        with signals_later():
            try:
                if self._script.exists():
                    by_hand = f". What they were is kept; put them back with: {' '.join(self._restore())}"
                    self._call(["--restore", str(self._store)], "restore", by_hand)
                    self._script.unlink()
                self._remove_store()
            finally:
                self._dismiss_guard()

    def _dismiss_guard(self) -> None:
        """Let the guard end; if the script is still there, it tries once more."""
        if self._guard is not None and self._guard.stdin is not None:
            self._guard.stdin.close()
            with suppress(subprocess.TimeoutExpired):
                self._guard.wait(_GUARD_S)

    def _remove_store(self) -> None:
        if self._store.exists():
            self._store.unlink()

    def _restore(self) -> Sequence[str]:
        return [*self._program, "--restore", str(self._store)]

    def _call(self, options: Sequence[str], what: str, remedy: str = "") -> None:
        done = run([*self._program, *options], timeout_s=60)
        if done.status != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(
                f"cannot {what} the clocks: {said[-1] if said else 'jetson_clocks failed'}"
                + (remedy or ". It needs root, or sudo without a password for jetson_clocks; or leave lock_clocks out")
            )
