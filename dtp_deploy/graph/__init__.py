"""Coupled channel groups: which channels of which tensors must be removed together."""

from dtp_deploy.graph.discovery import find_groups
from dtp_deploy.graph.frozen import freeze
from dtp_deploy.graph.groups import ChannelGroup, Groups, TensorSlice, set_tensor, tensor_by_name

__all__ = ["ChannelGroup", "Groups", "TensorSlice", "find_groups", "freeze", "set_tensor", "tensor_by_name"]
