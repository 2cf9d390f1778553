"""Problems that are not well posed are refused, each with one message."""

import math

import pytest
import torch
from torch import Tensor

from dtp_deploy.errors import DtpError, TransportError
from dtp_deploy.transport import (
    BlockProblem,
    Floors,
    LinearCost,
    TransportProblem,
    sinkhorn_step,
    solve_blocks,
    solve_exact,
    solve_sinkhorn,
)
from tests.dtp_deploy.transport.problems import groups_of, linear, vector

THREE = vector(0.1, 0.2, 0.3)


def make(scores: Tensor = THREE, epsilon: float = 0.5, budget: float = 1.0, floors: Floors | None = None):
    return TransportProblem(scores, epsilon, LinearCost(torch.ones(len(scores), dtype=torch.float64)), budget, floors)


NAN = "Scores hold NaN or infinity; they must be finite. Lower the learning rate, or check the data for NaN."
PAIR = groups_of((2, 1))
WRONG = {
    "no scores": (
        lambda: make(torch.empty(0)),
        "Scores have shape (0,); give a vector of at least one score.",
    ),
    "a matrix": (
        lambda: make(torch.zeros(2, 3)),
        "Scores have shape (2, 3); give a vector of at least one score.",
    ),
    "integers": (
        lambda: make(torch.tensor([1, 2, 3])),
        "Scores have dtype torch.int64; give float32 or float64.",
    ),
    "half precision": (
        lambda: make(THREE.half()),
        "Scores have dtype torch.float16; give float32 or float64.",
    ),
    "NaN": (lambda: make(vector(0.1, math.nan)), NAN),
    "infinity": (lambda: make(vector(0.1, -math.inf)), NAN),
    "epsilon 0": (lambda: make(epsilon=0.0), "epsilon is 0.0; give a positive, finite number."),
    "epsilon below 0": (lambda: make(epsilon=-1.0), "epsilon is -1.0; give a positive, finite number."),
    "epsilon NaN": (lambda: make(epsilon=math.nan), "epsilon is nan; give a positive, finite number."),
    "epsilon infinite": (lambda: make(epsilon=math.inf), "epsilon is inf; give a positive, finite number."),
    "budget below 0": (lambda: make(budget=-0.5), "The budget is -0.5; give a finite cost of zero or more."),
    "budget NaN": (lambda: make(budget=math.nan), "The budget is nan; give a finite cost of zero or more."),
    "budget infinite": (lambda: make(budget=math.inf), "The budget is inf; give a finite cost of zero or more."),
    "costs of zero": (
        lambda: LinearCost(vector(0.0, 0.0)),
        "Unit costs go from 0 to 0; give positive, finite ones. What costs nothing need not be chosen: leave it out of "
        "the problem.",
    ),
    "a cost below zero": (
        lambda: LinearCost(vector(1.0, -2.0)),
        "Unit costs go from -2 to 1; give positive, finite ones. What costs nothing need not be chosen: leave it out "
        "of the problem.",
    ),
    "a cost of NaN": (
        lambda: LinearCost(vector(1.0, math.nan)),
        "Unit costs go from nan to nan; give positive, finite ones. What costs nothing need not be chosen: leave it "
        "out of the problem.",
    ),
    "an infinite cost": (
        lambda: LinearCost(vector(1.0, math.inf)),
        "Unit costs go from 1 to inf; give positive, finite ones. What costs nothing need not be chosen: leave it out "
        "of the problem.",
    ),
    "costs in single precision": (
        lambda: LinearCost(torch.ones(2)),
        "Unit costs have shape (2,) and dtype torch.float32; give a vector of float64.",
    ),
    "scores over epsilon that overflow": (
        lambda: make(vector(0.3, -2.0), epsilon=1e-308),
        "Scores of up to 2 over an epsilon of 1e-308 are too large for a float64. Give a larger epsilon, or scale the "
        "scores.",
    ),
    "scores over epsilon that overflow, in blocks": (
        lambda: BlockProblem(vector(1e308, -1e308)[None], 1.0, 1.0),
        "Scores of up to 1e+308 over an epsilon of 1 are too large for a float64. Give a larger epsilon, or scale the "
        "scores.",
    ),
    "a cost too few": (
        lambda: TransportProblem(THREE, 0.5, LinearCost(vector(1.0, 1.0)), 1.0),
        "There are 2 unit costs for 3 scores. Give as many of one as of the other.",
    ),
    "too few groups": (
        lambda: make(floors=Floors(torch.tensor([0, 0]), vector(1.0))),
        "Floors name the groups of units of shape (2,); the scores have shape (3,). Give one group a score.",
    ),
    "groups of another type": (
        lambda: make(floors=Floors(PAIR.int(), vector(1.0, 1.0))),
        "Floors have groups of dtype torch.int32 and masses of dtype torch.float64; give int64 and float64.",
    ),
    "masses of another type": (
        lambda: make(floors=Floors(PAIR, torch.ones(2))),
        "Floors have groups of dtype torch.int64 and masses of dtype torch.float32; give int64 and float64.",
    ),
    "a group without mass": (
        lambda: make(floors=Floors(torch.tensor([0, 1, 2]), vector(1.0, 1.0))),
        "Floors name groups from 0 to 2; there are 2 masses. Number the groups from 0 and give a mass for each.",
    ),
    "a group below 0": (
        lambda: make(floors=Floors(torch.tensor([0, -1, 0]), vector(1.0))),
        "Floors name groups from -1 to 0; there are 1 masses. Number the groups from 0 and give a mass for each.",
    ),
    "a floor above the group's size": (
        lambda: make(floors=Floors(PAIR, vector(2.0, 1.25))),
        "The floor of group 1 is 1.25 of its 1 units; give a number between zero and its size.",
    ),
    "a floor below 0": (
        lambda: make(floors=Floors(PAIR, vector(-1.0, 1.0))),
        "The floor of group 0 is -1 of its 2 units; give a number between zero and its size.",
    ),
    "a floor that is NaN": (
        lambda: make(floors=Floors(PAIR, vector(1.0, math.nan))),
        "The floor of group 1 is nan of its 1 units; give a number between zero and its size.",
    ),
    "an infinite floor": (
        lambda: make(floors=Floors(PAIR, vector(math.inf, 1.0))),
        "The floor of group 0 is inf of its 2 units; give a number between zero and its size.",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_what_is_not_well_posed_is_refused(name: str) -> None:
    build, message = WRONG[name]
    with pytest.raises(TransportError) as error:
        build()
    assert str(error.value) == message
    assert isinstance(error.value, DtpError)
    assert error.value.exit_code == 2


def test_the_limits_themselves_are_allowed_and_solved() -> None:
    floor = solve_exact(make(vector(0.0), epsilon=1e-300, budget=0.0, floors=Floors(torch.tensor([0]), vector(1.0))))
    assert (floor.masks.tolist(), floor.at_floor.tolist(), floor.converged) == ([1.0], [True], False)
    none = solve_exact(make(floors=Floors(PAIR, vector(0.0, 0.0))))
    assert torch.equal(none.masks, solve_exact(make()).masks)
    assert float(none.masks.sum()) == pytest.approx(1.0)
    assert solve_exact(make(epsilon=1e-300)).masks.tolist() == pytest.approx([0.0, 0.0, 1.0], abs=1e-9)


SOLVERS = {
    "exact": lambda scores, epsilon: solve_exact(make(scores, epsilon)),
    "one step": lambda scores, epsilon: sinkhorn_step(make(scores, epsilon), 0.0),
    "the reference": lambda scores, epsilon: solve_sinkhorn(make(scores, epsilon), max_iterations=5),
    "blocks": lambda scores, epsilon: solve_blocks(BlockProblem(scores[None], epsilon, 1)),
}


@pytest.mark.parametrize("epsilon", [1e-308, 5e-324])
@pytest.mark.parametrize("solver", SOLVERS)
def test_an_epsilon_at_which_logits_overflow_gives_no_nan(solver: str, epsilon: float) -> None:
    try:
        masks = SOLVERS[solver](vector(0.0, 0.2, 0.3), epsilon).masks
    except TransportError:
        return
    assert bool(((masks >= 0) & (masks <= 1)).all())


def test_logits_are_scores_over_half_epsilon_in_float64_without_a_gradient() -> None:
    logits = make(torch.tensor([0.5, -1.0], requires_grad=True), epsilon=0.25).logits()
    assert logits.tolist() == [4.0, -8.0]
    assert logits.dtype == torch.float64
    assert not logits.requires_grad


def test_the_error_of_a_cost_is_relative_to_what_can_be_wanted() -> None:
    assert make(budget=2.0).relative_error(2.5, dense_cost=3.0) == 0.25
    assert make(budget=4.0).relative_error(3.0, dense_cost=3.0) == 0.0
    assert make(budget=0.0).relative_error(0.5, dense_cost=3.0) == 0.5


def test_the_sizes_of_groups_count_empty_ones() -> None:
    assert Floors(torch.tensor([0, 0, 2]), vector(0.0, 0.0, 0.0)).sizes().tolist() == [2.0, 0.0, 1.0]


def test_the_gradient_of_a_linear_cost_is_the_unit_costs() -> None:
    cost, gradient = linear(THREE, 1.0, 0.5, vector(1.0, 2.0, 3.0)).cost(vector(1.0, 0.5, 0.0))
    assert float(cost) == 2.0
    assert gradient.tolist() == [1.0, 2.0, 3.0]
