"""``dtp-deploy profile``: the latency of a model on a target."""

from __future__ import annotations

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dtp_deploy_cli.options import (
    AsJson,
    Host,
    LockClocks,
    Precision,
    TargetName,
    TargetOptions,
    Threads,
    Verbose,
    checked_spec,
)

if TYPE_CHECKING:
    from dtp_deploy.profile import LatencyReport, MeasureSettings


def profile(
    model: Annotated[
        Path,
        typer.Argument(
            metavar="MODEL", show_default=False, help="An ONNX file, a torch.export program or a TorchScript archive."
        ),
    ],
    target: TargetName = "cpu",
    host: Host = None,
    threads: Threads = None,
    precision: Precision = None,
    lock_clocks: LockClocks = False,
    target_option: TargetOptions = None,
    trust: Annotated[bool, typer.Option("--trust", help="Let a .pt2 or TorchScript file run code.")] = False,
    inputs: Annotated[
        list[str] | None,
        typer.Option(
            "--input", metavar="INPUT", help="An input of a TorchScript archive: 1x3x224x224[:type]. Once for each."
        ),
    ] = None,
    min_seconds: Annotated[
        float,
        typer.Option(min=0.01, metavar="SECONDS", help="Take samples for this long, or until there are 10,000."),
    ] = 1.0,
    layers: Annotated[
        bool, typer.Option("--layers", help="Tell the time of every layer too, from further runs, where a runtime can.")
    ] = False,
    as_json: AsJson = False,
    verbose: Verbose = False,
) -> None:
    """Measure the latency of a model.

    A torch.export program (.pt2) or a TorchScript archive is exported to ONNX first. The model runs in a process of its
    own, warmed up until its times are steady, and the command says so if they were not.
    """
    from dataclasses import asdict, replace

    from dtp_deploy.profile import measure
    from dtp_deploy.report.schema import LatencyEntry
    from dtp_deploy.report.table import layer_rows
    from dtp_deploy.report.text import flat_rows, json_text
    from dtp_deploy_cli.console import print_json, print_line, print_table
    from dtp_deploy_cli.progress import show_progress

    named = {"host": host, "threads": threads, "precision": precision, "lock_clocks": lock_clocks}
    spec = checked_spec(target, named, target_option)
    settings = replace(settings_for(min_seconds), layers=layers)
    with show_progress(verbose) as progress, as_onnx(model, inputs or [], trust) as path:
        check_onnx(path)
        with progress.task(f"measuring {model.name}"):
            report = measure({"model": path}, spec, settings, progress)["model"]
    if as_json:
        print_json(json_text(asdict(report)))
        return
    print_table(("latency", model.name), _figures(report))
    timed = LatencyEntry.model_validate(report).layer_times
    if timed is not None:
        print_table(("layer", "share", "mean", "median", "precision"), layer_rows(timed))
    elif layers:
        print_line("The runtime does not tell the times of the layers.")
    print_table(("environment", ""), flat_rows(report.environment))
    if not report.stable:
        print_line("The latency was unstable: repeat it on a quiet machine before you rely on it.")


@contextmanager
def as_onnx(path: Path, inputs: list[str], trust: bool) -> Iterator[Path]:
    """The file itself, or a temporary ONNX file of the program that it holds.

    Raises:
        UsageError: the program needs trust, or its inputs are not given; or an ONNX file's are.
        InputError, GraphError: the program cannot be loaded or exported.
    """
    from dtp_deploy.errors import UsageError

    if not _is_program(path):
        if inputs:
            raise UsageError(f"--input {inputs[0]} is for TorchScript archives; {path} says itself what it takes.")
        yield path
        return
    from dtp_deploy.export.foreign import export_foreign
    from dtp_deploy.loading.foreign import load_foreign
    from dtp_deploy.loading.inputs import parse_input

    examples = tuple(parse_input(text).example() for text in inputs)
    program = load_foreign(path, trust=trust)
    with tempfile.TemporaryDirectory() as folder:
        exported = Path(folder) / f"{path.stem}.onnx"
        export_foreign(program, exported, examples or None)
        yield exported


def _is_program(path: Path) -> bool:
    """Whether a file is an archive, as PyTorch writes them; ONNX files are none."""
    import zipfile

    return path.is_file() and zipfile.is_zipfile(path)


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
