"""The contract of ``report.json``: what one run asked for, what it reached, and how that was found out.

Units are in the names; accuracy is a fraction; null is "not known", never "zero". ``docs/report.md`` is made from the
descriptions below. A change that an existing reader would stumble over raises `SCHEMA_VERSION`.
"""

import json
import math
from pathlib import Path
from typing import Annotated, Final, Literal, Self

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    JsonValue,
    ValidationError,
    ValidationInfo,
    model_validator,
)

from dtp_deploy.budget import BudgetKind, Granularity
from dtp_deploy.errors import InputError
from dtp_deploy.report.privacy import find_private
from dtp_deploy.report.text import json_text

SCHEMA_VERSION: Final = 1
_READING: Final = "reading"
"""The context of validation where a report comes from a file."""

Basis = Literal["measured", "predicted", "computed"]


def _finite_or_none(value: object) -> object:
    """JSON has no infinity: an error that is not finite is null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


MaxError = Annotated[float | None, BeforeValidator(_finite_or_none)]
Fraction = Annotated[float, Field(ge=0, le=1)]
Count = Annotated[int, Field(ge=0)]
Positive = Annotated[float, Field(gt=0)]
NotNegative = Annotated[float, Field(ge=0)]


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", allow_inf_nan=False, from_attributes=True)


class TargetEntry(_Part):
    """What really ran, as the runtime says, not as the user asked."""

    name: str = Field(description="the target's name, as in `--target`")
    runtime: str = Field(description="the program that ran the model")
    runtime_version: str = Field(description="its version")
    device: str = Field(description="the device that it ran on")
    threads: int | None = Field(description="threads used; null where the runtime does not say")
    options: dict[str, JsonValue] = Field(
        default={}, description="the target's options as they were given, but for where the device is found"
    )


class BudgetEntry(_Part):
    """The limit that was asked for, and what was reached."""

    kind: BudgetKind = Field(description="the cost that is limited")
    requested: str = Field(description='the limit as it was typed, such as "60%"; "2:4" where that is the limit')
    relative: bool = Field(description="whether it was a share of the dense model")
    limit: Positive = Field(description="the absolute upper bound, in `unit`")
    unit: str = Field(description="MACs, parameters, non-zero parameters, bytes, channels or ms")
    achieved: NotNegative | None = Field(description="the pruned model's cost, in `unit`; null if not known")
    met: bool | None = Field(description="whether achieved <= limit; null if that could not be found out")
    basis: Basis = Field(description="how `achieved` was found: measured on the target, predicted, or computed exactly")

    @model_validator(mode="after")
    def _met_is_true(self) -> Self:
        if self.met is not None and (self.achieved is None or self.met != (self.achieved <= self.limit)):
            raise ValueError(f"met is {self.met}, but {self.achieved} was achieved with a limit of {self.limit}")
        return self


class LayerTimeEntry(_Part):
    """The time of one layer, by the runtime's own profiler, which slows a run down: the shares are what counts."""

    name: str = Field(description="the runtime's name for it; one layer may be several operators of the ONNX file")
    mean_ms: NotNegative = Field(description="mean over the profiled runs")
    median_ms: NotNegative | None = Field(description="median over the profiled runs; null where the runtime is silent")
    precision: str = Field(description="what its arithmetic has, such as fp16; empty where the runtime is silent")


class LatencyEntry(_Part):
    """The time of one inference, measured on the target."""

    p50_ms: Positive = Field(description="the median")
    p90_ms: Positive = Field(description="nine of ten samples are at most this")
    p99_ms: Positive = Field(description="99 of 100 samples are at most this")
    samples_ms: tuple[Positive, ...] = Field(description="every sample after the warm-up, in the order taken")
    stable: bool = Field(description="whether the spread was small enough to trust the figures")
    coefficient_of_variation: NotNegative | None = Field(None, description="standard deviation over mean")
    outlier_share: Fraction | None = Field(None, description="share of samples far from all others")
    drift: NotNegative | None = Field(None, description="how much the second half differed from the first; a fraction")
    spread: NotNegative | None = Field(None, description="how much the blocks' medians differed; a fraction")
    layer_times: tuple[LayerTimeEntry, ...] | None = Field(
        None, description="every layer, in the order in which they run; null where the runtime does not tell"
    )


class ModelEntry(_Part):
    """One model, dense or pruned."""

    accuracy: Fraction | None = Field(
        description="the task's metric (top-1 for a classification) on the validation data; null without labels"
    )
    macs: Count = Field(description="multiply-accumulate operations of one sample")
    params: Count = Field(description="number of parameters")
    nonzero_params: Count | None = Field(
        None,
        description="the same without masked weights that are zero; null where none are, as in most dense models",
    )
    size_bytes: Count = Field(description="all files that would be delivered (ONNX, weights included)")
    latency: LatencyEntry | None = Field(description="null where the target cannot run here")
    predicted_ms: Positive | None = Field(
        None,
        description="latency from the device's data sheet, where the target cannot run here: predicted, not measured",
    )


class GroupEntry(_Part):
    """One group of channels that must be removed together."""

    name: str = Field(description="the layer that makes the channels")
    width_before: Count = Field(description="channels in the dense model")
    width_after: Count = Field(description="channels kept")
    frozen_because: str | None = Field(description="why nothing could be removed here; null for a prunable group")

    @model_validator(mode="after")
    def _never_grows(self) -> Self:
        if self.width_after > self.width_before:
            raise ValueError(f"group {self.name} grew from {self.width_before} to {self.width_after} channels")
        return self


class LayerEntry(_Part):
    """One layer whose single weights may be set to zero."""

    name: str = Field(description="the layer; empty if it is the whole model")
    weights: Count = Field(description="values of its weight")
    kept: Count = Field(description="those that are not zero")
    left_because: str | None = Field(description="why none was set to zero here; null for a masked layer")

    @model_validator(mode="after")
    def _never_grows(self) -> Self:
        if self.kept > self.weights:
            raise ValueError(f"layer {self.name} keeps {self.kept} of {self.weights} weights")
        return self


class BlockEntry(_Part):
    """One residual block that might be removed as a whole."""

    name: str = Field(description="the module around it")
    removed: bool = Field(description="whether it was removed: its input goes on unchanged")
    reason: str = Field(description="why, or why not")


class ParityEntry(_Part):
    """One comparison of two forms of the model that must give the same outputs."""

    stage: str = Field(description="the form that was compared")
    max_abs_error: MaxError = Field(description="largest difference; null if not finite or not comparable")
    max_rel_error: MaxError = Field(description="the same over the largest output; null likewise")
    tolerance: Positive = Field(description="the largest `max_rel_error` that is allowed")
    passed: bool = Field(description="whether it was kept")


class PassEntry(_Part):
    """One pass over the exported graph."""

    name: str = Field(description="the pass")
    applied: bool = Field(description="false if it was skipped and the graph before it was used")
    reason: str = Field(description="why it was skipped; empty if it was applied")


class StageEntry(_Part):
    """One stage of the run."""

    name: str = Field(description="the stage")
    seconds: NotNegative = Field(description="how long it took")
    peak_memory_bytes: Count | None = Field(None, description="largest resident memory of the process meanwhile")
    peak_gpu_memory_bytes: Count | None = Field(
        None, description="largest memory of its tensors on the CUDA device meanwhile; null without one"
    )


class MaskPhaseEntry(_Part):
    """How the masks stood: before the first step, after every epoch in which masks were learned, and at the end."""

    step: Count = Field(description="training steps done")
    epoch: NotNegative = Field(description="epochs done")
    undecided: Fraction = Field(description="share of the masks between 0.02 and 0.98")
    entropy_bits: NotNegative = Field(description="mean entropy of the masks in bits; 1 where all are 1/2")
    cost_share: NotNegative = Field(description="cost of the masks over that of the dense network, by the formula")
    price: float | None = Field(
        description="what the loss would fall by if the budget gained the dense network's whole cost, to first order, "
        "the mean since the entry before; null if not known, as with `--per-layer` or 2:4"
    )
    accuracy_soft: Fraction | None = Field(
        description="the task's metric on the first validation samples, masks as they are; null if not known"
    )
    accuracy_hard: Fraction | None = Field(
        description="the same with masks hardened at 0.5, BatchNorm statistics as they are"
    )
    widths: tuple[Count, ...] = Field(
        description="channels whose masks are 0.5 or more, of every group in `groups` that is not frozen, in order; or "
        "weights, of every layer in `layers` that is masked"
    )


class StageAccuracyEntry(_Part):
    """The accuracy at one point of the run."""

    stage: str = Field(description="dense, after hardening, after fine-tuning, delivered")
    accuracy: Fraction | None = Field(description="the task's metric there; null if not known")


class LatencyRatioEntry(_Part):
    """Pruned over dense, measured in turns: the median over the rounds of the ratio of their p50 in that round."""

    ratio: Positive = Field(description="below 1 is faster")
    low: Positive = Field(description="lower end of its confidence interval")
    high: Positive = Field(description="upper end of its confidence interval")


class Report(_Part):
    """One run of ``dtp-deploy compress``.

    Raises:
        pydantic.ValidationError: a value is outside of its range, or a text or a key holds the home folder or this
            host's name (`dtp_deploy.report.hide_home` takes them out).
    """

    schema_version: Literal[1] = Field(SCHEMA_VERSION, description="the version of this format")
    dtp_deploy_version: str = Field(description="the dtp-deploy that wrote it")
    model: str = Field(description="the model's name")
    onnx_sha256: str = Field(pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the delivered `model.onnx`")
    dense_onnx_sha256: str | None = Field(
        None, pattern=r"^[0-9a-f]{64}$", description="SHA-256 of the dense model's ONNX file; null if not known"
    )
    target: TargetEntry = Field(description="what ran the model")
    budget: BudgetEntry = Field(description="the limit, and what was reached")
    further_budgets: tuple[BudgetEntry, ...] = Field((), description="the other limits, where several were given")
    dense: ModelEntry = Field(description="the model as it came")
    pruned: ModelEntry = Field(description="the model as it is delivered")
    latency_ratio: LatencyRatioEntry | None = Field(description="pruned over dense; null if not measured")
    accuracy_stages: tuple[StageAccuracyEntry, ...] = Field(description="accuracy along the run")
    granularity: Granularity = Field(
        "channels", description="what was pruned: channels, single weights, or two of every four weights"
    )
    groups: tuple[GroupEntry, ...] = Field(
        description="channel groups, prunable and frozen; none where single weights were pruned"
    )
    layers: tuple[LayerEntry, ...] = Field(
        (), description="layers with weights, where single weights were pruned: masked, and left as they are"
    )
    blocks: tuple[BlockEntry, ...] = Field(
        (), description="residual blocks, where removing them as a whole was allowed: removed, and kept"
    )
    mask_phase: tuple[MaskPhaseEntry, ...] = Field((), description="how the masks were learned, epoch by epoch")
    parity: tuple[ParityEntry, ...] = Field(description="every comparison made")
    passes: tuple[PassEntry, ...] = Field(description="passes over the exported graph")
    stages: tuple[StageEntry, ...] = Field(description="the time of each stage")
    resumed_from_step: Count | None = Field(None, description="the training step that a cut-off run went on from")
    settings: dict[str, JsonValue] = Field(description="solver and every hyper-parameter")
    environment: dict[str, JsonValue] = Field(description="versions and hardware; no host name, no home folder")
    notes: tuple[str, ...] = Field(description="what a reader should know besides")

    @model_validator(mode="after")
    def _tells_of_nobody(self, info: ValidationInfo) -> Self:
        # What is read was written elsewhere: a word of it that happens to be this host's name is no secret of ours.
        if info.context != _READING and (found := find_private(self.model_dump(mode="json"))):
            raise ValueError(f"{found}, and a report is passed on: leave it out (hide_home takes it out)")
        return self

    @model_validator(mode="after")
    def _has_widths_of_its_groups(self) -> Self:
        prunable = sum(group.frozen_because is None for group in self.groups)
        prunable += sum(layer.left_because is None for layer in self.layers)
        for entry in self.mask_phase:
            if len(entry.widths) != prunable:
                raise ValueError(
                    f"mask_phase has the widths of {len(entry.widths)} groups or layers, and {prunable} are pruned"
                )
        return self

    def to_json(self) -> str:
        """The text of ``report.json``, with a list of numbers on one line."""
        return json_text(self.model_dump(mode="json"))

    @classmethod
    def from_json(cls, text: str | bytes, source: str = "The report") -> Self:
        """Read what `to_json` wrote. `source` names the file in messages.

        Raises:
            InputError: not such a report, or one of another schema version.
        """
        try:
            document = json.loads(text)
        except ValueError as error:
            raise InputError(f"{source} is not JSON ({error}). Give a report.json of dtp-deploy compress.") from None
        version = document.get("schema_version") if isinstance(document, dict) else None
        if version != SCHEMA_VERSION:
            raise InputError(
                f"{source} has schema_version {json.dumps(version)}; this dtp-deploy reads {SCHEMA_VERSION}. "
                "Read it with the dtp-deploy that wrote it, or compress again."
            )
        try:
            return cls.model_validate_json(text, strict=True, context=_READING)
        except ValidationError as error:
            first = error.errors()[0]
            place = ".".join(str(part) for part in first["loc"]) or "the whole"
            reason = first["msg"].removeprefix("Value error, ")
            raise InputError(f"{source} is not a report: {place}: {reason}. Compress again.") from None


def read_report(path: Path) -> Report:
    """The report in the file at `path`.

    Raises:
        InputError: the file cannot be read, or holds no report that this version understands.
    """
    try:
        text = path.read_bytes()
    except OSError as error:
        raise InputError(
            f"{path} cannot be read ({error.strerror}). Give a report.json of dtp-deploy compress."
        ) from None
    return Report.from_json(text, str(path))
