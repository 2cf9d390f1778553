"""Completing a report with what was measured on a device that was not at hand when it was written."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import cast

from pydantic import JsonValue

from dtp_deploy.artefact import REPORT_JSON, write_report
from dtp_deploy.budget import Statistic, amount, flag_of, parse_budget
from dtp_deploy.errors import BudgetError, InputError
from dtp_deploy.latency.verdict import limit_ms
from dtp_deploy.profile.measure import LatencyReport, median_ratio
from dtp_deploy.report import Report, hide_home, read_report
from dtp_deploy.report.schema import BudgetEntry, LatencyEntry
from dtp_deploy.target import ImportedMeasurement, Option, TargetSpec, find_target

_WITHOUT_DENSE = "Latency was measured elsewhere and imported; the dense model was not measured there."
_WITH_DENSE = "Latency of both models was measured elsewhere, in turns, and imported."
_NOT_VERIFIED = "The imported result does not say what was measured: model and options could not be verified."
_NOTES = (_WITHOUT_DENSE, _WITH_DENSE, _NOT_VERIFIED)


def import_measurement(directory: Path, result: Path, force: bool = False, layers: Path | None = None) -> Report:
    """Put a measurement into the report of a predicted run, which is written anew.

    Args:
        directory: what `compress` wrote.
        result: what the device sent back; see `Target.read_measurement`.
        force: replace a latency that was measured already.
        layers: a file of its own with the times of the layers, where the result does not hold them.

    Returns:
        The new report.

    Raises:
        InputError: one of the two cannot be used; the result is of another model, board or precision; the report's
            latency is measured already, and `force` is not set; or the report cannot be written.
        BudgetError: by this measurement the budget is not met; the report says so, too.
    """
    report = read_report(directory / REPORT_JSON)
    if report.pruned.latency is not None and not force:
        raise InputError(
            f"The latency in {directory / REPORT_JSON} is measured already. Give --force to put another measurement in "
            "its place."
        )
    measured = find_target(_spec(report)).read_measurement(result, layers)
    _check_model(directory, result, "model.onnx", measured.sha256, report.onnx_sha256)
    _check_model(directory, result, "dense.onnx", measured.dense_sha256, report.dense_onnx_sha256)
    pruned = LatencyReport.from_blocks(measured.blocks_ms, layer_times=measured.layers)
    dense = None
    if measured.dense_blocks_ms:
        dense = LatencyReport.from_blocks(measured.dense_blocks_ms, layer_times=measured.dense_layers)
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
            "environment": _environment(report.environment, dict(measured.environment)),
            "notes": (*(note for note in report.notes if not _is_outdated(note)), *_notes(measured)),
        }
    )
    completed = Report.model_validate(hide_home(changed.model_dump()))
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
    quantity, _, statistic = entry.requested.partition(" ")
    budget = parse_budget("latency", quantity, statistic=cast(Statistic, statistic.strip("()") or "p50"))
    achieved = budget.latency_of(pruned)
    if entry.relative and dense is None:
        # A share of a dense model that was not measured there: nobody can say.
        return entry.model_copy(update={"achieved": achieved, "met": None, "basis": "measured"})
    limit = entry.limit if dense is None else limit_ms(budget, pruned, dense)
    update = {"limit": limit, "achieved": achieved, "met": achieved <= limit, "basis": "measured"}
    return entry.model_copy(update=update)


def _spec(report: Report) -> TargetSpec:
    """The target that the run was for, with the options it had.

    Raises:
        InputError: an option is none that a target can have.
    """
    options: dict[str, Option] = {}
    for name, value in report.target.options.items():
        if not isinstance(value, str | int | float | bool):
            raise InputError(f"The report's target has the option {name}={value!r}. Give a report as it was written.")
        options[name] = value
    return TargetSpec(report.target.name, options)


def _check_model(directory: Path, result: Path, name: str, measured: str | None, delivered: str | None) -> None:
    if measured is not None and delivered is not None and measured != delivered:
        raise InputError(
            f"{result} is of another model: it was measured on {measured[:12]}..., and {directory} delivers "
            f"{delivered[:12]}.... Measure the {name} of this folder."
        )


def _environment(before: Mapping[str, JsonValue], measured: JsonValue) -> dict[str, JsonValue]:
    """What the prediction rested on is kept under its own name: a limit may still rest on it."""
    predicted = {name: before[name] for name in ("device", "assumptions") if name in before}
    if before.get("basis") != "predicted":
        return {**before, "measured_elsewhere": measured}
    others = {name: value for name, value in before.items() if name not in predicted}
    return {**others, "basis": "measured", "prediction": predicted, "measured_elsewhere": measured}


def _is_outdated(note: str) -> bool:
    return "predicted, not measured" in note or note in _NOTES


def _notes(measured: ImportedMeasurement) -> tuple[str, ...]:
    first = _WITHOUT_DENSE if measured.dense_blocks_ms is None else _WITH_DENSE
    return (first,) if measured.sha256 is not None else (first, _NOT_VERIFIED)
