"""Completing a report with what was measured on a device that was not at hand when it was written."""

from __future__ import annotations

from pathlib import Path

from dtp_deploy.artefact import REPORT_JSON, write_report
from dtp_deploy.budget import Budget, amount, flag_of
from dtp_deploy.errors import BudgetError, InputError
from dtp_deploy.profile.measure import LatencyReport, median_ratio
from dtp_deploy.report import Report, hide_home, read_report
from dtp_deploy.report.schema import BudgetEntry, LatencyEntry
from dtp_deploy.target import TargetSpec, find_target


def import_measurement(directory: Path, result: Path) -> Report:
    """Put a measurement into the report of a predicted run, which is written anew.

    Args:
        directory: what `compress` wrote.
        result: what the device sent back; see `Target.read_measurement`.

    Returns:
        The new report.

    Raises:
        InputError: one of the two cannot be used, or the result is of another model.
        BudgetError: by this measurement the budget is not met; the report says so, too.
    """
    report = read_report(directory / REPORT_JSON)
    measured = find_target(TargetSpec(report.target.name)).read_measurement(result)
    if measured.sha256 is not None and measured.sha256 != report.onnx_sha256:
        raise InputError(
            f"{result} is of another model: it was measured on {measured.sha256[:12]}..., and {directory} delivers "
            f"{report.onnx_sha256[:12]}.... Measure the model.onnx of this folder."
        )
    pruned = LatencyReport.from_blocks(measured.blocks_ms)
    dense = LatencyReport.from_blocks(measured.dense_blocks_ms) if measured.dense_blocks_ms else None
    entries = [_completed(entry, pruned, dense) for entry in (report.budget, *report.further_budgets)]
    changed = report.model_copy(
        update={
            "target": report.target.model_copy(
                update={
                    "runtime": measured.engine.runtime,
                    "runtime_version": measured.engine.runtime_version,
                    "device": measured.engine.device,
                }
            ),
            "budget": entries[0],
            "further_budgets": tuple(entries[1:]),
            "pruned": report.pruned.model_copy(update={"latency": LatencyEntry.model_validate(pruned)}),
            "dense": report.dense.model_copy(
                update={"latency": LatencyEntry.model_validate(dense) if dense is not None else None}
            ),
            "latency_ratio": median_ratio(pruned, dense) if dense is not None else None,
            "environment": report.environment | {"measured_elsewhere": hide_home(dict(measured.environment))},
            "notes": (*(note for note in report.notes if "predicted, not measured" not in note), _note(dense)),
        }
    )
    completed = Report.model_validate(changed.model_dump())
    write_report(completed, directory)
    for entry in (completed.budget, *completed.further_budgets):
        if entry.met is False:
            raise BudgetError(
                f"{flag_of(entry.kind)} {entry.requested} was not met: "
                f"{amount(entry.achieved or 0.0, entry.unit)} were measured, the limit is "
                f"{amount(entry.limit, entry.unit)}. Compress again with a smaller limit."
            )
    return completed


def _completed(entry: BudgetEntry, pruned: LatencyReport, dense: LatencyReport | None) -> BudgetEntry:
    """A latency budget, judged by the measurement; others are known already."""
    if entry.kind != "latency":
        return entry
    if entry.relative and dense is None:
        # A share of a dense model that was not measured there: nobody can say.
        return entry.model_copy(update={"achieved": pruned.p50_ms, "met": None, "basis": "measured"})
    limit = entry.limit
    if dense is not None and entry.relative:
        share = float(entry.requested.rstrip("%")) / 100
        limit = Budget("latency", share, relative=True).limit_for(dense.p50_ms)
    met = pruned.p50_ms <= limit
    return entry.model_copy(update={"limit": limit, "achieved": pruned.p50_ms, "met": met, "basis": "measured"})


def _note(dense: LatencyReport | None) -> str:
    if dense is None:
        return "Latency was measured elsewhere and imported; the dense model was not measured there."
    return "Latency of both models was measured elsewhere, in turns, and imported."
