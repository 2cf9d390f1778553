"""Child processes that never outlive the runner, whatever ends it."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from contextlib import suppress
from typing import TYPE_CHECKING, NamedTuple

from dtp_deploy_targets.runner.signals import signals_later

if TYPE_CHECKING:
    from collections.abc import Sequence

_lock = threading.RLock()  # a signal may come while its own thread holds it
_running: set[int] = set()


class Done(NamedTuple):
    """A process that has ended."""

    status: int
    stdout: str
    stderr: str


def run(command: Sequence[str], timeout_s: float | None = None, folder: str | None = None) -> Done:
    """Run a command to its end, in a process group of its own.

    Raises:
        RuntimeError: it cannot be started, or it ran longer than `timeout_s` and was ended.
    """
    process: subprocess.Popen[bytes] | None = None
    try:
        # Started and entered in one step: what is not entered yet would outlive whoever ends us in between.
        with signals_later(), _lock:
            process = subprocess.Popen(
                list(command),
                stdin=subprocess.DEVNULL,
                stdout=subprocess.PIPE,
                stderr=subprocess.PIPE,
                start_new_session=True,
                cwd=folder,
            )
            _running.add(process.pid)
        stdout, stderr = process.communicate(timeout=timeout_s)
    except OSError as error:
        raise RuntimeError(f"cannot start {command[0]}: {error.strerror}") from error
    except subprocess.TimeoutExpired as error:
        raise RuntimeError(f"{command[0]} ran for more than {timeout_s:g} s and was ended") from error
    finally:
        if process is not None:
            with process:  # which closes its pipes, and waits
                _kill(process.pid)
            with _lock:
                _running.discard(process.pid)
    return Done(process.returncode, stdout.decode(errors="replace"), stderr.decode(errors="replace"))


def kill_all() -> None:
    """End every process that `run` started, with all that it started in turn."""
    with _lock:
        for pid in _running:
            _kill(pid)


def _kill(pid: int) -> None:
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(pid, signal.SIGKILL)
