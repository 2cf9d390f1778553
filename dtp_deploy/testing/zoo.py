"""A zoo of tiny models, one for each structure that a stage must survive, for parametrised tests.

    @pytest.mark.parametrize("entry", ZOO.values(), ids=str)
    def test_my_stage(entry):
        model, inputs = entry.model(), entry.inputs()

A model is 8 to 32 channels wide and runs in milliseconds. Classifiers have 10 classes. Each factory can also be given
on the command line: ``--model dtp_deploy.testing.zoo:residual --input 1x3x16x16``.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from types import MappingProxyType

import torch
import torch.nn.functional as F  # noqa: N812 - the name that everybody knows
from torch import Tensor, nn

from dtp_deploy.testing.blocks import (
    SPPF,
    BasicBlock,
    Bottleneck,
    C2f,
    ConvNeXtBlock,
    DenseLayer,
    InvertedResidual,
    SqueezeExcite,
    TransformerBlock,
    conv_bn,
)


@dataclass(frozen=True)
class ZooEntry:
    """One animal.

    Attributes:
        name: unique; also the name of its factory in this module.
        make: the factory; weights as PyTorch initialises them.
        input_shape: of its single input, batch of 1 included.
    """

    name: str
    make: Callable[[], nn.Module]
    input_shape: tuple[int, ...]

    def model(self, seed: int = 0) -> nn.Module:
        """A model with random weights and statistics that depend on the seed alone, in evaluation mode."""
        return randomise(self.make(), seed)

    def inputs(self, seed: int = 0) -> Tensor:
        """Standard normal inputs of `input_shape`."""
        return torch.randn(self.input_shape, generator=torch.Generator().manual_seed(seed))

    def __str__(self) -> str:
        return self.name


@torch.no_grad()
def randomise(model: nn.Module, seed: int) -> nn.Module:
    """Give a model, in place, weights and statistics as a trained one has them; return it in evaluation mode.

    A fresh network hides errors: its BatchNorm does nothing, its biases are zero, its layer scale is one. Here weights
    are normal and scaled by fan-in, biases and running means normal, scales in 0.5..1.5, running variances in 0.5..2.
    """
    generator = torch.Generator().manual_seed(seed)

    def uniform(tensor: Tensor, low: float, high: float) -> None:
        tensor.copy_(low + (high - low) * torch.rand(tensor.shape, generator=generator))

    def normal(tensor: Tensor, deviation: float) -> None:
        tensor.copy_(deviation * torch.randn(tensor.shape, generator=generator))

    for name, parameter in model.named_parameters():
        if parameter.ndim > 1:
            normal(parameter, (parameter.shape[0] / parameter.numel()) ** 0.5)
        elif name.endswith("bias"):
            normal(parameter, 0.2)
        else:
            uniform(parameter, 0.5, 1.5)
    for name, buffer in model.named_buffers():
        if name.endswith("running_mean"):
            normal(buffer, 0.5)
        elif name.endswith("running_var"):
            uniform(buffer, 0.5, 2.0)
    return model.eval()


class _Classifier(nn.Module):
    """Features of shape (N, C, ...), averaged over all positions, and a linear head."""

    def __init__(self, features: nn.Module, width: int) -> None:
        super().__init__()
        self.features, self.head = features, nn.Linear(width, 10)

    def forward(self, x: Tensor) -> Tensor:
        logits: Tensor = self.head(self.features(x).flatten(2).mean(2))
        return logits


def plain() -> nn.Module:
    """Convolutions in a row; the flattened map feeds the head, so that one channel is 16 of its inputs."""
    return nn.Sequential(
        conv_bn(3, 8),
        nn.ReLU(inplace=True),
        conv_bn(8, 16, stride=2),
        nn.ReLU(inplace=True),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(16 * 4 * 4, 24),
        nn.ReLU(),
        nn.Linear(24, 10),
    )


def residual() -> nn.Module:
    """Basic residual blocks, one of them with a downsampling skip connection (ResNet-18)."""
    stem = nn.Sequential(conv_bn(3, 8), nn.ReLU())
    return _Classifier(nn.Sequential(stem, BasicBlock(8, 8), BasicBlock(8, 16, stride=2), BasicBlock(16, 16)), 16)


def bottleneck() -> nn.Module:
    """Bottleneck residual blocks (ResNet-50)."""
    stem = nn.Sequential(conv_bn(3, 8), nn.ReLU())
    return _Classifier(nn.Sequential(stem, Bottleneck(8, 8, 32), Bottleneck(32, 8, 32)), 32)


def depthwise() -> nn.Module:
    """Inverted residuals with depthwise convolutions (MobileNetV2)."""
    stem = nn.Sequential(conv_bn(3, 8, stride=2), nn.ReLU6())
    blocks = [InvertedResidual(8, 8), InvertedResidual(8, 16, stride=2), InvertedResidual(16, 16)]
    return _Classifier(nn.Sequential(stem, *blocks), 16)


def grouped() -> nn.Module:
    """Bottlenecks with convolutions of 4 groups (ResNeXt)."""
    stem = nn.Sequential(conv_bn(3, 16), nn.ReLU())
    blocks = [Bottleneck(16, 16, 32, groups=4), Bottleneck(32, 16, 32, groups=4)]
    return _Classifier(nn.Sequential(stem, *blocks), 32)


def concat() -> nn.Module:
    """Each layer reads all before it (DenseNet)."""
    layers = [nn.Conv2d(3, 8, 3, padding=1), DenseLayer(8, 8), DenseLayer(16, 8), nn.BatchNorm2d(24), nn.ReLU()]
    transition = [nn.Conv2d(24, 12, 1), nn.AvgPool2d(2), DenseLayer(12, 8)]
    return _Classifier(nn.Sequential(*layers, *transition), 20)


def split() -> nn.Module:
    """Channels split and concatenated again (the C2f block of YOLOv8)."""
    return _Classifier(
        nn.Sequential(conv_bn(3, 16), nn.SiLU(), C2f(16, 16), conv_bn(16, 32, stride=2), C2f(32, 32)), 32
    )


def squeeze_excite() -> nn.Module:
    """Inverted residuals with squeeze-and-excitation and hard-swish (MobileNetV3)."""
    stem = nn.Sequential(conv_bn(3, 16), nn.Hardswish(), SqueezeExcite(16, 8))
    return _Classifier(nn.Sequential(stem, InvertedResidual(16, 16), SqueezeExcite(16, 8), conv_bn(16, 24)), 24)


class _VisionTransformer(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, 16, 4, stride=4)
        self.position = nn.Parameter(torch.zeros(1, 16, 16))
        self.blocks = nn.Sequential(TransformerBlock(16, 2, 32), TransformerBlock(16, 2, 32))
        self.norm, self.head = nn.LayerNorm(16), nn.Linear(16, 10)

    def forward(self, x: Tensor) -> Tensor:
        tokens = self.patches(x).flatten(2).transpose(1, 2) + self.position
        logits: Tensor = self.head(self.norm(self.blocks(tokens)).mean(1))
        return logits


def attention() -> nn.Module:
    """A vision transformer of two blocks; (N, 3, 16, 16) makes 16 tokens of width 16."""
    return _VisionTransformer()


def convnext() -> nn.Module:
    """Depthwise 7x7, LayerNorm over the channels, GELU, layer scale (ConvNeXt)."""
    return _Classifier(nn.Sequential(nn.Conv2d(3, 16, 2, stride=2), ConvNeXtBlock(16, 32), ConvNeXtBlock(16, 32)), 16)


def group_norm() -> nn.Module:
    """GroupNorm, whose statistics run across neighbouring channels."""
    features = nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1),
        nn.GroupNorm(4, 16),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.GroupNorm(1, 16),
        nn.ReLU(),
    )
    return _Classifier(features, 16)


class _UNet(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.down1, self.down2 = conv_bn(3, 8), conv_bn(8, 16, stride=2)
        self.middle = conv_bn(16, 24, stride=2)
        self.up2, self.merge2 = nn.ConvTranspose2d(24, 16, 2, stride=2), conv_bn(32, 16)
        self.merge1, self.head = conv_bn(24, 8), nn.Conv2d(8, 4, 1)

    def forward(self, x: Tensor) -> Tensor:
        x1 = F.relu(self.down1(x))
        x2 = F.relu(self.down2(x1))
        y = F.relu(self.merge2(torch.cat([x2, self.up2(F.relu(self.middle(x2)))], dim=1)))
        y = F.interpolate(y, scale_factor=2.0, mode="nearest")
        mask: Tensor = self.head(F.relu(self.merge1(torch.cat([x1, y], dim=1))))
        return mask


def unet() -> nn.Module:
    """Transposed convolution, upsampling, and skip connections that are concatenated; a map of 4 classes."""
    return _UNet()


class _Detector(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Sequential(conv_bn(3, 8, stride=2), nn.SiLU())
        self.stage1, self.stage2 = C2f(8, 16), nn.Sequential(conv_bn(16, 16, stride=2), nn.SiLU(), C2f(16, 24))
        self.stage3 = nn.Sequential(conv_bn(24, 32, stride=2), nn.SiLU(), SPPF(32))
        self.up = nn.Upsample(scale_factor=2.0, mode="nearest")
        self.neck2, self.neck1 = C2f(56, 16), C2f(32, 16)
        self.heads = nn.ModuleList(nn.Conv2d(width, 9, 1) for width in (16, 16, 32))

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x1 = self.stage1(self.stem(x))
        x2 = self.stage2(x1)
        x3 = self.stage3(x2)
        y2 = self.neck2(torch.cat([x2, self.up(x3)], dim=1))
        y1 = self.neck1(torch.cat([x1, self.up(y2)], dim=1))
        return tuple(head(y) for head, y in zip(self.heads, (y1, y2, x3), strict=True))


def detector() -> nn.Module:
    """Three heads at strides 2, 4 and 8 over C2f blocks, SPPF and a top-down neck (YOLO); a tuple of three maps."""
    return _Detector()


class _Shared(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stem, self.shared, self.exit = conv_bn(3, 16), conv_bn(16, 16), conv_bn(16, 8)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        for _ in range(2):
            x = F.relu(self.shared(x))
        return F.relu(self.exit(x))


def shared() -> nn.Module:
    """One module called twice in a row, so that its inputs and outputs are the same channels."""
    return _Classifier(_Shared(), 8)


def prelu() -> nn.Module:
    """Activations with a weight for each channel."""
    return _Classifier(nn.Sequential(conv_bn(3, 16), nn.PReLU(16), conv_bn(16, 24, stride=2), nn.PReLU(24)), 24)


def conv1d() -> nn.Module:
    """One-dimensional convolutions over a signal of 4 channels."""
    features = nn.Sequential(
        nn.Conv1d(4, 16, 5, padding=2),
        nn.BatchNorm1d(16),
        nn.ReLU(),
        nn.Conv1d(16, 24, 3, stride=2, padding=1),
        nn.BatchNorm1d(24),
        nn.ReLU(),
    )
    return _Classifier(features, 24)


_IMAGE, _LARGE_IMAGE, _SIGNAL = (1, 3, 16, 16), (1, 3, 32, 32), (1, 4, 64)

ZOO: Mapping[str, ZooEntry] = MappingProxyType(
    {
        make.__name__: ZooEntry(make.__name__, make, shape)
        for make, shape in (
            (plain, _IMAGE),
            (residual, _IMAGE),
            (bottleneck, _IMAGE),
            (depthwise, _IMAGE),
            (grouped, _IMAGE),
            (concat, _IMAGE),
            (split, _IMAGE),
            (squeeze_excite, _IMAGE),
            (attention, _IMAGE),
            (convnext, _IMAGE),
            (group_norm, _IMAGE),
            (unet, _IMAGE),
            (detector, _LARGE_IMAGE),
            (shared, _IMAGE),
            (prelu, _IMAGE),
            (conv1d, _SIGNAL),
        )
    }
)
"""Every entry by name."""
