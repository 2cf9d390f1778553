"""A small residual network for scikit-learn's digits (1x8x8): the model that ``make demo`` prunes."""

from torch import nn

from examples.resnet import ResNet


def make_model() -> nn.Module:
    """Three stages of one residual block each, 32, 64 and 128 channels wide."""
    return ResNet((32, 64, 128), blocks=1)
