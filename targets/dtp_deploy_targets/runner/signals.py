"""The signals that end the runner, and how they wait for what must not be left half done."""

from __future__ import annotations

import signal
import threading
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterator

ENDING = (signal.SIGTERM, signal.SIGHUP, signal.SIGINT)


@contextmanager
def signals_later() -> Iterator[None]:
    """Signals that come meanwhile are handled at the end.

    Their handlers are what is changed, for a mask would hold in one thread only, and in every child.
    """
    if threading.current_thread() is not threading.main_thread():  # only that one handles signals
        yield
        return
    came = []
    before = {number: signal.signal(number, lambda number, _: came.append(number)) for number in ENDING}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
        if came:
            signal.raise_signal(came[0])
