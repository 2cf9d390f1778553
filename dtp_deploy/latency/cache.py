"""What was measured once, kept on disk: one small file an entry, written whole or not at all, believed only if whole.

Two runs at once may write the same entry; each writes a file of its own and renames it, so that a reader sees one of
the two. The key of an entry (which device, which runtime, which options, which layer) is in its name as a digest and
in its content in full: an entry of another machine is never found, and one that was put in its place is not believed.
"""

from __future__ import annotations

import hashlib
import json
import os
import tempfile
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

ENVIRONMENT_VARIABLE = "DTP_DEPLOY_CACHE"
FORMAT = 2


def cache_folder() -> Path:
    """Where this user's cache is: $DTP_DEPLOY_CACHE, or dtp-deploy in $XDG_CACHE_HOME or ~/.cache."""
    if chosen := os.environ.get(ENVIRONMENT_VARIABLE):
        return Path(chosen)
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dtp-deploy"


class MeasurementCache:
    """Entries of one device.

    Args:
        identity: everything of the device, its runtime and its options that a latency depends on. Plain values.
        folder: by default "latency" in `cache_folder()`.

    Attributes:
        problem: why an entry could not be written, once that has happened; the run goes on without it.
    """

    def __init__(self, identity: Mapping[str, Any], folder: Path | None = None) -> None:
        self.identity = dict(identity)
        self.folder = cache_folder() / "latency" if folder is None else folder
        self.problem: str | None = None

    def read(self, kind: str, key: Mapping[str, Any]) -> Any | None:  # noqa: ANN401 - whatever JSON holds
        """The values of an entry; None where there is none, or it is damaged, of another key or of another format."""
        whole = self._key(kind, key)
        try:
            entry = json.loads(self._path(kind, whole).read_text(encoding="utf-8"))
            if entry["key"] == json.loads(whole) and entry["sha256"] == _digest(_text(entry["values"])):
                return entry["values"]
        except (OSError, ValueError, KeyError, TypeError):
            pass
        return None

    def write(self, kind: str, key: Mapping[str, Any], values: object) -> None:
        """Keep plain JSON values. A folder that cannot be written to is remembered in `problem`, and is no error."""
        whole = self._key(kind, key)
        entry = {"key": json.loads(whole), "values": values, "sha256": _digest(_text(values))}
        partial: Path | None = None
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.NamedTemporaryFile("w", dir=self.folder, suffix=".partial", delete=False) as file:
                partial = Path(file.name)
                file.write(_text(entry))
            partial.replace(self._path(kind, whole))
        except OSError as error:
            self.problem = f"Latency tables could not be kept in {self.folder} ({error.strerror})."
            if partial is not None:
                with suppress(OSError):
                    partial.unlink(missing_ok=True)

    def _key(self, kind: str, key: Mapping[str, Any]) -> str:
        return _text({"format": FORMAT, "device": self.identity, "kind": kind, **key})

    def _path(self, kind: str, whole: str) -> Path:
        return self.folder / f"{kind}-{_digest(whole)[:32]}.json"


def _text(values: object) -> str:
    return json.dumps(values, sort_keys=True)


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
