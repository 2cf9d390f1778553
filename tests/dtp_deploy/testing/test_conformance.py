"""Each conformance check fails on a target that breaks its promise."""

import itertools

import numpy as np
import pytest

from dtp_deploy.target import Availability, Engine, EngineInfo, Session, Target, TargetSpec, TensorSpec
from dtp_deploy.testing import conformance
from dtp_deploy.testing.conformance import CHECKS, Case, ConformanceError


class Good(Target):
    name = "good"
    summary = "negates"

    def __init__(self, *, level: int = 0):
        self.level = level

    def availability(self):
        return Availability(True)

    def _build(self, model_path):
        if model_path.stem == "broken":
            raise ValueError("not a model\nat all")
        return GoodEngine(model_path, self)

    def info(self):
        return EngineInfo("numpy", "2", "cpu", None, "fp32")

    def compute(self, x):
        return -x


class GoodEngine(Engine):
    def __init__(self, model_path, target):
        super().__init__(model_path)
        self.target = target

    def _open(self):
        return GoodSession(self.target)

    @property
    def info(self):
        return self.target.info()


class GoodSession(Session):
    def __init__(self, target):
        super().__init__([TensorSpec("x", (2, 3), "float32")], [TensorSpec("y", (2, 3), "float32")])
        self.target = target

    def _run(self, inputs):
        return {"y": self.target.compute(inputs["x"])}


class AvailabilityRaises(Good):
    def availability(self):
        raise OSError("no driver")


class UnavailableWithoutReason(Good):
    def availability(self):
        return Availability(False)


class AcceptsAnything(Good):
    def _build(self, model_path):
        return GoodEngine(model_path, self)


class WrongShape(Good):
    def compute(self, x):
        return x[0]


class WrongType(Good):
    def compute(self, x):
        return x.astype(np.float64)


class Random(Good):
    calls = itertools.count()

    def compute(self, x):
        return x + np.float32(next(self.calls))


class ReusesItsBuffer(Good):
    buffer = np.zeros((2, 3), np.float32)

    def compute(self, x):
        self.buffer[:] = x
        return self.buffer


class WritesIntoItsInput(Good):
    def compute(self, x):
        x[:] = 0
        return x + 1


class Constant(Good):
    def compute(self, x):
        return np.zeros_like(x)


class TakesAnyInput(Good):
    def _build(self, model_path):
        engine = super()._build(model_path)
        engine._open = lambda: CarelessSession(self)
        return engine


class CarelessSession(GoodSession):
    def run(self, inputs):
        return self._run({"x": next(iter(inputs.values()))})


class NoVersion(Good):
    def info(self):
        return EngineInfo("numpy", "", "cpu", None, "fp32")


class InfoIsNotPlain(Good):
    def info(self):
        return EngineInfo("numpy", "2", "cpu", None, "fp32", {"handle": object()})


class LosesItsLevel(Good):
    def __init__(self, *, level: int = 0):
        self.level = object()


@pytest.fixture
def case(tmp_path, monkeypatch):
    def make(target_class):
        monkeypatch.setattr(conformance, "find_target", lambda spec: target_class(**spec.options))
        paths = [tmp_path / "model.onnx", tmp_path / "broken.onnx"]
        for path in paths:
            path.touch()
        return Case(TargetSpec("test", {"level": 1}), *paths)

    return make


@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_good_target_passes(check, case):
    check(case(Good))


@pytest.mark.parametrize(
    ("target_class", "check", "message"),
    [
        (AvailabilityRaises, conformance.availability_is_an_answer, r"raised OSError\('no driver'\)"),
        (UnavailableWithoutReason, conformance.availability_is_an_answer, "False without a reason"),
        (AcceptsAnything, conformance.broken_model_is_refused, "accepted a truncated model"),
        (WrongShape, conformance.outputs_match_their_specs, "but the session says"),
        (WrongType, conformance.outputs_match_their_specs, "but the session says"),
        (Random, conformance.same_input_same_output, "gave different outputs"),
        (ReusesItsBuffer, conformance.same_input_same_output, "overwrote the arrays of an earlier one"),
        (WritesIntoItsInput, conformance.same_input_same_output, "changed the input arrays"),
        (Constant, conformance.other_input_other_output, "two different inputs gave the same outputs"),
        (TakesAnyInput, conformance.wrong_inputs_are_named, "accepted an input with a wrong name"),
        (TakesAnyInput, conformance.closing_is_safe, "a closed session still ran"),
        (NoVersion, conformance.info_is_complete, "runtime_version is empty"),
        (InfoIsNotPlain, conformance.info_is_complete, "cannot be written as JSON"),
        (LosesItsLevel, conformance.spec_survives_another_process, "lost options by JSON"),
    ],
)
def test_broken_promise_is_found(target_class, check, message, case):
    with pytest.raises(ConformanceError, match=message):
        check(case(target_class))
