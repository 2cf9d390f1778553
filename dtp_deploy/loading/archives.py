"""What a file is, told by its bytes: the name that a file has proves nothing."""

import struct
import zipfile
import zlib
from typing import BinaryIO

ZIP_MAGIC = b"PK\x03\x04"
"""How the first record of a zip archive begins."""

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError, ValueError)
"""What `zipfile` raises on an archive that is damaged, encrypted or compressed in a way that it does not know."""

_HEADER_LIMIT_BYTES = 100_000_000
"""The largest header that safetensors itself accepts."""


def is_zip(stream: BinaryIO) -> bool:
    """Whether a file begins as a zip archive, which is how `torch.load` decides."""
    stream.seek(0)
    return stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC


def is_safetensors(stream: BinaryIO) -> bool:
    """Whether a file begins as safetensors do: the length of a header, then JSON.

    >>> import io, safetensors.torch, torch
    >>> is_safetensors(io.BytesIO(safetensors.torch.save({"w": torch.ones(1)}))), is_safetensors(io.BytesIO(b"text"))
    (True, False)
    """
    stream.seek(0)
    start = stream.read(9)
    return len(start) == 9 and start.endswith(b"{") and int.from_bytes(start[:8], "little") <= _HEADER_LIMIT_BYTES


def zip_records(stream: BinaryIO) -> list[str]:
    """The names in a zip archive, without its top folder; none where it is no archive or a damaged one."""
    try:
        with zipfile.ZipFile(stream) as archive:
            return [name.partition("/")[2] or name for name in archive.namelist()]
    except ZIP_ERRORS:
        return []
