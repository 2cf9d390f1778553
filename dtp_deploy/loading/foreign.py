"""Models that hold operations and no layers: a torch.export program (.pt2), or a TorchScript archive.

They can be exported to ONNX (`dtp_deploy.export.foreign`) and profiled. They cannot be pruned.
"""

import warnings
from pathlib import Path

import torch
from torch.export import ExportedProgram

from dtp_deploy.errors import InputError, UsageError
from dtp_deploy.loading.inspect import FOREIGN, inspect_checkpoint
from dtp_deploy.loading.wording import cause, listing

ForeignModel = ExportedProgram | torch.jit.ScriptModule


def load_foreign(path: Path | str, *, trust: bool = False) -> ForeignModel:
    """Load a torch.export program or a TorchScript archive onto the CPU.

    Loading either is up to the file: PyTorch unpickles parts of a program and evaluates expressions in it, and a
    TorchScript archive is a program that may write files. So both need trust, whatever they seem to import.

    Raises:
        UsageError: `trust` is not given.
        InputError: the file is something else, or cannot be loaded.
    """
    info = inspect_checkpoint(path)
    if info.kind not in FOREIGN:
        raise InputError(
            f"Model {path} is of the kind {info.kind}, which needs an example input to be exported. "
            "Give an ONNX file, a .pt2 file or a TorchScript archive."
        )
    if not trust:
        imports = f" It would import {listing(info.imports)}." if info.imports else ""
        raise UsageError(
            f"Model {path} is {FOREIGN[info.kind]}, which may run code when it is loaded; nothing was run.{imports} "
            "Give --trust if you know where the file comes from, or give an ONNX file."
        )
    try:
        if info.kind == "torchscript":
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # that TorchScript is deprecated
                script: torch.jit.ScriptModule = torch.jit.load(str(path), map_location="cpu")  # type: ignore[no-untyped-call]
            return script
        return torch.export.load(str(path))
    except Exception as error:
        raise InputError(
            f"Model {path} could not be loaded by PyTorch {torch.__version__} ({cause(error)}). "
            "Save it again with this version, or give an ONNX file."
        ) from error
