"""What a network costs, counted on a model or as a function of the widths of its channel groups. No measuring here."""

from dtp_deploy.cost.count import count_macs, count_parameters, macs_per_sample
from dtp_deploy.cost.latency import ChannelSum, LatencyCost, LayerTime, Spill, TimedLayer, channel_sum
from dtp_deploy.cost.network import ChannelCount, NetworkCost, WidthFunction, macs_cost, parameter_cost
from dtp_deploy.cost.stairs import EVEN, Staircase, Stairs

__all__ = [
    "EVEN",
    "ChannelCount",
    "ChannelSum",
    "LatencyCost",
    "LayerTime",
    "NetworkCost",
    "Spill",
    "Staircase",
    "Stairs",
    "TimedLayer",
    "WidthFunction",
    "channel_sum",
    "count_macs",
    "count_parameters",
    "macs_cost",
    "macs_per_sample",
    "parameter_cost",
]
