"""Models of the zoo with their proven groups; each is proven once for all tests."""

from functools import lru_cache

import pytest
from torch import nn

from dtp_deploy.graph import Groups, find_groups
from dtp_deploy.prune import prove
from dtp_deploy.testing.zoo import ZOO, ZooEntry

prunable_entry = pytest.mark.parametrize("entry", [e for e in ZOO.values() if e.name != "group_norm"], ids=str)
"""All entries that have something to prune."""


def proven(entry: ZooEntry, seed: int = 0) -> tuple[nn.Module, Groups]:
    """A fresh model, and its groups."""
    return entry.model(seed), _groups(entry.name, seed)


@lru_cache
def _groups(name: str, seed: int) -> Groups:
    model = ZOO[name].model(seed)
    return prove(model, find_groups(model, ZOO[name].inputs(seed)))
