"""What a model file is and what it would import, found without running any of it."""

import io
import json
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO, Literal

from dtp_deploy.errors import InputError
from dtp_deploy.loading.archives import ZIP_ERRORS, ZIP_MAGIC, is_safetensors, is_zip, zip_records
from dtp_deploy.loading.files import require_file
from dtp_deploy.loading.pickles import PickleContents, Placeholder, read_contents, unsafe_imports

Kind = Literal[
    "state_dict", "pickled-module", "pickled-dict", "exported-program", "torchscript", "safetensors", "artefact"
]

PLAN_NAME = "pruning_plan.json"
"""The file by which a folder is known as one that dtp-deploy wrote."""

MODULE_KEYS = ("ema", "model_ema", "model", "net", "network", "module")
"""Keys under which a checkpoint keeps a pickled model, in the order in which they are tried.

The moving average comes first, because it is what the frameworks that pickle models (the YOLO family) validate and
deploy. It is the other way round for a state_dict (`checkpoint.WRAPPER_KEYS`), where "ema" is often bookkeeping.
"""

FOREIGN: Mapping[str, str] = {
    "exported-program": "a torch.export program (.pt2)",
    "torchscript": "a TorchScript archive",
}
"""The kinds that hold a graph of operations and no layers, in words."""

_REMEDY = "Give a file written by torch.save, a .safetensors file, or a folder that dtp-deploy compress wrote."
_DANGEROUS = {
    "posix",
    "os",
    "nt",
    "builtins",
    "subprocess",
    "sys",
    "shutil",
    "socket",
    "importlib",
    "runpy",
}
_PROGRAM_RECORDS = ("models/model.json", "serialized_exported_program.json")


@dataclass(frozen=True)
class CheckpointInfo:
    """What a file is, told by its content alone.

    Attributes:
        path: the file or folder.
        kind: "state_dict" is whatever loads without importing anything; "pickled-dict" a dict with something else in
            it, a model or the training's settings; "artefact" a folder that dtp-deploy wrote.
        imports: "module.name" of everything that loading would import: what can run commands or touch files first,
            the user's own code before PyTorch's.
        key: under which of `MODULE_KEYS` the pickled model lies; None for a model at the top level, or for none.
        model_class: "module.name" of the pickled model's class; None where no model is pickled.
    """

    path: Path
    kind: Kind
    imports: tuple[str, ...] = ()
    key: str | None = None
    model_class: str | None = None

    @property
    def needs_trust(self) -> bool:
        """Whether loading runs code that the file brings or names."""
        return bool(self.imports) or self.kind in FOREIGN

    @property
    def can_be_pruned(self) -> bool:
        """Whether it holds layers, or weights for layers."""
        return self.kind not in FOREIGN


def inspect_checkpoint(path: Path | str) -> CheckpointInfo:
    """Find out what a model file is, by its content and not by its name, and run none of it.

    Raises:
        InputError: it is missing, unreadable, damaged, or no model that PyTorch wrote.
    """
    path = Path(path)
    if (path / PLAN_NAME).is_file():
        return CheckpointInfo(path, "artefact")
    require_file(path, "Checkpoint", _REMEDY)
    if path.suffix == ".onnx":
        raise InputError(
            f"Checkpoint {path} is an ONNX model, which can be profiled (dtp-deploy profile {path}) and not pruned. "
            "Give the PyTorch model that it was exported from."
        )
    with path.open("rb") as stream:
        if path.suffix == ".safetensors" or is_safetensors(stream):
            return CheckpointInfo(path, "safetensors")
        if is_zip(stream):
            return _inspect_zip(path, stream)
        return _inspect_pickle(path, read_contents(stream))


def model_in(content: object, is_model: type) -> tuple[object, str | None] | None:
    """The model in what a checkpoint held, and its key (None at the top level); None if there is none.

    Args:
        content: what was unpickled, or its outline in placeholders.
        is_model: the class by which a model is known.

    >>> model_in({"model": None, "ema": 3}, int)
    (3, 'ema')
    """
    if isinstance(content, is_model):
        return content, None
    if isinstance(content, Mapping):
        return next(((content[key], key) for key in MODULE_KEYS if isinstance(content.get(key), is_model)), None)
    return None


def _inspect_zip(path: Path, stream: BinaryIO) -> CheckpointInfo:
    records = set(zip_records(stream))
    if records.intersection(_PROGRAM_RECORDS):
        return CheckpointInfo(path, "exported-program", _program_imports(stream))
    if "constants.pkl" in records:
        return CheckpointInfo(path, "torchscript")
    return _inspect_pickle(path, read_contents(stream))


def _inspect_pickle(path: Path, contents: PickleContents) -> CheckpointInfo:
    """A checkpoint that imports nothing is left to `read_checkpoint`, which says what may be wrong with it."""
    if not contents.imports:
        return CheckpointInfo(path, "state_dict")
    imports = tuple(sorted(contents.imports, key=_alarm))
    found = model_in(contents.outer, Placeholder)
    if found is None:
        return CheckpointInfo(path, "pickled-dict", imports)
    model, key = found
    assert isinstance(model, Placeholder)
    return CheckpointInfo(path, "pickled-module" if key is None else "pickled-dict", imports, key, model.imported)


def _program_imports(stream: BinaryIO) -> tuple[str, ...]:
    """What the pickles inside of a torch.export program would import."""
    found: set[str] = set()
    try:
        with zipfile.ZipFile(stream) as archive:
            for name in archive.namelist():
                content = archive.read(name)
                if content.startswith(ZIP_MAGIC) or ("/constants/" in name and not _is_json(content)):
                    found.update(unsafe_imports(io.BytesIO(content)))
    except ZIP_ERRORS:
        pass  # what could be read counts; loading it will say that it is damaged
    return tuple(sorted(found, key=_alarm))


def _alarm(name: str) -> tuple[int, str]:
    """Sorts what may do anything first, and PyTorch's own last.

    >>> sorted(["torch.nn.ReLU", "nets.Net", "posix.system"], key=_alarm)
    ['posix.system', 'nets.Net', 'torch.nn.ReLU']
    """
    module = name.partition(".")[0]
    return (0 if module in _DANGEROUS else 2 if module == "torch" else 1), name


def _is_json(content: bytes) -> bool:
    try:
        json.loads(content)
    except ValueError:
        return False
    return True
