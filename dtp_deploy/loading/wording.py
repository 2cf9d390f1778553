"""Pieces of messages that the loaders share: every message is one line, however long its cause is."""

import sysconfig
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import FrameType

_INSTALLED = ("site-packages", "dist-packages")


def cause(error: BaseException) -> str:
    """An exception of foreign code as one short line, with the last line of the user's own code that it went through.

    >>> cause(ValueError("no such layer\\n  at line 3"))
    'ValueError: no such layer'
    >>> cause(EOFError())
    'EOFError'
    """
    lines = str(error).strip().splitlines()
    text = f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__
    places = [
        f"{Path(frame.f_code.co_filename).name}:{line}"
        for frame, line in traceback.walk_tb(error.__traceback__)
        if _is_users(frame)
    ]
    return f"{text}, at {places[-1]}" if places else text


def kind_text(value: object) -> str:
    """The type of a value with its article.

    >>> kind_text(7), kind_text([])
    ('an int', 'a list')
    """
    name = type(value).__name__
    return f"{'an' if name[0] in 'aeiouAEIOU' else 'a'} {name}"


def listing(names: Sequence[str], shown: int = 3) -> str:
    """The first few names, and how many more there are.

    >>> listing(["conv.weight", "conv.bias", "fc.weight", "fc.bias", "bn.bias"])
    'conv.weight, conv.bias, fc.weight and 2 more'
    """
    hidden = len(names) - shown
    return ", ".join(names[:shown]) + (f" and {hidden} more" if hidden > 0 else "")


def shape_text(shape: Sequence[int]) -> str:
    """A shape as users type it.

    >>> shape_text((1, 3, 32, 32)), shape_text(())
    ('1x3x32x32', 'scalar')
    """
    return "x".join(map(str, shape)) or "scalar"


def _is_users(frame: FrameType) -> bool:
    """Whether a frame is of code that is neither this project's, nor installed, nor Python's own."""
    file = frame.f_code.co_filename
    project = str(frame.f_globals.get("__name__")).startswith("dtp_deploy")
    installed = any(folder in Path(file).parts for folder in _INSTALLED)
    return not (project or installed or file.startswith(("<", sysconfig.get_path("stdlib"))))
