"""Checkpoints of a long run: written at once or not at all, checked when read, the last two kept.

A file holds one line of JSON (version of the program, step, SHA-256 of the rest) and then what `torch.save` made of the
state, which is read back with ``weights_only=True``: tensors and plain values, no code. Another version of the program
may train in another way, so it does not go on with what this one has begun.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import pickle
import signal
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch

from dtp_deploy import __version__
from dtp_deploy.artefact import CHECKPOINTS, partial_of
from dtp_deploy.errors import InputError, StoppedError, UsageError
from dtp_deploy.interrupt import Interruption
from dtp_deploy.ranks import any_rank, rank

_KEPT = 2
_OVER = "the command as it was, with --force"


class CheckpointFolder:
    """The checkpoints of one run.

    Args:
        folder: made when the first checkpoint is written.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def save(self, state: dict[str, Any], step: int) -> None:
        """Write a checkpoint: to a temporary file, synced to disk, then renamed; older ones than the last two go.

        Raises:
            InputError: the disk is full or not writable. The checkpoints before this one are untouched.
        """
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getvalue()
        header = {"dtp_deploy": __version__, "step": step, "sha256": hashlib.sha256(content).hexdigest()}
        number = max((_number(path) for path in self._files()), default=0) + 1
        path = self.folder / f"{number:06d}.checkpoint"
        temporary = path.with_suffix(".temporary")
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with temporary.open("wb") as file:
                file.write(json.dumps(header).encode() + b"\n")
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
            temporary.replace(path)
            _sync_folder(self.folder)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            earlier = "The checkpoints before it are kept. Make room, and go on with --resume."
            raise InputError(
                f"A checkpoint of {len(content) / 1e6:.1f} MB could not be written to {self.folder} "
                f"({error.strerror}). {earlier if self._files() else 'Make room, and start again.'}"
            ) from error
        for old in self._files()[:-_KEPT]:
            old.unlink(missing_ok=True)

    def newest(self) -> dict[str, Any] | None:
        """The newest state that is whole, or None if there is none. A damaged file is passed over.

        Raises:
            InputError: it was written by another version of the program.
        """
        for path in reversed(self._files()):
            state = _read(path)
            if state is not None:
                return state
        return None

    def __bool__(self) -> bool:
        """Whether there is any checkpoint file."""
        return bool(self._files())

    def _files(self) -> list[Path]:
        return sorted((path for path in self.folder.glob("*.checkpoint") if path.stem.isdecimal()), key=_number)


class Keeper:
    """Saves a run from time to time, and when somebody asks it to stop.

    Args:
        folder: where checkpoints go.
        out: the folder that the run shall deliver, for messages.
        every_s: seconds between two checkpoints.
        identity: what the run works on: name -> a short text. A later run goes on only with the same.
        origin: plain values kept for whoever starts the later run.
    """

    def __init__(
        self,
        folder: CheckpointFolder,
        out: Path,
        every_s: float,
        identity: Mapping[str, str],
        origin: Mapping[str, Any] | None = None,
    ) -> None:
        self.folder, self.out, self.every_s = folder, out, every_s
        self.identity, self.origin = dict(identity), dict(origin or {})
        self.interruption = Interruption()
        self._saved_at = time.monotonic()

    def load(self) -> dict[str, Any]:
        """The newest state, if it is of the same run.

        Raises:
            InputError: no checkpoint is whole, or it is of another version of the program, or of another run; the
                message names what differs.
        """
        state = self.folder.newest()
        if state is None:
            raise InputError(f"No checkpoint in {self.folder.folder} is whole: all are damaged. Start over: {_OVER}.")
        changed = [name for name, value in self.identity.items() if state["identity"].get(name) != value]
        if changed:
            raise InputError(
                f"--resume {self.out}: {', '.join(changed)} changed since the checkpoint was written. "
                "Give what the run was started with, or start over with --force."
            )
        return state

    def save(self, step: int, state: dict[str, Any]) -> None:
        """Write a checkpoint now."""
        self.folder.save({"identity": self.identity, "origin": self.origin, **state}, step)
        self._saved_at = time.monotonic()

    def stop_if_asked(self, step: int, total: int) -> None:
        """Leave if the process was asked to stop after the last step; everything is saved.

        Raises:
            StoppedError: it was.
        """
        signum = self.interruption.signum
        if any_rank(signum is not None):
            raise self._stopped(signum or signal.SIGTERM, step, total)

    def _stopped(self, signum: int, step: int, total: int) -> StoppedError:
        return StoppedError(
            f"Stopped by {signal.Signals(signum).name} at step {step} of {total}; everything is saved. "
            f"Go on with: dtp-deploy compress --resume {self.out}",
            signum,
        )

    def after_step(self, step: int, total: int, make_state: Callable[[], dict[str, Any]]) -> None:
        """Write a checkpoint if it is time, or if the process was asked to stop; then leave.

        Raises:
            StoppedError: the process was asked to stop; everything is saved.
        """
        signum = self.interruption.signum
        if any_rank(signum is not None):
            signum = signum or signal.SIGTERM
        if signum is None and time.monotonic() - self._saved_at < self.every_s:
            return
        if rank() == 0:
            self.save(step, make_state())
        if signum is not None:
            raise self._stopped(signum, step, total)


def read_origin(out: Path) -> dict[str, Any]:
    """The `origin` in the newest checkpoint of the run that writes `out`.

    Raises:
        UsageError: there is no checkpoint, or none that is whole.
        InputError: it was written by another version of the program.
    """
    folder = CheckpointFolder(partial_of(out) / CHECKPOINTS)
    state = folder.newest()
    if state is None and folder:
        raise UsageError(f"--resume {out}: all checkpoints in {folder.folder} are damaged. Start over: {_OVER}.")
    if state is None:
        raise UsageError(
            f"--resume {out}: there is no checkpoint in {partial_of(out)}. Start the run with --out {out}."
        )
    return dict(state["origin"])


def _number(path: Path) -> int:
    return int(path.stem)


def _read(path: Path) -> dict[str, Any] | None:
    try:
        line, _, content = path.read_bytes().partition(b"\n")
        header = json.loads(line)
    except (OSError, ValueError):
        return None
    if not isinstance(header, dict) or header.get("sha256") != hashlib.sha256(content).hexdigest():
        return None
    version = header.get("dtp_deploy")
    if version != __version__:
        raise InputError(
            f"{path} was written by {f'dtp-deploy {version}' if version else 'an earlier version'}; this is dtp-deploy "
            f"{__version__}, which may train in another way. Go on with that version, or start over: {_OVER}."
        )
    try:
        state: dict[str, Any] = torch.load(io.BytesIO(content), map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError):
        return None  # whole, but not written by `save`
    return state


def _sync_folder(folder: Path) -> None:
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
