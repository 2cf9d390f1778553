"""Latency as a budget: where cost, pruning, export and measurement meet."""

from dtp_deploy.latency.calibrate import LatencyCurve, learn_curve
from dtp_deploy.latency.loop import close_loop
from dtp_deploy.latency.probe import LatencyProbe

__all__ = ["LatencyCurve", "LatencyProbe", "close_loop", "learn_curve"]
