"""From scores to a smaller network: masks, the choice of channels, the plan, its removal and its proof."""

from dtp_deploy.prune.masks import ChannelMasks, cost_of
from dtp_deploy.prune.plan import GroupChoice, PruningPlan, compose, make_plan
from dtp_deploy.prune.proof import masked, prove
from dtp_deploy.prune.schedule import MaskSettings
from dtp_deploy.prune.surgery import remove_channels

__all__ = [
    "ChannelMasks",
    "GroupChoice",
    "MaskSettings",
    "PruningPlan",
    "compose",
    "cost_of",
    "make_plan",
    "masked",
    "prove",
    "remove_channels",
]
