"""The exporter's table of translations is made once, and changes nothing."""

from contextlib import nullcontext
from pathlib import Path

import pytest

from dtp_deploy.export import onnx as exporting
from dtp_deploy.export import translations
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.testing.zoo import ZOO


def test_the_table_is_made_once_and_the_bytes_are_those_of_one_made_anew(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    entry = ZOO["residual"]
    registry = translations.registration.ONNXRegistry
    for name in ("first.onnx", "second.onnx"):
        export_onnx(entry.model(), entry.inputs(), tmp_path / name)
    with translations.translations_kept():
        assert registry.from_torchlib(opset_version=18) is registry.from_torchlib(opset_version=18)
    assert registry.from_torchlib(opset_version=18) is not registry.from_torchlib(opset_version=18), "PyTorch's own"
    monkeypatch.setattr(exporting, "translations_kept", nullcontext)
    export_onnx(entry.model(), entry.inputs(), tmp_path / "anew.onnx")
    assert len({path.read_bytes() for path in tmp_path.iterdir()}) == 1


def test_where_the_table_has_moved_nothing_is_done(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(translations.registration, "ONNXRegistry")
    with translations.translations_kept():
        assert not hasattr(translations.registration, "ONNXRegistry")
