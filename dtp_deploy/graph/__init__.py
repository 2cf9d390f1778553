"""Coupled channel groups: which channels of which tensors must be removed together."""

from dtp_deploy.graph.blocks import find_blocks
from dtp_deploy.graph.discovery import find_groups
from dtp_deploy.graph.frozen import freeze
from dtp_deploy.graph.groups import ChannelGroup, Groups, ResidualBlock, TensorSlice, set_tensor, tensor_by_name

__all__ = [
    "ChannelGroup",
    "Groups",
    "ResidualBlock",
    "TensorSlice",
    "find_blocks",
    "find_groups",
    "freeze",
    "set_tensor",
    "tensor_by_name",
]
