"""How a host and the runner on a board talk over one pipe: a JSON line, then the raw bytes of the arrays that it names.

{"command": "run", "model": "a", "arrays": [{"name": "x", "dtype": "float32", "shape": [1, 3], "size_bytes": 12}]}\n
............
"""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    from collections.abc import Iterable

GREETING = b"dtp-deploy runner 1\n"
"""The first line that the runner writes: whatever a login shell prints comes before it."""


class Reader(Protocol):
    """What messages are read from."""

    def readline(self) -> bytes:
        """A line with its end, or what is left."""

    def read(self, size: int, /) -> bytes:
        """`size` bytes, or what is left."""


class Writer(Protocol):
    """What messages are written to."""

    def write(self, data: bytes, /) -> object:
        """Take all of `data`."""

    def flush(self) -> object:
        """Hand on what was taken."""


class Blob(NamedTuple):
    """An array as it travels: little-endian and C-contiguous."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


class Message(NamedTuple):
    """What is said, and the arrays that come with it."""

    header: dict[str, Any]
    blobs: dict[str, Blob]


def write_message(stream: Writer, header: dict[str, Any], blobs: Iterable[Blob] = ()) -> None:
    """Send one message at once."""
    sent = list(blobs)
    arrays = [
        {"name": blob.name, "dtype": blob.dtype, "shape": list(blob.shape), "size_bytes": len(blob.data)}
        for blob in sent
    ]
    stream.write(json.dumps({**header, "arrays": arrays}).encode() + b"\n")
    for blob in sent:
        stream.write(blob.data)
    stream.flush()


def read_message(stream: Reader) -> Message | None:
    """The next message, or None where the stream ends, in the middle of a message or not.

    Raises:
        ValueError: what comes is no message.
    """
    line = stream.readline()
    if not line.endswith(b"\n"):
        return None
    header = json.loads(line)
    blobs = {}
    for array in header.pop("arrays"):
        data = stream.read(array["size_bytes"])
        if len(data) < array["size_bytes"]:
            return None
        blobs[array["name"]] = Blob(array["name"], array["dtype"], tuple(array["shape"]), data)
    return Message(header, blobs)
