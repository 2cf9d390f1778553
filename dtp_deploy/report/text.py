"""Documents as text: JSON that a person can scroll through, and nested mappings as rows."""

import json
import re
from collections.abc import Mapping


def json_text(value: object) -> str:
    """JSON, indented, with a list of numbers on one line.

    Raises:
        ValueError: a number is not finite; JSON has none.

    >>> print(json_text({"samples_ms": [1.5, 2.5]}), end="")
    {
      "samples_ms": [1.5, 2.5]
    }
    """
    text = json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False)
    # No string can match: in JSON a line break inside of a string is escaped.
    return re.sub(r"\[\n[^\[\]{}\"]*\]", _on_one_line, text) + "\n"


def flat_rows(values: Mapping[str, object], prefix: str = "") -> list[tuple[str, str]]:
    """Name and text of each value, by name; the names inside of a mapping are joined by dots.

    >>> flat_rows({"system": {"cpu": "a CPU"}, "blocks": 20})
    [('blocks', '20'), ('system.cpu', 'a CPU')]
    """
    rows = []
    for name, value in sorted(values.items()):
        if isinstance(value, Mapping):
            rows += flat_rows(value, f"{prefix}{name}.")
        else:
            rows.append((f"{prefix}{name}", _plain(value)))
    return rows


def _on_one_line(match: re.Match[str]) -> str:
    return "[" + " ".join(match.group()[1:-1].split()) + "]"


def _plain(value: object) -> str:
    if value is None or isinstance(value, bool):
        return {None: "-", True: "yes", False: "no"}[value]
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False, default=str)
