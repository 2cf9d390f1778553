"""What a result says about itself."""

import pytest
import torch
from hypothesis import given

from dtp_deploy.transport import LinearCost, TransportProblem, TransportResult, solve_exact
from tests.dtp_deploy.transport.problems import linear, problems, vector


def result_with(marginal_error: float) -> TransportResult:
    return TransportResult(
        masks=vector(0.25, 1.0),
        threshold=0.0,
        at_floor=torch.empty(0, dtype=torch.bool),
        cost=1.25,
        marginal_error=marginal_error,
        iterations=3,
    )


def test_the_plan_has_a_pruned_and_a_kept_column() -> None:
    plan = result_with(0.0).transport_plan(vector(0.4, 0.6))
    torch.testing.assert_close(plan, torch.tensor([[0.3, 0.1], [0.0, 0.6]], dtype=torch.float64))


@given(problems())
def test_the_marginals_of_the_plan_are_the_source_mass_and_the_bins(problem: TransportProblem) -> None:
    assert isinstance(problem.cost, LinearCost)
    total = float(problem.cost.unit_costs.sum())
    mass, share = problem.cost.unit_costs / total, problem.budget / total
    plan = solve_exact(problem).transport_plan(mass)
    assert bool((plan >= 0).all())
    torch.testing.assert_close(plan.sum(dim=1), mass, rtol=1e-12, atol=0)
    torch.testing.assert_close(plan.sum(dim=0), vector(1 - share, share), rtol=1e-9, atol=1e-15)


def test_the_plan_is_differentiable() -> None:
    scores = vector(0.1, 0.5, 0.9).requires_grad_()
    plan = solve_exact(linear(scores, 0.5, 0.5)).transport_plan(vector(0.2, 0.3, 0.5))
    (gradient,) = torch.autograd.grad(plan[0, 1], scores)
    assert float(gradient[0]) > 0


@pytest.mark.parametrize(
    ("error", "converged"),
    [(0.0, True), (1e-9, True), (-1e-9, True), (1.1e-9, False), (-1.1e-9, False), (float("nan"), False)],
)
def test_a_marginal_error_of_1e_9_up_or_down_is_converged(error: float, converged: bool) -> None:
    assert result_with(error).converged is converged
