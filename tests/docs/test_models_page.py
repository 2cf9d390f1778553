"""What docs/models.md shows in Python is run, block after block, as one program."""

import re
from pathlib import Path

import pytest

from dtp_deploy.loading.checkpoint import WRAPPER_KEYS
from dtp_deploy.loading.inputs import DTYPES
from dtp_deploy.loading.inspect import MODULE_KEYS

PAGE = (Path(__file__).parents[2] / "docs" / "models.md").read_text(encoding="utf-8")


def test_the_examples_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"^```python\n(.*?)^```$", PAGE, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 3
    exec("\n".join(blocks), {})
    assert Path("detector.onnx").is_file()


def test_the_lists_are_those_of_the_code() -> None:
    text = " ".join(PAGE.split())
    for names in (MODULE_KEYS, WRAPPER_KEYS):
        assert ", ".join(f"`{name}`" for name in names) in text
    assert all(name in text for name in DTYPES)
