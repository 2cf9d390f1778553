"""How the library tells a shell what it is doing, without knowing any shell.

>>> with SILENT.task("masks", total=3) as advance:
...     advance()
"""

from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from typing import Protocol


class Progress(Protocol):
    """A listener for the stages of a run."""

    def task(
        self, name: str, total: int | None = None, *, passing: bool = False
    ) -> AbstractContextManager[Callable[[], None]]:
        """Enter a stage of `total` steps (None: unknown). The value is called once after each step.

        One that is `passing` is of interest only while it lasts.
        """
        ...

    def note(self, message: str) -> None:
        """Tell something worth a line: a frozen group, a skipped pass."""
        ...


class _Silent:
    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        yield lambda: None

    def note(self, message: str) -> None:
        pass


SILENT: Progress = _Silent()
"""The listener that hears nothing."""
