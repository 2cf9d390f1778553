"""Random chains of groups, their costs, and what widths they may take, for the tests of widths and of the choice."""

import torch
from hypothesis import strategies as st

from dtp_deploy.cost import NetworkCost
from dtp_deploy.graph import ChannelGroup
from dtp_deploy.prune.widths import allowed_widths


def chain_cost(units: list[int], factors: list[float]) -> NetworkCost:
    """Cost of layers in a row: factor_k * w_k * w_(k+1), with one channel before and behind, and a constant of 3."""
    groups = len(units)
    before, behind = torch.eye(groups + 1, groups, dtype=torch.float64).roll(1, 0), torch.eye(groups + 1, groups)
    before[0] = 0
    fixed = torch.zeros(groups + 1, dtype=torch.float64)
    first, last = fixed.clone(), fixed.clone()
    first[0], last[-1] = 1, 1
    return NetworkCost(torch.tensor(factors, dtype=torch.float64), (first, last), (before, behind.double()), 3.0)


def vector(widths) -> torch.Tensor:
    return torch.tensor([float(width) for width in widths], dtype=torch.float64)


@st.composite
def choices(draw):
    """Groups, scores with ties among them, a cost, allowed widths, and a limit between nothing and everything."""
    sizes = draw(st.lists(st.integers(1, 20), min_size=1, max_size=5))
    groups = [ChannelGroup(f"g{n}", units, draw(st.integers(1, 4)), ()) for n, units in enumerate(sizes)]
    factors = draw(st.lists(st.floats(0.1, 100), min_size=len(sizes) + 1, max_size=len(sizes) + 1))
    score = st.one_of(st.integers(-3, 3).map(float), st.floats(-100, 100))
    scores = [torch.tensor(draw(st.lists(score, min_size=n, max_size=n)), dtype=torch.float64) for n in sizes]
    round_to = draw(st.sampled_from([1, 2, 3, 8]))
    levels = [allowed_widths(group, draw(st.integers(1, group.units)), round_to) for group in groups]
    cost = chain_cost(sizes, factors)
    dense = float(cost(vector(sizes))[0])
    return groups, scores, cost, levels, draw(st.floats(0.01, 1.1)) * dense
