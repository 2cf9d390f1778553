"""Latency as a budget: where cost, pruning, export and measurement meet."""

from dtp_deploy.latency.ahead import calibrate
from dtp_deploy.latency.deviations import explain_deviations
from dtp_deploy.latency.learn import LatencyTable, learn_table
from dtp_deploy.latency.loop import close_loop
from dtp_deploy.latency.probe import LatencyProbe

__all__ = ["LatencyProbe", "LatencyTable", "calibrate", "close_loop", "explain_deviations", "learn_table"]
