"""How far a build of TensorRT, or of TensorRT for RTX, is: the library's nested phases as percent."""

import logging
import threading
from collections.abc import Callable
from types import ModuleType
from typing import Any

_log = logging.getLogger(__name__)


class Percent:
    """How far a build of nested phases is: a phase within another is a part of the step that the other is at.

    Args:
        advance: called once for every percent.

    >>> told = []
    >>> percent = Percent(lambda: told.append(1))
    >>> percent.start("engine", None, 4)
    >>> percent.start("tactics", "engine", 5)
    >>> percent.done("tactics", 1)
    >>> len(told)
    5
    >>> percent.finish("tactics"), percent.done("engine", 1), percent.finish("engine"), len(told)
    (None, None, None, 100)
    """

    def __init__(self, advance: Callable[[], None]) -> None:
        self._advance = advance
        self._phases: dict[str, tuple[str | None, int, int]] = {}  # parent, steps, steps done
        self._told = 0
        self._lock = threading.Lock()  # TensorRT may call from threads of its own

    def start(self, phase: str, parent: str | None, steps: int) -> None:
        """A phase of so many steps begins."""
        with self._lock:
            self._phases[phase] = parent, max(1, steps), 0

    def done(self, phase: str, steps: int) -> None:
        """So many steps of a phase are done."""
        with self._lock:
            if phase in self._phases:
                parent, total, _ = self._phases[phase]
                self._phases[phase] = parent, total, min(steps, total)
            outermost = [name for name, (parent, _, _) in self._phases.items() if parent is None]
            self._tell(sum(map(self._share, outermost)) / max(1, len(outermost)))

    def finish(self, phase: str) -> None:
        """A phase is over; with the outermost one everything is."""
        with self._lock:
            if self._phases.pop(phase, None) is not None and not self._phases:
                self._tell(1.0)

    def _share(self, phase: str) -> float:
        _, total, done = self._phases[phase]
        within = sum(self._share(name) for name, (parent, _, _) in self._phases.items() if parent == phase)
        return min(1.0, (done + min(1.0, within)) / total)

    def _tell(self, share: float) -> None:
        while self._told < int(100 * share + 1e-9):
            self._told += 1
            self._advance()


def make_monitor(trt: ModuleType, percent: Percent) -> Any:  # noqa: ANN401
    """Tells `percent`. What is raised meanwhile must not cross the library: it ends the build, and is in `failure`."""

    class Monitor(trt.IProgressMonitor):  # type: ignore[name-defined,misc]
        def __init__(self) -> None:
            super().__init__()
            self.failure: BaseException | None = None

        def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
            percent.start(phase, parent, steps)

        def step_complete(self, phase: str, step: int) -> bool:
            _log.debug("step %d of %s is done", step + 1, phase)
            return self._told(lambda: percent.done(phase, step + 1))

        def phase_finish(self, phase: str) -> None:
            self._told(lambda: percent.finish(phase))

        def _told(self, tell: Callable[[], None]) -> bool:
            try:
                tell()
            except BaseException as error:
                self.failure = self.failure or error
            return self.failure is None

    return Monitor()
