"""A torchvision that was built for another PyTorch (for CUDA, beside a PyTorch for the CPU), made to import.

Such a torchvision cannot load its compiled operators and then fails on import, because it describes operators that are
not there. Declaring them lets it import: its models and transforms work, the compiled operators (nms, roi_align) raise
an error of their own when they are called.
"""

import sys
from collections.abc import Callable
from functools import cache
from typing import TypeVar

import torch

Result = TypeVar("Result")

_SYMPTOM = "operator torchvision::"
_OPERATORS = (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
)


def with_torchvision(call: Callable[[], Result]) -> Result:
    """What `call`, which may import torchvision, returns; tried again where torchvision's operators were missing."""
    try:
        return call()
    except RuntimeError as error:
        if _SYMPTOM not in str(error):
            raise
    _declare_operators()
    for name in [name for name in sys.modules if name.partition(".")[0] == "torchvision"]:
        del sys.modules[name]  # the half of it that was imported
    return call()


@cache
def _declare_operators() -> torch.library.Library:
    """The declarations live as long as what is returned, which the cache keeps."""
    library = torch.library.Library("torchvision", "FRAGMENT")  # type: ignore[no-untyped-call]
    for operator in _OPERATORS:
        library.define(operator)  # type: ignore[no-untyped-call]
    return library
