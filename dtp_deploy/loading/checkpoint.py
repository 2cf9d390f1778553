"""Trained weights from a file, without running any code that the file may hold.

`read_checkpoint` finds the state_dict in the file; `load_weights` puts it onto a model, whole or not at all.

A checkpoint often wraps its state_dict. The first of `WRAPPER_KEYS` that holds a dict is unwrapped, up to three levels
deep: the weights that were trained come before their moving average (EMA). `Checkpoint.key` says which was taken.
"""

import hashlib
import warnings
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import BinaryIO

import safetensors.torch
import torch
from torch import Tensor, nn

from dtp_deploy.errors import InputError
from dtp_deploy.loading.archives import ZIP_MAGIC, is_safetensors, zip_records
from dtp_deploy.loading.files import require_file
from dtp_deploy.loading.pickles import unsafe_imports
from dtp_deploy.loading.wording import cause, kind_text, listing

WRAPPER_KEYS = (
    "state_dict",
    "model_state_dict",
    "model",
    "params",
    "state_dict_ema",
    "model_ema",
    "ema",
)
"""Keys under which a checkpoint keeps its state_dict, in the order in which they are tried."""

_WRAPPER_PREFIXES = ("module.", "_orig_mod.")
"""What DataParallel (and DistributedDataParallel) and torch.compile put before every name."""

_COUNT = "num_batches_tracked"
_MAX_DEPTH = 3
_SAVE_AGAIN = "Save it again with torch.save(model.state_dict(), path)."


@dataclass(frozen=True, eq=False)
class Checkpoint:
    """The weights that a file holds.

    Attributes:
        path: the file.
        state_dict: tensor by name, on the CPU, without the prefixes of DataParallel and torch.compile.
        key: the keys that led to it inside the file, joined by dots ("model", "ema.state_dict"); None at the top level.
        sha256: of the whole file, in hexadecimal digits.
    """

    path: Path
    state_dict: dict[str, Tensor]
    key: str | None
    sha256: str


def read_checkpoint(path: Path) -> Checkpoint:
    """Read a state_dict from what `torch.save` wrote (any of its formats), or from a ``.safetensors`` file.

    Nothing in the file is run: it is read with ``weights_only=True``, and refused if that is not enough.

    Raises:
        InputError: the file is missing, empty, damaged, no checkpoint, needs code to load, or holds no state_dict.
    """
    path = Path(path)
    require_file(
        path, "Checkpoint", "Give a file written by torch.save(model.state_dict(), path), or a .safetensors file."
    )
    with path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
        safe = path.suffix == ".safetensors" or is_safetensors(stream)
        stream.seek(0)
        content = _load_safetensors(path) if safe else _load_torch(path, stream)
    return checkpoint_of(path, content, sha256)


def checkpoint_of(path: Path, content: object, sha256: str) -> Checkpoint:
    """The state_dict in what a file held: a dict of tensors, or one that wraps it under `WRAPPER_KEYS`.

    Raises:
        InputError: there is no state_dict in it.
    """
    inner, keys = _unwrap(content)
    tensors = _check_state_dict(path, inner)
    state_dict = {name: tensors[own] for name, own in _short_names(tensors).items()}
    return Checkpoint(path, state_dict, ".".join(keys) or None, sha256)


def load_weights(model: nn.Module, checkpoint: Checkpoint) -> None:
    """Put the weights of a checkpoint onto a model, in the model's own data types. All of them, or none.

    ``num_batches_tracked`` of BatchNorm, which old checkpoints lack, may be missing; as floating point, as in a
    state_dict whose every tensor was made half precision, it is rounded (an overflow becomes the largest number).

    Raises:
        InputError: names are missing or unexpected, shapes or kinds of number differ, or weights are NaN or infinite.
    """
    own = {name: value for name, value in model.state_dict().items() if isinstance(value, Tensor)}
    names = _short_names(own)
    given = {
        name: value.nan_to_num().round().long() if name.endswith(_COUNT) and value.is_floating_point() else value
        for name, value in checkpoint.state_dict.items()
    }
    missing = [name for name in names if name not in given and not name.endswith(_COUNT)]
    unexpected = [name for name in given if name not in names]
    common = [name for name in names if name in given]
    shapes = [
        f"{name} {_shape(given[name])} where the model has {_shape(own[names[name]])}"
        for name in common
        if given[name].shape != own[names[name]].shape
    ]
    kinds = [
        f"{name} {_data_type(given[name])} where the model has {_data_type(own[names[name]])}"
        for name in common
        if _kind(given[name]) != _kind(own[names[name]])
    ]
    problems = {"missing": missing, "unexpected": unexpected, "wrong shapes": shapes, "wrong data types": kinds}
    if any(problems.values()):
        text = "; ".join(f"{problem}: {listing(found)}" for problem, found in problems.items() if found)
        raise InputError(
            f"Checkpoint {checkpoint.path} does not fit the model: {text}. {_fitting_remedy(names, given)}"
        )
    loaded = {names[name]: given[name].to(own[names[name]].dtype) for name in common}
    _check_finite(checkpoint.path, loaded, own)
    model.load_state_dict(own | loaded, strict=False)  # not strict: `own` leaves out extra state that is no tensor


def _load_safetensors(path: Path) -> object:
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:
        raise InputError(
            f"Checkpoint {path} is damaged or no safetensors file ({cause(error)}). Copy or save it again."
        ) from error


def _load_torch(path: Path, stream: BinaryIO) -> object:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about old formats and protocols; what matters ends up in the refusal
            return torch.load(stream, map_location="cpu", weights_only=True)
    except Exception as error:
        stream.seek(0)
        raise InputError(f"Checkpoint {path} {_why_not_loaded(stream)}") from error


def _why_not_loaded(stream: BinaryIO) -> str:
    """The rest of the sentence that begins with "Checkpoint PATH", for a file that `torch.load` refused."""
    start = stream.read(len(ZIP_MAGIC))
    records = zip_records(stream)
    if records:
        if "constants.pkl" in records:
            return (
                "is a TorchScript archive, which holds a program and not only weights. "
                "Open it with torch.jit.load where you trust it, and save its state_dict() with torch.save."
            )
        if "data.pkl" not in records:
            return f"is a zip archive, but no checkpoint: it has no data.pkl. {_SAVE_AGAIN}"
    unsafe = unsafe_imports(stream)
    if unsafe:
        return (
            f"is refused: it needs code to load ({listing(unsafe)}), and only weights are read here; nothing was run. "
            f"Where you trust the file, load it yourself. {_SAVE_AGAIN}"
        )
    if start == ZIP_MAGIC or start[:1] == b"\x80":  # the latter begins a pickle of protocol 2 or later
        return "is truncated or damaged, or not written by torch.save. Copy it again, or save it again with torch.save."
    return f"is not a checkpoint: torch.save did not write it. {_SAVE_AGAIN}"


def _unwrap(content: object) -> tuple[object, list[str]]:
    """The innermost dict along `WRAPPER_KEYS`, and the keys that led to it."""
    keys: list[str] = []
    while isinstance(content, Mapping) and len(keys) < _MAX_DEPTH:
        key = next((key for key in WRAPPER_KEYS if isinstance(content.get(key), Mapping)), None)
        if key is None:
            break
        content = content[key]
        keys.append(key)
    return content, keys


def _check_state_dict(path: Path, content: object) -> dict[str, Tensor]:
    if not isinstance(content, Mapping):
        raise InputError(f"Checkpoint {path} holds {kind_text(content)}, not a state_dict. {_SAVE_AGAIN}")
    if not content:
        raise InputError(f"Checkpoint {path} holds an empty dict, not a state_dict. {_SAVE_AGAIN}")
    others = [
        f"{name!r} ({type(value).__name__})"
        for name, value in content.items()
        if not (isinstance(name, str) and isinstance(value, Tensor))
    ]
    if others:
        raise InputError(
            f"Checkpoint {path} holds no state_dict: not a weight by name are {listing(others)}. "
            f"Give tensors by name, at the top level or under one of: {', '.join(WRAPPER_KEYS)}."
        )
    return dict(content)


def _short_names(names: Collection[str]) -> dict[str, str]:
    """Each name by what is left of it without the prefixes that wrappers put before all of them.

    >>> _short_names(["module._orig_mod.fc.weight", "module._orig_mod.fc.bias"])
    {'fc.weight': 'module._orig_mod.fc.weight', 'fc.bias': 'module._orig_mod.fc.bias'}
    >>> _short_names(["module.fc.weight", "head.weight"])
    {'module.fc.weight': 'module.fc.weight', 'head.weight': 'head.weight'}
    """
    short = {name: name for name in names}
    while prefix := next((p for p in _WRAPPER_PREFIXES if short and all(name.startswith(p) for name in short)), None):
        short = {name.removeprefix(prefix): own for name, own in short.items()}
    return short


def _fitting_remedy(expected: Collection[str], given: Collection[str]) -> str:
    """What to do about names that do not match: point at a common prefix, where that alone is the matter."""
    for longer, shorter, change in ((given, expected, "without"), (expected, given, "with")):
        prefix = next(iter(longer)).partition(".")[0] + "." if longer else ""
        if prefix and {name.removeprefix(prefix) for name in longer if name.startswith(prefix)} == set(shorter):
            return f"The names would match {change} '{prefix}' before each: save the state_dict with such names."
    return "Give the factory of the network that was trained, built with the same settings (number of classes, say)."


def _check_finite(path: Path, loaded: Mapping[str, Tensor], own: Mapping[str, Tensor]) -> None:
    # A buffer may hold an infinity by design (an attention mask): then the model's own has the same.
    bad = [
        name for name, value in loaded.items() if not value.isfinite().all() and not torch.equal(value, own[name].cpu())
    ]
    if bad:
        raise InputError(
            f"Checkpoint {path} holds NaN or infinite weights: {listing(bad)}. "
            "Give a checkpoint from before the training diverged."
        )


def _shape(tensor: Tensor) -> str:
    return "x".join(map(str, tensor.shape)) or "scalar"


def _data_type(tensor: Tensor) -> str:
    name = str(tensor.dtype).removeprefix("torch.")
    return name if tensor.layout == torch.strided else f"{name} ({str(tensor.layout).removeprefix('torch.')})"


def _kind(tensor: Tensor) -> str:
    """What must agree for a value to keep its meaning when it is cast to another width."""
    if tensor.is_quantized or tensor.layout != torch.strided:
        return _data_type(tensor)
    return "float" if tensor.is_floating_point() else "complex" if tensor.is_complex() else "integer"
