"""The child process that measures: ``python -m dtp_deploy.profile.worker``, a job on standard input.

It imports neither PyTorch nor onnx: both would start threads and take memory beside the runtime that is measured.
"""

import os
import signal
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import asdict
from typing import Any, TextIO

from dtp_deploy.errors import DtpError, TargetError
from dtp_deploy.profile.environment import snapshot, system_info
from dtp_deploy.profile.protocol import Job, write_event
from dtp_deploy.profile.relay import BUILDING, Relay
from dtp_deploy.profile.report import LatencyReport
from dtp_deploy.profile.sampling import Run, WarmUp, block_sizes, interleave, warm_up
from dtp_deploy.profile.settings import MeasureSettings
from dtp_deploy.target import Attempt, Engine, Session, find_target, random_inputs

_GRACE_S = 10


def main() -> None:
    """Do the job on standard input; its events say how it went."""
    os.dup2(2, 1)  # what a runtime prints belongs with its error output
    job = Job.from_json(sys.stdin.read())
    # The parent kills a child that hangs. If the parent was killed itself, the system does it: SIGALRM's default
    # action ends a process even inside a runtime that never returns to Python.
    signal.alarm(int(job.settings.timeout_s) + _GRACE_S)
    with job.events.open("w") as events:
        try:
            write_event(events, "result", **_measure(job, events))
        except DtpError as error:
            write_event(events, "error", kind=type(error).__name__, message=str(error))


def _measure(job: Job, events: TextIO) -> dict[str, Any]:
    began = time.monotonic()
    target = find_target(job.target)
    target.require_available()  # one that only builds would say so after it has built, which may take minutes
    settings = job.settings
    engines: dict[str, Engine] = {}
    for name, path in job.models.items():
        write_event(events, "stage", stage=BUILDING, model=name)
        engines[name] = target.build(path, Relay(events, name))
    infos = {name: asdict(engine.info) for name, engine in engines.items()}
    attempts: list[Attempt] = []
    with ExitStack() as sessions:
        runs: dict[str, Run] = {}
        while True:
            attempt_began = time.monotonic()
            write_event(events, "stage", stage="measuring", model=None)
            attempt = target.measure(engines, asdict(settings))
            if attempt is None:
                runs = runs or _open(engines, settings, sessions, events)
                attempt = _attempt(runs, settings, events)
            attempts.append(attempt)
            now = time.monotonic()
            has_time = now - began + 1.5 * (now - attempt_began) < settings.timeout_s
            if _is_stable(attempt.blocks_ns) or len(attempts) > settings.repeats or not has_time:
                break
    return {
        "attempts_ns": [attempt.blocks_ns for attempt in attempts],
        "engines": infos,
        "warm_up": attempts[-1].warm_up,
        "system": attempts[-1].system,
        "before": attempts[0].before,
        "after": attempts[-1].after,
        "details": attempts[-1].details,
        "layers": _layers(engines, settings, events),
    }


def _layers(
    engines: Mapping[str, Engine], settings: MeasureSettings, events: TextIO
) -> dict[str, list[dict[str, Any]] | None]:
    """The layers of each engine, once its timed sessions are closed; None for all if nobody asked."""
    found: dict[str, list[dict[str, Any]] | None] = dict.fromkeys(engines)
    for name, engine in engines.items() if settings.layers else ():
        write_event(events, "stage", stage="profiling the layers of", model=name)
        layers = engine.layer_times()
        found[name] = None if layers is None else [asdict(layer) for layer in layers]
    return found


def _open(
    engines: Mapping[str, Engine], settings: MeasureSettings, sessions: ExitStack, events: TextIO
) -> dict[str, Run]:
    runs = {}
    for name, engine in engines.items():
        write_event(events, "stage", stage="loading", model=name)
        session = sessions.enter_context(engine.open())
        _check_outputs(session)
        runs[name] = _rotation(session, settings)
    return runs


def _attempt(runs: Mapping[str, Run], settings: MeasureSettings, events: TextIO) -> Attempt:
    before = snapshot()
    warm_ups = _warm_up(runs, settings, events)
    rounds, sizes = block_sizes({name: result.median_ns for name, result in warm_ups.items()}, settings)
    blocks_ns = interleave(runs, rounds, sizes, _tell(events, "measuring"))
    return Attempt(
        blocks_ns=blocks_ns,
        warm_up={name: asdict(result) for name, result in warm_ups.items()},
        system=system_info(),
        before=before,
        after=snapshot(),
        details={name: {} for name in runs},
    )


def _check_outputs(session: Session) -> None:
    """Run once. A runtime that gives something else than it says must not be timed as if it worked."""
    outputs = session.run(random_inputs(session.inputs, 1)[0])
    wanted = {spec.name: spec.shape for spec in session.outputs}
    found = {name: getattr(array, "shape", None) for name, array in outputs.items()}
    if found != wanted:
        raise TargetError(f"{session.label} gave outputs {found} where its engine says {wanted}.")


def _rotation(session: Session, settings: MeasureSettings) -> Run:
    inputs = random_inputs(session.inputs, settings.inputs, settings.seed)
    count = len(inputs)
    return lambda index: session.run(inputs[index % count])


def _tell(events: TextIO, stage: str) -> Callable[[str], None]:
    return lambda name: write_event(events, "stage", stage=stage, model=name)


def _warm_up(runs: Mapping[str, Run], settings: MeasureSettings, events: TextIO) -> dict[str, WarmUp]:
    results = {}
    for name, run in runs.items():
        write_event(events, "stage", stage="warming up", model=name)
        results[name] = warm_up(run, settings)
    return results


def _is_stable(attempt: Mapping[str, Sequence[Sequence[int]]]) -> bool:
    return all(LatencyReport.from_blocks(blocks).stable for blocks in attempt.values())


if __name__ == "__main__":
    main()
