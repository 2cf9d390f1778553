"""Built engines kept on disk: building takes minutes, and the same question has the same answer.

An entry is a folder named by everything that the engine depends on (GPU, runtime version, the model's bytes, options).
It appears whole or not at all, so that two runs may build the same engine at once.
"""

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any

PLAN = "engine.plan"
FACTS = "engine.json"


@dataclass(frozen=True)
class Built:
    """An engine: its plan, and what is known of it (plain JSON values)."""

    plan: bytes
    facts: Mapping[str, Any]


def cache_folder() -> Path:
    """Where engines are kept: ``$XDG_CACHE_HOME/dtp-deploy``, else ``~/.cache/dtp-deploy``."""
    root = os.environ.get("XDG_CACHE_HOME")
    return (Path(root) if root else Path.home() / ".cache") / "dtp-deploy"


def key_of(model_path: Path, **conditions: str | int | float | bool) -> str:
    """The name of an entry: the SHA-256 of the model's bytes, of all conditions, and of what prepares models here."""
    onnx = hashlib.sha256(model_path.read_bytes()).hexdigest()
    content = {"onnx": onnx, "dtp_deploy": version("dtp-deploy"), **conditions}
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def cached(key: str, build: Callable[[], Built], folder: Path | None = None) -> tuple[Built, bool]:
    """The engine of that key, built if it is not there, and whether it was there.

    A damaged entry is built anew. A folder that cannot be written costs only the next build.
    """
    entry = (folder or cache_folder() / "engines") / key
    try:
        content = (entry / PLAN).read_bytes()
        facts = json.loads((entry / FACTS).read_text())
        if facts.pop("plan_sha256") == hashlib.sha256(content).hexdigest():
            return Built(content, facts), True
    except (OSError, ValueError, KeyError):
        pass
    built = build()
    _store(entry, built)
    return built, False


def _store(entry: Path, built: Built) -> None:
    partial: Path | None = None
    try:
        entry.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(prefix=".partial-", dir=entry.parent))
        (partial / PLAN).write_bytes(built.plan)
        digest = hashlib.sha256(built.plan).hexdigest()
        (partial / FACTS).write_text(json.dumps({**built.facts, "plan_sha256": digest}, indent=1))
        if entry.exists():  # damaged, or built by somebody else meanwhile
            shutil.rmtree(entry, ignore_errors=True)
        partial.rename(entry)
    except OSError:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)
