import pytest
from onnx import TensorProto, checker, helper

from dtp_deploy.errors import GraphError
from dtp_deploy.export import files
from dtp_deploy.export.files import anonymise, serialise, write_atomically

SECRET = "/home/anna/secret/model.py"


def branch(name):
    return helper.make_graph(
        [helper.make_node("Relu", ["x"], [name], doc_string=SECRET)],
        f"{name}_graph",
        [],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, [2])],
        doc_string=SECRET,
    )


def telling_model():
    """A valid model with a secret in every place that takes text."""
    node = helper.make_node(
        "If", ["condition"], ["y"], then_branch=branch("a"), else_branch=branch("b"), doc_string=SECRET
    )
    call = helper.make_node("Twice", ["y"], ["z"], domain="local")
    function = helper.make_function(
        "local",
        "Twice",
        ["u"],
        ["v"],
        [helper.make_node("Add", ["u", "u"], ["v"], doc_string=SECRET)],
        [helper.make_opsetid("", 18)],
    )
    constant = helper.make_tensor("condition", TensorProto.BOOL, [], [True])
    constant.doc_string = SECRET
    graph = helper.make_graph(
        [node, call],
        "main",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2], doc_string=SECRET)],
        [helper.make_tensor_value_info("z", TensorProto.FLOAT, [2], doc_string=SECRET)],
        [constant],
        doc_string=SECRET,
        value_info=[helper.make_tensor_value_info("y", TensorProto.FLOAT, [2], doc_string=SECRET)],
    )
    model = helper.make_model(
        graph,
        functions=[function],
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("local", 1)],
        ir_version=10,
        doc_string=SECRET,
    )
    then_graph = node.attribute[0].g
    for part in (model, graph, then_graph, *graph.node, *graph.initializer, model.functions[0].node[0]):
        entry = part.metadata_props.add()
        entry.key, entry.value = "pkg.torch.onnx.stack_trace", SECRET
    checker.check_model(model)
    return model


def test_anonymise_leaves_no_text_about_the_machine_at_any_depth():
    model = telling_model()
    assert model.SerializeToString().count(SECRET.encode()) > 10
    anonymise(model)
    content = model.SerializeToString()
    assert SECRET.encode() not in content
    assert b"stack_trace" not in content
    checker.check_model(model)


def test_serialise_gives_equal_bytes_for_models_that_differ_in_notes_only():
    noted, bare = telling_model(), telling_model()
    anonymise(bare)
    assert serialise(noted) == serialise(bare)


def test_serialise_refuses_an_invalid_model():
    model = telling_model()
    model.graph.node[1].input[0] = "nowhere"
    with pytest.raises(checker.ValidationError, match="nowhere"):
        serialise(model)


def test_serialise_refuses_a_model_that_does_not_fit_into_one_file(monkeypatch):
    monkeypatch.setattr(files, "MAX_ONNX_BYTES", 10)
    with pytest.raises(GraphError, match=r"one ONNX file holds at most 2 GB\. Prune a smaller model"):
        serialise(telling_model())


def test_write_atomically_replaces_a_file_and_leaves_nothing_beside_it(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    write_atomically(path, b"new")
    assert path.read_bytes() == b"new"
    assert list(tmp_path.iterdir()) == [path]


def test_write_atomically_keeps_the_old_file_if_it_fails(tmp_path):
    path = tmp_path / "model.onnx"
    path.write_bytes(b"old")
    with pytest.raises(TypeError):
        write_atomically(path, "not bytes")
    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]
