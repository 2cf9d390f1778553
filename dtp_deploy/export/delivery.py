"""From a PyTorch model to the ONNX file that is delivered: export, simplify, and prove every step."""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import onnx
from torch import nn

from dtp_deploy.errors import ParityError
from dtp_deploy.export.callables import onnx_callable, torch_callable
from dtp_deploy.export.files import write_atomically
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.export.passes import PassOutcome, SimplifyPass, run_passes
from dtp_deploy.modules import Inputs
from dtp_deploy.parity import ParityResult, compare
from dtp_deploy.target import Arrays


@dataclass(frozen=True)
class Delivery:
    """An ONNX file, and the proof that it computes what the model computes.

    Attributes:
        path: the file; there is no other.
        size_bytes: its size.
        sha256: of its content.
        parity: PyTorch against ONNX, and the file before each pass against the file after it.
        passes: what became of each pass.
    """

    path: Path
    size_bytes: int
    sha256: str
    parity: tuple[ParityResult, ...]
    passes: tuple[PassOutcome, ...]


def deliver(
    model: nn.Module,
    inputs: Inputs,
    path: Path,
    batches: Sequence[Arrays],
    label: str,
    tolerance: float = 1e-4,
    metadata: Mapping[str, str] | None = None,
) -> Delivery:
    """Export the model, simplify it, and check parity at both steps.

    Args:
        model: exported in eval mode.
        inputs: an example, each tensor batch first.
        path: the file to write.
        batches: inputs that the forms are compared on; their names become the inputs' names.
        label: names the model in the parity stages, "dense" or "pruned".
        tolerance: largest relative error.
        metadata: written into the file, by key.

    Raises:
        GraphError: the model cannot be exported.
        ParityError: the exported file does not compute what the model computes.
    """
    export_onnx(model, inputs, path, input_names=tuple(batches[0]))
    exported = onnx_callable(path)
    parity = [compare(f"{label}: PyTorch to ONNX", torch_callable(model), exported, batches, tolerance)]
    require_parity(parity[0])

    def check(candidate: Path) -> ParityResult:
        return compare(f"{label}: ONNX to simplified", exported, onnx_callable(candidate), batches, tolerance)

    passes = run_passes(path, path, [SimplifyPass()], check)
    parity += [outcome.parity for outcome in passes if outcome.parity is not None]
    if metadata:
        proto = onnx.load(path)
        onnx.helper.set_model_props(proto, dict(metadata))
        write_atomically(path, proto.SerializeToString(deterministic=True))
    content = path.read_bytes()
    return Delivery(path, len(content), hashlib.sha256(content).hexdigest(), tuple(parity), tuple(passes))


def require_parity(result: ParityResult) -> None:
    """Raise unless the two forms agree.

    Raises:
        ParityError: they do not.
    """
    if not result.passed:
        raise ParityError(
            f"Parity failed at '{result.stage}': relative error {result.max_rel_error:.3g}, allowed "
            f"{result.tolerance:.3g}. The model is not delivered. Look for operations that differ between PyTorch and "
            "the runtime (resizing, sorting, random numbers), or in half precision."
        )
