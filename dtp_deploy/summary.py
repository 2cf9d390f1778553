"""The report of a run, made from what the run found out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import version
from typing import Any

from dtp_deploy.artefact import MODEL_ONNX
from dtp_deploy.budget import Budget
from dtp_deploy.findings import Findings
from dtp_deploy.forms import Form
from dtp_deploy.latency.timing import is_predicted
from dtp_deploy.loading.source import DataSource
from dtp_deploy.modules import Inputs
from dtp_deploy.profile.measure import LatencyReport, median_ratio
from dtp_deploy.prune import PruningPlan
from dtp_deploy.report import Report, hide_home
from dtp_deploy.target import TargetSpec
from dtp_deploy.task import Task
from dtp_deploy.train import Settings

_WHERE = ("host", "config")
"""Options of a target that say where the device is: they name people and machines, and a report is passed on."""
_NO_FASTER, _FEWER_MACS = 0.95, 0.8


@dataclass(frozen=True)
class Outcome:
    """Everything that a report tells of.

    Attributes:
        model_name: what the report calls the model.
        data, task, budgets, target, inputs, settings: of the run.
        dense: the dense model as it would be delivered.
        pruned: what is delivered.
        plan: what was kept.
        latencies: of "dense" and "pruned".
        budget_entries: what came of each budget, in the schema's terms.
        findings: parity, accuracy, time and memory by stage.
        dense_nonzero: parameters of the dense model that are not zero, where an earlier run left zeros among them.
        notes: for the reader.
    """

    model_name: str
    data: DataSource
    task: Task
    budgets: Sequence[Budget]
    target: TargetSpec
    inputs: Inputs
    settings: Settings
    dense: Form
    pruned: Form
    plan: PruningPlan
    latencies: dict[str, LatencyReport]
    budget_entries: Sequence[dict[str, Any]]
    findings: Findings
    dense_nonzero: int | None
    notes: Sequence[str]

    def report(self) -> Report:
        """Everything that was found out."""
        engine = self.pruned.engine
        dense, pruned = self.latencies["dense"], self.latencies["pruned"]
        predicted = is_predicted(pruned)
        budget, *further = self.budget_entries
        settings = asdict(self.settings) | {
            "data": self.data.name,
            "task": self.task.name,
            "input_shapes": [list(tensor.shape) for tensor in self.inputs],
            "preprocessing": self.data.preprocessing,
            "scope": self.budgets[0].scope if self.budgets else None,
            "keep": list(self.settings.keep),
            "only": list(self.settings.only),
        }
        entries: dict[str, Any] = hide_home(
            {
                "dtp_deploy_version": version("dtp-deploy"),
                "model": self.model_name,
                "onnx_sha256": self.pruned.delivery.sha256,
                "dense_onnx_sha256": self.dense.delivery.sha256,
                "target": {
                    "name": self.target.name,
                    "runtime": engine.runtime,
                    "runtime_version": engine.runtime_version,
                    "device": engine.device,
                    "threads": engine.threads,
                    "options": {key: value for key, value in self.target.options.items() if key not in _WHERE},
                },
                "budget": budget,
                "further_budgets": further,
                "dense": model_entry(self.dense, dense) | {"nonzero_params": self.dense_nonzero},
                "pruned": model_entry(self.pruned, pruned)
                | {"nonzero_params": self.pruned.params - self.plan.zeros if self.plan.layers else None},
                "granularity": self.plan.granularity,
                "latency_ratio": None if predicted else asdict(median_ratio(pruned, dense)),
                "accuracy_stages": [
                    {"stage": stage, "accuracy": accuracy} for stage, accuracy in self.findings.accuracies.items()
                ],
                "groups": [
                    {
                        "name": choice.name,
                        "width_before": choice.width_before,
                        "width_after": choice.width_after,
                        "frozen_because": choice.frozen_because,
                    }
                    for choice in self.plan.groups
                ],
                "layers": [asdict(layer) for layer in self.plan.layers],
                "blocks": [
                    {"name": block.name, "removed": block.removed, "reason": block.reason} for block in self.plan.blocks
                ],
                "mask_phase": self.findings.mask_phase,
                "parity": list(self.findings.parity.values()),
                "passes": [
                    {"name": outcome.name, "applied": outcome.applied, "reason": outcome.reason}
                    for outcome in self.pruned.delivery.passes
                ],
                "stages": [{"name": name, **stage} for name, stage in self.findings.stages.items()],
                "resumed_from_step": self.findings.resumed_from_step,
                "settings": settings,
                "environment": pruned.environment | versions(),
                "notes": self._notes(),
            }
        )
        return Report.model_validate(entries)

    def _notes(self) -> list[str]:
        notes = [*self.notes, *self.findings.deviations]
        if not self.data.labelled:
            notes.append("The data have no labels: accuracy was not measured. The pruned model imitates the dense one.")
        notes = list(dict.fromkeys(notes))
        predicted = is_predicted(self.latencies["pruned"])
        if not predicted:
            time = self.latencies["pruned"].p50_ms / self.latencies["dense"].p50_ms
            notes += no_faster(time, self.pruned.macs / self.dense.macs)
        if predicted:
            notes.append(
                f"Latency is predicted, not measured: no {self.target.name} was at hand. Measure {MODEL_ONNX} there "
                "with the files beside it, and complete this report with `dtp-deploy import-measurement`."
            )
        notes += [
            f"The pass '{outcome.name}' was skipped: {outcome.reason}"
            for outcome in self.pruned.delivery.passes
            if not outcome.applied
        ]
        return notes


def no_faster(time: float, macs: float) -> list[str]:
    """A note where the pruned model is hardly faster than the dense one, or slower, although it computes less.

    Args:
        time: median latency, pruned / dense, both measured.
        macs: pruned / dense.
    """
    if time <= _NO_FASTER or macs >= _FEWER_MACS:
        return []
    return [
        f"The pruned model takes {time:.0%} of the time of the dense one on this target, although it computes only "
        f"{macs:.0%} of its MACs. A small model is mostly overhead, and odd widths leave a runtime's vector units "
        "idle: give a latency budget, which measures, or --round-to 8 or 16."
    ]


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
            "layer_times": None if latency.layer_times is None else [asdict(layer) for layer in latency.layer_times],
        },
    }


def versions() -> dict[str, Any]:
    """Of the packages that a result depends on."""
    names = ("torch", "onnx", "onnxscript", "onnxruntime", "onnxsim", "torch-pruning", "numpy")
    return {"packages": {name: version(name) for name in names}}
