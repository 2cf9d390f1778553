"""How far a build in the child is, told to whoever listens to the parent.

The child's target hears a `Relay` as its `progress`, which writes events; the parent's `Follower` reads the file of the
events from time to time, and tells what it finds. A build that is done between two looks is not worth telling.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from types import TracebackType
from typing import TextIO

from dtp_deploy.profile.protocol import Event, Job, write_event
from dtp_deploy.progress import Progress

BUILDING = "building"
_TELL_S = 0.1


class Relay:
    """The child's `Progress`, while it builds one model."""

    def __init__(self, events: TextIO, model: str) -> None:
        self._events, self._model = events, model
        self._tasks = 0

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        """Events of the stage "building", with the part of it and the steps of the part: ten a second at the most."""
        self._tasks += 1
        where = {"stage": BUILDING, "model": self._model, "part": name, "number": self._tasks, "total": total}
        done, told_at = 0, time.monotonic()

        def advance() -> None:
            nonlocal done, told_at
            done += 1
            if done == total or time.monotonic() - told_at >= _TELL_S:
                write_event(self._events, "stage", **where, done=done)
                told_at = time.monotonic()

        write_event(self._events, "stage", **where, done=done)
        yield advance

    def note(self, message: str) -> None:
        """An event of its own."""
        write_event(self._events, "note", message=str(message))


class Follower:
    """Reads a child's events as they come, and tells a listener of its builds.

    Args:
        job: what the child does.
        progress: the listener.
    """

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._position = 0
        self._shown: Event | None = None
        self._newest: Event | None = None
        self._task = ExitStack()
        self._advance: Callable[[], None] = lambda: None

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._hear()
        if self._shown is not None and self._newest is not None and _same(self._shown, self._newest):
            with suppress(_CutShort):  # the build was the last thing that the child did: it did not succeed
                self._task.__exit__(_CutShort, _CutShort(), None)
        self._task.close()

    def look(self) -> None:
        """Tell what has happened since the last look."""
        self._hear()
        newest = self._newest
        if newest is None or (self._shown is not None and _same(self._shown, newest)):
            return
        self._task.close()
        self._shown, self._advance = newest | {"done": 0}, lambda: None
        if newest["stage"] == BUILDING:
            part = f": {newest['part']}" if "part" in newest else ""
            title = f"{BUILDING} {self._job.models[newest['model']].name} for {self._job.target.name}{part}"
            self._advance = self._task.enter_context(self._progress.task(title, newest.get("total"), passing=True))
        self._step(newest)

    def _hear(self) -> None:
        """Tell the new notes, and the steps of what is shown."""
        for event in self._news():
            if event["event"] == "note":
                self._progress.note(event["message"])
            elif event["event"] == "stage":
                self._newest = event
                if self._shown is not None and _same(self._shown, event):
                    self._step(event)

    def _news(self) -> list[Event]:
        if not self._job.events.exists():
            return []
        with self._job.events.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")[0]  # a line that is being written is read the next time
        self._position += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _step(self, stage: Event) -> None:
        assert self._shown is not None
        done = stage.get("done", 0)
        for _ in range(done - self._shown["done"]):
            self._advance()
        self._shown["done"] = done


class _CutShort(Exception):  # noqa: N818 - never seen by anybody
    """Leaves a task as one that was not finished."""


def _same(one: Event, other: Event) -> bool:
    return all(one.get(key) == other.get(key) for key in ("stage", "model", "number"))
