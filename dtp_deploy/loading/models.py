"""A model ready to prune from what the user has: a pickle, weights and a factory, a name at timm or torchvision."""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING

import torch
from torch import nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.checkpoint import Checkpoint, checkpoint_of, load_weights, read_checkpoint
from dtp_deploy.loading.compatibility import with_torchvision
from dtp_deploy.loading.factory import check_materialised, make_cwd_importable, make_model
from dtp_deploy.loading.hubs import build, fitted, is_hub_spec, parse_hub_spec, suggestions
from dtp_deploy.loading.inspect import FOREIGN, MODULE_KEYS, CheckpointInfo, inspect_checkpoint, model_in
from dtp_deploy.loading.pickles import load_trusted, read_contents
from dtp_deploy.loading.wording import cause, listing

if TYPE_CHECKING:
    from dtp_deploy.loading.preprocessing import Preprocessing

_TO_FLOAT32 = (torch.float16, torch.bfloat16, torch.float64)
_WRAPPERS = (nn.DataParallel, nn.parallel.DistributedDataParallel)
_FACTORY = re.compile(r"[^\W\d][\w.]*:[^\W\d][\w.]*")


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A model with its trained weights, in float32 on the CPU.

    Attributes:
        model: the model, in the mode in which it came.
        name: short, for reports.
        origin: where model and weights came from, in words.
        notes: what was decided or changed on the way, a sentence each, for the report.
        factory: what makes the dense model again (see `make_model`); None for a pickled model.
        suggested_input_shapes: of each input, batch of 1 included, where the model's own configuration names it.
        suggested_preprocessing: likewise.
    """

    model: nn.Module
    name: str
    origin: str
    notes: tuple[str, ...] = ()
    factory: str | None = None
    suggested_input_shapes: tuple[tuple[int, ...], ...] | None = None
    suggested_preprocessing: Preprocessing | None = None


def load_model(path_or_spec: Path | str, *, factory: str | None = None, trust: bool = False) -> LoadedModel:
    """Load a trained model.

    Args:
        path_or_spec: a file (state_dict, safetensors, pickled model, checkpoint dict); or, for weights without a file,
            ``timm:NAME`` or ``torchvision:NAME`` (those that the package offers) or ``pkg.module:name`` (a factory of a
            trained model). A file of such a name comes first.
        factory: ``pkg.module:name``, ``timm:NAME`` or ``torchvision:NAME``, for a file that holds weights only. For a
            pickled model, whose weights it is then given, it is optional.
        trust: whether the file may import and run code; what it would import is in `inspect_checkpoint`.

    Raises:
        UsageError: options are missing or contradict each other; the file needs trust.
        InputError: the file or the factory cannot be used, or the file holds a graph of operations without layers.
    """
    text = str(path_or_spec)
    if (is_hub_spec(text) or _FACTORY.fullmatch(text)) and not Path(text).exists():
        return _from_spec(text, factory)
    path = Path(path_or_spec)
    info = inspect_checkpoint(path)
    _check_usable(info, trust)
    found = _unpickle(info) if info.needs_trust else read_checkpoint(path)
    if isinstance(found, nn.Module) and factory is None:
        return _finished(_from_pickle(info, found))
    _check_factory(info, factory)
    assert factory is not None
    checkpoint = _weights_of(info, found) if isinstance(found, nn.Module) else found
    return _finished(_from_factory(factory, checkpoint))


def _from_spec(spec: str, factory: str | None) -> LoadedModel:
    if factory is not None:
        raise UsageError(
            f"{spec} names a model already, and --model {factory} another. Give a checkpoint file with --model, or "
            f"{spec} alone."
        )
    if not is_hub_spec(spec):
        name = spec.rpartition(":")[2].rpartition(".")[2]
        return _finished(LoadedModel(make_model(spec), name, f"{spec}, with the weights that it sets", factory=spec))
    hub_spec = parse_hub_spec(spec)
    model = build(hub_spec, pretrained=True)
    return _finished(_of_hub(LoadedModel(model, hub_spec.name, f"{spec}, with its package's weights", factory=spec)))


def _from_factory(factory: str, checkpoint: Checkpoint) -> LoadedModel:
    model = make_model(factory)
    notes = (
        [] if checkpoint.key is None else [f"The weights are those under '{checkpoint.key}' in {checkpoint.path.name}."]
    )
    if is_hub_spec(factory):
        spec = parse_hub_spec(factory)
        found = fitted(spec, model, checkpoint.state_dict)
        if found != spec:
            model, factory = build(found), str(found)
            changes = " and ".join(f"{key}={value}" for key, value in found.options.items())
            notes.append(f"The model was made with {changes}, as its weights are.")
    load_weights(model, checkpoint)
    others = sorted({str(value.dtype) for value in checkpoint.state_dict.values() if value.dtype in _TO_FLOAT32})
    if others:
        notes.append(_was_converted(others))
    name = parse_hub_spec(factory).name if is_hub_spec(factory) else checkpoint.path.stem
    loaded = LoadedModel(model, name, f"{factory}, weights of {checkpoint.path.name}", tuple(notes), factory)
    return _of_hub(loaded) if is_hub_spec(factory) else loaded


def _from_pickle(info: CheckpointInfo, model: nn.Module) -> LoadedModel:
    notes = [f"It was unpickled, which ran code of: {', '.join(info.imports)}."]
    if info.key is not None:
        notes.append(f"The model is the one under '{info.key}'; the order of preference is {', '.join(MODULE_KEYS)}.")
    while isinstance(model, _WRAPPERS):
        model = model.module
    if not any(parameter.requires_grad for parameter in model.parameters()):
        model.requires_grad_(True)
        notes.append("None of its parameters could be trained, as in a moving average; now all of them can.")
    name = type(model).__name__
    return LoadedModel(model, info.path.stem, f"{name}, pickled in {info.path.name}", tuple(notes))


def _of_hub(loaded: LoadedModel) -> LoadedModel:
    """With what the configuration of timm or torchvision says of inputs and preprocessing."""
    assert loaded.factory is not None
    shape, preprocessing = suggestions(parse_hub_spec(loaded.factory), loaded.model)
    shapes = None if shape is None else (shape,)
    return replace(loaded, suggested_input_shapes=shapes, suggested_preprocessing=preprocessing)


def _finished(loaded: LoadedModel) -> LoadedModel:
    """In float32, and seen to hold finite weights."""
    model, tensors = loaded.model, dict(loaded.model.named_parameters())
    if not tensors:
        raise InputError(f"{loaded.name} has no parameters, so there is nothing to prune. Give a model with layers.")
    bad = [name for name, value in tensors.items() if not value.isfinite().all()]
    if bad:
        raise InputError(
            f"{loaded.origin}, holds NaN or infinite weights: {listing(bad)}. "
            "Give a checkpoint from before the training diverged."
        )
    others = sorted(
        {str(value.dtype) for value in (*model.parameters(), *model.buffers()) if value.dtype in _TO_FLOAT32}
    )
    if not others:
        return loaded
    model.float()
    return replace(loaded, notes=(*loaded.notes, _was_converted(others)))


def _was_converted(types: list[str]) -> str:
    names = " and ".join(name.removeprefix("torch.") for name in types)
    return f"Its weights were {names}; they were made float32 to be pruned and trained."


def _check_usable(info: CheckpointInfo, trust: bool) -> None:
    if info.kind == "artefact":
        raise InputError(
            f"Checkpoint {info.path} is a folder that dtp-deploy wrote, not a file. "
            "Load it with dtp_deploy.load_pruned(factory, folder)."
        )
    if not info.can_be_pruned:
        raise InputError(
            f"Checkpoint {info.path} is {FOREIGN[info.kind]}: it can be exported and profiled, not pruned, because it "
            "has operations and no layers. Give the nn.Module that it was made from (torch.save(model, path), with "
            "--trust), or its state_dict with --model."
        )
    if info.needs_trust and not trust:
        raise UsageError(
            f"Checkpoint {info.path} needs code to load: it would import {', '.join(info.imports)}; "
            "nothing was run. Give --trust if you know where the file comes from, or save the weights alone "
            "(torch.save(model.state_dict(), path)) and give --model."
        )


def _check_factory(info: CheckpointInfo, factory: str | None) -> None:
    if factory is None:
        raise UsageError(
            f"Checkpoint {info.path} holds weights and no model. Give --model with what makes the model: a function "
            "(pkg.module:name), timm:NAME or torchvision:NAME."
        )


def _unpickle(info: CheckpointInfo) -> nn.Module | Checkpoint:
    """The model or the weights in a trusted file."""
    path = info.path
    make_cwd_importable()
    with path.open("rb") as stream:
        allowed = read_contents(stream).allowed

        def load() -> object:
            stream.seek(0)
            return load_trusted(stream, allowed, f"Checkpoint {path}")

        try:
            content = with_torchvision(load)
        except DtpError:
            raise
        except ModuleNotFoundError as error:
            raise InputError(
                f"Checkpoint {path} needs the module {error.name}, which is not here. Install the package, or work in "
                "the folder of the code that trained the model."
            ) from error
        except (Exception, SystemExit) as error:
            raise InputError(
                f"Checkpoint {path} could not be unpickled: {cause(error)}. "
                "Use the code, and the versions of packages, that it was saved with."
            ) from error
    found = model_in(content, nn.Module)
    if found is None:
        with path.open("rb") as stream:
            return checkpoint_of(path, content, hashlib.file_digest(stream, "sha256").hexdigest())
    model = found[0]
    assert isinstance(model, nn.Module)
    check_materialised(f"Checkpoint {path}", model)
    return model


def _weights_of(info: CheckpointInfo, model: nn.Module) -> Checkpoint:
    """The weights of a pickled model, to be put onto one that a factory made."""
    with info.path.open("rb") as stream:
        sha256 = hashlib.file_digest(stream, "sha256").hexdigest()
    return replace(checkpoint_of(info.path, model.state_dict(), sha256), key=info.key)
