"""PyTorch's table of ONNX translations, made once a process.

`torch.onnx.export` parses the source of some 500 translations anew for every model (torch 2.13), half of the time of
exporting a small one, and a search by latency exports many. The table is the same each time, and is only read.
"""

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from importlib import import_module
from typing import Any

_HOME = "torch.onnx._internal.exporter._registration"
_MAKER = "from_torchlib"


@contextmanager
def translations_kept() -> Iterator[None]:
    """Within the block, exports share one table. It is private to PyTorch: where it has moved, they take their time."""
    registry = _registry()
    maker = vars(registry).get(_MAKER)
    if not isinstance(maker, classmethod):
        yield
        return
    # torchvision's operators are in the table only if it was imported before.
    setattr(registry, _MAKER, staticmethod(_kept(registry, maker, "torchvision" in sys.modules)))
    try:
        yield
    finally:
        setattr(registry, _MAKER, maker)


def _registry() -> type:
    try:
        found: type = import_module(_HOME).ONNXRegistry
    except (ImportError, AttributeError):
        return object
    return found


@cache
def _kept(registry: type, maker: Any, with_torchvision: bool) -> Callable[..., Any]:  # noqa: ANN401
    return cache(maker.__get__(None, registry))
