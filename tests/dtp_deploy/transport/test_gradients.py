"""The implicit gradient against finite differences in float64."""

from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError

from dtp_deploy.transport import Floors, MaskCost, TransportProblem, budget_price, sinkhorn_step, solve_exact
from tests.dtp_deploy.transport.problems import MixedCost, chain_of_layers, groups_of, linear, vector

GROUP = groups_of((4, 5, 3))
SCORES = vector(0.9, -0.4, 0.3, 0.1, 1.2, 0.0, -0.8, 0.6, 0.2, -1.5, -1.1, -0.7)
MIXED = MixedCost(torch.linspace(0.5, 2.0, 12, dtype=torch.float64), torch.linspace(3.0, 0.2, 12, dtype=torch.float64))
FLOORS = Floors(GROUP, vector(1.0, 0.0, 1.8))
"""Group 2 has the lowest scores and is held; group 0 is above its floor."""


def with_scores(cost: MaskCost, share: float, floors: Floors | None = None, epsilon: float = 0.8):
    """Makes problems of one cost and budget from scores."""
    budget = float(cost(torch.ones(12, dtype=torch.float64))[0]) * share
    return lambda scores: TransportProblem(scores, epsilon, cost, budget, floors)


CASES = {
    "linear": lambda scores: linear(scores, 0.8, 0.4, torch.linspace(1.0, 4.0, 12, dtype=torch.float64)),
    "bilinear": with_scores(chain_of_layers(GROUP), 0.4),
    "mixed": with_scores(MIXED, 0.3),
    "linear, floors": lambda scores: linear(scores, 0.8, 0.4, floors=FLOORS),
    "bilinear, floors": with_scores(chain_of_layers(GROUP), 0.4, FLOORS),
    "mixed costs in a floored group": with_scores(MIXED, 0.3, FLOORS),
    "all at their floors": lambda scores: linear(scores, 0.8, 0.01, floors=Floors(GROUP, vector(1.0, 2.0, 1.5))),
    "soft": with_scores(MIXED, 0.3, FLOORS, epsilon=50.0),
}


@pytest.mark.parametrize("name", CASES)
def test_gradient_of_the_exact_masks(name: str) -> None:
    problem_of = CASES[name]
    result = solve_exact(problem_of(SCORES))
    if "floor" in name:
        assert bool(result.at_floor.any())
    if name != "all at their floors":
        assert result.converged
    assert gradcheck(lambda scores: solve_exact(problem_of(scores)).masks, SCORES.clone().requires_grad_())


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize("threshold", [-0.5, 2.0])
def test_gradient_of_one_sinkhorn_step(name: str, threshold: float) -> None:
    problem_of = CASES[name]
    assert gradcheck(lambda scores: sinkhorn_step(problem_of(scores), threshold).masks, SCORES.clone().requires_grad_())


def test_finite_differences_notice_a_gradient_without_the_price() -> None:
    threshold = solve_exact(linear(SCORES, 0.8, 0.4)).threshold

    def masks(scores: Tensor) -> Tensor:
        exact = solve_exact(linear(scores.detach(), 0.8, 0.4)).masks
        priceless = torch.sigmoid(2 * scores / 0.8 - threshold)
        return exact + (priceless - priceless.detach())

    with pytest.raises(GradcheckError):
        gradcheck(masks, SCORES.clone().requires_grad_())


def test_scores_of_units_rise_where_benefit_per_cost_beats_the_price() -> None:
    """Two pairs of equal units; in each pair one brings more per cost. The upstream gradient is minus the benefit."""
    scores = torch.zeros(4, dtype=torch.float64, requires_grad=True)
    costs = vector(1.0, 1.0, 4.0, 4.0)
    benefit = vector(2.0, 1.0, 6.0, 3.0)  # per cost: 2, 1, 1.5, 0.75; the price is their mean by cost, 1.2
    (gradient,) = torch.autograd.grad(solve_exact(linear(scores, 1.0, 0.5, costs)).masks, scores, -benefit)
    assert [float(value) < 0 for value in gradient] == [True, False, True, False]
    torch.testing.assert_close(gradient, -0.5 * (benefit - 1.2 * costs))


@pytest.mark.parametrize("name", ["linear", "mixed", "bilinear, floors", "soft"])
def test_the_price_is_what_the_loss_falls_by_as_the_budget_grows(name: str) -> None:
    problem = CASES[name](SCORES)
    upstream = torch.linspace(-2, 1, 12, dtype=torch.float64)

    def loss(change: float) -> float:
        return float(upstream @ solve_exact(replace(problem, budget=problem.budget + change)).masks)

    step = 1e-5 * problem.budget
    expected = (loss(-step) - loss(step)) / (2 * step)
    assert abs(expected) > 1e-3
    assert budget_price(problem, solve_exact(problem), upstream) == pytest.approx(expected, rel=1e-5)


def test_the_price_is_zero_where_no_mask_moves() -> None:
    problem = linear(SCORES, 1e-9, 0.5)
    assert budget_price(problem, solve_exact(problem), torch.ones(12)) == 0


@pytest.mark.parametrize(
    ("epsilon", "share"),
    [(1.0, 1.0), (1.0, 2.0), (1.0, 0.0), (1e-9, 0.5)],
    ids=["all kept", "budget above dense", "budget 0", "hard"],
)
def test_decided_masks_have_gradient_zero(epsilon: float, share: float) -> None:
    scores = SCORES.clone().requires_grad_()
    (gradient,) = torch.autograd.grad(solve_exact(linear(scores, epsilon, share)).masks.sum(), scores)
    assert gradient.tolist() == [0.0] * 12


def test_float32_scores_get_a_float32_gradient_close_to_the_float64_one() -> None:
    single, double = (SCORES.to(dtype).requires_grad_() for dtype in (torch.float32, torch.float64))
    upstream = torch.randn(12, dtype=torch.float64)
    for scores in (single, double):
        problem = with_scores(MIXED, 0.3, FLOORS)(scores)
        solve_exact(problem).masks.backward(upstream.to(scores.dtype))
    assert single.grad is not None
    assert single.grad.dtype == torch.float32
    torch.testing.assert_close(single.grad.double(), double.grad, rtol=1e-5, atol=1e-6)


def test_a_second_derivative_is_refused_rather_than_wrong() -> None:
    scores = SCORES.clone().requires_grad_()
    masks = solve_exact(linear(scores, 0.8, 0.4)).masks
    (gradient,) = torch.autograd.grad((masks**2).sum(), scores, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        gradient.sum().backward()
