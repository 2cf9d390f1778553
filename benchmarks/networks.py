"""Networks of the usual shapes with random weights: latency does not depend on what they have learned."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from torch import Tensor, nn

from dtp_deploy.testing.blocks import BasicBlock, Bottleneck, DenseLayer, InvertedResidual, conv_bn
from dtp_deploy.testing.zoo import randomise

CLASSES = 100


class Network(nn.Module):
    """Features, the mean over all positions, a linear head."""

    def __init__(self, features: Sequence[nn.Module], width: int) -> None:
        super().__init__()
        self.features, self.head = nn.Sequential(*features), nn.Linear(width, CLASSES)

    def forward(self, x: Tensor) -> Tensor:
        """(N, 3, H, W) -> (N, CLASSES)."""
        logits: Tensor = self.head(self.features(x).mean((2, 3)))
        return logits


def _stem(width: int) -> list[nn.Module]:
    return [conv_bn(3, width, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]


def resnet18() -> nn.Module:
    """Four stages of two basic blocks, 64 to 512 wide."""
    blocks, channels = _stem(64), 64
    for stage, width in enumerate((64, 128, 256, 512)):
        for number in range(2):
            blocks.append(BasicBlock(channels, width, 2 if stage and not number else 1))
            channels = width
    return Network(blocks, channels)


def resnet50() -> nn.Module:
    """Four stages of 3, 4, 6, 3 bottlenecks, 256 to 2048 wide."""
    blocks, channels = _stem(64), 64
    for stage, (width, count) in enumerate(zip((64, 128, 256, 512), (3, 4, 6, 3), strict=True)):
        for number in range(count):
            blocks.append(Bottleneck(channels, width, 4 * width, 2 if stage and not number else 1))
            channels = 4 * width
    return Network(blocks, channels)


def mobilenet_v2() -> nn.Module:
    """Seventeen inverted residuals."""
    blocks: list[nn.Module] = [conv_bn(3, 32, 3, 2), nn.ReLU6()]
    channels = 32
    rows = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1), (6, 160, 3, 2), (6, 320, 1, 1))
    for expansion, width, count, stride in rows:
        for number in range(count):
            blocks.append(InvertedResidual(channels, width, 1 if number else stride, expansion))
            channels = width
    return Network([*blocks, conv_bn(channels, 1280, 1), nn.ReLU6()], 1280)


def densenet() -> nn.Module:
    """Three dense blocks of six layers with growth 32, halved between them."""
    blocks, channels = _stem(64), 64
    for stage in range(3):
        for _ in range(6):
            blocks.append(DenseLayer(channels, 32))
            channels += 32
        if stage < 2:
            blocks += [conv_bn(channels, channels // 2, 1), nn.ReLU(), nn.AvgPool2d(2)]
            channels //= 2
    return Network(blocks, channels)


NETWORKS: dict[str, Callable[[], nn.Module]] = {
    "ResNet-18": resnet18,
    "ResNet-50": resnet50,
    "MobileNetV2": mobilenet_v2,
    "DenseNet": densenet,
}


def make(name: str, seed: int = 0) -> nn.Module:
    """A network in eval mode with random weights and BatchNorm statistics."""
    return randomise(NETWORKS[name](), seed).eval()
