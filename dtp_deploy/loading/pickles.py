"""Pickles without surprises: what one would import, found without running it, and loading that imports nothing else.

`torch.load(weights_only=True)` is what keeps code from running where the user did not ask for any; for such files this
module only words the refusal. Where the user trusts a file, `load_trusted` unpickles it, and stops at the first import
that `read_contents` had not found: a list that was shown before is a list that holds.

Two readers find the imports. One follows the opcodes and copes with damage. The other unpickles for real, with inert
placeholders for everything imported, so that no play with the stack or the memo can hide a name from it. Which names
are harmless is asked of PyTorch itself, so that the two never disagree.
"""

import io
import pickle
import pickletools
import warnings
import zipfile
from collections import OrderedDict
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any, BinaryIO

import torch

from dtp_deploy.errors import InputError
from dtp_deploy.loading.archives import ZIP_ERRORS, is_zip

_MAX_PICKLES = 5
"""The old format of `torch.save` is five pickles in a row (magic number, version, system, object, storage keys)."""

_STACK_STRINGS = frozenset({"BINUNICODE", "SHORT_BINUNICODE", "BINUNICODE8", "UNICODE"})

_OLD_FORMAT = torch.serialization.MAGIC_NUMBER
_OLD_FORMAT_OBJECT = 3
"""Which of its pickles is the object that was saved."""

_Name = tuple[str, str]


class Placeholder:
    """Stands for what a pickle would import or build: takes whatever the unpickler does to it, and does nothing.

    Attributes:
        imported: "module.name" of what it stands for.
    """

    imported = "a value stored outside the pickle"

    def __new__(cls, *_args: object, **_options: object) -> "Placeholder":
        return super().__new__(cls)

    def __init__(self, *_args: object, **_options: object) -> None:
        pass

    def _ignore(self, *_args: object) -> None:
        pass

    __setstate__ = __setitem__ = append = extend = add = _ignore


@dataclass(frozen=True, eq=False)
class PickleContents:
    """What a file of pickles holds, found without running any of it.

    Attributes:
        imports: "module.name" of each import that a state_dict does not need, sorted.
        allowed: those and the harmless ones: all that `load_trusted` will import.
        outer: the saved object, a `Placeholder` in the place of everything imported; None where that is not known.
    """

    imports: tuple[str, ...]
    allowed: frozenset[str]
    outer: object


def read_contents(stream: BinaryIO) -> PickleContents:
    """What a file as `torch.save` or `pickle.dump` writes it would import, and the outline of what it holds.

    >>> contents = read_contents(io.BytesIO(pickle.dumps({"model": None, "shape": slice(1)})))
    >>> contents.imports, list(contents.outer)
    (('builtins.slice',), ['model', 'shape'])
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # pickletools warns of escapes in what is no pickle
        records = _zip_pickles(stream) if is_zip(stream) else [stream]
        names: set[_Name] = set()
        outer: object = None
        for record in records:
            record.seek(0)
            names |= _imports_of_stream(record)
            record.seek(0)
            outer, recorded = _outline(record)
            names |= recorded
    words = {pair for pair in names if all(part.isidentifier() for word in pair for part in word.split("."))}
    return PickleContents(
        imports=tuple(sorted(_refused_by_torch(words))),
        allowed=frozenset(f"{module}.{name}" for module, name in words),
        outer=outer,
    )


def unsafe_imports(stream: BinaryIO) -> list[str]:
    """The classes and functions that unpickling `stream` would import and that a state_dict does not need, sorted.

    Args:
        stream: a file as `torch.save` or `pickle.dump` writes it, read from its start. Anything else gives an
            empty list.

    >>> unsafe_imports(io.BytesIO(b"\\x80\\x02cposix\\nsystem\\nX\\x04\\x00\\x00\\x00exit\\x85R."))
    ['posix.system']
    """
    return list(read_contents(stream).imports)


def load_trusted(stream: BinaryIO, allowed: frozenset[str], what: str) -> Any:  # noqa: ANN401 - whatever was pickled
    """Unpickle a file onto the CPU, running the code that it needs. Only for a file that the user trusts.

    Args:
        stream: as `torch.save` (any of its formats) or `pickle.dump` wrote it.
        allowed: "module.name" of all that it may import.
        what: the file as messages begin with it ("Checkpoint x.pt").

    Raises:
        InputError: it would import something else.
        Exception: whatever unpickling it raises.
    """

    class Unpickler(pickle.Unpickler):
        def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
            if f"{module}.{name}" not in allowed:
                raise InputError(
                    f"{what} is refused: it would import {module}.{name}, hidden from the list of what it needs, as a "
                    "forged file does. Do not trust it; ask for its weights alone (a state_dict)."
                )
            return super().find_class(module, name)

    def load(file: BinaryIO, **options: Any) -> Any:  # noqa: ANN401
        return Unpickler(file, **options).load()

    old_format = not is_zip(stream) and _first_value(stream) == _OLD_FORMAT
    plain = not old_format and not is_zip(stream)
    stream.seek(0)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # about old formats and moved classes: the user's training code may well be old
        if plain:
            return load(stream)
        module = SimpleNamespace(Unpickler=Unpickler, load=load, __name__="pickle")
        return torch.load(stream, map_location="cpu", pickle_module=module, weights_only=False)


class _Recorder(pickle._Unpickler):
    """The unpickler in Python, which keeps its memo in a dict: a forged index cannot make it ask for gigabytes."""

    def __init__(self, stream: BinaryIO) -> None:
        super().__init__(stream, encoding="utf-8", errors="replace")
        self.names: set[_Name] = set()

    def find_class(self, module: str, name: str) -> Any:  # noqa: ANN401
        self.names.add((module, name))
        if (module, name) == ("collections", "OrderedDict"):
            return OrderedDict
        return type("Placeholder", (Placeholder,), {"imported": f"{module}.{name}"})

    def persistent_load(self, pid: object) -> object:
        if isinstance(pid, tuple) and len(pid) > 1 and pid[0] == "module":  # the old format keeps classes so
            return pid[1]
        return Placeholder()

    def get_extension(self, code: int) -> None:
        raise pickle.UnpicklingError(f"extension {code}: this process's own registry is not a pickle's to use")


def _outline(stream: BinaryIO) -> tuple[object, set[_Name]]:
    """The saved object in placeholders (None if the stream breaks off), and the imports up to there."""
    names: set[_Name] = set()
    values: list[object] = []
    for _ in range(_MAX_PICKLES):
        recorder = _Recorder(stream)
        try:
            values.append(recorder.load())
        except Exception:  # pickle's own documentation: an unpickler may raise any exception on a damaged file
            if values or _starts_as_pickle(stream):
                names |= recorder.names
            break
        names |= recorder.names
    old_format = bool(values) and values[0] == _OLD_FORMAT
    place = _OLD_FORMAT_OBJECT if old_format else 0
    return (values[place] if len(values) > place else None), names


def _first_value(stream: BinaryIO) -> object:
    stream.seek(0)
    try:
        return _Recorder(stream).load()
    except Exception:  # as above
        return None


def _starts_as_pickle(stream: BinaryIO) -> bool:
    stream.seek(0)
    return stream.read(1) == pickle.PROTO


def _zip_pickles(stream: BinaryIO) -> list[BinaryIO]:
    try:
        with zipfile.ZipFile(stream) as archive:
            records = [name for name in archive.namelist() if name.endswith("/data.pkl")]
            return [io.BytesIO(archive.read(record)) for record in records]
    except ZIP_ERRORS:
        return []  # a damaged archive has nothing to name; the caller reports it as damaged


def _imports_of_stream(stream: BinaryIO) -> set[_Name]:
    """(module, name) of each import in the pickles at the start of `stream`, up to the first byte that is none."""
    found: set[_Name] = set()
    for _ in range(_MAX_PICKLES):
        names, complete, starts_as_pickle = _imports_of_pickle(stream)
        # A text that begins with "c" looks like an import of protocol 0: believe it only if the pickle ends properly.
        if complete or starts_as_pickle:
            found |= names
        if not complete:
            break
    return found


def _imports_of_pickle(stream: BinaryIO) -> tuple[set[_Name], bool, bool]:
    """The imports of one pickle, whether it is complete, and whether it begins with a protocol number."""
    names: set[_Name] = set()
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


def _refused_by_torch(words: set[_Name]) -> list[str]:
    """Those of `words` that `torch.load(weights_only=True)` refuses.

    PyTorch answers this for checkpoints in its zip format only, so the names are put into one.
    """
    checkpoint = io.BytesIO()
    with zipfile.ZipFile(checkpoint, "w") as archive:
        archive.writestr("names/version", "3\n")
        imports = "".join(f"c{module}\n{name}\n" for module, name in sorted(words))
        archive.writestr("names/data.pkl", b"\x80\x02" + imports.encode() + b".")
    checkpoint.seek(0)
    return torch.serialization.get_unsafe_globals_in_checkpoint(checkpoint)
