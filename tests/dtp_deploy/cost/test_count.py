import pytest
import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel

from dtp_deploy.cost import count_macs, count_parameters


@pytest.mark.parametrize(
    ("model", "shape", "macs"),
    [
        (nn.Linear(5, 7), (2, 5), 2 * 5 * 7),
        (nn.Conv2d(4, 6, 3, stride=2, padding=1), (1, 4, 8, 8), 16 * 6 * 4 * 9),
        (nn.Conv2d(4, 8, 3, padding=1, groups=4), (1, 4, 8, 8), 64 * 8 * 9),
        (nn.Conv1d(3, 4, 5, padding=2), (1, 3, 10), 10 * 4 * 3 * 5),
        (nn.ConvTranspose2d(4, 6, 2, stride=2), (1, 4, 5, 5), 25 * 4 * 6 * 4),
        (nn.Sequential(nn.BatchNorm2d(3), nn.ReLU()), (1, 3, 4, 4), 0),
    ],
    ids=["linear", "strided", "grouped", "1d", "transposed", "no products"],
)
def test_macs_by_hand(model, shape, macs):
    assert count_macs(model, torch.zeros(shape)) == macs


class Called(nn.Module):
    """A function of a tensor, or the first of what a module returns."""

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, x):
        output = self.function(x)
        return output[0] if isinstance(output, tuple) else output


def gates(kind: type[nn.RNNBase]) -> int:
    return {nn.LSTM: 4, nn.GRU: 3, nn.RNN: 1}[kind]


@pytest.mark.parametrize("kind", [nn.LSTM, nn.GRU, nn.RNN])
def test_recurrent_layers_by_hand(kind):
    model = Called(kind(8, 32, num_layers=2, bidirectional=True, batch_first=True))
    per_step = 2 * gates(kind) * ((8 * 32 + 32 * 32) + (64 * 32 + 32 * 32))
    assert count_macs(model, torch.zeros(3, 10, 8)) == 3 * 10 * per_step


def test_attention_by_hand():
    projections, products, perceptron = 4 * 16 * 32 * 32, 2 * 16 * 16 * 32, 2 * 16 * 32 * 64
    encoder = nn.TransformerEncoder(nn.TransformerEncoderLayer(32, 4, 64, batch_first=True), 2)
    assert count_macs(encoder, torch.zeros(1, 16, 32)) == 2 * (projections + products + perceptron)
    attention = nn.MultiheadAttention(32, 4, batch_first=True)
    assert count_macs(Called(lambda x: attention(x, x, x)), torch.zeros(1, 16, 32)) == projections + products
    fused = nn.functional.scaled_dot_product_attention
    assert count_macs(Called(lambda x: fused(x, x, x)), torch.zeros(1, 4, 16, 8)) == products

    def chosen(x):
        with sdpa_kernel(SDPBackend.FLASH_ATTENTION):
            return fused(x, x, x)

    assert count_macs(Called(chosen), torch.zeros(1, 4, 16, 8)) == products


def test_products_with_vectors_by_hand():
    by_vectors = Called(lambda x: torch.mv(x, x[0]) + torch.addmv(x[:, 0], x, x[0]) + x[0] @ x[0])
    assert count_macs(by_vectors, torch.zeros(4, 4)) == 16 + 16 + 4


def test_counting_changes_neither_mode_nor_statistics():
    model = nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout()).train()
    model[2].eval()
    mean = model[1].running_mean.clone()
    count_macs(model, torch.randn(2, 3, 4, 4))
    assert [module.training for module in model] == [True, True, False]
    assert torch.equal(model[1].running_mean, mean)


def test_shared_parameters_count_once_and_buffers_never():
    model = nn.Sequential(nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Linear(4, 4, bias=False))
    assert count_parameters(model) == 16 + 4 + 8 + 16
    model[2].weight = model[0].weight
    assert count_parameters(model) == 16 + 4 + 8
