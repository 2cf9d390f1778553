"""Keeps the person who ran a job out of the report that is passed on: no home folder, no host name.

The schema refuses what would tell; `hide_home` is for those who fill a report with messages and paths.
"""

import re
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

_HOST_KEYS = frozenset({"host", "hostname", "host_name", "node", "nodename"})
_Value = TypeVar("_Value")


def hide_home(value: _Value) -> _Value:
    """The same text, list or dict with the home folder written as ``~`` in every text of it.

    >>> hide_home({"path": str(Path.home() / "models"), "threads": 1}) == {"path": "~/models", "threads": 1}
    True
    """
    pattern = _home_pattern()
    return value if pattern is None else _replace(value, pattern)


def find_private(value: object, name: str = "") -> str | None:
    """Where `value` (nested dicts, lists and texts) tells of a home folder or a host; None if nowhere.

    >>> find_private({"python": "3.11", "host": "workbench"})
    'host names a host'
    """
    pattern = _home_pattern()
    match value:
        case str():
            return f"{name} holds the home folder" if pattern and pattern.search(value) else None
        case Mapping():
            for key, item in value.items():
                if str(key).lower() in _HOST_KEYS:
                    return f"{_join(name, key)} names a host"
                if found := find_private(item, _join(name, key)):
                    return found
        case list() | tuple():
            for index, item in enumerate(value):
                if found := find_private(item, _join(name, index)):
                    return found
    return None


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _home_pattern() -> re.Pattern[str] | None:
    home = str(Path.home())
    # A home of "/" (containers without a user) says nothing about anyone and would match every path.
    return None if home == "/" else re.compile(r"(?<![\w.-])" + re.escape(home) + r"(?![\w-]|\.\w)")


def _replace(value: _Value, pattern: re.Pattern[str]) -> _Value:
    changed: object = value
    match value:
        case str():
            changed = pattern.sub("~", value)
        case Mapping():
            changed = {key: _replace(item, pattern) for key, item in value.items()}
        case list():
            changed = [_replace(item, pattern) for item in value]
        case tuple():
            changed = tuple(_replace(item, pattern) for item in value)
    return changed  # type: ignore[return-value]  # the same kind of value, which a match cannot tell mypy
