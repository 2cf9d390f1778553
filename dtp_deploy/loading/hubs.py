"""Models of timm and torchvision, named on the command line: ``timm:resnet18``, ``torchvision:resnet18``.

Both packages are optional, and imported only when such a name is given. The number of classes and of input channels
may be added, ``timm:resnet18,num_classes=10,in_chans=1``; with a checkpoint they are taken from its weights.
"""

from __future__ import annotations

import difflib
import importlib
import inspect
import os
import re
import socket
import urllib.request
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

from dtp_deploy.errors import DtpError, InputError, UsageError
from dtp_deploy.loading.compatibility import with_torchvision
from dtp_deploy.loading.wording import cause

if TYPE_CHECKING:
    from dtp_deploy.loading.preprocessing import Preprocessing

_PACKAGES = {"timm": "timm torchvision", "torchvision": "torchvision"}
"""What pip must install for each."""

_SPEC = re.compile(
    r"(?P<hub>timm|torchvision):(?P<name>\w[\w.]*)(?P<options>(?:,(?:num_classes|in_chans)=[1-9]\d{0,6})*)"
)
_FORM = "timm:NAME or torchvision:NAME, with ,num_classes=N or timm's ,in_chans=N where they differ from the usual"
_HUB_HOST = "huggingface.co"
_HUB_PATIENCE_S = 3.0


@dataclass(frozen=True)
class HubSpec:
    """A model of timm or torchvision.

    Attributes:
        hub: "timm" or "torchvision".
        name: of the model there.
        num_classes: None for the usual number.
        in_chans: channels of the image (timm only); None for the usual number.
    """

    hub: str
    name: str
    num_classes: int | None = None
    in_chans: int | None = None

    def __str__(self) -> str:
        """As it is typed."""
        return f"{self.hub}:{self.name}" + "".join(f",{key}={value}" for key, value in self.options.items())

    @property
    def options(self) -> dict[str, int]:
        """What is given besides the name."""
        given = {"num_classes": self.num_classes, "in_chans": self.in_chans}
        return {key: value for key, value in given.items() if value is not None}


def is_hub_spec(text: str) -> bool:
    """Whether a name is meant for timm or torchvision.

    >>> is_hub_spec("timm:resnet18"), is_hub_spec("mynets:resnet18")
    (True, False)
    """
    return text.partition(":")[0] in _PACKAGES and ":" in text


def parse_hub_spec(text: str) -> HubSpec:
    """Read ``timm:NAME[,num_classes=N][,in_chans=N]`` or ``torchvision:NAME[,num_classes=N]``.

    Raises:
        UsageError: the text has another form.

    >>> parse_hub_spec("timm:resnet18,num_classes=10").options
    {'num_classes': 10}
    """
    match = _SPEC.fullmatch(text)
    options = [] if match is None else [option.split("=") for option in match["options"].split(",") if option]
    values = {key: int(value) for key, value in options}
    if match is None or len(values) < len(options) or (match["hub"] == "torchvision" and "in_chans" in values):
        raise UsageError(f"--model {text!r} is not of the form {_FORM}. For example: timm:resnet18.")
    return HubSpec(match["hub"], match["name"], **values)


def build(spec: HubSpec, *, pretrained: bool = False) -> nn.Module:
    """Make the model, on the CPU.

    Args:
        spec: which one.
        pretrained: with the weights that its package offers, fetched if they are not on this machine.

    Raises:
        UsageError: the package is not installed, or has no such model.
        InputError: the model cannot be made, or its weights cannot be fetched.
    """
    if pretrained and spec.hub == "timm":
        _skip_a_hub_out_of_reach()
    package = _import(spec)
    _check_name(spec, package)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # both warn of initialisations and names that a user did not choose
            model = _make_timm(package, spec, pretrained) if spec.hub == "timm" else _make_torchvision(spec, pretrained)
    except Exception as error:
        if pretrained:
            raise InputError(
                f"{spec} has no checkpoint beside it, and its trained weights could not be fetched ({cause(error)}). "
                f"Give a checkpoint file with --model {spec}, or make the hub reachable."
            ) from error
        raise InputError(
            f"--model {spec} could not be made: {spec.hub} raised {cause(error)}. Give other options or another model."
        ) from error
    assert isinstance(model, nn.Module)
    return model


def fitted(spec: HubSpec, model: nn.Module, weights: Mapping[str, Tensor]) -> HubSpec:
    """The spec with the numbers of classes and input channels that trained weights have; its own, where it has some.

    Args:
        spec: which model.
        model: made from it.
        weights: tensor by name, of a model that may differ in these numbers.
    """
    first, last = _ends(spec, model)
    own = model.state_dict()

    def found(layer: str | None, dim: int) -> int | None:
        name = f"{layer}.weight"
        if name not in own or name not in weights or own[name].ndim != weights[name].ndim:
            return None
        size = weights[name].shape[dim]
        return None if size == own[name].shape[dim] else size

    return replace(
        spec,
        num_classes=found(last, 0) if spec.num_classes is None else spec.num_classes,
        in_chans=found(first, 1) if spec.in_chans is None else spec.in_chans,
    )


def suggestions(spec: HubSpec, model: nn.Module) -> tuple[tuple[int, ...] | None, Preprocessing | None]:
    """Input shape (batch of 1) and preprocessing in the model's own configuration; None for what it does not name."""
    if spec.hub == "torchvision":
        preset = _torchvision_preprocessing(spec)
        return (None if preset is None or preset.output_shape is None else (1, *preset.output_shape)), preset
    config: Mapping[str, Any] = importlib.import_module("timm.data").resolve_model_data_config(model)
    if "input_size" not in config:
        return None, None
    usual, height, width = config["input_size"]
    channels = usual if spec.in_chans is None else spec.in_chans
    # Mean and std are for the usual channels: with others nobody knows what the model was trained with.
    return (1, channels, height, width), (_timm_preprocessing(config) if channels == usual else None)


def _import(spec: HubSpec) -> Any:  # noqa: ANN401 - a module without types
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return with_torchvision(lambda: importlib.import_module(spec.hub))
    except ModuleNotFoundError as error:
        raise UsageError(
            f"--model {spec} needs the package {error.name}, which is not installed. "
            f"Install it: pip install {_PACKAGES[spec.hub]}"
        ) from error
    except Exception as error:
        raise InputError(
            f"--model {spec}: importing {spec.hub} failed with {cause(error)}. "
            f"Install a version that fits this PyTorch: pip install --upgrade {_PACKAGES[spec.hub]}"
        ) from error


def _check_name(spec: HubSpec, package: Any) -> None:  # noqa: ANN401
    if spec.hub == "timm":
        architecture = spec.name.partition(".")[0]  # what follows the dot names a set of weights
        names = package.list_models() if architecture == spec.name else package.list_models(pretrained=True)
    else:
        names = importlib.import_module("torchvision.models").list_models()
    if spec.name not in names:
        near = difflib.get_close_matches(spec.name, names, n=3)
        hint = f" (near: {', '.join(near)})" if near else ""
        raise UsageError(f"--model {spec}: {spec.hub} has no model {spec.name!r}. Give one that it lists{hint}.")


def _make_timm(package: Any, spec: HubSpec, pretrained: bool) -> object:  # noqa: ANN401
    model: object = package.create_model(spec.name, pretrained=pretrained, **spec.options)
    return model


def _make_torchvision(spec: HubSpec, pretrained: bool) -> object:
    models = importlib.import_module("torchvision.models")
    options: dict[str, Any] = {"weights": "DEFAULT" if pretrained else None, **spec.options}
    if "weights_backbone" in inspect.signature(models.get_model_builder(spec.name)).parameters:
        options["weights_backbone"] = None  # or it would be downloaded
    model: object = models.get_model(spec.name, **options)
    return model


def _ends(spec: HubSpec, model: nn.Module) -> tuple[str | None, str | None]:
    """Names of the first layer and the classifier: timm's configuration names them; else the last matrix there is."""
    if spec.hub == "timm":
        config = getattr(model, "pretrained_cfg", {})
        first, last = config.get("first_conv"), config.get("classifier")
        return (first if isinstance(first, str) else None), (last if isinstance(last, str) else None)
    matrices = [name for name, tensor in model.state_dict().items() if tensor.ndim > 1]
    return None, matrices[-1].removesuffix(".weight") if matrices else None


def _timm_preprocessing(config: Mapping[str, Any]) -> Preprocessing | None:
    from dtp_deploy.loading.preprocessing import from_timm

    try:
        return from_timm(config)
    except DtpError:  # it asks for what our preprocessing cannot do, so the user must say what to do instead
        return None


def _torchvision_preprocessing(spec: HubSpec) -> Preprocessing | None:
    from dtp_deploy.loading.preprocessing import Preprocessing

    preset = importlib.import_module("torchvision.models").get_model_weights(spec.name).DEFAULT.transforms()
    if not (hasattr(preset, "crop_size") and hasattr(preset, "resize_size")):
        return None  # detection and segmentation resize by rules of their own
    (crop,), (resize,) = preset.crop_size, preset.resize_size
    return Preprocessing(
        resize=resize,
        crop=(crop, crop),
        mean=tuple(preset.mean),
        std=tuple(preset.std),
        interpolation=preset.interpolation.value,
    )


def _skip_a_hub_out_of_reach() -> None:
    """Tell Hugging Face's client, before it is imported, to use its cache alone where the hub does not answer.

    Its own retries take three quarters of a minute and a page of output. A proxy or a mirror is trusted to answer.
    """
    if urllib.request.getproxies() or "HF_ENDPOINT" in os.environ or "HF_HUB_OFFLINE" in os.environ:
        return
    try:
        socket.create_connection((_HUB_HOST, 443), timeout=_HUB_PATIENCE_S).close()
    except OSError:
        os.environ["HF_HUB_OFFLINE"] = "1"
