"""What a target is: something that runs an ONNX model, from this machine's CPU to a board on a desk.

`Target` (what is there, what it can do) builds an `Engine` (one model, compiled for it); an engine opens a `Session`
(the engine in memory, ready to run). The base classes here guard the life cycle once: they check what goes in, and
turn whatever a runtime raises into a `TargetError` of one line. A runtime writes only `_build`, `_open`, `_run` and
`_close`.

Targets are found by the entry point group ``dtp_deploy.targets`` (name -> a subclass of `Target`), or by the name
``module:Class``, for a target of the user's own. A measurement runs in a child process, which gets a `TargetSpec` (a
name and plain options) and finds its target anew.
"""

from __future__ import annotations

import abc
import inspect
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from importlib import import_module
from importlib.metadata import EntryPoint, entry_points
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import numpy.typing as npt

from dtp_deploy.errors import DtpError, InputError, TargetError, UsageError
from dtp_deploy.progress import SILENT, Progress

Arrays = dict[str, npt.NDArray[Any]]
Option = str | int | float | bool

ENTRY_POINT_GROUP = "dtp_deploy.targets"


@dataclass(frozen=True)
class TargetSpec:
    """A target's name and options, plain enough to be sent to another process or written into a report.

    Attributes:
        name: the name of an installed target ("cpu"), or "module:Class" for a subclass of `Target` on the import path.
        options: the keyword arguments of the target's class.
    """

    name: str
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class Availability:
    """What a target can do here.

    Attributes:
        available: whether it builds and runs models here.
        reason: if not, why ("needs the package x").
        install: the line that would change it.
        builds: whether it builds them even so; running is then somebody else's.
    """

    available: bool
    reason: str = ""
    install: str = ""
    builds: bool = False

    @property
    def fault(self) -> str:
        """Reason and remedy, as the end of a sentence without its full stop.

        >>> Availability(False, "needs the package x", "pip install x").fault
        'needs the package x: pip install x'
        """
        return f"{self.reason}: {self.install}" if self.install else self.reason


@dataclass(frozen=True)
class EngineInfo:
    """What really runs, for the report: filled in from the runtime, not from the request."""

    runtime: str
    runtime_version: str
    device: str
    threads: int | None
    precision: str
    options: Mapping[str, Option] = field(default_factory=dict)


@dataclass(frozen=True)
class LayerTime:
    """The time of one layer of an engine, as the runtime's own profiler tells it.

    Profiling slows a run down, so the sum over the layers is more than the latency: the shares are what counts.

    Attributes:
        name: the runtime's, which fuses the model's operators.
        mean_ms: over the profiled runs.
        median_ms: over the profiled runs; None where the runtime does not tell.
        precision: that its arithmetic has ("fp16"); "" where the runtime does not tell, or where it has none.
    """

    name: str
    mean_ms: float
    median_ms: float | None = None
    precision: str = ""


@dataclass(frozen=True)
class Attempt:
    """One attempt at measuring that a target made by itself, all models in turns. Plain JSON values.

    Attributes:
        blocks_ns: the durations in ns, by model and block; block r of each model was measured in the same round.
        warm_up: how each model was warmed up.
        system: what it ran on.
        before: the state of the device before, and
        after: after measuring.
        details: what else was found for each model: power, warnings.
    """

    blocks_ns: Mapping[str, Sequence[Sequence[int]]]
    warm_up: Mapping[str, Mapping[str, Any]]
    system: Mapping[str, Any]
    before: Mapping[str, Any]
    after: Mapping[str, Any]
    details: Mapping[str, Mapping[str, Any]]


@dataclass(frozen=True)
class ImportedMeasurement:
    """What was measured on a device by somebody else, with the files of `Target.write_bundle` or with its own tools.

    Attributes:
        blocks_ms: every sample of the model, in the blocks they were taken in.
        dense_blocks_ms: the same for the dense model if it was measured in turns with it, or None.
        sha256: of the ONNX file that was measured, or None if the result does not say.
        engine: what ran.
        environment: what else is known; plain JSON values.
        dense_sha256: of the ONNX file of the dense model, or None if it was not measured or the result does not say.
        layers: the times of the model's layers, or None if the result does not tell them.
        dense_layers: the same for the dense model.
    """

    blocks_ms: Sequence[Sequence[float]]
    dense_blocks_ms: Sequence[Sequence[float]] | None
    sha256: str | None
    engine: EngineInfo
    environment: Mapping[str, Any]
    dense_sha256: str | None = None
    layers: tuple[LayerTime, ...] | None = None
    dense_layers: tuple[LayerTime, ...] | None = None


@dataclass(frozen=True)
class PredictedLatency:
    """A latency that nobody measured. Never report it as anything else.

    Attributes:
        ms: of one inference.
        device: the device that it is predicted for.
        assumptions: what the prediction rests on, in words.
    """

    ms: float
    device: str
    assumptions: tuple[str, ...]


@dataclass(frozen=True)
class TensorSpec:
    """Name, shape and NumPy dtype name of one input or output of an engine. Shapes are static."""

    name: str
    shape: tuple[int, ...]
    dtype: str


@contextmanager
def _foreign(label: str, action: str) -> Iterator[None]:
    """Turn whatever a runtime raises into one line that says where it happened."""
    try:
        yield
    except DtpError:
        raise
    except Exception as error:
        raise TargetError(f"{label} failed to {action}: {type(error).__name__}: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), "no message")


class Session(abc.ABC):
    """An engine in memory. Use it as ``with engine.open() as session: session.run(inputs)``."""

    label: str = "The session"
    """Which target and model this is, for messages; set by `Engine.open`."""

    def __init__(self, inputs: Sequence[TensorSpec], outputs: Sequence[TensorSpec]) -> None:
        self.inputs = tuple(inputs)
        self.outputs = tuple(outputs)
        self._expected = {spec.name: (spec.shape, np.dtype(spec.dtype)) for spec in self.inputs}
        self._is_open = True

    @abc.abstractmethod
    def _run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the model once; the inputs have been checked."""

    def _close(self) -> None:  # noqa: B027 - most runtimes have nothing to give back
        """Give back what the runtime holds. Called once."""

    def run(self, inputs: Mapping[str, npt.NDArray[Any]]) -> Arrays:
        """Run the model once: arrays by input name in, arrays by output name out.

        Raises:
            InputError: an input is missing, unknown, or of another shape or dtype than `inputs` says.
            TargetError: the session is closed, or the runtime fails.
        """
        if not self._is_open:
            raise TargetError(f"{self.label} is closed. Open the engine again to run it.")
        if inputs.keys() != self._expected.keys():
            raise InputError(
                f"{self.label} got inputs named {', '.join(sorted(inputs)) or '(none)'}. "
                f"Give exactly: {', '.join(self._expected)}."
            )
        for name, (shape, dtype) in self._expected.items():
            array = inputs[name]
            if array.shape != shape or array.dtype != dtype:
                raise InputError(
                    f"{self.label} got input '{name}' as {array.dtype} {list(array.shape)}. "
                    f"Give it as {dtype} {list(shape)}."
                )
        with _foreign(self.label, "run"):
            return self._run(inputs)

    def close(self) -> None:
        """Give back what the runtime holds. Closing twice does no harm."""
        if self._is_open:
            self._is_open = False
            with _foreign(self.label, "close"):
                self._close()


class Engine(abc.ABC):
    """One model built for one target."""

    label: str = "The engine"
    """Which target and model this is, for messages; set by `Target.build`."""

    def __init__(self, model_path: Path) -> None:
        self.model_path = model_path

    @abc.abstractmethod
    def _open(self) -> Session:
        """Load the engine into its runtime."""

    @property
    @abc.abstractmethod
    def info(self) -> EngineInfo:
        """What runs here."""

    def _layer_times(self) -> Sequence[LayerTime] | None:
        """Profile some runs; see `layer_times`."""
        return None

    def layer_times(self) -> tuple[LayerTime, ...] | None:
        """The time of every layer, in the order in which they run, from runs that are made for it and not timed.

        Returns:
            None if the runtime does not tell.

        Raises:
            TargetError: the runtime fails.
        """
        with _foreign(self.label, "profile its layers"):
            found = self._layer_times()
        return None if found is None else tuple(found)

    @contextmanager
    def open(self) -> Iterator[Session]:
        """Load the engine, give it, and close it whatever happens.

        Raises:
            TargetError: the runtime could not load it.
        """
        with _foreign(self.label, "load its engine"):
            session = self._open()
        session.label = self.label
        try:
            yield session
        finally:
            session.close()


class Target(abc.ABC):
    """A runtime on a device. Constructing one is cheap and imports no runtime.

    Subclasses take their options as keyword arguments and raise `UsageError` for one that is not allowed.
    """

    name: ClassVar[str]
    summary: ClassVar[str]
    """One line for ``dtp-deploy targets``."""
    accepts: ClassVar[str] = "onnx"
    """The form of model that `build` takes: "onnx" or "torch.export"."""
    build_is_slow: ClassVar[bool] = False
    """Whether builds take so long that latency is learned from few whole networks, not from many single layers."""
    progress: Progress = SILENT
    """Who hears how far `_build` is: what `build` was given."""

    @abc.abstractmethod
    def availability(self) -> Availability:
        """Whether models can be built and run here. Never raises."""

    def require_available(self, *, to_run: bool = True) -> None:
        """See that models can be run here, or only built.

        Raises:
            TargetError: they cannot.
        """
        state = self.availability()
        if not (state.available or (state.builds and not to_run)):
            raise TargetError(f"Target '{self.name}' {state.fault}.")

    @abc.abstractmethod
    def _build(self, model_path: Path) -> Engine:
        """Compile the model; the target is available, or builds at least, and the file exists."""

    def build(self, model_path: Path, progress: Progress = SILENT) -> Engine:
        """Compile the model at `model_path` for this target.

        Args:
            model_path: of an existing file.
            progress: told how far the build is, where the target knows.

        Raises:
            InputError: there is no such file.
            TargetError: the target cannot build here, or its runtime refuses the model.
        """
        self.require_available(to_run=False)
        if not model_path.is_file():
            raise InputError(f"There is no model file at {model_path}. Give the path of an existing file.")
        label = f"Target '{self.name}' with {model_path.name}"
        object.__setattr__(self, "progress", progress)  # a target may be a frozen dataclass
        try:
            with _foreign(label, "build"):
                engine = self._build(model_path)
        finally:
            object.__setattr__(self, "progress", SILENT)
        engine.label = label
        return engine

    def measure(self, engines: Mapping[str, Engine], settings: Mapping[str, Any]) -> Attempt | None:
        """Measure engines that this target built, once, where a session's `run` would time something else: the network.

        Args:
            engines: by a name of the caller's choice.
            settings: `dtp_deploy.profile.MeasureSettings` as a dict.

        Returns:
            None, as here, if the caller is to time the sessions.
        """
        return None

    @property
    def predicts(self) -> bool:
        """Whether this target has a `predict` of its own."""
        return type(self).predict is not Target.predict

    def predict(self, model_path: Path) -> PredictedLatency | None:
        """What the model would take on a device that is not at hand, from its data sheet.

        Returns:
            None, as here, if this target does not predict.

        Raises:
            TargetError: it predicts, but not for this model.
        """
        return None

    def read_measurement(self, path: Path, layers: Path | None = None) -> ImportedMeasurement:
        """Read what was measured on a device that is not at hand.

        Args:
            path: the result.
            layers: a file of its own with the times of the layers, where the result does not hold them.

        Raises:
            InputError: the file is no such result, or holds an error in place of one.
            TargetError: this target knows no such files.
        """
        raise TargetError(f"Target '{self.name}' measures by itself; there is nothing to import. Run compress again.")

    def write_bundle(self, folder: Path, model_path: Path) -> list[Path]:
        """Put everything beside a delivered model that measures it on a device that is not at hand.

        Returns:
            The files written; none, as here, if this target has nothing to add.
        """
        return []


def _entry_points() -> dict[str, EntryPoint]:
    return {point.name: point for point in sorted(entry_points(group=ENTRY_POINT_GROUP), key=lambda point: point.name)}


def target_classes() -> dict[str, type[Target]]:
    """All targets that are installed, by name, in the order of their names."""
    return {name: point.load() for name, point in _entry_points().items()}


def parse_target(text: str) -> TargetSpec:
    """A target as it is typed: a name, or ``name:board`` for a target that knows boards.

    >>> parse_target("jetson:orin-nano")
    TargetSpec(name='jetson', options={'board': 'orin-nano'})
    >>> parse_target("package.module:Class")
    TargetSpec(name='package.module:Class', options={})
    """
    name, colon, board = text.partition(":")
    return TargetSpec(name, {"board": board}) if colon and name in _entry_points() else TargetSpec(text)


def find_target(spec: TargetSpec | str) -> Target:
    """The target that a spec names, with its options set.

    Raises:
        UsageError: no target has that name, or it has no such option.
    """
    spec = parse_target(spec) if isinstance(spec, str) else spec
    target_class = _find_class(spec.name)
    signature = inspect.signature(target_class).replace(return_annotation=inspect.Signature.empty)
    try:
        signature.bind(**spec.options)
    except TypeError as error:
        raise UsageError(
            f"Target '{spec.name}' does not take the options {dict(spec.options)}: {error}. It takes {signature}."
        ) from None
    return target_class(**spec.options)


def _find_class(name: str) -> type[Target]:
    points = _entry_points()
    if name in points:
        loaded: type[Target] = points[name].load()
        return loaded
    module, colon, attribute = name.partition(":")
    if not (colon and module and attribute):
        raise UsageError(
            f"--target {name!r} is unknown. Give one of: {', '.join(points)}; or module:Class for a target of your "
            "own. `dtp-deploy targets` says which are available here."
        )
    try:
        found = getattr(import_module(module), attribute)
    except Exception as error:
        raise UsageError(
            f"--target {name!r} cannot be imported: {type(error).__name__}: {_first_line(error)}. "
            "Give module:Class, with the module on the import path."
        ) from error
    if not (inspect.isclass(found) and issubclass(found, Target)):
        raise UsageError(f"--target {name!r} is no subclass of dtp_deploy.target.Target. Give module:Class of one.")
    return found


def random_inputs(specs: tuple[TensorSpec, ...], count: int, seed: int = 0) -> list[Arrays]:
    """`count` different random inputs: standard normal for floats, zeros and ones for integers."""
    rng = np.random.default_rng(seed)
    return [
        {
            spec.name: rng.standard_normal(spec.shape).astype(spec.dtype)
            if np.issubdtype(np.dtype(spec.dtype), np.floating)
            else rng.integers(0, 2, spec.shape).astype(spec.dtype)
            for spec in specs
        }
        for _ in range(count)
    ]
