"""Progress bars on standard error, for people who watch; silence for files and pipes."""

import os
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.progress import Progress as RichProgress
from rich.text import Text

from dtp_deploy.progress import SILENT, Progress


def is_first_process() -> bool:
    """Whether this is the only process, or the first of those that torchrun started: the one that talks."""
    return os.environ.get("RANK", "0") == "0"


@contextmanager
def show_progress(verbose: bool = False) -> Iterator[Progress]:
    """Bars if standard error is a terminal; else a line a stage with `verbose`, and nothing without.

    Of several processes only the first shows anything.
    """
    if not is_first_process():
        yield SILENT
        return
    console = Console(stderr=True)
    if not console.is_terminal:
        yield _Lines() if verbose else SILENT
        return
    columns = (
        SpinnerColumn(finished_text="✓"),
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
    )
    with RichProgress(*columns, console=console, refresh_per_second=4) as bars:
        yield _Bars(bars)


class _Bars:
    def __init__(self, bars: RichProgress) -> None:
        self._bars = bars

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        bar = self._bars.add_task(name, total=total)
        yield lambda: self._bars.advance(bar)
        if passing:
            self._bars.remove_task(bar)
            return
        # A stage may take fewer steps than it announced; it is done all the same. One that failed stays as it is.
        done = self._bars.tasks[self._bars.task_ids.index(bar)].completed
        self._bars.update(bar, total=max(done, 1), completed=max(done, 1))

    def note(self, message: str) -> None:
        self._bars.console.print(Text(message))


class _Lines:
    def __init__(self) -> None:
        self._entered: list[str] = []

    @contextmanager
    def task(self, name: str, total: int | None = None, *, passing: bool = False) -> Iterator[Callable[[], None]]:
        start_ns = time.perf_counter_ns()
        self._entered.append(name)
        try:
            yield lambda: None
        finally:
            self._entered.pop()
        if name not in self._entered:  # the steps of a stage are a task of the same name within it
            self.note(f"{name}: {(time.perf_counter_ns() - start_ns) / 1e9:.1f} s")

    def note(self, message: str) -> None:
        print(message, file=sys.stderr, flush=True)
