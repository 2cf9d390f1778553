"""What a measurement found, and how two of them compare."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import UsageError
from dtp_deploy.profile.settings import LEAST_BLOCKS
from dtp_deploy.target import LayerTime

DRIFT_LIMIT = 0.05
SPREAD_LIMIT = 0.10
STALL_LIMIT = 0.10

_MAD_TO_STD = 1.4826  # the standard deviation of a normal distribution, in median absolute deviations
_RESAMPLES = 2000
_CONFIDENCE = 0.95

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class LatencyReport:
    """The latency of one model on one target: every sample, and what follows from them.

    Make it with `from_blocks` or `from_samples`. The blocks were taken in turns with those of the other models, over
    the whole time of the measurement. The report is **stable** if

    - there are at least `LEAST_BLOCKS` (4) blocks;
    - `drift` is at most `DRIFT_LIMIT` (5 %): the machine did not slow down or speed up meanwhile;
    - `spread` is at most `SPREAD_LIMIT` (10 %): no load came and went for more than a tenth of the time;
    - `stall` is at most `STALL_LIMIT` (10 %): the model was not kept from running again and again. A steady load of
      others leaves the median alone, but p90 and p99 are then theirs, not the model's.

    A single slow run now and then is the device's own tail: p99, `max_ms` and `outlier_share` show it.

    Attributes:
        p50_ms: the median.
        p90_ms: the time that 90 % of the samples keep.
        p99_ms: the time that 99 % of the samples keep.
        max_ms: the slowest sample.
        mean_ms: the mean. Never quote it without `coefficient_of_variation`.
        samples_ms: every sample, in the order of measuring.
        block_sizes: how many samples each block has; their sum is the number of samples.
        coefficient_of_variation: standard deviation / mean.
        robust_variation: 1.4826 * median absolute deviation / median; the same for a normal distribution, and blind to
            outliers.
        outlier_share: the share of samples more than 1.5 interquartile ranges outside the quartiles (Tukey's fences).
        drift: |median of the second half of the block medians / median of the first half - 1|.
        spread: (90th - 10th percentile of the block medians) / their median.
        stall: |mean / median - 1|: the time lost in slow runs, as a share of the time of normal ones.
        stable: whether the figures can be believed; see above.
        environment: machine, engine and settings; plain JSON values.
        layer_times: of every layer; None if nobody asked, or the runtime does not tell.
    """

    p50_ms: float
    p90_ms: float
    p99_ms: float
    max_ms: float
    mean_ms: float
    samples_ms: tuple[float, ...]
    block_sizes: tuple[int, ...]
    coefficient_of_variation: float
    robust_variation: float
    outlier_share: float
    drift: float
    spread: float
    stall: float
    stable: bool
    environment: dict[str, Any] = field(default_factory=dict)
    layer_times: tuple[LayerTime, ...] | None = None

    @classmethod
    def from_blocks(
        cls,
        blocks_ms: Sequence[Sequence[float]],
        environment: Mapping[str, Any] | None = None,
        layer_times: Sequence[LayerTime] | None = None,
    ) -> LatencyReport:
        """The report of samples that were taken in blocks.

        Raises:
            UsageError: there is no block, or a block is empty.

        >>> report = LatencyReport.from_blocks([[2.0, 2.0, 2.0]] * 9 + [[2.0, 2.0, 3.0]])
        >>> report.p50_ms, report.max_ms, report.outlier_share, report.stable
        (2.0, 3.0, 0.03333333333333333, True)
        """
        if not blocks_ms or not all(blocks_ms):
            raise UsageError("A latency report got an empty block of samples. Give one sample or more for each block.")
        samples = np.concatenate([np.asarray(block, np.float64) for block in blocks_ms])
        p25, p50, p75, p90, p99 = (float(value) for value in np.percentile(samples, [25, 50, 75, 90, 99]))
        fence = 1.5 * (p75 - p25)
        mean = float(samples.mean())
        deviation = float(samples.std(ddof=1)) if samples.size > 1 else 0.0
        medians = np.array([np.median(block) for block in blocks_ms])
        drift, spread, stall = _drift(medians), _spread(medians), abs(mean / p50 - 1)
        return cls(
            p50_ms=p50,
            p90_ms=p90,
            p99_ms=p99,
            max_ms=float(samples.max()),
            mean_ms=mean,
            samples_ms=tuple(samples.tolist()),
            block_sizes=tuple(len(block) for block in blocks_ms),
            coefficient_of_variation=deviation / mean,
            robust_variation=_MAD_TO_STD * float(np.median(np.abs(samples - p50))) / p50,
            outlier_share=float(np.mean((samples < p25 - fence) | (samples > p75 + fence))),
            drift=drift,
            spread=spread,
            stall=stall,
            stable=len(medians) >= LEAST_BLOCKS and _unrest(drift, spread, stall) <= 1,
            environment=dict(environment or {}),
            layer_times=None if layer_times is None else tuple(layer_times),
        )

    @classmethod
    def from_samples(
        cls, samples_ms: Sequence[float], environment: Mapping[str, Any] | None = None, blocks: int = 20
    ) -> LatencyReport:
        """The report of samples from one go, cut into up to `blocks` blocks of about equal size.

        Raises:
            UsageError: there is no sample.

        >>> LatencyReport.from_samples([1.0, 2.0, 3.0], blocks=2).block_sizes
        (2, 1)
        """
        if not len(samples_ms):
            raise UsageError("A latency report got no samples. Give one or more.")
        parts = np.array_split(np.asarray(samples_ms, np.float64), min(blocks, len(samples_ms)))
        return cls.from_blocks([part.tolist() for part in parts], environment)

    @classmethod
    def pooled(cls, reports: Sequence[LatencyReport]) -> LatencyReport:
        """One report of the samples of several measurements of one model, with the last one's environment
        and times of layers.

        >>> LatencyReport.pooled([LatencyReport.from_blocks([[each]]) for each in (1.0, 2.0)]).blocks_ms
        ((1.0,), (2.0,))
        """
        if len(reports) == 1:
            return reports[0]
        blocks = [block for report in reports for block in report.blocks_ms]
        return cls.from_blocks(blocks, reports[-1].environment, reports[-1].layer_times)

    @property
    def blocks_ms(self) -> tuple[tuple[float, ...], ...]:
        """The samples as they were taken: block r was measured in the same round as block r of the other models."""
        ends = np.cumsum(self.block_sizes)
        return tuple(self.samples_ms[end - size : end] for end, size in zip(ends, self.block_sizes, strict=True))

    @property
    def unrest(self) -> float:
        """How far from calm: the largest of drift, spread and stall, each in units of its limit. Stable is up to 1."""
        return _unrest(self.drift, self.spread, self.stall)


def _drift(medians: Floats) -> float:
    if len(medians) < 2:
        return 0.0
    half = len(medians) // 2
    return abs(float(np.median(medians[-half:]) / np.median(medians[:half])) - 1)


def _unrest(drift: float, spread: float, stall: float) -> float:
    return max(drift / DRIFT_LIMIT, spread / SPREAD_LIMIT, stall / STALL_LIMIT)


def _spread(medians: Floats) -> float:
    low, high = np.percentile(medians, [10, 90])
    return float((high - low) / np.median(medians))


@dataclass(frozen=True)
class RatioInterval:
    """A ratio of two latencies, and the interval that holds it with 95 % confidence."""

    ratio: float
    low: float
    high: float


def median_ratio(a: LatencyReport, b: LatencyReport, *, seed: int = 0) -> RatioInterval:
    """How many times as long a takes as b, with a 95 % interval, for two reports of one call of `measure`.

    The ratio is **paired**: the median over the rounds of (median of a's block / median of b's block). What slows a
    round down slows both models, and is gone from their ratio; the ratio of the two p50, each over all rounds, jumps
    between levels of load where one of them has its middle on another level than the other.

    The interval is the percentile bootstrap (Efron & Tibshirani, An Introduction to the Bootstrap, 1993, ch. 13) over
    **rounds**: samples within a block resemble each other, so drawing them one by one would give an interval that is
    too narrow.

    Raises:
        UsageError: the reports have different numbers of blocks, so they were not measured in turns.

    >>> same = LatencyReport.from_samples([1.0, 2.0, 3.0, 4.0])
    >>> median_ratio(same, same)
    RatioInterval(ratio=1.0, low=1.0, high=1.0)
    """
    ratios = _ratios(a, b)
    draws = np.random.default_rng(seed).integers(0, len(ratios), (_RESAMPLES, len(ratios)))
    low, high = np.quantile(np.median(ratios[draws], axis=1), [(1 - _CONFIDENCE) / 2, (1 + _CONFIDENCE) / 2])
    return RatioInterval(float(np.median(ratios)), float(low), float(high))


def _ratios(a: LatencyReport, b: LatencyReport) -> Floats:
    """One a round, shape [R,]."""
    rounds = len(a.block_sizes)
    if rounds != len(b.block_sizes):
        raise UsageError(
            f"The reports have {rounds} and {len(b.block_sizes)} blocks, so they were not measured in turns. "
            "Measure both models in one call of measure()."
        )
    pairs = zip(a.blocks_ms, b.blocks_ms, strict=True)
    return np.array([np.median(block_a) / np.median(block_b) for block_a, block_b in pairs])
