"""Zeros are looked for in ONNX files by shape and place."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from dtp_deploy.errors import ParityError
from dtp_deploy.export.onnx import export_onnx
from dtp_deploy.export.zeros import require_zeros


class Net(nn.Module):
    """A convolution, one transposed, and a linear layer on three dimensions, which becomes a MatMul."""

    def __init__(self) -> None:
        super().__init__()
        self.conv, self.up = nn.Conv2d(4, 8, 3), nn.ConvTranspose2d(8, 4, 2)
        self.linear, self.twin = nn.Linear(4, 8), nn.Linear(4, 8)
        for layer, step in ((self.conv, 2), (self.up, 4), (self.linear, 2), (self.twin, 3)):
            with torch.no_grad():
                layer.weight[:, ::step] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        x = self.up(self.conv(x)).flatten(2).transpose(1, 2)
        return self.linear(x) + self.twin(x)


@pytest.fixture
def file(tmp_path: Path) -> Path:
    torch.manual_seed(0)
    export_onnx(Net(), torch.zeros(1, 4, 5, 5), tmp_path / "net.onnx")
    return tmp_path / "net.onnx"


def zeros_of(*layers: str) -> dict[str, np.ndarray]:
    torch.manual_seed(0)
    net = Net()
    return {layer: (net.get_submodule(layer).weight.detach() == 0).numpy() for layer in layers}


def test_zeros_of_every_kind_of_layer_are_found(file: Path) -> None:
    require_zeros(file, zeros_of("conv", "up", "linear", "twin"))
    require_zeros(file, zeros_of("conv", "linear"), two_of_four=True)


def test_fewer_zeros_are_in_more_of_them(file: Path) -> None:
    zeros = zeros_of("conv")
    zeros["conv"][:, 0] = False
    require_zeros(file, zeros)


def test_a_zero_that_is_missing_is_seen(file: Path) -> None:
    zeros = zeros_of("conv")
    zeros["conv"][3, 1, 1, 1] = True
    with pytest.raises(
        ParityError, match=r"The zeros of layer 'conv' are not in net.onnx: .* at all of the 145 places"
    ):
        require_zeros(file, zeros)


def test_a_weight_counts_for_one_layer_only(file: Path) -> None:
    zeros = zeros_of("conv")
    with pytest.raises(ParityError, match="'other' are not in"):
        require_zeros(file, {**zeros, "other": zeros["conv"]})


def test_zeros_that_are_not_two_of_four_are_seen(file: Path) -> None:
    require_zeros(file, zeros_of("up"))
    with pytest.raises(ParityError, match=r"Layer 'up' is not 2:4 in net.onnx"):
        require_zeros(file, zeros_of("up"), two_of_four=True)
