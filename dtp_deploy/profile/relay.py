"""How far a build in the child is, told to whoever listens to the parent.

The child's target hears a `Relay` as its `progress`, which writes events; the parent's `Follower` reads the file of the
events from time to time, and tells what it finds. A build that is done between two looks is not worth telling.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import TracebackType
from typing import TextIO

from dtp_deploy.profile.protocol import Event, Job, write_event
from dtp_deploy.progress import Progress

BUILDING = "building"


class Relay:
    """The child's `Progress`, while it builds one model."""

    def __init__(self, events: TextIO, model: str) -> None:
        self._events, self._model = events, model

    @contextmanager
    def task(self, name: str, total: int | None = None) -> Iterator[Callable[[], None]]:
        """Events of the stage "building", with the part of it and the steps of the part."""
        done = 0

        def tell() -> None:
            where = {"stage": BUILDING, "model": self._model, "part": name}
            write_event(self._events, "stage", **where, done=done, total=total)

        def advance() -> None:
            nonlocal done
            done += 1
            tell()

        tell()
        yield advance

    def note(self, message: str) -> None:
        """An event of its own."""
        write_event(self._events, "note", message=message)


class Follower:
    """Reads a child's events as they come, and tells a listener of its builds.

    Args:
        job: what the child does.
        progress: the listener.
    """

    def __init__(self, job: Job, progress: Progress) -> None:
        self._job, self._progress = job, progress
        self._position = 0
        self._shown: tuple[object, ...] | None = None
        self._task = ExitStack()
        self._advance: Callable[[], None] = lambda: None
        self._done = 0

    def __enter__(self) -> Follower:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, _: TracebackType | None) -> None:
        self._hear()
        self._task.close()

    def look(self) -> None:
        """Tell what has happened since the last look."""
        stage = self._hear()
        if stage is not None and _key(stage) != self._shown:
            self._show(stage)

    def _hear(self) -> Event | None:
        """Tell the new notes and the steps of what is shown; give the newest stage."""
        newest = None
        for event in self._news():
            if event["event"] == "note":
                self._progress.note(event["message"])
            elif event["event"] == "stage":
                newest = event
                if _key(event) == self._shown:
                    self._step(event)
        return newest

    def _news(self) -> list[Event]:
        if not self._job.events.exists():
            return []
        with self._job.events.open("rb") as file:
            file.seek(self._position)
            whole = file.read().rpartition(b"\n")[0]  # a line that is being written is read the next time
        self._position += len(whole) + bool(whole)
        return [json.loads(line) for line in whole.splitlines()]

    def _show(self, stage: Event) -> None:
        self._task.close()
        self._shown, self._done, self._advance = _key(stage), 0, lambda: None
        if stage["stage"] == BUILDING:
            part = f": {stage['part']}" if "part" in stage else ""
            title = f"{BUILDING} {self._job.models[stage['model']].name} for {self._job.target.name}{part}"
            self._advance = self._task.enter_context(self._progress.task(title, stage.get("total")))
        self._step(stage)

    def _step(self, stage: Event) -> None:
        done = stage.get("done", 0)
        for _ in range(done - self._done):
            self._advance()
        self._done = done


def _key(stage: Event) -> tuple[object, ...]:
    return stage["stage"], stage["model"], stage.get("part"), stage.get("total")
