"""Passes over an ONNX model, each verified: one that breaks the model is named and skipped, and costs nothing else.

A pass is given a copy of its own, so it may work in place or return a new model. The runner, not the pass, decides
whether the result is used.
"""

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar, Protocol

import onnx

from dtp_deploy.export.files import serialise, write_atomically
from dtp_deploy.export.quiet import first_line, held_back
from dtp_deploy.parity import ParityResult


class OnnxPass(Protocol):
    """A change to an ONNX model that shall keep what it computes, and its inputs and outputs."""

    @property
    def name(self) -> str:
        """What the report calls it."""
        ...

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The changed model; `model` itself may be changed and returned."""
        ...


@dataclass(frozen=True)
class PassOutcome:
    """What became of one pass.

    Attributes:
        name: of the pass.
        applied: whether its result is used; if not, the model before it is.
        reason: why it was skipped; empty if it was applied.
        parity: the result of the check, or None if it did not come so far.
    """

    name: str
    applied: bool
    reason: str
    parity: ParityResult | None


class SimplifyPass:
    """Constants folded, redundant operators removed and fusible ones fused, by onnxsim."""

    name: ClassVar[str] = "simplify"

    def apply(self, model: onnx.ModelProto) -> onnx.ModelProto:
        """The simplified model. onnxsim's own random check is off: the runner checks with real inputs."""
        import onnxsim  # half a second, which what exports nothing need not wait for

        with held_back():
            simplified, _ = onnxsim.simplify(model, check_n=0)
        assert isinstance(simplified, onnx.ModelProto)
        return simplified


def run_passes(
    source: Path, destination: Path, passes: Sequence[OnnxPass], check: Callable[[Path], ParityResult]
) -> list[PassOutcome]:
    """Apply passes one after another, verify each, and write the last model that held.

    A pass is skipped if it raises, breaks the rules of ONNX, changes the names, types or shapes of inputs or outputs
    or the operator sets that a runtime must have, or fails the check.

    Args:
        source: a valid ONNX file; it may be the destination too.
        destination: the file to write, at once, with the source's model if every pass was skipped.
        passes: in the order in which they are applied.
        check: compares the ONNX file at a path with the model that it shall equal.

    Returns:
        One outcome a pass, in order.
    """
    content = serialise(onnx.load(source))
    outcomes = []
    with tempfile.TemporaryDirectory() as folder:
        candidate = Path(folder) / "candidate.onnx"
        for onnx_pass in passes:
            outcome = _try(onnx_pass, content, candidate, check)
            if outcome.applied:
                content = candidate.read_bytes()
            outcomes.append(outcome)
    write_atomically(destination, content)
    return outcomes


def _try(onnx_pass: OnnxPass, content: bytes, candidate: Path, check: Callable[[Path], ParityResult]) -> PassOutcome:
    """Write the model after one pass to `candidate`, and judge it."""

    def skipped(reason: str, parity: ParityResult | None = None) -> PassOutcome:
        return PassOutcome(onnx_pass.name, applied=False, reason=reason, parity=parity)

    # The three `except Exception` do not re-raise: an optional improvement that fails is an outcome, not an error.
    try:
        after = onnx_pass.apply(onnx.ModelProto.FromString(content))
    except Exception as error:
        return skipped(f"it raised {first_line(error)}")
    try:
        candidate.write_bytes(serialise(after))
    except Exception as error:
        return skipped(f"it left an invalid model: {first_line(error)}")
    if _interface(after) != _interface(onnx.ModelProto.FromString(content)):
        return skipped("it changed the inputs, the outputs or the operator sets of the model")
    try:
        parity = check(candidate)
    except Exception as error:
        return skipped(f"its model could not be checked: {first_line(error)}")
    if not parity.passed:
        return skipped(
            f"it changed the numbers: relative error {parity.max_rel_error:.2g}, allowed {parity.tolerance:.2g}", parity
        )
    return PassOutcome(onnx_pass.name, applied=True, reason="", parity=parity)


def _interface(model: onnx.ModelProto) -> list[bytes]:
    """Names, types and shapes of inputs and outputs, and the operator sets that a runtime must have."""
    values = [*model.graph.input, *model.graph.output]
    opsets = sorted(model.opset_import, key=lambda opset: opset.domain)
    return [part.SerializeToString(deterministic=True) for part in (*values, *opsets)]
