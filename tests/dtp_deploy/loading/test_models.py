import os
import pickle
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.factory import make_model
from dtp_deploy.loading.models import LoadedModel, load_model

Write = Callable[[str, str], None]

NETS = """
import os
from torch import nn

class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.fc = nn.Linear(3, 2)
    def forward(self, x):
        return self.fc(x)

class Failing(Net):
    def __setstate__(self, state):
        raise RuntimeError("made by version 1\\nof the code")

def make(): return Net()
"""


@pytest.fixture
def nets(write: Write) -> None:
    write("user_nets.py", NETS)


def net(name: str = "Net") -> Any:
    import user_nets  # type: ignore[import-not-found]

    return getattr(user_nets, name)()


@pytest.fixture
def model(nets: None) -> Any:
    make_model("user_nets:make")  # makes the working directory importable
    return net()


def saved(name: str, content: object, **options: Any) -> Path:
    torch.save(content, name, **options)
    return Path(name)


def assert_error(kind: type[DtpError], message: str, path: Path | str, **options: Any) -> None:
    with pytest.raises(kind) as caught:
        load_model(path, **options)
    assert type(caught.value) is kind
    assert str(caught.value) == message


def assert_same_weights(loaded: LoadedModel, model: nn.Module) -> None:
    found, wanted = loaded.model.state_dict(), model.state_dict()
    assert list(found) == list(wanted)
    assert all(torch.equal(found[name], wanted[name].float()) for name in wanted)


def test_weights_and_a_factory(model: Any) -> None:
    loaded = load_model(saved("w.pt", model.state_dict()), factory="user_nets:make")
    assert_same_weights(loaded, model)
    assert (loaded.name, loaded.origin, loaded.notes) == ("w", "user_nets:make, weights of w.pt", ())
    assert (loaded.factory, loaded.suggested_input_shapes, loaded.suggested_preprocessing) == (
        "user_nets:make",
        None,
        None,
    )


def test_safetensors_and_a_factory(model: Any) -> None:
    save_file(model.state_dict(), "w.safetensors")
    assert_same_weights(load_model("w.safetensors", factory="user_nets:make"), model)


def test_says_under_which_key_weights_were(model: Any) -> None:
    loaded = load_model(saved("w.pt", {"model": model.state_dict(), "epoch": 3}), factory="user_nets:make")
    assert loaded.notes == ("The weights are those under 'model' in w.pt.",)


def test_weights_need_a_factory(model: Any) -> None:
    assert_error(
        UsageError,
        "Checkpoint w.pt holds weights and no model. Give --model with what makes the model: a function "
        "(pkg.module:name), timm:NAME or torchvision:NAME.",
        saved("w.pt", model.state_dict()),
    )


@pytest.mark.parametrize(
    "save",
    [
        lambda content: torch.save(content, "m.pt"),
        lambda content: torch.save(content, "m.pt", _use_new_zipfile_serialization=False),
        lambda content: Path("m.pt").write_bytes(pickle.dumps(content)),
        lambda content: Path("m.pt").write_bytes(pickle.dumps(content, protocol=2)),
    ],
)
def test_a_pickled_module_with_trust(model: Any, save: Callable[[object], None]) -> None:
    save(model)
    loaded = load_model("m.pt", trust=True)
    assert_same_weights(loaded, model)
    assert type(loaded.model) is type(model)
    assert (loaded.name, loaded.origin, loaded.factory) == ("m", "Net, pickled in m.pt", None)
    assert loaded.notes[0].startswith("It was unpickled, which ran code of: ")
    assert "user_nets.Net" in loaded.notes[0]


def test_needs_trust_and_names_what_would_be_imported(model: Any) -> None:
    assert_error(
        UsageError,
        "Checkpoint m.pt needs code to load: it would import user_nets.Net, torch.nn.modules.linear.Linear; nothing "
        "was run. Give --trust if you know where the file comes from, or save the weights alone "
        "(torch.save(model.state_dict(), path)) and give --model.",
        saved("m.pt", model),
    )


def test_the_average_comes_before_the_model(model: Any) -> None:
    average = net()
    loaded = load_model(saved("m.pt", {"model": model, "ema": average}), trust=True)
    assert_same_weights(loaded, average)
    assert loaded.notes[1:] == (
        "The model is the one under 'ema'; the order of preference is ema, model_ema, model, net, network, module.",
    )


def test_a_missing_average_leaves_the_model(model: Any) -> None:
    assert_same_weights(load_model(saved("m.pt", {"model": model, "ema": None}), trust=True), model)


def test_a_pickled_module_lends_its_weights_to_a_factory(model: Any) -> None:
    loaded = load_model(saved("m.pt", {"ema": nn.DataParallel(model)}), factory="user_nets:make", trust=True)
    assert_same_weights(loaded, model)
    assert (loaded.factory, loaded.notes) == ("user_nets:make", ("The weights are those under 'ema' in m.pt.",))


def test_a_checkpoint_with_settings_gives_its_weights(model: Any) -> None:
    path = saved("m.pt", {"model": model.state_dict(), "seen": slice(3)})
    assert_same_weights(load_model(path, factory="user_nets:make", trust=True), model)
    assert_error(
        UsageError,
        "Checkpoint m.pt holds weights and no model. Give --model with what makes the model: a function "
        "(pkg.module:name), timm:NAME or torchvision:NAME.",
        path,
        trust=True,
    )


def test_takes_the_model_out_of_data_parallel(model: Any) -> None:
    loaded = load_model(saved("m.pt", nn.DataParallel(model)), trust=True)
    assert type(loaded.model) is type(model)


def test_a_frozen_model_can_be_trained_again(model: Any) -> None:
    loaded = load_model(saved("m.pt", model.requires_grad_(False)), trust=True)
    assert all(parameter.requires_grad for parameter in loaded.model.parameters())
    assert loaded.notes[1:] == (
        "None of its parameters could be trained, as in a moving average; now all of them can.",
    )


def test_a_partly_frozen_model_stays_so(model: Any) -> None:
    model.fc.bias.requires_grad_(False)
    loaded = load_model(saved("m.pt", model), trust=True)
    assert [parameter.requires_grad for parameter in loaded.model.parameters()] == [True, False]
    assert len(loaded.notes) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32_and_are_noted(model: Any, dtype: torch.dtype) -> None:
    note = f"Its weights were {str(dtype)[6:]}; they were made float32 to be pruned and trained."
    model.to(dtype)
    pickled = load_model(saved("m.pt", model), trust=True)
    weights = load_model(saved("w.pt", model.state_dict()), factory="user_nets:make")
    for loaded in (pickled, weights):
        assert loaded.notes[-1] == note
        assert {parameter.dtype for parameter in loaded.model.parameters()} == {torch.float32}
        assert_same_weights(loaded, model)


def test_a_factory_of_a_trained_model(write: Write) -> None:
    write("user_trained.py", "from torch import nn\nclass make:\n    def small(): return nn.Linear(2, 2).bfloat16()\n")
    loaded = load_model("user_trained:make.small")
    assert (loaded.name, loaded.origin, loaded.factory) == (
        "small",
        "user_trained:make.small, with the weights that it sets",
        "user_trained:make.small",
    )
    assert loaded.notes == ("Its weights were bfloat16; they were made float32 to be pruned and trained.",)


def test_a_file_comes_before_a_factory_of_its_name(model: Any) -> None:
    shutil.move(saved("w.pt", model.state_dict()), "user_nets:make")
    assert load_model("user_nets:make", factory="user_nets:make").origin == "user_nets:make, weights of user_nets:make"


def test_two_models_are_one_too_many(nets: None) -> None:
    assert_error(
        UsageError,
        "user_nets:make names a model already, and --model timm:resnet18 another. Give a checkpoint file with --model, "
        "or user_nets:make alone.",
        "user_nets:make",
        factory="timm:resnet18",
    )


@pytest.mark.parametrize("trust", [True, False])
def test_refuses_graphs_without_layers(nets: None, trust: bool) -> None:
    remedy = (
        "it can be exported and profiled, not pruned, because it has operations and no layers. Give the nn.Module that "
        "it was made from (torch.save(model, path), with --trust), or its state_dict with --model."
    )
    torch.export.save(torch.export.export(nn.Linear(3, 2), (torch.zeros(1, 3),)), "m.pt2")
    assert_error(InputError, f"Checkpoint m.pt2 is a torch.export program (.pt2): {remedy}", "m.pt2", trust=trust)
    with pytest.warns(DeprecationWarning, match="torch.jit"):
        torch.jit.save(torch.jit.script(nn.Linear(2, 2)), "m.ts")
    assert_error(InputError, f"Checkpoint m.ts is a TorchScript archive: {remedy}", "m.ts", trust=trust)


def test_refuses_an_artefact(nets: None) -> None:
    Path("out").mkdir()
    Path("out/pruning_plan.json").touch()
    assert_error(
        InputError,
        "Checkpoint out is a folder that dtp-deploy wrote, not a file. "
        "Load it with dtp_deploy.load_pruned(factory, folder).",
        "out",
    )


def test_a_class_that_is_not_here(model: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    path = saved("m.pt", model).rename("elsewhere.pt")
    Path("user_nets.py").unlink()
    monkeypatch.delitem(__import__("sys").modules, "user_nets")
    assert_error(
        InputError,
        "Checkpoint elsewhere.pt needs the module user_nets, which is not here. Install the package, or work in the "
        "folder of the code that trained the model.",
        path,
        trust=True,
    )


def test_code_that_raises(model: Any) -> None:
    assert_error(
        InputError,
        "Checkpoint m.pt could not be unpickled: RuntimeError: made by version 1, at user_nets.py:14. "
        "Use the code, and the versions of packages, that it was saved with.",
        saved("m.pt", net("Failing")),
        trust=True,
    )


@pytest.mark.parametrize("content", [b"", b"not a checkpoint", b"\x80\x02}q"])
def test_a_damaged_file_is_told_before_a_factory_is_asked_for(content: bytes, tmp_path: Path) -> None:
    path = tmp_path / "net.pt"
    path.write_bytes(content)
    with pytest.raises(InputError) as caught:
        load_model(path)
    assert str(path) in str(caught.value)
    assert "--model" not in str(caught.value)


def test_weights_cut_off_are_told_to_be_damaged(model: Any) -> None:
    path = saved("w.pt", model.state_dict())
    path.write_bytes(path.read_bytes()[:-300])
    assert_error(
        InputError,
        "Checkpoint w.pt is truncated or damaged, or not written by torch.save. Copy it again, or save it again with "
        "torch.save.",
        path,
    )


def test_a_pickle_of_something_else(nets: None) -> None:
    assert_error(
        InputError,
        "Checkpoint m.pt holds a slice, not a state_dict. Save it again with torch.save(model.state_dict(), path).",
        saved("m.pt", slice(3)),
        trust=True,
        factory="user_nets:make",
    )


def test_a_model_without_parameters(nets: None) -> None:
    assert_error(
        InputError,
        "m has no parameters, so there is nothing to prune. Give a model with layers.",
        saved("m.pt", nn.ReLU()),
        trust=True,
    )


def test_weights_that_are_not_finite(model: Any) -> None:
    with torch.no_grad():
        model.fc.weight[0, 0] = torch.nan
    assert_error(
        InputError,
        "Net, pickled in m.pt, holds NaN or infinite weights: fc.weight. "
        "Give a checkpoint from before the training diverged.",
        saved("m.pt", model),
        trust=True,
    )


def test_a_pickled_model_without_values(nets: None) -> None:
    assert_error(
        InputError,
        "Checkpoint m.pt returned a model whose tensors have no values yet (lazy or on the meta device): weight, bias. "
        "Let it run the model once on an example, or build it on the CPU.",
        saved("m.pt", nn.LazyLinear(2)),
        trust=True,
    )


class Malicious:
    """Creates the file `victim` when it is unpickled."""

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, ("victim",)


@pytest.mark.parametrize("name", ["m.pt", "m.safetensors", "m.pt2", "m.onnx", "m"])
@pytest.mark.parametrize(
    "save",
    [
        lambda content, path: torch.save(content, path),
        lambda content, path: torch.save(content, path, _use_new_zipfile_serialization=False),
        lambda content, path: path.write_bytes(pickle.dumps(content)),
    ],
)
def test_nothing_runs_without_trust_whatever_the_name(
    nets: None, name: str, save: Callable[[object, Path], None]
) -> None:
    save({"model": Malicious()}, Path(name))
    with pytest.raises(DtpError):
        load_model(name, factory="user_nets:make")
    assert not Path("victim").exists()


def test_the_malicious_pickle_would_work_with_trust(nets: None) -> None:
    with pytest.raises(InputError):
        load_model(saved("m.pt", {"model": Malicious()}), factory="user_nets:make", trust=True)
    assert Path("victim").exists()


def test_trust_is_for_what_was_listed_only(nets: None, monkeypatch: pytest.MonkeyPatch) -> None:
    from dtp_deploy.loading import models
    from dtp_deploy.loading.pickles import PickleContents

    monkeypatch.setattr(models, "read_contents", lambda stream: PickleContents((), frozenset(), None))
    path = saved("m.pt", {"model": Malicious()})
    assert_error(
        InputError,
        "Checkpoint m.pt is refused: it would import posix.mkdir, hidden from the list of what it needs, as a forged "
        "file does. Do not trust it; ask for its weights alone (a state_dict).",
        path,
        trust=True,
    )
    assert not Path("victim").exists()


def test_a_ban_on_pickles_in_the_environment_is_stronger_than_trust(
    model: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("TORCH_FORCE_WEIGHTS_ONLY_LOAD", "1")
    with pytest.raises(
        InputError, match=r"^Checkpoint m\.pt could not be unpickled: RuntimeError: Can not safely load"
    ):
        load_model(saved("m.pt", model), trust=True)
