"""Measuring models on a target, in a child process that may crash or hang without harm to ours."""

import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict
from pathlib import Path
from typing import Any, BinaryIO

from dtp_deploy import errors
from dtp_deploy.errors import DtpError, InputError, TargetError, UsageError
from dtp_deploy.profile.protocol import Event, Job, read_events
from dtp_deploy.profile.relay import Follower
from dtp_deploy.profile.report import LatencyReport, RatioInterval, median_ratio
from dtp_deploy.profile.settings import MeasureSettings
from dtp_deploy.progress import SILENT, Progress
from dtp_deploy.target import LayerTime, TargetSpec

__all__ = ["LatencyReport", "MeasureSettings", "RatioInterval", "measure", "median_ratio"]

_LOOK_S = 0.5
"""Between two looks at how far the child is."""
_STDERR_LINES = 3
_STDERR_BYTES = 4096


def measure(
    models: Mapping[str, Path],
    spec: TargetSpec | str,
    settings: MeasureSettings | None = None,
    progress: Progress = SILENT,
) -> dict[str, LatencyReport]:
    """Measure ONNX models on a target, in turns (A B A B ...) in one child process.

    An attempt in which any model was not stable is repeated, `settings.repeats` times at the most. If none was stable,
    the calmest one is given, marked ``stable=False``: it is chosen by how steady it was, never by how fast.

    `environment` of each report holds ``system``, ``before`` and ``after`` (see `dtp_deploy.profile.environment`),
    ``engine`` (runtime, version, device, threads, precision, options), ``warm_up``, ``attempts`` (p50_ms and stable of
    each attempt, in order), ``interleaved_with`` and ``settings``; and ``details``, where the target measures by itself
    and has more to tell (power, warnings). With `settings.layers`, `layer_times` of each report holds the time of every
    layer, where the runtime tells it.

    Args:
        models: the files to measure, by a name of the caller's choice.
        spec: the target, which the child looks up with this process's import path.
        settings: how long and how carefully.
        progress: told of builds that take a while.

    Returns:
        A report for each model, in the order of `models`.

    Raises:
        InputError: a file is missing.
        UsageError: no model is given; the target is unknown or an option is not allowed.
        TargetError: the target is not available or refuses a model, or the child crashed, hung or gave no result.
    """
    settings = settings or MeasureSettings()
    spec = TargetSpec(spec) if isinstance(spec, str) else spec
    if not models:
        raise UsageError("measure() got no model. Give one or more.")
    for path in models.values():
        if not path.is_file():
            raise InputError(f"There is no model file at {path}. Give the path of an existing ONNX file.")
    with tempfile.TemporaryDirectory(prefix="dtp-deploy-") as folder:
        job = Job(
            spec, {name: path.resolve() for name, path in models.items()}, settings, Path(folder) / "events.jsonl"
        )
        request = Path(folder) / "job.json"
        request.write_text(job.to_json())
        with (Path(folder) / "stderr").open("w+b") as stderr, request.open("rb") as stdin:
            return_code = _run_child(job, stdin, stderr, progress)
            events = read_events(job.events)
            last_words = _last_lines(stderr)
    return _reports(_result(job, events, return_code, last_words), settings)


def _run_child(job: Job, stdin: BinaryIO, stderr: BinaryIO, progress: Progress) -> int | None:
    """Run the worker to its end. Its exit status (negative: the signal that ended it), or None if it was too slow."""
    # Like this process, the child imports from sys.path; -P keeps the working directory out, unless it is in there.
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(path or str(Path.cwd()) for path in sys.path)}
    deadline = time.monotonic() + job.settings.timeout_s
    with (
        Follower(job, progress) as follower,
        subprocess.Popen(
            [sys.executable, "-P", "-m", "dtp_deploy.profile.worker"],
            stdin=stdin,
            stdout=stderr,
            stderr=stderr,
            env=environment,
            start_new_session=True,  # a process group of its own, so that whatever it starts can be ended with it
        ) as child,
    ):
        try:
            while True:
                left_s = deadline - time.monotonic()
                if left_s <= 0:
                    return None
                with suppress(subprocess.TimeoutExpired):
                    child.wait(min(_LOOK_S, left_s))
                    break
                follower.look()
        finally:
            with suppress(ProcessLookupError):
                os.killpg(child.pid, signal.SIGKILL)
    return child.returncode


def _last_lines(stream: BinaryIO) -> str:
    size = stream.seek(0, os.SEEK_END)
    stream.seek(max(0, size - _STDERR_BYTES))
    lines = [line.strip() for line in stream.read().decode(errors="replace").splitlines() if line.strip()]
    return " | ".join(lines[-_STDERR_LINES:])


def _result(job: Job, events: list[Event], return_code: int | None, last_words: str) -> Event:
    """The child's result, or an error that says what became of it."""
    events = [event for event in events if event["event"] != "note"]
    last: Event = events[-1] if events else {"event": "stage", "stage": "starting", "model": None}
    if last["event"] == "error":
        raise _error_class(last["kind"])(last["message"])
    if last["event"] == "result" and return_code == 0:
        return last
    if return_code is None:
        what = f"was killed after {job.settings.timeout_s:g} s without a result"
        remedy = "Raise timeout_s if it is only slow."
    elif return_code == -signal.SIGKILL:
        what = "was killed from outside"
        remedy = "The system does that where memory runs out: give the machine more, or measure a smaller model."
    elif return_code < 0:
        what = f"was ended by {_signal_name(-return_code)}"
        remedy = "The runtime crashed; its own error report follows, if it made one."
    else:
        what = f"ended with exit status {return_code} and no result"
        remedy = "Its error output says why, if it made any."
    raise TargetError(
        f"Target '{job.target.name}' failed {_place(job, last)}: the measuring process {what}. {remedy} "
        f"Last lines of its output: {last_words or '(none)'}"
    )


def _place(job: Job, event: Event) -> str:
    if event["event"] == "result":
        return "after measuring"
    model = event["model"]
    return f"while {event['stage']}" + (f" model '{model}' ({job.models[model].name})" if model in job.models else "")


def _error_class(name: str) -> type[DtpError]:
    found: type[DtpError] = getattr(errors, name, TargetError)
    return found


def _signal_name(number: int) -> str:
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def _reports(result: Event, settings: MeasureSettings) -> dict[str, LatencyReport]:
    attempts = [_attempt(blocks_ns) for blocks_ns in result["attempts_ns"]]
    best = min(attempts, key=_unrest)
    shared = {key: result[key] for key in ("system", "before", "after")} | {"settings": asdict(settings)}
    reports = {}
    for name, report in best.items():
        environment: dict[str, Any] = {
            "engine": result["engines"][name],
            "warm_up": result["warm_up"][name],
            "attempts": [{"p50_ms": attempt[name].p50_ms, "stable": attempt[name].stable} for attempt in attempts],
            "interleaved_with": [other for other in best if other != name],
        }
        if result["details"][name]:
            environment["details"] = result["details"][name]
        found = result["layers"][name]
        layers = None if found is None else [LayerTime(**layer) for layer in found]
        reports[name] = LatencyReport.from_blocks(report.blocks_ms, shared | environment, layers)
    return reports


def _unrest(attempt: Mapping[str, LatencyReport]) -> tuple[bool, float]:
    return not all(report.stable for report in attempt.values()), max(report.unrest for report in attempt.values())


def _attempt(blocks_ns: Mapping[str, list[list[int]]]) -> dict[str, LatencyReport]:
    return {
        name: LatencyReport.from_blocks([[sample / 1e6 for sample in block] for block in blocks])
        for name, blocks in blocks_ns.items()
    }
