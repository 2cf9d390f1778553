"""Measuring a model's latency so that a sceptic can accept the figure.

`measure` runs the models in a child process, in turns, and gives a `LatencyReport` each; `median_ratio` compares two of
them with an interval. Nothing here imports PyTorch.
"""

from dtp_deploy.profile.measure import measure
from dtp_deploy.profile.report import LatencyReport, RatioInterval, median_ratio
from dtp_deploy.profile.settings import MeasureSettings

__all__ = ["LatencyReport", "MeasureSettings", "RatioInterval", "measure", "median_ratio"]
