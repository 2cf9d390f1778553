import re

import numpy as np
import pytest

from dtp_deploy.errors import InputError, TargetError, UsageError
from dtp_deploy.target import (
    Availability,
    Engine,
    EngineInfo,
    LayerTime,
    Session,
    Target,
    TargetSpec,
    TensorSpec,
    find_target,
    random_inputs,
    target_classes,
)

OWN_TARGET = """
from dtp_deploy.target import Target

class Own(Target):
    name = "own"
    summary = "a target of the user's own"

    def __init__(self, *, level: int = 0):
        self.level = level

    def availability(self): ...
    def _build(self, model_path): ...

other = 3
"""


@pytest.fixture
def own_target(tmp_path, monkeypatch):
    (tmp_path / "own_target.py").write_text(OWN_TARGET)
    (tmp_path / "broken_target.py").write_text("1 / 0")
    monkeypatch.syspath_prepend(tmp_path)


class Doubling(Target):
    name = "doubling"
    summary = "doubles"
    closed = 0

    def availability(self):
        return Availability(True)

    def _build(self, model_path):
        return DoublingEngine(model_path)


class DoublingEngine(Engine):
    def _open(self):
        return DoublingSession(
            [TensorSpec("x", (2,), "float32"), TensorSpec("i", (), "int64")], [TensorSpec("y", (2,), "float32")]
        )

    @property
    def info(self):
        return EngineInfo("numpy", "2", "cpu", 1, "fp32")


class DoublingSession(Session):
    def _run(self, inputs):
        return {"y": 2 * inputs["x"]}

    def _close(self):
        Doubling.closed += 1


@pytest.fixture
def session(tmp_path):
    (tmp_path / "model.onnx").touch()
    Doubling.closed = 0
    with Doubling().build(tmp_path / "model.onnx").open() as session:
        yield session


X, I = np.ones(2, np.float32), np.array(0)  # noqa: E741 - named as the inputs are


def test_cpu_is_installed():
    assert "cpu" in target_classes()
    assert type(find_target("cpu")) is target_classes()["cpu"]


def test_target_of_the_users_own_is_found(own_target):
    target = find_target(TargetSpec("own_target:Own", {"level": 2}))
    assert (target.name, target.level) == ("own", 2)


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("toaster", "--target 'toaster' is unknown. Give one of: cpu"),
        ("own_target:", "--target 'own_target:' is unknown."),
        ("absent:Own", "--target 'absent:Own' cannot be imported: ModuleNotFoundError: No module named 'absent'."),
        ("broken_target:Own", "--target 'broken_target:Own' cannot be imported: ZeroDivisionError: division by zero."),
        ("own_target:Nothing", "--target 'own_target:Nothing' cannot be imported: AttributeError: "),
        ("own_target:other", "--target 'own_target:other' is no subclass of dtp_deploy.target.Target."),
    ],
)
def test_wrong_name_is_one_line(own_target, name, message):
    with pytest.raises(UsageError, match=f"^{re.escape(message)}") as caught:
        find_target(name)
    assert "\n" not in str(caught.value)


def test_wrong_option_names_those_allowed(own_target):
    message = (
        "Target 'own_target:Own' does not take the options {'colour': 'red'}: got an unexpected keyword argument "
        "'colour'. It takes (*, level: int = 0)."
    )
    with pytest.raises(UsageError, match=f"^{re.escape(message)}$"):
        find_target(TargetSpec("own_target:Own", {"colour": "red"}))


def test_session_runs_and_closes_once(session):
    np.testing.assert_array_equal(session.run({"x": X, "i": I})["y"], 2 * X)
    session.close()
    session.close()
    assert Doubling.closed == 1
    message = "Target 'doubling' with model.onnx is closed. Open the engine again to run it."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        session.run({"x": X, "i": I})


@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        ({}, "got inputs named (none). Give exactly: x, i."),
        ({"x": X}, "got inputs named x. Give exactly: x, i."),
        ({"x": X, "i": I, "z": X}, "got inputs named i, x, z. Give exactly: x, i."),
        ({"x": X[:1], "i": I}, "got input 'x' as float32 [1]. Give it as float32 [2]."),
        ({"x": X.astype("float64"), "i": I}, "got input 'x' as float64 [2]. Give it as float32 [2]."),
    ],
)
def test_wrong_inputs_are_named(session, inputs, message):
    with pytest.raises(InputError, match=rf"^Target 'doubling' with model\.onnx {re.escape(message)}$"):
        session.run(inputs)


class Compiling(Doubling):
    name = "compiling"

    def availability(self):
        return Availability(False, "builds here, but cannot run: no chip", builds=True)


def test_a_target_that_only_builds_builds_and_says_that_it_cannot_run(tmp_path):
    (tmp_path / "model.onnx").touch()
    assert Compiling().build(tmp_path / "model.onnx").info
    message = "Target 'compiling' builds here, but cannot run: no chip."
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        Compiling().require_available()
    Compiling().require_available(to_run=False)


def test_layers_are_told_or_not_and_a_failure_is_one_line(tmp_path, monkeypatch):
    (tmp_path / "model.onnx").touch()
    engine = Doubling().build(tmp_path / "model.onnx")
    assert engine.layer_times() is None
    monkeypatch.setattr(DoublingEngine, "_layer_times", lambda self: [LayerTime("a", 1.0)])
    assert engine.layer_times() == (LayerTime("a", 1.0, None, ""),)
    monkeypatch.setattr(DoublingEngine, "_layer_times", lambda self: 1 / 0)
    message = "Target 'doubling' with model.onnx failed to profile its layers: ZeroDivisionError: division by zero"
    with pytest.raises(TargetError, match=f"^{re.escape(message)}$"):
        engine.layer_times()


def test_missing_model_is_named(tmp_path):
    message = f"There is no model file at {tmp_path / 'absent.onnx'}. Give the path of an existing file."
    with pytest.raises(InputError, match=f"^{re.escape(message)}$"):
        Doubling().build(tmp_path / "absent.onnx")


def test_session_is_closed_after_an_error(tmp_path):
    (tmp_path / "model.onnx").touch()
    Doubling.closed = 0
    with pytest.raises(KeyError), Doubling().build(tmp_path / "model.onnx").open():
        raise KeyError
    assert Doubling.closed == 1


def test_random_inputs_differ_and_follow_the_seed():
    specs = (TensorSpec("x", (2, 3), "float16"), TensorSpec("i", (4,), "int64"), TensorSpec("b", (2,), "bool"))
    first, second = random_inputs(specs, 2, seed=1)
    assert {name: (array.shape, str(array.dtype)) for name, array in first.items()} == {
        spec.name: (spec.shape, spec.dtype) for spec in specs
    }
    assert not np.array_equal(first["x"], second["x"])
    np.testing.assert_array_equal(first["x"], random_inputs(specs, 1, seed=1)[0]["x"])
    assert set(first["i"]) <= {0, 1}
