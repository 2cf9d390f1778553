"""From scores to a smaller network: masks, the choice of channels, the plan, its removal and its proof."""

from dtp_deploy.prune.depth import Depth
from dtp_deploy.prune.layers import WeightLayer, WeightLayers, find_weights
from dtp_deploy.prune.masks import ChannelMasks, cost_of
from dtp_deploy.prune.plan import BlockChoice, GroupChoice, LayerChoice, PruningPlan, compose, make_plan
from dtp_deploy.prune.proof import masked, prove
from dtp_deploy.prune.schedule import MaskSettings
from dtp_deploy.prune.surgery import blocks_silenced, remove_blocks, remove_channels
from dtp_deploy.prune.weights import WeightMasks, hold_zeros

__all__ = [
    "BlockChoice",
    "ChannelMasks",
    "Depth",
    "GroupChoice",
    "LayerChoice",
    "MaskSettings",
    "PruningPlan",
    "WeightLayer",
    "WeightLayers",
    "WeightMasks",
    "blocks_silenced",
    "compose",
    "cost_of",
    "find_weights",
    "hold_zeros",
    "make_plan",
    "masked",
    "prove",
    "remove_blocks",
    "remove_channels",
]
