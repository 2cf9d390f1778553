"""The exporter's table of translations is made once, and changes nothing."""

import sys
from contextlib import nullcontext
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

from dtp_deploy.export import onnx as exporting
from dtp_deploy.export import translations
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.testing.zoo import ZOO


def test_the_table_is_made_once_and_the_bytes_are_those_of_one_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ZOO["residual"]
    registry: Any = translations._registry()
    translations._kept.cache_clear()
    for name in ("first.onnx", "second.onnx"):
        export_onnx(entry.model(), entry.inputs(), tmp_path / name)
    kept = translations._kept.cache_info()
    assert (kept.misses, kept.hits > 0) == (1, True)
    with translations.translations_kept():
        assert registry.from_torchlib(opset_version=18) is registry.from_torchlib(opset_version=18)
    assert registry.from_torchlib(opset_version=18) is not registry.from_torchlib(opset_version=18), "PyTorch's own"
    monkeypatch.setattr(exporting, "translations_kept", nullcontext)
    export_onnx(entry.model(), entry.inputs(), tmp_path / "anew.onnx")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_torchvision_has_a_table_of_its_own(monkeypatch: pytest.MonkeyPatch) -> None:
    registry: Any = translations._registry()
    with translations.translations_kept():
        without = registry.from_torchlib(opset_version=18)
    monkeypatch.setitem(sys.modules, "torchvision", ModuleType("torchvision"))
    with translations.translations_kept():
        assert registry.from_torchlib(opset_version=18) is not without


@pytest.mark.parametrize("home", ["torch.onnx.moved", "torch.onnx"])
def test_where_the_table_has_moved_exports_take_their_time(
    home: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(translations, "_HOME", home)
    assert translations._registry() is object
    entry = ZOO["plain"]
    export_onnx(entry.model(), entry.inputs(), tmp_path / "model.onnx")
