"""ResNets for Fashion-MNIST (1x28x28), without weights."""

from torch import nn

from examples.resnet import ResNet


def make_model() -> nn.Module:
    """ResNet-20: three stages of three residual blocks, 16, 32 and 64 channels wide."""
    return ResNet((16, 32, 64), blocks=3)


def make_wide_model() -> nn.Module:
    """2.5 times as wide: 4 * (40 + 80 + 160) = 1120 prunable channels. The stem's stride keeps training affordable."""
    return ResNet((40, 80, 160), blocks=3, stem_stride=2)
