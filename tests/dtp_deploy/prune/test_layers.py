"""Which layers single weights can be pruned of, and why others cannot."""

import pytest
import torch
from torch import Tensor, nn
from torch.nn.utils.parametrizations import weight_norm

from dtp_deploy.errors import GraphError, UsageError
from dtp_deploy.prune import find_weights
from dtp_deploy.testing.zoo import ZOO


class Odd(nn.Module):
    """Layers that cannot be masked, each for a reason of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.plain = nn.Conv2d(4, 8, 1)
        self.grouped = nn.Conv2d(8, 8, 1, groups=2)
        self.up = nn.ConvTranspose2d(8, 8, 1)
        self.three = nn.Conv2d(8, 6, 1)
        self.after_six = nn.Conv2d(6, 8, 1)
        self.normed = weight_norm(nn.Conv2d(8, 8, 1))
        self.one, self.other = nn.Conv2d(8, 8, 1), nn.Conv2d(8, 8, 1)
        self.other.weight = self.one.weight
        self.unused = nn.Linear(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        for layer in (
            self.plain,
            self.grouped,
            self.up,
            self.three,
            self.after_six,
            self.normed,
            self.one,
            self.other,
        ):
            x = layer(x)
        return x


IMAGES = torch.zeros(1, 4, 3, 3)


def test_every_layer_that_is_left_says_why() -> None:
    assert {layer.name: layer.left_because for layer in find_weights(Odd(), IMAGES, "2:4")} == {
        "plain": None,
        "grouped": "it is a grouped convolution",
        "up": "it is a transposed convolution",
        "three": None,
        "after_six": "four does not divide its 6 inputs",
        "normed": "its weight is computed from other tensors",
        "one": "its weight is also other.weight",
        "other": "its weight is also one.weight",
        "unused": "the model does not call it",
    }


def test_single_weights_may_be_of_any_layer_with_weights_of_its_own() -> None:
    layers = find_weights(Odd(), IMAGES)
    assert [layer.name for layer in layers.maskable] == ["plain", "grouped", "up", "three", "after_six"]
    assert layers.count == 32 + 32 + 64 + 48 + 48


def test_layers_are_left_by_patterns_of_their_names() -> None:
    def left(**patterns: list[str]) -> dict[str, str | None]:
        layers = find_weights(Odd(), IMAGES, **patterns)
        return {one.name: one.left_because for one in layers if one.name in ("plain", "grouped", "up", "unused")}

    unused = "the model does not call it"
    assert left(keep=["pl*"]) == {"plain": "kept by --keep 'pl*'", "grouped": None, "up": None, "unused": unused}
    other = "not named by --only 'up'"
    assert left(only=["up"]) == {"plain": other, "grouped": other, "up": None, "unused": unused}
    with pytest.raises(UsageError, match=r"--keep 'plane' matches no layer of Odd\. Near it are 'plain'"):
        left(keep=["plane"])
    with pytest.raises(GraphError, match="Leave --keep and --only out, or give patterns that leave some layers"):
        left(keep=["*"])


def test_a_model_that_is_one_layer_is_one_layer() -> None:
    (layer,) = find_weights(nn.Linear(4, 2), torch.zeros(1, 4), "2:4").maskable
    assert (layer.name, layer.weights) == ("", 8)


@pytest.mark.parametrize("entry", ZOO.values(), ids=str)
def test_every_model_of_the_zoo_has_layers_for_both(entry) -> None:
    model, inputs = entry.model(), entry.inputs()
    for granularity in ("weights", "2:4"):
        assert find_weights(model, inputs, granularity).maskable
    assert not any(module._forward_pre_hooks for module in model.modules())


def test_no_layer_at_all_is_an_error_that_says_why() -> None:
    model = nn.Conv2d(3, 8, 3)
    with pytest.raises(
        GraphError, match=r"no layer for --granularity 2:4 \(Conv2d: four does not divide its 3 inputs\)"
    ):
        find_weights(model, torch.zeros(1, 3, 4, 4), "2:4")
    with pytest.raises(GraphError, match="none has weights"):
        find_weights(nn.ReLU(), torch.zeros(1))


def test_channels_are_found_elsewhere() -> None:
    with pytest.raises(UsageError, match="use find_groups"):
        find_weights(nn.Linear(4, 2), torch.zeros(1, 4), "channels")
