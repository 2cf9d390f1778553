"""Parts of a run's report, made from what the run found out."""

from __future__ import annotations

from collections.abc import Sequence
from importlib.metadata import version
from typing import Any

from dtp_deploy.forms import Form
from dtp_deploy.latency.timing import is_predicted
from dtp_deploy.profile.measure import LatencyReport


def pooled(attempts: Sequence[LatencyReport]) -> LatencyReport:
    """One report of the samples of all attempts."""
    if len(attempts) == 1:
        return attempts[0]
    blocks = [block for attempt in attempts for block in attempt.blocks_ms]
    return LatencyReport.from_blocks(blocks, attempts[-1].environment)


def model_entry(form: Form, latency: LatencyReport) -> dict[str, Any]:
    """One model, dense or pruned: what it is, and how long it takes, or would take."""
    return {
        "accuracy": form.accuracy,
        "macs": form.macs,
        "params": form.params,
        "size_bytes": form.delivery.size_bytes,
        "predicted_ms": latency.p50_ms if is_predicted(latency) else None,
        "latency": None
        if is_predicted(latency)
        else {
            "p50_ms": latency.p50_ms,
            "p90_ms": latency.p90_ms,
            "p99_ms": latency.p99_ms,
            "samples_ms": latency.samples_ms,
            "stable": latency.stable,
            "coefficient_of_variation": latency.coefficient_of_variation,
            "outlier_share": latency.outlier_share,
            "drift": latency.drift,
            "spread": latency.spread,
        },
    }


def versions() -> dict[str, Any]:
    """Of the packages that a result depends on."""
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "torch-pruning", "numpy")
    return {"packages": {name: version(name) for name in names}}
