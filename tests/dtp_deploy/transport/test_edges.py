"""The ends of every range: few and many units, all and nothing, tiny and huge numbers."""

import math

import pytest
import torch

from dtp_deploy.errors import TransportError
from dtp_deploy.transport import (
    Floors,
    LinearCost,
    MaskCount,
    TransportProblem,
    sinkhorn_step,
    solve_exact,
    solve_sinkhorn,
)
from tests.dtp_deploy.transport.problems import group_sums, groups_of, linear, vector


@pytest.mark.parametrize("epsilon", [1e-9, 1e-4, 1.0, 1e3])
@pytest.mark.parametrize("score", [-40.0, 0.0, 1e3])
def test_one_unit_has_the_share_of_the_budget_as_its_mask(epsilon: float, score: float) -> None:
    result = solve_exact(linear(vector(score), epsilon, 0.3))
    assert result.masks.tolist() == pytest.approx([0.3], rel=1e-12)
    assert result.converged


def test_budget_zero_keeps_nothing() -> None:
    result = solve_exact(linear(vector(1.0, 2.0, 3.0), 0.5, 0.0))
    assert result.masks.tolist() == [0.0, 0.0, 0.0]
    assert (result.threshold, result.cost, result.marginal_error) == (math.inf, 0.0, 0.0)
    assert result.converged


@pytest.mark.parametrize("share", [1.0, 1.5])
def test_a_budget_at_or_above_the_dense_cost_keeps_everything(share: float) -> None:
    result = solve_exact(linear(vector(1.0, 2.0, 3.0), 0.5, share))
    assert result.masks.tolist() == [1.0, 1.0, 1.0]
    assert (result.threshold, result.cost, result.marginal_error) == (-math.inf, 3.0, 0.0)
    assert result.converged


def test_a_budget_next_to_the_dense_cost_is_met() -> None:
    result = solve_exact(linear(vector(1.0, 2.0, 3.0), 0.5, 1 - 1e-15))
    assert result.converged
    assert float(result.masks.sum()) == pytest.approx(3.0, rel=1e-12)


@pytest.mark.parametrize("share", [1e-30, 1e-290])
def test_a_minute_budget_is_met(share: float) -> None:
    result = solve_exact(linear(vector(1.0, 2.0, 3.0), 0.5, share))
    assert result.converged
    assert float(result.masks.sum()) == pytest.approx(3 * share, rel=1e-9)


@pytest.mark.parametrize("epsilon", [1e-9, 1e-4, 1.0])
@pytest.mark.parametrize("offset", [0.0, 1e3])
def test_three_equal_scores_at_the_edge_share_what_is_left(epsilon: float, offset: float) -> None:
    """Three wins, then a tie of three for one place: each keeps a third, for any epsilon that decides the others."""
    scores = vector(80.0, 5.0, 90.0, 5.0, 70.0, 5.0, -60.0) + offset
    result = solve_exact(linear(scores, epsilon, 4 / 7))
    assert result.converged
    expected = vector(1.0, 1 / 3, 1.0, 1 / 3, 1.0, 1 / 3, 0.0)
    torch.testing.assert_close(result.masks, expected, rtol=0, atol=1e-12)


def test_a_budget_below_the_floors_keeps_the_floors_and_says_so() -> None:
    floors = Floors(groups_of((3, 2)), vector(2.0, 0.5))
    result = solve_exact(linear(vector(0.1, 0.5, 0.3, 0.0, 0.2), 0.3, 0.2, floors=floors))
    assert group_sums(result.masks, floors).tolist() == pytest.approx([2.0, 0.5], rel=1e-12)
    assert result.at_floor.tolist() == [True, True]
    assert result.threshold == math.inf
    assert result.cost == pytest.approx(2.5)
    assert result.marginal_error == pytest.approx(1.5)
    assert not result.converged


def test_floors_that_cost_the_budget_exactly_are_a_solution() -> None:
    floors = Floors(groups_of((3, 2)), vector(2.0, 0.5))
    result = solve_exact(linear(vector(0.1, 0.5, 0.3, 0.0, 0.2), 0.3, 0.5, floors=floors))
    assert result.converged
    assert group_sums(result.masks, floors).tolist() == pytest.approx([2.0, 0.5], rel=1e-9)


def test_a_group_at_its_floor_has_a_threshold_of_its_own_and_the_rest_shares_one() -> None:
    scores, epsilon = vector(1.0, 0.8, 0.6, -1.0, -1.2), 0.4
    floors = Floors(groups_of((3, 2)), vector(0.0, 1.5))
    result = solve_exact(linear(scores, epsilon, 0.5, floors=floors))
    thresholds = 2 * scores / epsilon - torch.logit(result.masks)
    assert result.at_floor.tolist() == [False, True]
    assert thresholds[:3].tolist() == pytest.approx([result.threshold] * 3)
    assert float(thresholds[3]) == pytest.approx(float(thresholds[4]))
    assert float(thresholds[3]) < result.threshold


def test_floors_hold_where_logits_are_so_large_that_floats_near_them_are_far_apart() -> None:
    scores = vector(1000.0, 999.0, 999.0, 998.0, 5.0, 5.0, 5.0)
    result = solve_exact(linear(scores, 1e-9, 3 / 7, floors=Floors(groups_of((4, 3)), vector(0.0, 1.0))))
    assert result.converged
    assert result.at_floor.tolist() == [False, True]
    torch.testing.assert_close(result.masks[:4], vector(1.0, 0.5, 0.5, 0.0), rtol=0, atol=1e-3)
    assert float(result.masks[4:].sum()) == pytest.approx(1.0, abs=1e-3)


def test_floors_of_all_units_and_of_empty_groups() -> None:
    floors = Floors(torch.tensor([0, 0, 2, 2, 2]), vector(2.0, 0.0, 0.0))
    result = solve_exact(linear(vector(-9.0, -8.0, 0.3, 0.1, 0.2), 0.1, 0.6, floors=floors))
    assert result.masks[:2].tolist() == [1.0, 1.0]
    assert float(result.masks[2:].sum()) == pytest.approx(1.0, rel=1e-9)
    assert result.at_floor.tolist() == [True, False, False]
    assert result.converged


def test_without_floors_there_is_no_group_to_report() -> None:
    assert solve_exact(linear(vector(0.1, 0.2), 0.3, 0.5)).at_floor.tolist() == []


@pytest.mark.parametrize("count", [1, 2, 10, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_no_size_dtype_or_epsilon_gives_nan_or_misses_the_budget(count: int, dtype: torch.dtype) -> None:
    scores = torch.randn(count, dtype=dtype)
    costs = torch.rand(count, dtype=torch.float64) + 0.1
    for exponent in range(-4, 4) if count <= 100_000 else (-4, 0, 3):
        leaf = scores.clone().requires_grad_()
        result = solve_exact(linear(leaf, 10.0**exponent, 0.37, costs))
        assert result.converged, exponent
        assert result.masks.dtype == dtype
        precision = 1e-9 if dtype == torch.float64 else 1e-6
        kept = float(costs @ result.masks.detach().double())
        assert kept == pytest.approx(float(costs.sum()) * 0.37, rel=precision), exponent
        result.masks.square().sum().backward()
        assert leaf.grad is not None
        assert bool(leaf.grad.isfinite().all()), exponent


@pytest.mark.parametrize("count", [1, 10, 1000, 100_000, 1_000_000])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [1e-4, 1.0, 1e3])
def test_the_other_solvers_stay_finite_in_every_size_dtype_and_epsilon(
    count: int, dtype: torch.dtype, epsilon: float
) -> None:
    leaf = torch.randn(count, dtype=dtype).requires_grad_()
    problem = linear(leaf, epsilon, 0.37, torch.rand(count, dtype=torch.float64) + 0.1)
    for result in (sinkhorn_step(problem, 0.0), solve_sinkhorn(problem, max_iterations=2 if count > 1000 else 50)):
        masks = result.masks.detach()
        assert masks.dtype == dtype
        assert bool(((masks >= 0) & (masks <= 1)).all())
        assert math.isfinite(result.threshold)
        (gradient,) = torch.autograd.grad(result.masks.square().sum(), leaf)
        assert bool(gradient.isfinite().all())


@pytest.mark.parametrize("epsilon", [1e-4, 1.0, 1e3])
def test_many_units_in_many_groups_keep_their_floors(epsilon: float) -> None:
    count, groups = 100_000, 300
    floors = Floors(torch.arange(count) % groups, torch.rand(groups, dtype=torch.float64) * 150)
    result = solve_exact(linear(torch.randn(count, dtype=torch.float64), epsilon, 0.3, floors=floors))
    assert result.converged
    assert bool((group_sums(result.masks, floors) >= floors.mass * (1 - 1e-9)).all())
    assert bool(result.at_floor.any())
    assert not bool(result.at_floor.all())


def test_masks_of_a_cost_with_a_constant_part_above_the_budget_are_zero_and_not_converged() -> None:
    def cost(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return masks.sum() + 10, torch.ones_like(masks)

    result = solve_exact(TransportProblem(vector(1.0, 2.0), 0.1, cost, 5.0))
    assert result.masks.tolist() == [0.0, 0.0]
    assert result.marginal_error == pytest.approx(1.0)
    assert not result.converged


@pytest.mark.parametrize("cost", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("solve", [solve_exact, lambda problem: sinkhorn_step(problem, 0.0)], ids=["exact", "step"])
def test_a_cost_by_which_nothing_can_be_chosen_is_refused(solve, cost: float) -> None:
    def total(masks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        return masks.sum() * cost / 2, torch.full_like(masks, cost / 2)

    with pytest.raises(TransportError) as error:
        solve(TransportProblem(vector(1.0, 2.0), 0.1, total, 0.5))
    assert str(error.value) == (
        f"All units together cost {cost:g}, so that no budget can choose among them. Give a cost that is finite and "
        "rises with every mask."
    )


def test_costs_that_differ_by_many_orders_of_magnitude_are_met() -> None:
    costs = vector(1e-6, 1.0, 1e6, 1e9)
    problem = TransportProblem(vector(0.4, 0.1, 0.3, 0.2), 0.1, LinearCost(costs), 2e5)
    result = solve_exact(problem)
    assert result.converged
    assert float(costs @ result.masks) == pytest.approx(2e5, rel=1e-9)


def test_a_result_stays_what_it_is_when_another_problem_is_solved():
    scores = torch.linspace(-1, 1, 9, dtype=torch.float64).requires_grad_()
    problem = TransportProblem(scores, 0.5, MaskCount(), 4.0)
    first = solve_exact(problem).masks
    before = first.detach().clone()
    (gradient,) = torch.autograd.grad(first, scores, torch.arange(9.0, dtype=torch.float64), retain_graph=True)
    solve_exact(TransportProblem(-scores, 0.1, MaskCount(), 2.0))
    assert torch.equal(first, before)
    assert torch.equal(torch.autograd.grad(first, scores, torch.arange(9.0, dtype=torch.float64))[0], gradient)


def test_the_reference_takes_unit_costs_far_apart() -> None:
    cost = LinearCost(torch.tensor([1e-200, 1e200], dtype=torch.float64))
    problem = TransportProblem(torch.tensor([0.1, 0.2], dtype=torch.float64), 1.0, cost, 0.5e200)
    assert solve_sinkhorn(problem).masks.tolist() == pytest.approx(solve_exact(problem).masks.tolist())
