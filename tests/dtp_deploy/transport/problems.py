"""Transport problems to solve, drawn or made to order."""

from dataclasses import dataclass

import torch
from hypothesis import strategies as st
from torch import Tensor

from dtp_deploy.cost import NetworkCost
from dtp_deploy.transport import Floors, LinearCost, TransportProblem


def vector(*values: float) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def linear(
    scores: Tensor, epsilon: float, share: float, unit_costs: Tensor | None = None, floors: Floors | None = None
):
    """A problem with a linear cost (1 a unit unless told) whose budget is a share of the cost of all units."""
    costs = torch.ones(len(scores), dtype=torch.float64) if unit_costs is None else unit_costs
    return TransportProblem(scores, epsilon, LinearCost(costs), float(costs.sum()) * share, floors)


@dataclass(frozen=True)
class GroupedCost:
    """A cost of the groups' widths, as a cost of single masks: what mask training gives to the solver."""

    widths: NetworkCost
    group: Tensor

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        kept = torch.zeros(self.widths.slopes[0].shape[1], dtype=torch.float64).index_add(0, self.group, masks)
        value, gradient = self.widths(kept)
        return value, gradient[self.group]


@dataclass(frozen=True)
class MixedCost:
    """A bilinear cost in which units of one group cost differently: (w0 . m + 1)(w1 . m + 2)."""

    first: Tensor
    second: Tensor

    def __call__(self, masks: Tensor) -> tuple[Tensor, Tensor]:
        one, two = self.first @ masks + 1, self.second @ masks + 2
        return one * two, self.first * two + self.second * one


def chain_of_layers(group: Tensor) -> GroupedCost:
    """Input - 3 groups - output, each pair of neighbours joined by a layer: 3 w0 + w0 w1 + 2 w1 w2 + 10 w2 + 5."""
    eye = torch.eye(3, dtype=torch.float64)
    nothing = torch.zeros(3, dtype=torch.float64)
    cost = NetworkCost(
        factors=vector(1.0, 1.0, 2.0, 1.0),
        offsets=(vector(3.0, 0.0, 0.0, 10.0), vector(0.0, 0.0, 0.0, 0.0)),
        slopes=(torch.stack([nothing, eye[0], eye[1], nothing]), torch.stack([eye[0], eye[1], eye[2], eye[2]])),
        constant=5.0,
    )
    return GroupedCost(cost, group)


def groups_of(sizes: tuple[int, ...]) -> Tensor:
    return torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))


epsilons = st.floats(-4.0, 3.0).map(lambda exponent: 10.0**exponent)
shares = st.floats(0.001, 0.999)
score_lists = st.lists(st.floats(-3.0, 3.0), min_size=1, max_size=30)


@st.composite
def problems(draw: st.DrawFn, equal_costs: bool = False) -> TransportProblem:
    """Linear problems: 1 to 30 units, epsilon 1e-4..1e3, any share of the mass, costs 0.1..10."""
    scores = vector(*draw(score_lists))
    costs = torch.ones_like(scores)
    if not equal_costs:
        size = len(scores)
        costs = vector(*draw(st.lists(st.floats(0.1, 10.0), min_size=size, max_size=size)))
    return linear(scores, draw(epsilons), draw(shares), costs)


@st.composite
def grouped_problems(draw: st.DrawFn) -> TransportProblem:
    """Bilinear problems of three groups with floors; some cannot be met, for the floors cost more than the budget."""
    sizes = draw(st.tuples(*[st.integers(1, 8)] * 3))
    group = groups_of(sizes)
    count = len(group)
    scores = vector(*draw(st.lists(st.floats(-3.0, 3.0), min_size=count, max_size=count)))
    floors = vector(*[draw(st.floats(0.0, 1.0)) * size for size in sizes])
    cost = chain_of_layers(group)
    dense = float(cost(torch.ones(count, dtype=torch.float64))[0])
    return TransportProblem(scores, draw(epsilons), cost, dense * draw(shares), Floors(group, floors))


def group_sums(values: Tensor, floors: Floors) -> Tensor:
    """Sum of the values of each group, shape [G,]."""
    return torch.zeros_like(floors.mass).index_add(0, floors.group, values.double())
