"""``dtp-deploy profile``: the latency of an ONNX model on a target."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtp_deploy_cli.options import AsJson, TargetName, Threads, Verbose, checked_spec

if TYPE_CHECKING:
    from dtp_deploy.profile import LatencyReport, MeasureSettings


def profile(
    model: Annotated[Path, typer.Argument(metavar="MODEL", show_default=False, help="The ONNX file.")],
    target: TargetName = "cpu",
    threads: Threads = None,
    min_seconds: Annotated[
        float,
        typer.Option(min=0.01, metavar="SECONDS", help="Take samples for this long, or until there are 10,000."),
    ] = 1.0,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure the latency of an ONNX model.

    It runs in a process of its own, warmed up until its times are steady, and the command says so if they were not.
    """
    from dataclasses import asdict

    from dtp_deploy.profile import measure
    from dtp_deploy.report.text import flat_rows, json_text
    from dtp_deploy_cli.console import print_json, print_line, print_table
    from dtp_deploy_cli.progress import show_progress

    spec = checked_spec(target, threads)
    check_onnx(model)
    settings = settings_for(min_seconds)
    with show_progress(verbose) as progress, progress.task(f"measuring {model.name}"):
        report = measure({"model": model}, spec, settings)["model"]
    if as_json:
        print_json(json_text(asdict(report)))
        return
    print_table(("latency", model.name), _figures(report))
    print_table(("environment", ""), flat_rows(report.environment))
    if not report.stable:
        print_line("The latency was unstable: repeat it on a quiet machine before you rely on it.")


def settings_for(min_seconds: float) -> MeasureSettings:
    """The library's settings, with limits on time that leave room for `min_seconds` in every attempt."""
    from dtp_deploy.profile import MeasureSettings

    usual = MeasureSettings()
    return MeasureSettings(
        min_seconds=min_seconds,
        max_seconds=max(usual.max_seconds, min_seconds),
        timeout_s=usual.timeout_s + (usual.repeats + 1) * min_seconds,
    )


def check_onnx(path: Path) -> None:
    """See that `path` is a whole ONNX model, before a runtime is started on it.

    Raises:
        InputError: missing, empty, truncated, or something else.
    """
    import onnx

    from dtp_deploy.errors import InputError
    from dtp_deploy.loading.files import require_file
    from dtp_deploy.loading.wording import cause

    require_file(path, "Model", "Give the path of an ONNX file.")
    try:
        onnx.checker.check_model(str(path))
    except Exception as error:  # onnx raises its own, RuntimeError and protobuf's, by version
        raise InputError(
            f"Model {path} is no ONNX file, or a damaged one ({cause(error)}). Copy or export it again."
        ) from error


def _figures(report: LatencyReport) -> list[tuple[str, str]]:
    from dtp_deploy.report.table import milliseconds, percent

    return [
        ("p50", milliseconds(report.p50_ms)),
        ("p90", milliseconds(report.p90_ms)),
        ("p99", milliseconds(report.p99_ms)),
        ("samples", str(len(report.samples_ms))),
        ("variation (standard deviation / mean)", percent(report.coefficient_of_variation)),
        ("outliers", percent(report.outlier_share)),
        ("drift", percent(report.drift)),
        ("spread of the blocks", percent(report.spread)),
        ("stable", "yes" if report.stable else "no"),
    ]
