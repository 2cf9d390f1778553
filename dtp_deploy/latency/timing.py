"""The time of models on a target: measured where it can run here, and predicted, and called so, where it cannot."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median

from dtp_deploy.errors import TargetError
from dtp_deploy.profile.measure import LatencyReport, MeasureSettings, measure
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.target import PredictedLatency, TargetSpec, find_target


def can_measure(target: TargetSpec) -> bool:
    """Whether the target runs models here."""
    return find_target(target).availability().available


def predict(path: Path, target: TargetSpec) -> PredictedLatency:
    """What a model would take on a target that cannot run here.

    Raises:
        TargetError: the target does not predict either.
    """
    found = find_target(target)
    prediction = found.predict(path)
    if prediction is None:
        raise TargetError(f"Target '{found.name}' cannot predict, and {found.availability().fault}.")
    return prediction


def time_models(
    models: Mapping[str, Path],
    target: TargetSpec,
    settings: MeasureSettings | None = None,
    progress: Progress = SILENT,
) -> dict[str, LatencyReport]:
    """Latencies of several models, measured in turns, or predicted: then each report has one sample, the prediction,
    and ``environment["basis"]`` is "predicted".

    Raises:
        TargetError: the target can do neither, or its runtime failed.
    """
    if can_measure(target):
        return measure(models, target, settings, progress)
    reports = {}
    for name, path in models.items():
        prediction = predict(path, target)
        environment = {"basis": "predicted", "device": prediction.device, "assumptions": list(prediction.assumptions)}
        reports[name] = LatencyReport.from_samples([prediction.ms], environment)
    return reports


def is_unsteady(reports: Iterable[LatencyReport]) -> bool:
    """Whether load came and went while models were measured in turns: then most of them are unstable.

    A single one may be so by itself, and of a prediction there is nothing to say.
    """
    unrest = [report.unrest for report in reports if not is_predicted(report)]
    return bool(unrest) and median(unrest) > 1


def is_predicted(report: LatencyReport) -> bool:
    """Whether `time_models` could not measure it."""
    return report.environment.get("basis") == "predicted"
