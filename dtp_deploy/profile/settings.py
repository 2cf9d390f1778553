"""How long and how carefully to measure. This file also runs on boards: standard library only, Python 3.8 or newer."""

from dataclasses import dataclass

from dtp_deploy.errors import UsageError

LEAST_BLOCKS = 4
"""The blocks that it takes to tell whether a measurement was stable."""


@dataclass(frozen=True)
class MeasureSettings:
    """The settings of one measurement. Times are in seconds; samples are counted for each model.

    A model is run until it has `min_samples` samples and has run for `min_seconds`, whichever takes longer, but for no
    more than `max_seconds` or `max_samples`. So a model slower than max_seconds / min_samples gets fewer samples, and
    one faster than min_seconds / max_samples runs for a shorter time. Samples are rounded up to whole blocks,
    and the first run of a block is not kept, so both upper limits are passed by a little.

    Attributes:
        min_samples: samples that every model gets, unless they take more than `max_seconds`.
        max_samples: samples kept at the most: they are all in the report.
        min_seconds: time that every model runs, unless it needs more than `max_samples`.
        max_seconds: time that one model may run in one attempt.
        blocks: in how many turns (A B A B ...) the samples are taken.
        warm_up_seconds: the shortest warm-up.
        max_warm_up_seconds: the longest warm-up; it ends before, once the running median is steady.
        warm_up_tolerance: the medians of two windows in sequence that differ by no more than this fraction are steady.
        inputs: how many different random inputs are used in rotation.
        repeats: how often an attempt that was not stable is repeated.
        timeout_s: time for the whole child process, building the engines included. What lasts longer is killed.
        seed: of the random inputs.
        layers: whether the time of every layer is found out too, in further runs after the timed ones.

    Raises:
        UsageError: a setting is out of range.
    """

    min_samples: int = 50
    max_samples: int = 10_000
    min_seconds: float = 1.0
    max_seconds: float = 20.0
    blocks: int = 20
    warm_up_seconds: float = 0.2
    max_warm_up_seconds: float = 3.0
    warm_up_tolerance: float = 0.02
    inputs: int = 5
    repeats: int = 2
    timeout_s: float = 600.0
    seed: int = 0
    layers: bool = False

    def __post_init__(self) -> None:
        for name in ("min_samples", "max_samples", "max_seconds", "blocks", "inputs", "timeout_s"):
            self._require(name, getattr(self, name) > 0, "more than 0")
        for name in ("min_seconds", "warm_up_seconds", "warm_up_tolerance", "repeats", "seed"):
            self._require(name, getattr(self, name) >= 0, "0 or more")
        for low, high in (
            ("min_samples", "max_samples"),
            ("min_seconds", "max_seconds"),
            ("warm_up_seconds", "max_warm_up_seconds"),
        ):
            self._require(low, getattr(self, low) <= getattr(self, high), f"at most {high} ({getattr(self, high)})")

    def _require(self, name: str, holds: bool, allowed: str) -> None:
        if not holds:
            raise UsageError(f"MeasureSettings({name}={getattr(self, name)}) is out of range. Give {allowed}.")
