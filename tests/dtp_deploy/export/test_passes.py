import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dtp_deploy.export.callables import onnx_callable
from dtp_deploy.export.passes import PassOutcome, SimplifyPass, run_passes
from dtp_deploy.parity import compare

BATCHES = [{"input": np.random.default_rng(seed).normal(size=(1, 4)).astype(np.float32)} for seed in range(2)]


@pytest.fixture
def source(tmp_path):
    """output = relu(-(-input)) * (1 + 1), with room for improvement."""
    one = numpy_helper.from_array(np.ones(4, np.float32), "one")
    graph = helper.make_graph(
        [
            helper.make_node("Add", ["one", "one"], ["two"]),
            helper.make_node("Identity", ["input"], ["same"]),
            helper.make_node("Relu", ["same"], ["positive"]),
            helper.make_node("Mul", ["positive", "two"], ["output"]),
        ],
        "main",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, [1, 4])],
        [helper.make_tensor_value_info("output", TensorProto.FLOAT, [1, 4])],
        [one],
    )
    path = tmp_path / "source.onnx"
    onnx.save(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10), path)
    return path


@pytest.fixture
def check(source):
    reference = onnx_callable(source)
    return lambda path: compare("pass", reference, onnx_callable(path), BATCHES)


class Note:
    """Does no harm: renames a node."""

    name = "note"

    def apply(self, model):
        model.graph.node[0].name = "noted"
        return model


class Halve:
    """Valid, and wrong."""

    name = "halve"

    def apply(self, model):
        next(tensor for tensor in model.graph.initializer if tensor.name == "one").CopyFrom(
            numpy_helper.from_array(np.full(4, 0.5, np.float32), "one")
        )
        return model


class Raise:
    name = "raise"

    def apply(self, model):
        model.graph.ClearField("node")
        raise RuntimeError("no rule for\nMul")


class Cut:
    """Leaves a node that reads what nobody writes."""

    name = "cut"

    def apply(self, model):
        del model.graph.node[0]
        return model


class Rename:
    name = "rename"

    def apply(self, model):
        model.graph.node[-1].output[0] = model.graph.output[0].name = "result"
        return model


class Foreign:
    """Valid for ONNX, which does not look into other operator sets; unknown to the runtime."""

    name = "foreign"

    def apply(self, model):
        model.graph.node[2].op_type, model.graph.node[2].domain = "Relu", "com.example"
        model.opset_import.append(helper.make_opsetid("com.example", 1))
        return model


class Nothing:
    name = "nothing"

    def apply(self, model):
        return None


def test_a_good_pass_is_applied(source, check, tmp_path):
    destination = tmp_path / "out.onnx"
    (outcome,) = run_passes(source, destination, [SimplifyPass()], check)
    assert (outcome.name, outcome.applied, outcome.reason) == ("simplify", True, "")
    assert outcome.parity is not None
    assert outcome.parity.passed
    assert [node.op_type for node in onnx.load(destination).graph.node] == ["Relu", "Mul"]
    assert len(onnx.load(source).graph.node) == 4


def test_a_pass_that_changes_the_numbers_is_skipped_and_named(source, check, tmp_path):
    destination = tmp_path / "out.onnx"
    (outcome,) = run_passes(source, destination, [Halve()], check)
    assert (outcome.name, outcome.applied) == ("halve", False)
    assert outcome.reason == "it changed the numbers: relative error 0.5, allowed 0.0001"
    assert outcome.parity is not None
    assert not outcome.parity.passed
    assert destination.read_bytes() == onnx.load(source).SerializeToString(deterministic=True)


@pytest.mark.parametrize(
    ("broken", "reason"),
    [
        (Raise(), "it raised RuntimeError: no rule for"),
        (Cut(), "it left an invalid model: ValidationError: Nodes in a graph must be topologically sorted"),
        (Rename(), "it changed the inputs, the outputs or the operator sets of the model"),
        (Foreign(), "it changed the inputs, the outputs or the operator sets of the model"),
        (Nothing(), "it left an invalid model: AttributeError: 'NoneType' object has no attribute"),
    ],
    ids=lambda value: getattr(value, "name", ""),
)
def test_a_pass_that_breaks_the_model_is_skipped_and_named(broken, reason, source, check, tmp_path):
    destination = tmp_path / "out.onnx"
    outcomes = run_passes(source, destination, [broken], check)
    assert [(outcome.name, outcome.applied, outcome.parity) for outcome in outcomes] == [(broken.name, False, None)]
    assert outcomes[0].reason.startswith(reason)
    assert check(destination).passed


def test_a_check_that_cannot_be_made_skips_the_pass(source, tmp_path):
    def check(path):
        raise OSError("board unplugged")

    outcomes = run_passes(source, tmp_path / "out.onnx", [Note()], check)
    reason = "its model could not be checked: OSError: board unplugged"
    assert outcomes == [PassOutcome("note", applied=False, reason=reason, parity=None)]


def test_passes_before_and_after_a_broken_one_are_kept(source, check, tmp_path):
    destination = tmp_path / "out.onnx"
    outcomes = run_passes(source, destination, [Note(), Halve(), Raise(), SimplifyPass(), Cut()], check)
    assert [outcome.applied for outcome in outcomes] == [True, False, False, True, False]
    assert check(destination).passed
    assert len(onnx.load(destination).graph.node) == 2


def test_source_and_destination_may_be_one_file(source, check):
    (outcome,) = run_passes(source, source, [SimplifyPass()], check)
    assert outcome.applied
    assert len(onnx.load(source).graph.node) == 2
    assert [file.name for file in source.parent.iterdir()] == ["source.onnx"]


def test_without_passes_the_source_is_delivered(source, check, tmp_path):
    destination = tmp_path / "out.onnx"
    assert run_passes(source, destination, [], check) == []
    assert onnx.load(destination) == onnx.load(source)


def test_simplifying_twice_gives_the_same_bytes_and_shows_nothing(source, check, tmp_path, capfd):
    for name in ("a.onnx", "b.onnx"):
        run_passes(source, tmp_path / name, [SimplifyPass()], check)
    assert (tmp_path / "a.onnx").read_bytes() == (tmp_path / "b.onnx").read_bytes()
    assert capfd.readouterr() == ("", "")
