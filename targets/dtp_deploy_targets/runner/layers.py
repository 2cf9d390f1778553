"""What an engine's layers really run in, read from TensorRT's engine inspector."""

from __future__ import annotations

import json
import re
from typing import TYPE_CHECKING, Any, NamedTuple

from dtp_deploy_targets.runner.profiling import layer as plain_layer

if TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from dtp_deploy_targets.runner.exports import ProfiledLayer


class Layer(NamedTuple):
    """One layer of an engine, from ``--exportLayerInfo``.

    Attributes:
        name: its name, as in the profile.
        kind: LayerType; empty when the engine holds names only.
        precision: "fp32", "tf32", "fp16", "bf16", "fp8", "int8", "fp4" or "" where it cannot be told.
        is_compute: whether it does arithmetic (a reformat does none).
        has_weights: whether it holds weights: these layers say in which precision the model runs.
        tactic: the name of its kernel, or "".
    """

    name: str
    kind: str
    precision: str
    is_compute: bool
    has_weights: bool
    tactic: str


_NO_ARITHMETIC = frozenset({"reformat", "noop", "signal", "wait", "shape_call", "constant", "shuffle"})
_TYPES = (
    ("fp16", ("half", "fp16")),
    ("bf16", ("bfloat16", "bf16")),
    ("int8", ("int8",)),
    ("fp8", ("fp8",)),
    ("fp4", ("fp4",)),
    ("fp32", ("float", "fp32")),
)
_TACTICS = (
    ("int8", r"i8i8|int8|i8816"),
    ("fp8", r"e4m3|fp8"),
    ("bf16", r"bf16bf16"),
    ("fp16", r"f16f16|h884|h1688|h16816|hmma|fp16"),
    ("tf32", r"tf32"),
    ("fp32", r"f32f32|sgemm|fp32"),
)


def parse_layers(text: str) -> list[Layer]:
    """The layers of an engine, from ``--exportLayerInfo``.

    The file changed with the versions: ``Layers`` may be objects, or only names (an engine built without
    ``--profilingVerbosity=detailed``), or texts of one line each; the list may also be all there is.
    """
    content = json.loads(text)
    if isinstance(content, dict):
        content = content.get("Layers", content.get("LayerInfo", []))
    return [_layer(entry) for entry in content]


def _layer(entry: str | dict[str, Any]) -> Layer:
    if isinstance(entry, str):
        entry = _parse_line(entry) if entry.startswith("Name: ") else {"Name": entry}
    kind = entry.get("LayerType", "")
    is_compute = bool(kind) and kind.lower() not in _NO_ARITHMETIC
    weights = entry.get("Weights") or {}
    inputs = entry.get("Inputs") or []
    has_weights = bool(weights.get("Count")) or (kind in ("gemm", "conv") and len(inputs) > 1)
    return Layer(
        entry.get("Name", ""), kind, _precision(entry) if is_compute else "", is_compute, has_weights, _tactic(entry)
    )


def _precision(entry: dict[str, Any]) -> str:
    """The precision of a layer's arithmetic: by its weights, else by its second input, its kernel, its first input.

    Never by its output: an int8 convolution may write fp32.
    """
    weights = entry.get("Weights") or {}
    inputs = [tensor.get("Format/Datatype", tensor.get("Datatype", "")) for tensor in entry.get("Inputs") or []]
    tactic = _by_tactic(_tactic(entry))
    found = _by_type(weights.get("Type", "")) or (_by_type(inputs[1]) if len(inputs) > 1 else "")
    found = found or tactic or (_by_type(inputs[0]) if inputs else "")
    return "tf32" if found == "fp32" and tactic == "tf32" else found


def _tactic(entry: dict[str, Any]) -> str:
    return str(entry.get("TacticName", ""))


def _by_type(text: str) -> str:
    lowered = text.lower()
    for precision, words in _TYPES:
        if any(re.search(rf"\b{word}\b", lowered) for word in words):
            return precision
    return ""


def _by_tactic(name: str) -> str:
    lowered = name.lower()
    return next((precision for precision, pattern in _TACTICS if re.search(pattern, lowered)), "")


def _parse_line(line: str) -> dict[str, Any]:
    """A layer that is printed as one line, as Myelin's are: ``Name: x, LayerType: gemm, Inputs: [ {...} ], ...``."""
    entry: dict[str, Any] = {
        key: match.group(1).strip()
        for key in ("Name", "LayerType", "TacticName")
        if (match := re.search(rf"\b{key}: ([^,]*)", line))
    }
    tensors = re.search(r"Inputs: \[(.*?)\], Outputs:", line)
    pairs = re.findall(r"Name: ([^,]+),.*?Format/Datatype: ([^}]+?) ?\}", tensors.group(1)) if tensors else []
    entry["Inputs"] = [{"Name": name, "Format/Datatype": kind} for name, kind in pairs]
    return entry


def precision_shares(
    layers: Iterable[Layer], profile: Sequence[ProfiledLayer], on_dla: Sequence[str] = (), dla_precision: str = ""
) -> dict[str, float]:
    """The share of the time that each precision takes, from 0 to 1, of the layers that do arithmetic on weights.

    Where no layer shows weights, all layers with arithmetic count. Where the profile knows none of them, all count
    alike.

    Args:
        layers: from `parse_layers`.
        profile: from `parse_profile`.
        on_dla: the names of the layers that run on the DLA, from `trtexec.parse_placement`.
        dla_precision: what those run in, which the engine does not tell.
    """
    compute = [layer for layer in layers if layer.is_compute or layer.name in on_dla]
    counted = [layer for layer in compute if layer.has_weights or layer.name in on_dla] or compute
    times = {time.name: time.mean_ms for time in profile}
    known = sum(times.get(layer.name, 0.0) for layer in counted)
    sums: dict[str, float] = {}
    for layer in counted:
        precision = dla_precision if layer.name in on_dla else layer.precision or "unknown"
        share = times.get(layer.name, 0.0) / known if known else 1 / len(counted)
        sums[precision] = sums.get(precision, 0.0) + share
    return dict(sorted(sums.items(), key=lambda item: -item[1]))


def timed_layers(
    layers: Iterable[Layer], profile: Sequence[ProfiledLayer], on_dla: Sequence[str] = (), dla_precision: str = ""
) -> list[dict[str, Any]]:
    """The layers that were profiled, each with its precision where the engine tells it, in plain values.

    The arguments are those of `precision_shares`.
    """
    precisions = {**{layer.name: layer.precision for layer in layers}, **dict.fromkeys(on_dla, dla_precision)}
    return [plain_layer(time.name, time.mean_ms, time.median_ms, precisions.get(time.name, "")) for time in profile]


def gpu_fallback_share(on_dla: Sequence[str], on_gpu: Sequence[str], profile: Sequence[ProfiledLayer]) -> float | None:
    """The share of the work that was meant for the DLA and runs on the GPU, from 0 to 1; None if nothing tells.

    By time where the profile knows the layers that the DLA runs, else by their number.

    >>> gpu_fallback_share(["a"], ["b", "c"], [])
    0.6666666666666666
    >>> from dtp_deploy_targets.runner.exports import ProfiledLayer
    >>> gpu_fallback_share(["a"], ["b"], [ProfiledLayer("a", 3.0), ProfiledLayer("b", 1.0)])
    0.25
    """
    known = sum(time.mean_ms for time in profile if time.name in on_dla)
    total = sum(time.mean_ms for time in profile)
    if known and total:
        return 1 - known / total
    return len(on_gpu) / (len(on_gpu) + len(on_dla)) if on_gpu or on_dla else None


def precision_fault(asked: str, shares: Mapping[str, float], of: str = "time") -> str:
    """Why an engine is not what was asked for, or "" if the largest share is of the precision asked for.

    Args:
        asked: the precision.
        shares: from `precision_shares`.
        of: what they are shares of: "time", or "layers" where nothing was profiled.

    >>> precision_fault("fp16", {"fp32": 0.9, "fp16": 0.1})
    'asked for fp16, but the engine spends 90 % of its time in fp32 and 10 % in fp16'
    >>> precision_fault("fp16", {"fp16": 1.0})
    ''
    """
    if not shares:
        return f"asked for {asked}, but the engine does not tell what its layers run in"
    if max(shares, key=lambda name: shares[name]) == asked:
        return ""
    told = " and ".join(f"{round(100 * share)} % in {name}" for name, share in shares.items())
    verb = {"time": "spends", "layers": "has"}[of]
    return f"asked for {asked}, but the engine {verb} {told.replace(' % in', f' % of its {of} in', 1)}"
