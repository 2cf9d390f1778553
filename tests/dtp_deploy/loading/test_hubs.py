"""What does not need timm and torchvision is tried on stand-ins for them; the rest where they are installed."""

import importlib.util
import re
import socket
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading import hubs
from dtp_deploy.loading.factory import make_model
from dtp_deploy.loading.hubs import HubSpec, build, fitted, is_hub_spec, parse_hub_spec, suggestions
from dtp_deploy.loading.models import load_model

Write = Callable[[str, str], None]

needs_timm = pytest.mark.skipif(
    importlib.util.find_spec("timm") is None, reason="timm is not installed: pip install timm torchvision"
)
needs_torchvision = pytest.mark.skipif(
    importlib.util.find_spec("torchvision") is None, reason="torchvision is not installed: pip install torchvision"
)

TIMM = """
from torch import nn
class Net(nn.Module):
    def __init__(self, num_classes=1000, in_chans=3):
        super().__init__()
        self.stem = nn.Conv2d(in_chans, 4, 3)
        self.head = nn.Linear(4, num_classes)
        self.pretrained_cfg = {"first_conv": "stem", "classifier": "head", "input_size": (3, 16, 16)}
    def forward(self, x):
        return self.head(self.stem(x).mean((2, 3)))
def list_models(pretrained=False):
    return ["tiny.v1"] if pretrained else ["tiny", "tiny_wide", "broken"]
def create_model(name, pretrained, **options):
    if pretrained:
        raise OSError("no route to host\\nat all")
    if name == "broken":
        raise ValueError("out of order")
    return Net(**options)
"""
TIMM_DATA = "def resolve_model_data_config(model): return model.pretrained_cfg\n"


@pytest.fixture
def timm(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.partition(".")[0] == "timm"]:
        monkeypatch.delitem(sys.modules, name)
    write("timm/__init__.py", TIMM)
    write("timm/data.py", TIMM_DATA)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")


def assert_error(kind: type[DtpError], message: str, call: Callable[[], object]) -> None:
    with pytest.raises(kind) as caught:
        call()
    assert type(caught.value) is kind
    assert re.sub(r", at (test_hubs|__init__)\.py:\d+", "", str(caught.value)) == message  # the packages are faked here


@pytest.mark.parametrize(
    "text", ["timm:resnet18", "timm:a.b_c,num_classes=7,in_chans=1", "torchvision:vgg11,num_classes=2"]
)
def test_a_spec_is_written_as_it_is_read(text: str) -> None:
    assert is_hub_spec(text)
    assert str(parse_hub_spec(text)) == text


@pytest.mark.parametrize("text", ["mynets:resnet18", "timm", "timm.models:resnet18"])
def test_other_names_are_none(text: str) -> None:
    assert not is_hub_spec(text)


@pytest.mark.parametrize(
    "text",
    [
        "timm:",
        "timm:../x",
        "timm:hf-hub:me/net",
        "timm:a,classes=3",
        "timm:a,num_classes=0",
        "timm:a,num_classes=3,num_classes=4",
        "torchvision:a,in_chans=1",
    ],
)
def test_refuses_other_specs(text: str) -> None:
    assert_error(
        UsageError,
        f"--model {text!r} is not of the form timm:NAME or torchvision:NAME, with ,num_classes=N or timm's ,in_chans=N "
        "where they differ from the usual. For example: timm:resnet18.",
        lambda: parse_hub_spec(text),
    )


@pytest.mark.parametrize(("hub", "packages"), [("timm", "timm torchvision"), ("torchvision", "torchvision")])
def test_says_what_to_install(monkeypatch: pytest.MonkeyPatch, hub: str, packages: str) -> None:
    def missing(name: str) -> None:
        raise ModuleNotFoundError(f"No module named '{name}'", name=name)

    monkeypatch.setattr(hubs.importlib, "import_module", missing)
    assert_error(
        UsageError,
        f"--model {hub}:resnet18 needs the package {hub}, which is not installed. Install it: pip install {packages}",
        lambda: make_model(f"{hub}:resnet18"),
    )


def test_says_that_the_package_cannot_be_imported(monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(name: str) -> None:
        raise ImportError("undefined symbol\nin it")

    monkeypatch.setattr(hubs.importlib, "import_module", broken)
    assert_error(
        InputError,
        "--model timm:resnet18: importing timm failed with ImportError: undefined symbol. "
        "Install a version that fits this PyTorch: pip install --upgrade timm torchvision",
        lambda: make_model("timm:resnet18"),
    )


def test_an_unknown_name(timm: None) -> None:
    for name, near in (("tinny", " (near: tiny)"), ("xyz", ""), ("tiny.v2", " (near: tiny.v1)")):
        assert_error(
            UsageError,
            f"--model timm:{name}: timm has no model {name!r}. Give one that it lists{near}.",
            lambda name=name: make_model(f"timm:{name}"),  # type: ignore[misc]
        )


def test_a_model_that_cannot_be_made(timm: None) -> None:
    assert_error(
        InputError,
        "--model timm:broken could not be made: timm raised ValueError: out of order. "
        "Give other options or another model.",
        lambda: make_model("timm:broken"),
    )


def test_trained_weights_that_cannot_be_fetched(timm: None) -> None:
    assert_error(
        InputError,
        "timm:tiny has no checkpoint beside it, and its trained weights could not be fetched (OSError: no route to "
        "host). Give a checkpoint file with --model timm:tiny, or make the hub reachable.",
        lambda: load_model("timm:tiny"),
    )


def test_options_reach_the_model(timm: None) -> None:
    model: Any = make_model("timm:tiny,num_classes=7,in_chans=1")
    assert (model.head.out_features, model.stem.in_channels) == (7, 1)


def test_classes_and_channels_come_from_the_weights(timm: None) -> None:
    trained = make_model("timm:tiny,num_classes=7,in_chans=1")
    torch.save(trained.state_dict(), "w.pt")
    loaded = load_model("w.pt", factory="timm:tiny")
    assert loaded.factory == "timm:tiny,num_classes=7,in_chans=1"
    assert loaded.name == "tiny"
    assert loaded.notes == ("The model was made with num_classes=7 and in_chans=1, as its weights are.",)
    assert torch.equal(loaded.model.state_dict()["head.weight"], trained.state_dict()["head.weight"])
    assert loaded.suggested_input_shapes == ((1, 1, 16, 16),)
    assert loaded.suggested_preprocessing is None  # timm's is for three channels


def test_what_the_user_says_is_not_changed(timm: None) -> None:
    weights = make_model("timm:tiny,num_classes=7").state_dict()
    spec = HubSpec("timm", "tiny", num_classes=9)
    assert fitted(spec, build(spec), weights) == spec
    assert fitted(HubSpec("timm", "tiny"), make_model("timm:tiny"), {"other": torch.ones(1)}) == HubSpec("timm", "tiny")


def test_suggests_what_the_configuration_names(timm: None) -> None:
    pytest.importorskip("PIL")
    model: Any = make_model("timm:tiny")
    shape, preprocessing = suggestions(HubSpec("timm", "tiny"), model)
    assert shape == (1, 3, 16, 16)
    assert preprocessing is not None
    assert preprocessing.output_shape == (3, 16, 16)
    model.pretrained_cfg = {"input_size": (3, 16, 16), "crop_mode": "border"}
    assert suggestions(HubSpec("timm", "tiny"), model) == ((1, 3, 16, 16), None)
    model.pretrained_cfg = {}
    assert suggestions(HubSpec("timm", "tiny"), model) == (None, None)


def test_a_hub_out_of_reach_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    def unreachable(address: tuple[str, int], timeout: float) -> socket.socket:
        assert address == ("huggingface.co", 443)
        raise OSError("unreachable")

    monkeypatch.setattr(hubs.socket, "create_connection", unreachable)
    monkeypatch.setattr(hubs.urllib.request, "getproxies", dict)
    monkeypatch.delenv("HF_ENDPOINT", raising=False)
    monkeypatch.setenv("HF_HUB_OFFLINE", "")  # so that it is put back afterwards
    monkeypatch.delenv("HF_HUB_OFFLINE")
    hubs._skip_a_hub_out_of_reach()
    assert hubs.os.environ["HF_HUB_OFFLINE"] == "1"


@needs_timm
def test_a_model_of_timm(tmp_path: Path) -> None:
    trained = make_model("timm:resnet10t,num_classes=5")
    torch.save(trained.state_dict(), tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt", factory="timm:resnet10t")
    assert loaded.factory == "timm:resnet10t,num_classes=5"
    assert loaded.suggested_input_shapes == ((1, 3, 176, 176),)
    assert loaded.suggested_preprocessing is not None
    assert loaded.suggested_preprocessing.output_shape == (3, 176, 176)


@needs_torchvision
@pytest.mark.parametrize("name", ["squeezenet1_1", "mobilenet_v3_small"])
def test_a_model_of_torchvision(tmp_path: Path, name: str) -> None:
    torch.save(make_model(f"torchvision:{name},num_classes=5").state_dict(), tmp_path / "w.pt")
    loaded = load_model(tmp_path / "w.pt", factory=f"torchvision:{name}")
    assert loaded.factory == f"torchvision:{name},num_classes=5"
    assert loaded.suggested_input_shapes == ((1, 3, 224, 224),)
    assert isinstance(loaded.model, nn.Module)


@needs_torchvision
def test_a_segmentation_network_fetches_no_backbone() -> None:
    spec = HubSpec("torchvision", "lraspp_mobilenet_v3_large")
    assert suggestions(spec, build(spec)) == (None, None)
