"""The folder that a run delivers: written beside its place, moved there when it is complete, read back without pickle.

A run writes into ``DIR.partial`` and renames that to ``DIR`` as its last act. Hence ``DIR`` is whole or absent.
"""

from __future__ import annotations

import errno
import fcntl
import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import TYPE_CHECKING

from dtp_deploy.errors import BudgetError, InputError, ParityError, TrainingError, UsageError

if TYPE_CHECKING:  # the command line checks --out before it pays for PyTorch and pydantic
    from torch import nn

    from dtp_deploy.prune import PruningPlan
    from dtp_deploy.report import Report

MODEL_ONNX = "model.onnx"
MODEL_PROGRAM = "model.pt2"
WEIGHTS = "model.safetensors"
MODULE = "module.pt"
PLAN = "pruning_plan.json"
REPORT_JSON = "report.json"
REPORT_MARKDOWN = "report.md"
CHECKPOINTS = "checkpoints"

_REMEDY = "Give a folder that dtp-deploy compress --out wrote, as it was written."
_LOCK = ".dtp-deploy-writes-here"


def check_output(out: Path, force: bool = False) -> None:
    """Refuse an output folder that could not be written at the end. Writes nothing.

    Raises:
        UsageError: `out` exists and `force` is not set; or it holds something else than our own artefact; or it cannot
            be made or replaced.
    """
    place = out.resolve()
    if os.path.lexists(place):
        _check_replaceable(out, place, force)
    parent = place.parent
    while not os.path.lexists(parent):
        parent = parent.parent
    if not parent.is_dir():
        raise UsageError(f"--out {out} cannot be made, because {parent} is not a folder. Give another folder.")
    if not os.access(parent, os.W_OK | os.X_OK):
        raise UsageError(
            f"--out {out} cannot be made, because {parent} is not writable. Give a folder that you may write."
        )


def partial_of(out: Path) -> Path:
    """The folder in which a run works before DIR stands: ``DIR.partial``."""
    place = out.resolve()
    return place.with_name(f"{place.name}.partial")


@contextmanager
def open_artefact(out: Path, force: bool = False, resume: bool = False) -> Iterator[Path]:
    """Give ``DIR.partial`` to write into, and make it DIR when the block ends well.

    On any exception, an interrupt included, ``DIR.partial`` and the parents made for it are removed and DIR is as it
    was; only checkpoints stay, for a later run to go on from. With `force` an existing artefact is moved aside, and
    deleted only after the new one stands in its place; checkpoints of an earlier run are deleted at once.

    Raises:
        UsageError: as `check_output`; or another run is writing there; or there are checkpoints and neither `force`
            nor `resume`, or `resume` and no checkpoints; or the file system refuses.
        InputError: the disk is full.
    """
    check_output(out, force)
    place = out.resolve()
    partial = partial_of(out)
    made = _missing_parents(place)
    try:
        _check_checkpoints(out, partial, force, resume)
        lock = _claim(out, partial, kept=CHECKPOINTS if resume else None)
    except BaseException:
        _remove_empty(made)
        raise
    try:
        yield partial
    except BaseException as error:
        # Where the answer would be the same again, nobody is told to go on.
        hopeless = isinstance(error, BudgetError | ParityError | TrainingError)
        if _has_checkpoints(partial) and not hopeless:
            (partial / _LOCK).touch()  # it says that the folder is ours
            _clear(partial, {_LOCK, CHECKPOINTS})
        else:
            shutil.rmtree(partial, ignore_errors=True)
            _remove_empty(made)
        os.close(lock)
        if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
            remedy = f"go on with --resume {out}" if _has_checkpoints(partial) else "run the same command again"
            raise InputError(f"{partial} cannot be written ({error.strerror}). Make room, and {remedy}.") from error
        raise
    # From here on everything is there, and whatever happens it stays: in DIR, or in DIR.partial with its checkpoints.
    try:
        check_output(out, force)  # a run is long enough for somebody else to have written there
        _sync(partial)
        _put_in_place(out, partial, place)
        shutil.rmtree(place / CHECKPOINTS, ignore_errors=True)
        (place / _LOCK).unlink()
    except UsageError as error:
        raise UsageError(f"{error} What this run made is complete in {partial}.") from error
    finally:
        os.close(lock)


def write_report(report: Report, directory: Path) -> None:
    """Write ``report.json``, ``report.md`` and the picture of the mask phase into `directory`; an earlier report there
    is replaced, or stays whole.

    Raises:
        InputError: they cannot be written.
    """
    texts = _texts_of(report)
    partials = {name: directory / f".{name}.{os.getpid()}.partial" for name in texts}
    try:
        for name, text in texts.items():
            with partials[name].open("w", encoding="utf-8") as stream:
                stream.write(text)
                stream.flush()
                os.fsync(stream.fileno())
        for name, partial in partials.items():
            partial.replace(directory / name)
    except OSError as error:
        raise InputError(
            f"The report in {directory} cannot be written ({error.strerror}). Free some space there, and see that you "
            "may write; what was there is as it was."
        ) from error
    finally:
        for partial in partials.values():
            with suppress(OSError):
                partial.unlink()


def add_report(report: Report, partial: Path) -> None:
    """Write the report into a folder that `open_artefact` gave, which also tells of a disk that is full."""
    for name, text in _texts_of(report).items():
        (partial / name).write_text(text, encoding="utf-8")


def _texts_of(report: Report) -> dict[str, str]:
    from dtp_deploy.report import MASK_PHASE, render_markdown, render_mask_phase

    texts = {REPORT_JSON: report.to_json(), REPORT_MARKDOWN: render_markdown(report)}
    if (picture := render_mask_phase(report)) is not None:
        texts[MASK_PHASE] = picture
    return texts


def save_weights(model: nn.Module, path: Path) -> None:
    """Write parameters and buffers as safetensors. Tied tensors are written once for each of their names."""
    from safetensors.torch import save

    # Not save_file, which makes files that only their owner may read.
    path.write_bytes(
        save({name: tensor.detach().cpu().clone().contiguous() for name, tensor in model.state_dict().items()})
    )


def save_module(model: nn.Module, path: Path) -> None:
    """Pickle a whole module, for those who trust pickles: `torch.load(path, weights_only=False)` reads it where the
    code of the model can be imported.

    Raises:
        InputError: the model cannot be pickled.
    """
    import io

    import torch

    from dtp_deploy.loading.wording import cause

    buffer = io.BytesIO()
    try:
        torch.save(model, buffer)
    except Exception as error:  # pickling runs the model's own code
        raise InputError(
            f"--save-module: {type(model).__name__} cannot be pickled ({cause(error)}). Leave the option out: "
            "load_pruned reads the model without pickle."
        ) from error
    path.write_bytes(buffer.getvalue())


def load_pruned(factory: Callable[[], nn.Module] | nn.Module | str, directory: Path | str) -> nn.Module:
    """Rebuild a delivered model: the dense model, less the removed channels, with the delivered weights.

    Args:
        factory: makes the dense model, or ``"pkg.module:name"`` of such a function, or a dense model (left unchanged).
            Where the run was given ``--prepare``, that belongs to it.
        directory: what ``dtp-deploy compress --out`` wrote.

    Returns:
        The pruned model in eval mode.

    Raises:
        InputError: a file is missing or damaged, the plan was made for another model, or the factory fails.
    """
    from dtp_deploy.loading.files import require_file
    from dtp_deploy.prune import remove_channels

    plan_path, weights_path = Path(directory) / PLAN, Path(directory) / WEIGHTS
    plan = read_plan(directory)
    require_file(weights_path, "Weights", _REMEDY)
    dense = _dense(factory)
    plan.check(dense)
    if (damage := plan.damage(dense)) is not None:
        raise InputError(f"{plan_path} is damaged ({damage}). {_REMEDY}")
    model = remove_channels(dense, plan)
    _load_weights(model, weights_path, plan.weights_sha256)
    return model.eval()


def read_plan(directory: Path | str) -> PruningPlan:
    """The pruning plan in a delivered folder.

    Raises:
        InputError: it is missing or damaged, or of a newer schema.
    """
    from dtp_deploy.loading.files import require_file
    from dtp_deploy.prune import PruningPlan

    path = Path(directory) / PLAN
    require_file(path, "Pruning plan", _REMEDY)
    try:
        return PruningPlan.from_json(path.read_text(encoding="utf-8"))
    except UnicodeDecodeError:
        raise InputError(f"{path} is damaged: it is not text. {_REMEDY}") from None
    except InputError as error:
        raise InputError(f"{path}: {error}") from error


def _dense(factory: Callable[[], nn.Module] | nn.Module | str) -> nn.Module:
    """The dense model that the user's factory makes."""
    from torch import nn

    from dtp_deploy.loading.factory import make_model
    from dtp_deploy.loading.wording import cause

    if isinstance(factory, str):
        return make_model(factory)
    if isinstance(factory, nn.Module):
        return factory
    if not callable(factory):
        raise UsageError(
            f"load_pruned() got a {type(factory).__name__} as its factory. Give a function that makes the dense model."
        )
    try:
        dense = factory()
    except Exception as error:
        raise InputError(f"The factory raised {cause(error)}. Correct it; it is called without arguments.") from error
    if not isinstance(dense, nn.Module):
        raise InputError(f"The factory returned a {type(dense).__name__}. Let it return the dense torch.nn.Module.")
    return dense


def _check_replaceable(out: Path, place: Path, force: bool) -> None:
    if not place.is_dir():
        raise UsageError(f"--out {out} is a file. Give a folder that does not exist yet.")
    if os.path.ismount(place):
        raise UsageError(f"--out {out} is a mount point and cannot be replaced. Give a folder inside of it.")
    if any(place.iterdir()) and not (place / REPORT_JSON).is_file():
        raise UsageError(
            f"--out {out} exists and holds no {REPORT_JSON}, so not even --force replaces it: it may be something of "
            "yours. Give another folder, or delete it yourself."
        )
    if not force:
        raise UsageError(f"--out {out} exists already. Give another folder, or --force to replace it.")


def _missing_parents(place: Path) -> list[Path]:
    """The folders above `place` that do not exist, innermost first."""
    return [parent for parent in place.parents if not parent.exists()]


def _check_checkpoints(out: Path, partial: Path, force: bool, resume: bool) -> None:
    there = _has_checkpoints(partial)
    if resume and not there:
        raise UsageError(f"--resume {out}: there are no checkpoints in {partial}. Start the run with --out {out}.")
    if there and not (resume or force):
        raise UsageError(
            f"{partial} holds the checkpoints of a run that was cut off. Go on with --resume {out}, or start over with "
            "--force."
        )


def _has_checkpoints(partial: Path) -> bool:
    return bool(list((partial / CHECKPOINTS).glob("*.checkpoint")))


def _clear(folder: Path, kept: set[str]) -> None:
    for path in folder.iterdir():
        if path.name in kept:
            continue
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()


def _claim(out: Path, partial: Path, kept: str | None = None) -> int:
    """Make an empty `partial` with our lock in it, and give the lock's file descriptor. What is `kept` stays there.

    The lock tells a folder that a killed run left (ours, nobody holds it) from one that is in use, or is not ours.
    """
    lock_path = partial / _LOCK
    try:
        if os.path.lexists(partial) and not lock_path.is_file():
            raise UsageError(
                f"--out {out} needs {partial}, which exists and is not ours. Remove it, or give another folder."
            )
        partial.mkdir(parents=True, exist_ok=True)
        lock = os.open(lock_path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            os.close(lock)
            raise UsageError(
                f"--out {out} is being written by another run ({error.strerror}). Wait for it, or give another folder."
            ) from None
        _clear(partial, {_LOCK} | ({kept} if kept else set()))
    except OSError as error:
        raise UsageError(f"--out {out} cannot be made ({error.strerror}). Give a folder that you may write.") from error
    return lock


def _put_in_place(out: Path, partial: Path, place: Path) -> None:
    """Rename `partial` to `place`. Two renames where one is replaced: no single one swaps non-empty folders."""
    replaced = place.with_name(f"{place.name}.replaced-{os.getpid()}")
    try:
        try:
            if place.exists():
                place.rename(replaced)
            partial.rename(place)
        except BaseException:
            if replaced.exists() and not place.exists():
                replaced.rename(place)
            raise
    except OSError as error:
        raise UsageError(f"--out {out} cannot be written ({error.strerror}). Give another folder.") from error
    shutil.rmtree(replaced, ignore_errors=True)


def _sync(folder: Path) -> None:
    """Have every file of a folder on the disk before anything says that it is complete."""
    for path in [*(file for file in folder.iterdir() if file.is_file()), folder]:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with suppress(OSError):
            folder.rmdir()


def _load_weights(model: nn.Module, path: Path, sha256: str) -> None:
    """Put the weights of a file onto a model. `sha256` is that of the file as it was written; "" if nobody knows."""
    import hashlib

    from safetensors import SafetensorError
    from safetensors.torch import load_file

    from dtp_deploy.loading.wording import cause

    try:
        tensors = load_file(path)
    except SafetensorError as error:
        raise InputError(f"{path} is damaged ({cause(error)}). {_REMEDY}") from None
    try:
        model.load_state_dict(tensors)
    except RuntimeError as error:
        raise InputError(f"{path} does not belong to the {PLAN} beside it ({_last_line(error)}). {_REMEDY}") from None
    if sha256 and hashlib.sha256(path.read_bytes()).hexdigest() != sha256:
        raise InputError(f"{path} is not as it was written: its SHA-256 is not the one in {PLAN}. {_REMEDY}")


def _last_line(error: Exception) -> str:
    return str(error).strip().splitlines()[-1].strip()
