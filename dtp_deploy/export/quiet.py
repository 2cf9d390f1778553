"""Holding back what exporters log, print and warn about: noise when all goes well, evidence when it does not."""

import io
import logging
import re
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout

_TALKERS = ("torch", "onnx", "onnx_ir", "onnxscript", "onnxsim")
_NOISE = ("torchvision is not installed",)  # PyTorch's exporter says so whatever the model
_COLOURS = re.compile(r"\x1b\[[0-9;]*m")


class _Collector(logging.Handler):
    def __init__(self) -> None:
        super().__init__(level=logging.WARNING)
        self.lines: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        if not record.getMessage().startswith(_NOISE):
            self.lines.append(record.getMessage())


@contextmanager
def held_back() -> Iterator[list[str]]:
    """Collect warnings, and log records of PyTorch and the ONNX packages, instead of showing them.

    The list is filled when the block is left, with or without an error: first the log, then the warnings, each text
    once, without those about features to come or go. What is printed in the block (PyTorch prints whole graphs before
    it raises) is dropped: a command's output may be JSON.
    """
    collector = _Collector()
    said: list[str] = []
    loggers = _loggers()
    before = [(logger, logger.handlers, logger.propagate) for logger in loggers]
    with warnings.catch_warnings(record=True) as caught, _nothing_printed():
        warnings.simplefilter("always")
        try:
            for logger in loggers:
                top = logger.name in _TALKERS
                logger.handlers, logger.propagate = ([collector] if top else []), not top
            yield said
        finally:
            for logger, handlers, propagate in before:
                logger.handlers, logger.propagate = handlers, propagate
            telling = (w for w in caught if not issubclass(w.category, FutureWarning | DeprecationWarning))
            said.extend(dict.fromkeys([*collector.lines, *(str(warning.message) for warning in telling)]))


@contextmanager
def _nothing_printed() -> Iterator[None]:
    with redirect_stdout(io.StringIO()), redirect_stderr(io.StringIO()):
        yield


def _loggers() -> list[logging.Logger]:
    """The top loggers of the packages that talk, and those under them that exist."""
    under = [
        logger
        for name, logger in logging.root.manager.loggerDict.items()
        if isinstance(logger, logging.Logger) and "." in name and name.split(".")[0] in _TALKERS
    ]
    return [*(logging.getLogger(name) for name in _TALKERS), *under]


def first_line(error: BaseException) -> str:
    """An error in one line without colours: exporters and checkers raise pages.

    >>> first_line(ValueError("no such operator\\nat node 3"))
    'ValueError: no such operator'
    """
    lines = _COLOURS.sub("", str(error)).strip().splitlines()
    return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
