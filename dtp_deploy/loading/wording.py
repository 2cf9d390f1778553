"""Pieces of messages that the loaders share: every message is one line, however long its cause is."""

from collections.abc import Sequence


def cause(error: BaseException) -> str:
    """An exception of foreign code as one short line.

    >>> cause(ValueError("no such layer\\n  at line 3"))
    'ValueError: no such layer'
    >>> cause(EOFError())
    'EOFError'
    """
    lines = str(error).strip().splitlines()
    return f"{type(error).__name__}: {lines[0]}" if lines else type(error).__name__


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
