"""What a checkpoint would import if it were unpickled, found by reading its opcodes and running none of them.

`torch.load(weights_only=True)` is what keeps code from running; this module only words the refusal. It therefore reads
the forms that `torch.load` refuses without naming a class: streams older than the zip format, and plain pickles of any
protocol. Which names are harmless is asked of PyTorch itself, so that the two never disagree.
"""

import io
import pickletools
import struct
import warnings
import zipfile
import zlib
from typing import BinaryIO

import torch

_MAX_PICKLES = 5
"""The old format of `torch.save` is five pickles in a row (magic number, version, system, object, storage keys)."""

ZIP_MAGIC = b"PK\x03\x04"
"""How the first record of a zip archive begins."""

ZIP_ERRORS = (zipfile.BadZipFile, zlib.error, struct.error, EOFError, RuntimeError, OSError, ValueError)
"""What `zipfile` raises on an archive that is damaged, encrypted or compressed in a way that it does not know."""

_STACK_STRINGS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})


def unsafe_imports(stream: BinaryIO) -> list[str]:
    """The classes and functions that unpickling `stream` would import and that a state_dict does not need, sorted.

    Args:
        stream: a file as `torch.save` or `pickle.dump` writes it, read from its start. Anything else gives an
            empty list.

    >>> unsafe_imports(io.BytesIO(b"\\x80\\x02cposix\\nsystem\\nX\\x04\\x00\\x00\\x00exit\\x85R."))
    ['posix.system']
    """
    stream.seek(0)
    is_zip = stream.read(len(ZIP_MAGIC)) == ZIP_MAGIC  # as torch.load decides
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns of escapes in what is no pickle
        names = _imports_of_zip(stream) if is_zip else _imports_of_stream(stream)
    return sorted(_refused_by_torch(names))


def _imports_of_zip(stream: BinaryIO) -> set[tuple[str, str]]:
    try:
        with zipfile.ZipFile(stream) as archive:
            records = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return set().union(*(_imports_of_stream(io.BytesIO(archive.read(record))) for record in records))
    except ZIP_ERRORS:
        return set()  # a damaged archive has nothing to name; the caller reports it as damaged


def _imports_of_stream(stream: BinaryIO) -> set[tuple[str, str]]:
    """(module, name) of each import in the pickles at the start of `stream`, up to the first byte that is none."""
    found: set[tuple[str, str]] = set()
    for _ in range(_MAX_PICKLES):
        names, complete, starts_as_pickle = _imports_of_pickle(stream)
        # A text that begins with "c" looks like an import of protocol 0: believe it only if the pickle ends properly.
        if complete or starts_as_pickle:
            found |= names
        if not complete:
            break
    return found


def _imports_of_pickle(stream: BinaryIO) -> tuple[set[tuple[str, str]], bool, bool]:
    """The imports of one pickle, whether it is complete, and whether it begins with a protocol number."""
    names: set[tuple[str, str]] = set()
    strings: list[str] = []  # in the order in which they reach the stack; STACK_GLOBAL takes the last two
    memo: dict[int, str | None] = {}
    newest: str | None = None
    starts_as_pickle = False
    try:
        for opcode, argument, _ in pickletools.genops(stream):
            if opcode.name == "PROTO":
                starts_as_pickle = True
            elif opcode.name in ("GLOBAL", "INST"):
                module, _, name = str(argument).partition(" ")
                names.add((module, name))
            elif opcode.name == "STACK_GLOBAL" and len(strings) >= 2:
                names.add((strings[-2], strings[-1]))
            elif opcode.name in ("PUT", "BINPUT", "LONG_BINPUT"):
                memo[int(argument)] = newest  # type: ignore[arg-type]  # genops types every argument as object
                continue
            elif opcode.name == "MEMOIZE":
                memo[len(memo)] = newest
                continue
            newest = str(argument) if opcode.name in _STACK_STRINGS else None
            if opcode.name in ("GET", "BINGET", "LONG_BINGET"):
                newest = memo.get(int(argument))  # type: ignore[arg-type]
            if newest is not None:
                strings.append(newest)
    except (ValueError, OverflowError, MemoryError):  # bytes that are no pickle; what came before them counts
        return names, False, starts_as_pickle
    return names, True, starts_as_pickle


def _refused_by_torch(names: set[tuple[str, str]]) -> list[str]:
    """Those of `names` that `torch.load(weights_only=True)` refuses.

    PyTorch answers this for checkpoints in its zip format only, so the names are put into one.
    """
    words = {pair for pair in names if all(part.isidentifier() for word in pair for part in word.split("."))}
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("names/version", "3\n")
        imports = "".join(f"c{module}\n{name}\n" for module, name in sorted(words))
        archive.writestr("names/data.pkl", b"\x80\x02" + imports.encode() + b".")
    checkpoint.seek(0)
    return torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)
