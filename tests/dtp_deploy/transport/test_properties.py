"""What holds for the exact masks of any problem."""

from dataclasses import replace

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from dtp_deploy.transport import LinearCost, TransportProblem, solve_exact
from tests.dtp_deploy.transport.problems import epsilons, group_sums, grouped_problems, linear, problems, shares, vector


@given(problems())
def test_the_budget_is_met_exactly_and_masks_lie_between_zero_and_one(problem: TransportProblem) -> None:
    result = solve_exact(problem)
    assert result.converged
    assert float(problem.cost(result.masks)[0]) == pytest.approx(problem.budget, rel=1e-9)
    assert result.cost == pytest.approx(problem.budget, rel=1e-9)
    assert bool(((result.masks >= 0) & (result.masks <= 1)).all())


@given(grouped_problems())
def test_with_floors_the_budget_is_met_exactly_or_every_group_is_at_its_floor(problem: TransportProblem) -> None:
    result = solve_exact(problem)
    assert problem.floors is not None
    kept = group_sums(result.masks, problem.floors)
    assert bool(((result.masks >= 0) & (result.masks <= 1)).all())
    assert bool((kept >= problem.floors.mass - 1e-9).all())
    torch.testing.assert_close(kept[result.at_floor], problem.floors.mass[result.at_floor], rtol=0, atol=1e-9)
    if result.converged:
        assert float(problem.cost(result.masks)[0]) == pytest.approx(problem.budget, rel=1e-9)
    else:
        assert bool(result.at_floor.all())
        assert result.marginal_error > 0


@given(problems())
def test_masks_have_the_order_of_the_scores(problem: TransportProblem) -> None:
    masks = solve_exact(problem).masks[problem.scores.argsort()]
    assert bool((masks.diff() >= 0).all())


@given(problems(), st.randoms(use_true_random=False))
def test_permuting_units_permutes_masks(problem: TransportProblem, random) -> None:
    order = list(range(len(problem.scores)))
    random.shuffle(order)
    assert isinstance(problem.cost, LinearCost)
    permuted = replace(problem, scores=problem.scores[order], cost=LinearCost(problem.cost.unit_costs[order]))
    torch.testing.assert_close(solve_exact(permuted).masks, solve_exact(problem).masks[order], rtol=0, atol=1e-9)


@given(problems(), st.floats(-5.0, 5.0))
def test_shifting_all_scores_changes_nothing(problem: TransportProblem, shift: float) -> None:
    shifted = replace(problem, scores=problem.scores + shift)
    torch.testing.assert_close(solve_exact(shifted).masks, solve_exact(problem).masks, rtol=0, atol=1e-9)


@given(problems(), st.integers(-6, 6))
def test_only_the_ratio_of_scores_to_epsilon_matters(problem: TransportProblem, exponent: int) -> None:
    scaled = replace(problem, scores=problem.scores * 2.0**exponent, epsilon=problem.epsilon * 2.0**exponent)
    assert solve_exact(scaled).masks.tolist() == solve_exact(problem).masks.tolist()


@given(problems(), shares)
def test_no_mask_falls_when_the_budget_rises(problem: TransportProblem, share: float) -> None:
    more = replace(problem, budget=problem.budget * (1 + share))
    assert bool((solve_exact(more).masks >= solve_exact(problem).masks - 1e-12).all())


@given(problems(), st.floats(0.01, 100.0))
def test_the_unit_of_the_cost_does_not_matter(problem: TransportProblem, unit: float) -> None:
    assert isinstance(problem.cost, LinearCost)
    other = replace(problem, cost=LinearCost(problem.cost.unit_costs * unit), budget=problem.budget * unit)
    torch.testing.assert_close(solve_exact(other).masks, solve_exact(problem).masks, rtol=0, atol=1e-9)


@given(st.permutations(range(12)), st.integers(0, 12))
def test_small_epsilon_keeps_the_highest_scores(order: list[int], count: int) -> None:
    scores = vector(*order)
    masks = solve_exact(linear(scores, 1e-4, count / 12)).masks
    expected = torch.zeros_like(scores).index_fill(0, scores.topk(count).indices, 1.0)
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-11)


@given(problems(), st.floats(allow_nan=True, allow_infinity=True))
def test_a_start_changes_nothing_in_the_result(problem: TransportProblem, start: float) -> None:
    cold, warm = solve_exact(problem), solve_exact(problem, start)
    assert warm.converged
    torch.testing.assert_close(warm.masks, cold.masks, rtol=0, atol=1e-9)


@given(problems())
@example(linear(vector(0.0, 0.0, 2.0), 1e-3, 0.0625))  # numbers near t are too far apart for the tolerance
def test_the_solution_as_a_start_saves_iterations(problem: TransportProblem) -> None:
    assert solve_exact(problem, solve_exact(problem).threshold).iterations <= 6


@given(problems(equal_costs=True))
def test_gradients_of_equal_costs_sum_to_zero_because_shifts_change_nothing(problem: TransportProblem) -> None:
    scores = problem.scores.clone().requires_grad_()
    upstream = torch.linspace(-1, 2, len(scores), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(solve_exact(replace(problem, scores=scores)).masks, scores, upstream)
    assert bool(gradient.isfinite().all())
    assert float(gradient.sum()) == pytest.approx(0, abs=1e-9 * (1 + float(gradient.abs().sum())))


@given(st.integers(1, 20), epsilons, shares)
def test_equal_scores_share_the_budget_equally(count: int, epsilon: float, share: float) -> None:
    masks = solve_exact(linear(torch.full((count,), 0.7, dtype=torch.float64), epsilon, share)).masks
    torch.testing.assert_close(masks, torch.full_like(masks, share), rtol=1e-9, atol=0)
