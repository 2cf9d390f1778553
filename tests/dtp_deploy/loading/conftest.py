import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

Write = Callable[[str, str], None]


@pytest.fixture
def write(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Write]:
    """Writes a module into the working directory; what it changes in the interpreter is undone."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    before = set(sys.modules)
    written: set[str] = set()

    def write(name: str, code: str) -> None:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(code)
        written.add(name.partition("/")[0].removesuffix(".py"))

    yield write
    # Not a copy of sys.modules in its place: unpickling looks into the one that the interpreter began with.
    for module in set(sys.modules) - before:
        if module.partition(".")[0] in written:
            del sys.modules[module]
