"""Keeps the person who ran a job out of the report that is passed on: no home folder, no host name.

The schema refuses what would tell; `hide_home` is for those who fill a report with messages and paths.
"""

import re
import socket
from collections.abc import Mapping
from pathlib import Path
from typing import TypeVar

_HOST_KEYS = frozenset({"host", "hostname", "host_name", "node", "nodename"})
_LEAST_LENGTH = 4
"""A shorter host name is found in texts that do not speak of it."""
_MACHINES = """
board build builder container debian desktop docker host jetson laptop linux localhost machine nano nvidia orin
raspberrypi runner server staging tegra test ubuntu worker workstation xavier
"""
_WORDS_OF_REPORTS = """
accuracy achieved applied basis blocks budget channels computed dense device drift environment granularity groups high
kept kind latency layers limit macs measured model name notes onnx openvino options params parity passed passes
precision predicted pruned python ratio reason relative removed requested runtime seconds settings size spread stable
stage stages target tensorrt threads tolerance torch unit weights
"""
_SAY_NOTHING = frozenset((_MACHINES + _WORDS_OF_REPORTS).split())
"""Host names that name nobody, and that stand in many a report for something else."""
_Value = TypeVar("_Value")


def hide_home(value: _Value) -> _Value:
    """The same text, list or dict with the home folder written as ``~`` and this host's name as ``(host)``.

    Both are replaced in every text of it, keys of dicts included.

    >>> hide_home({"path": str(Path.home() / "models"), "threads": 1}) == {"path": "~/models", "threads": 1}
    True
    """
    return _replace(value, _home_pattern(), _host_pattern())


def find_private(value: object, name: str = "") -> str | None:
    """Where `value` (nested dicts, lists and texts) tells of a home folder or a host; None if nowhere.

    >>> find_private({"python": "3.11", "host": "workbench"})
    'host names a host'
    """
    return _find(value, name, _home_pattern(), _host_pattern())


_Pattern = re.Pattern[str] | None


def _find(value: object, name: str, home: _Pattern, host: _Pattern) -> str | None:
    match value:
        case str():
            if home and home.search(value):
                return f"{name} holds the home folder"
            return f"{name} holds the name of this host" if host and host.search(value) else None
        case Mapping():
            for key, item in value.items():
                if found := _find(str(key), f"a key of {name or 'the whole'}", home, host):
                    return found
                if str(key).lower() in _HOST_KEYS:
                    return f"{_join(name, key)} names a host"
                if found := _find(item, _join(name, key), home, host):
                    return found
        case list() | tuple():
            for index, item in enumerate(value):
                if found := _find(item, _join(name, index), home, host):
                    return found
    return None


def _join(name: str, key: object) -> str:
    return f"{name}.{key}" if name else str(key)


def _home_pattern() -> _Pattern:
    """The home folder as it is written, and where its links lead."""
    home = Path.home()
    # A home of "/" (containers without a user) says nothing about anyone and would match every path.
    homes = {str(home), str(home.resolve())} - {"/"}
    return re.compile(rf"(?<![\w.-])(?:{_any_of(homes)})(?![\w-]|\.\w)") if homes else None


def _host_pattern() -> _Pattern:
    """This host's name as a whole word, with or without a domain."""
    full = socket.gethostname().lower()
    hosts = {name for name in (full, full.partition(".")[0]) if len(name) >= _LEAST_LENGTH and not name.isdigit()}
    hosts -= _SAY_NOTHING
    return re.compile(rf"(?<![\w-])(?:{_any_of(hosts)})(?![\w-])", re.IGNORECASE) if hosts else None


def _any_of(texts: set[str]) -> str:
    return "|".join(re.escape(text) for text in sorted(texts, key=len, reverse=True))  # the longest match counts


def _replace(value: _Value, home: _Pattern, host: _Pattern) -> _Value:
    changed: object = value
    match value:
        case str():
            changed = home.sub("~", value) if home else value
            changed = host.sub("(host)", changed) if host else changed
        case Mapping():
            changed = {_replace(key, home, host): _replace(item, home, host) for key, item in value.items()}
        case list():
            changed = [_replace(item, home, host) for item in value]
        case tuple():
            changed = tuple(_replace(item, home, host) for item in value)
    return changed  # type: ignore[return-value]  # the same kind of value, which a match cannot tell mypy
