"""Measuring with a benchmark command of the user's own: for runtimes that this project does not know."""

from __future__ import annotations

import math
import shlex
from typing import TYPE_CHECKING, Any

from dtp_deploy.profile.environment import cpu_model, snapshot, system_info
from dtp_deploy_targets.runner.processes import run

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence
    from pathlib import Path

    from dtp_deploy_targets.runner.wire import Blob

ROUNDS = 6


def parse_latencies(text: str) -> list[float]:
    """The latencies in ms that a benchmark printed: every line that is nothing but a number, more than 0.

    >>> parse_latencies("loading\\n1.5\\n2\\nmean 1.75\\n")
    [1.5, 2.0]
    """
    found = []
    for line in text.splitlines():
        try:
            value = float(line)
        except ValueError:
            continue
        if value > 0 and math.isfinite(value):
            found.append(value)
    return found


class CommandBackend:
    """Models by name, each measured by starting the command with ``{model}`` replaced by its path.

    A run that takes longer than `timeout_s` is ended.
    """

    def __init__(self, command: str, timeout_s: float) -> None:
        self._words, self._timeout_s = shlex.split(command), timeout_s
        self._paths: dict[str, Path] = {}

    def build(self, name: str, onnx: Path, samples: Mapping[str, Blob] | None = None) -> dict[str, Any]:
        """Run the command once, to see that it works.

        Raises:
            RuntimeError: it fails, or prints no latency.
        """
        self._paths[name] = onnx
        self._latencies(name)
        return {
            "runtime": "command",
            "runtime_version": "unknown",
            "device": cpu_model(),
            "precision": "unknown",
            "options": {"command": " ".join(self._words)},
        }

    def run(self, name: str, blobs: Mapping[str, Blob]) -> list[Blob]:
        """Not possible: a benchmark command gives times, no outputs."""
        raise RuntimeError("a benchmark command gives no outputs; leave `command` out to run the model by ONNX Runtime")

    def layers(self, name: str) -> None:
        """Nothing is known of them."""

    def measure(self, names: Sequence[str], settings: Mapping[str, Any]) -> dict[str, Any]:
        """One attempt: the models in turns, each turn one run of the command."""
        rounds = min(int(settings["blocks"]), ROUNDS)
        before = snapshot()
        blocks: dict[str, list[list[int]]] = {name: [] for name in names}
        for index in range(rounds):
            for name in names if index % 2 == 0 else list(reversed(names)):
                blocks[name].append([max(1, round(value * 1e6)) for value in self._latencies(name)])
        return {
            "blocks_ns": blocks,
            "warm_up": {name: {"by": "the command, if it does"} for name in names},
            "system": system_info(),
            "before": before,
            "after": snapshot(),
            "details": {name: {} for name in names},
        }

    def _latencies(self, name: str) -> list[float]:
        command = [word.replace("{model}", str(self._paths[name])) for word in self._words]
        done = run(command, self._timeout_s)
        if done.status != 0:
            said = (done.stderr or done.stdout).strip().splitlines()
            raise RuntimeError(
                f"the benchmark command ended with status {done.status}: {said[-1] if said else 'no output'}"
            )
        found = parse_latencies(done.stdout)
        if not found:
            raise RuntimeError("the benchmark command printed no latency: let it print one number of ms on each line")
        return found
