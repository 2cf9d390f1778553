"""What every `Target` must keep, as checks that its author runs on it.

    @pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
    def test_my_target(check, tmp_path):
        check(make_case(TargetSpec("mine"), tmp_path))

A check returns nothing if the target keeps the promise in its docstring, and raises `ConformanceError` if not.
"""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np

from dtp_deploy.errors import InputError, TargetError
from dtp_deploy.target import Arrays, Availability, Session, TargetSpec, find_target, random_inputs


class ConformanceError(AssertionError):
    """A target breaks a promise."""


@dataclass(frozen=True)
class Case:
    """A target, a model that it must run, and a file that it must refuse."""

    spec: TargetSpec
    model_path: Path
    broken_path: Path


def make_case(spec: TargetSpec, folder: Path) -> Case:
    """A case with a small convolutional network, written into `folder`."""
    model_path = folder / "small.onnx"
    write_small_model(model_path)
    broken_path = folder / "broken.onnx"
    broken_path.write_bytes(model_path.read_bytes()[:100])
    return Case(spec, model_path, broken_path)


def write_small_model(path: Path, *, width: int = 8, size: int = 16) -> None:
    """Write an ONNX model: two convolutions and a linear layer, [1, 3, size, size] -> [1, 10], with random weights."""
    import onnx
    from onnx import TensorProto, helper, numpy_helper

    rng = np.random.default_rng(0)
    weights = {
        "w1": rng.standard_normal((width, 3, 3, 3)) / 5,
        "w2": rng.standard_normal((width, width, 3, 3)) / np.sqrt(9 * width),
        "w3": rng.standard_normal((10, width)) / np.sqrt(width),
        "b3": rng.standard_normal(10),
    }
    nodes = [
        helper.make_node("Conv", ["input", "w1"], ["a"], pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["a"], ["b"]),
        helper.make_node("Conv", ["b", "w2"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("GlobalAveragePool", ["c"], ["d"]),
        helper.make_node("Flatten", ["d"], ["e"]),
        helper.make_node("Gemm", ["e", "w3", "b3"], ["output"], transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "small",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 3, size, size])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 10])],
        [numpy_helper.from_array(value.astype(np.float32), name) for name, value in weights.items()],
    )
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), str(path))


def availability_is_an_answer(case: Case) -> None:
    """`availability` never raises, and says why a target cannot be used."""
    try:
        state = find_target(case.spec).availability()
    except Exception as error:
        raise ConformanceError(
            f"availability() raised {error!r}. Give Availability(False, reason, install)."
        ) from error
    _require(isinstance(state, Availability), f"availability() gave {state!r}, no Availability.")
    _require(state.available or bool(state.reason), "availability() is False without a reason.")


def broken_model_is_refused(case: Case) -> None:
    """A file that is no model ends `build` with a TargetError, of one line."""
    try:
        find_target(case.spec).build(case.broken_path)
    except TargetError as error:
        _require("\n" not in str(error), f"the error for a broken model has several lines: {error}")
    else:
        raise ConformanceError("build() accepted a truncated model.")


def outputs_match_their_specs(case: Case) -> None:
    """What `run` gives has the names, shapes and types that the session says."""
    with _session(case) as session:
        outputs = session.run(_inputs(session))
    wanted = {spec.name: (spec.shape, np.dtype(spec.dtype)) for spec in session.outputs}
    found = {name: (array.shape, array.dtype) for name, array in outputs.items()}
    _require(bool(wanted), "the session names no outputs.")
    _require(found == wanted, f"run() gave {found}, but the session says {wanted}.")


def same_input_same_output(case: Case) -> None:
    """Running twice gives the same, and leaves the inputs and the first result alone."""
    with _session(case) as session:
        inputs, other = random_inputs(session.inputs, 2)
        kept = {name: array.copy() for name, array in inputs.items()}
        first = session.run(inputs)
        first_kept = {name: array.copy() for name, array in first.items()}
        session.run(other)
        _require(_equal(first_kept, first), "a later run overwrote the arrays of an earlier one.")
        second = session.run(inputs)
    _require(_equal(first_kept, second), "running twice on one input gave different outputs.")
    _require(_equal(kept, inputs), "running changed the input arrays.")


def other_input_other_output(case: Case) -> None:
    """The outputs depend on the inputs."""
    with _session(case) as session:
        first, second = (session.run(inputs) for inputs in random_inputs(session.inputs, 2))
    _require(not _equal(first, second), "two different inputs gave the same outputs.")


def wrong_inputs_are_named(case: Case) -> None:
    """An input with a wrong name, shape or type is an InputError that names what is expected."""
    with _session(case) as session:
        inputs = _inputs(session)
        name, array = next(iter(inputs.items()))
        wrong: dict[str, Arrays] = {
            "name": {f"no_{name}": array},
            "shape": {**inputs, name: array[..., :-1]},
            "type": {**inputs, name: array.astype(np.complex64)},
        }
        for what, bad in wrong.items():
            try:
                session.run(bad)
            except InputError as error:
                _require(name in str(error), f"the error for a wrong {what} does not name '{name}': {error}")
            else:
                raise ConformanceError(f"run() accepted an input with a wrong {what}.")


def closing_is_safe(case: Case) -> None:
    """A session may be closed twice; then it says that it is closed; and its engine opens again."""
    engine = find_target(case.spec).build(case.model_path)
    with engine.open() as session:
        inputs = _inputs(session)
        session.close()
    session.close()
    try:
        session.run(inputs)
    except TargetError as error:
        _require("closed" in str(error), f"the error of a closed session does not say so: {error}")
    else:
        raise ConformanceError("a closed session still ran.")
    with engine.open() as again:
        again.run(inputs)


def info_is_complete(case: Case) -> None:
    """`info` names runtime, version, device and precision, and is plain JSON."""
    info = find_target(case.spec).build(case.model_path).info
    for name in ("runtime", "runtime_version", "device", "precision"):
        _require(bool(getattr(info, name)), f"EngineInfo.{name} is empty.")
    _require(info.threads is None or info.threads > 0, f"EngineInfo.threads is {info.threads}.")
    try:
        json.dumps(asdict(info))
    except (TypeError, ValueError) as error:
        raise ConformanceError(f"EngineInfo cannot be written as JSON: {error}") from error


def spec_survives_another_process(case: Case) -> None:
    """A spec that went through JSON finds the same target, with the same options."""
    values = json.loads(json.dumps(asdict(case.spec)))
    first, second = find_target(case.spec), find_target(TargetSpec(**values))
    _require(type(first) is type(second), f"{case.spec} found {type(first)}, and {type(second)} after JSON.")
    _require(vars(first) == vars(second), f"{case.spec} lost options by JSON: {vars(first)} became {vars(second)}.")


CHECKS: tuple[Callable[[Case], None], ...] = (
    availability_is_an_answer,
    broken_model_is_refused,
    outputs_match_their_specs,
    same_input_same_output,
    other_input_other_output,
    wrong_inputs_are_named,
    closing_is_safe,
    info_is_complete,
    spec_survives_another_process,
)
"""All checks. Each takes a `Case`."""


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise ConformanceError(message)


@contextmanager
def _session(case: Case) -> Iterator[Session]:
    with find_target(case.spec).build(case.model_path).open() as session:
        yield session


def _inputs(session: Session) -> Arrays:
    return random_inputs(session.inputs, 1)[0]


def _equal(a: Arrays, b: Arrays) -> bool:
    return a.keys() == b.keys() and all(np.array_equal(a[name], b[name]) for name in a)
