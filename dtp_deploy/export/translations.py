"""PyTorch's table of ONNX translations, made once a process.

`torch.onnx.export` parses the source of some 500 translations anew for every model (torch 2.13), half of the time of
exporting a small one, and a search by latency exports many. The table is the same each time, and is only read.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache

import torch.onnx._internal.exporter._registration as registration

_MAKER = "from_torchlib"


@contextmanager
def translations_kept() -> Iterator[None]:
    """Within the block, exports share one table. It is private to PyTorch: where it has moved, they take their time."""
    maker = vars(getattr(registration, "ONNXRegistry", object)).get(_MAKER)
    if not isinstance(maker, classmethod):
        yield
        return
    setattr(registration.ONNXRegistry, _MAKER, _kept(maker))
    try:
        yield
    finally:
        setattr(registration.ONNXRegistry, _MAKER, maker)


@cache
def _kept(maker: classmethod) -> staticmethod:  # type: ignore[type-arg]
    return staticmethod(cache(maker.__get__(None, registration.ONNXRegistry)))
