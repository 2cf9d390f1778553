"""dtp-deploy: prune a trained PyTorch model to a budget that is measured on the target, and prove it.

The names below are the public interface. They are imported when they are first used, so that a command line or a
measuring child process that needs no PyTorch does not pay for it.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from dtp_deploy.artefact import load_pruned as load_pruned
    from dtp_deploy.budget import Budget as Budget
    from dtp_deploy.budget import parse_budget as parse_budget
    from dtp_deploy.graph import find_groups as find_groups
    from dtp_deploy.pipeline import compress as compress
    from dtp_deploy.prune import ChannelMasks as ChannelMasks
    from dtp_deploy.prune import MaskSettings as MaskSettings
    from dtp_deploy.prune import PruningPlan as PruningPlan
    from dtp_deploy.prune import WeightMasks as WeightMasks
    from dtp_deploy.prune import find_weights as find_weights
    from dtp_deploy.prune import hold_zeros as hold_zeros
    from dtp_deploy.prune import prove as prove
    from dtp_deploy.prune import remove_channels as remove_channels
    from dtp_deploy.train import Settings as Settings

_HOMES = {
    "Budget": "dtp_deploy.budget",
    "parse_budget": "dtp_deploy.budget",
    "ChannelMasks": "dtp_deploy.prune",
    "MaskSettings": "dtp_deploy.prune",
    "PruningPlan": "dtp_deploy.prune",
    "WeightMasks": "dtp_deploy.prune",
    "find_weights": "dtp_deploy.prune",
    "hold_zeros": "dtp_deploy.prune",
    "Settings": "dtp_deploy.train",
    "remove_channels": "dtp_deploy.prune",
    "find_groups": "dtp_deploy.graph",
    "prove": "dtp_deploy.prune",
    "compress": "dtp_deploy.pipeline",
    "load_pruned": "dtp_deploy.artefact",
}
__all__ = sorted([*_HOMES, "__version__"])
__version__ = version("dtp-deploy")


def __getattr__(name: str) -> object:
    if name not in _HOMES:
        raise AttributeError(f"module 'dtp_deploy' has no attribute {name!r}")
    return getattr(import_module(_HOMES[name]), name)
