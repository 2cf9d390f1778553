import importlib
import sys
from collections.abc import Callable

import pytest
import torch

from dtp_deploy.loading import compatibility
from dtp_deploy.loading.compatibility import with_torchvision

Write = Callable[[str, str], None]

# As torchvision 0.28 for CUDA behaves beside a PyTorch for the CPU; under another name, to declare nothing for others.
STAND_IN = """
import torch
from standin_vision import half
@torch.library.register_fake("standin_vision::nms")
def nms(dets, scores, iou_threshold): return dets
"""


@pytest.fixture
def stand_in(write: Write, monkeypatch: pytest.MonkeyPatch) -> Callable[[], object]:
    write("standin_vision/__init__.py", STAND_IN)
    write("standin_vision/half.py", "")
    monkeypatch.syspath_prepend(".")
    libraries: list[torch.library.Library] = []

    def declare() -> None:
        library = torch.library.Library("standin_vision", "FRAGMENT")  # type: ignore[no-untyped-call]
        library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")  # type: ignore[no-untyped-call]
        libraries.append(library)

    monkeypatch.setattr(compatibility, "_SYMPTOM", "operator standin_vision::")
    monkeypatch.setattr(compatibility, "_declare_operators", declare)
    return lambda: importlib.import_module("standin_vision")


def test_the_stand_in_fails_as_torchvision_does(stand_in: Callable[[], object]) -> None:
    with pytest.raises(RuntimeError, match=r"^operator standin_vision::nms does not exist"):
        stand_in()


def test_what_imports_it_is_tried_again(stand_in: Callable[[], object]) -> None:
    calls = 0

    def call() -> object:
        nonlocal calls
        calls += 1
        return stand_in()

    assert with_torchvision(call) is sys.modules["standin_vision"]
    assert calls == 2


def test_other_errors_pass(stand_in: Callable[[], object]) -> None:
    def failing() -> None:
        raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        with_torchvision(failing)
