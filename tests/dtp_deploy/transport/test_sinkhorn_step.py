"""`sinkhorn-1`: one textbook iteration, the same fixed point as the exact solver."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from dtp_deploy.errors import TransportError
from dtp_deploy.transport import Floors, LinearCost, TransportProblem, sinkhorn_step, solve_exact
from tests.dtp_deploy.transport.problems import chain_of_layers, groups_of, linear, problems, vector

SCORES = vector(0.9, -0.4, 0.3, 0.1, 1.2, 0.0, -0.8, 0.6, 0.2, -1.5, -1.1, -0.7)
GROUP = groups_of((4, 5, 3))


def textbook_iteration(plan: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Scale the columns to their sums, then the rows to theirs."""
    plan = plan * (columns / plan.sum(dim=0))
    return plan * (rows / plan.sum(dim=1))[:, None]


@given(st.lists(st.floats(-2.0, 2.0), min_size=1, max_size=12), st.floats(0.3, 100.0), st.floats(0.02, 0.98))
def test_it_is_one_textbook_iteration_on_the_two_column_plan(values: list[float], epsilon: float, share: float) -> None:
    scores = vector(*values)
    unit_costs = torch.linspace(1, 3, len(scores), dtype=torch.float64)
    rows, columns = unit_costs / unit_costs.sum(), vector(1 - share, share)
    plan = torch.exp(-torch.stack([scores**2, (scores - 1) ** 2], dim=1) / epsilon)
    plan = plan * (rows / plan.sum(dim=1))[:, None]
    threshold = 1 / epsilon  # the same plan: C_i0 - C_i1 = 2 s_i - 1
    for _ in range(3):
        plan = textbook_iteration(plan, rows, columns)
        result = sinkhorn_step(linear(scores, epsilon, share, unit_costs), threshold)
        threshold = result.threshold
        torch.testing.assert_close(result.transport_plan(rows), plan, rtol=1e-9, atol=1e-12)


def test_from_the_uniform_plan_its_gradient_is_that_of_the_textbook_iteration() -> None:
    scores, epsilon, share = SCORES.clone().requires_grad_(), 0.7, 0.4
    rows, columns = torch.full_like(SCORES, 1 / 12), vector(1 - share, share)
    plan = torch.stack([torch.zeros_like(scores), 2 * scores / epsilon], dim=1).softmax(dim=1) * rows[:, None]
    expected = textbook_iteration(plan, rows, columns)[:, 1] / rows
    result = sinkhorn_step(linear(scores, epsilon, share), 0.0)
    upstream = torch.randn(12, dtype=torch.float64)
    torch.testing.assert_close(result.masks, expected)
    torch.testing.assert_close(
        torch.autograd.grad(result.masks, scores, upstream), torch.autograd.grad(expected, scores, upstream)
    )


def bilinear(scores: Tensor, share: float, floors: Floors | None = None) -> TransportProblem:
    cost = chain_of_layers(GROUP)
    return TransportProblem(scores, 0.8, cost, float(cost(torch.ones_like(scores))[0]) * share, floors)


PROBLEMS: dict[str, Callable[[], TransportProblem]] = {
    "linear": lambda: linear(SCORES, 0.8, 0.4, torch.linspace(1, 3, 12, dtype=torch.float64)),
    "bilinear": lambda: bilinear(SCORES, 0.4),
    "linear, floors": lambda: linear(SCORES, 0.8, 0.4, floors=Floors(GROUP, vector(1.0, 0.0, 1.8))),
    "bilinear, floors": lambda: bilinear(SCORES, 0.4, Floors(GROUP, vector(1.0, 0.0, 1.8))),
    "float32": lambda: linear(SCORES.float(), 0.8, 0.4),
}


@pytest.mark.parametrize("name", PROBLEMS)
def test_its_fixed_point_is_the_exact_solution(name: str) -> None:
    problem, threshold = PROBLEMS[name](), 0.0
    assert not sinkhorn_step(problem, threshold).converged
    for _ in range(150):
        threshold = sinkhorn_step(problem, threshold).threshold
    result, exact = sinkhorn_step(problem, threshold), solve_exact(problem)
    assert result.converged
    assert result.threshold == pytest.approx(exact.threshold)
    assert result.at_floor.tolist() == exact.at_floor.tolist()
    assert result.masks.dtype == problem.scores.dtype
    torch.testing.assert_close(result.masks, exact.masks, rtol=0, atol=1e-7 if name == "float32" else 1e-9)


@given(problems())
def test_each_step_of_a_linear_problem_comes_closer_to_the_budget(problem: TransportProblem) -> None:
    first = sinkhorn_step(problem, float(problem.logits().mean()))
    second = sinkhorn_step(problem, first.threshold)
    assert bool(((second.masks >= 0) & (second.masks <= 1)).all())
    assert abs(second.marginal_error) <= abs(first.marginal_error) + 1e-9


def test_a_cost_below_the_budget_has_not_converged_either() -> None:
    result = sinkhorn_step(linear(vector(0.0, 0.0, 3.0), 0.5, 0.9), 3.0)
    assert result.marginal_error < -0.01
    assert not result.converged


@pytest.mark.parametrize(("budget", "mask"), [(0.0, 0.0), (3.0, 1.0), (5.0, 1.0)])
def test_the_ends_of_the_budget_are_approached_without_nan(budget: float, mask: float) -> None:
    problem = TransportProblem(vector(0.0, 1.0, 2.0).requires_grad_(), 0.5, LinearCost(vector(1.0, 1.0, 1.0)), budget)
    threshold = 0.0
    for _ in range(20):
        result = sinkhorn_step(problem, threshold)
        threshold = result.threshold
    assert result.masks.tolist() == pytest.approx([mask] * 3, abs=1e-9)
    assert result.converged
    (gradient,) = torch.autograd.grad(result.masks.sum(), problem.scores)
    assert bool(gradient.isfinite().all())


def test_hard_masks_far_from_the_budget_stay_finite() -> None:
    result = sinkhorn_step(linear(torch.randn(1000), 1e-4, 0.3), 1e6)
    assert math.isfinite(result.threshold)
    assert bool(result.masks.isfinite().all())


@pytest.mark.parametrize("threshold", [math.inf, -math.inf, math.nan])
def test_a_threshold_that_is_not_finite_is_refused(threshold: float) -> None:
    with pytest.raises(TransportError) as error:
        sinkhorn_step(linear(SCORES, 0.8, 0.4), threshold)
    assert str(error.value) == f"The threshold is {threshold}; give a finite one, 0 to start with."
