"""The solvers against others that nobody here wrote: POT, SciPy's linear programming, torch's autograd."""

import numpy as np
import ot
import pytest
import torch
from scipy.optimize import linprog
from torch import Tensor

from dtp_deploy.errors import TransportError
from dtp_deploy.transport import BlockProblem, Floors, TransportProblem, solve_blocks, solve_exact, solve_sinkhorn
from tests.dtp_deploy.transport.problems import chain_of_layers, groups_of, linear, vector

SCORES = torch.linspace(-0.4, 1.3, 12, dtype=torch.float64)[torch.tensor([3, 7, 0, 11, 5, 1, 9, 2, 10, 4, 8, 6])]
MASS = torch.tensor([1.0, 3, 2, 1, 5, 1, 1, 2, 4, 1, 2, 2], dtype=torch.float64) / 25


def transport_cost(scores: Tensor) -> Tensor:
    return torch.stack([scores**2, (scores - 1) ** 2], dim=1)


def bins(share: float) -> Tensor:
    return vector(1 - share, share)


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0, 50.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_the_plan_is_that_of_pot_sinkhorn(epsilon: float, share: float) -> None:
    result = solve_exact(linear(SCORES, epsilon, share, MASS))
    reference = ot.sinkhorn(
        MASS, bins(share), transport_cost(SCORES), epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000
    )
    torch.testing.assert_close(result.transport_plan(MASS), reference, rtol=0, atol=1e-10)


def test_the_comparison_with_pot_notices_an_epsilon_that_is_off_by_a_percent() -> None:
    result = solve_exact(linear(SCORES, 0.505, 0.5, MASS))
    reference = ot.sinkhorn(MASS, bins(0.5), transport_cost(SCORES), 0.5, stopThr=1e-13)
    assert float((result.transport_plan(MASS) - reference).abs().max()) > 1e-5


@pytest.mark.parametrize("share", [0.1, 1 / 3, 0.5, 0.93])
def test_small_epsilon_gives_the_plan_of_pot_emd(share: float) -> None:
    result = solve_exact(linear(SCORES, 1e-6, share, MASS))
    reference = ot.emd(MASS.numpy(), bins(share).numpy(), transport_cost(SCORES).numpy())
    np.testing.assert_allclose(result.transport_plan(MASS).numpy(), reference, rtol=0, atol=1e-12)


@pytest.mark.parametrize("share", [0.5, 0.65, 0.8])
@pytest.mark.parametrize("floors", [(0.0, 0.0, 0.0), (3.5, 1.0, 1.5), (0.0, 4.0, 0.5)])
def test_small_epsilon_gives_the_optimum_of_the_linear_programme_with_floors(
    share: float, floors: tuple[float, float, float]
) -> None:
    """Maximise sum a_i (C_i0 - C_i1) m_i over the masks; units of one group cost the same."""
    group = groups_of((5, 4, 3))
    costs = vector(1.0, 2.0, 3.5)[group]
    result = solve_exact(linear(SCORES, 1e-6, share, costs, Floors(group, vector(*floors))))
    reference = linprog(
        -(costs * (2 * SCORES - 1)).numpy(),
        A_ub=-torch.nn.functional.one_hot(group).T.numpy(),
        b_ub=-np.array(floors),
        A_eq=costs.numpy()[None],
        b_eq=[float(costs.sum()) * share],
        bounds=(0, 1),
    )
    assert reference.success
    np.testing.assert_allclose(result.masks.numpy(), reference.x, rtol=0, atol=1e-9)


@pytest.mark.parametrize("floors", [(3.5, 1.0, 1.5), (0.0, 4.0, 0.5)])
def test_the_linear_programmes_above_are_some_in_which_floors_matter(floors: tuple[float, float, float]) -> None:
    group = groups_of((5, 4, 3))
    result = solve_exact(linear(SCORES, 1e-6, 0.5, vector(1.0, 2.0, 3.5)[group], Floors(group, vector(*floors))))
    assert bool(result.at_floor.any())
    assert not bool(result.at_floor.all())


@pytest.mark.parametrize("epsilon", [0.1, 0.5, 2.0, 50.0])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.93])
def test_the_reference_solver_is_pot_sinkhorn(epsilon: float, share: float) -> None:
    result = solve_sinkhorn(linear(SCORES, epsilon, share, MASS), tolerance=1e-13)
    reference = ot.sinkhorn(
        MASS, bins(share), transport_cost(SCORES), epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=100_000
    )
    assert result.converged
    torch.testing.assert_close(result.transport_plan(MASS), reference, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("epsilon", "share"), [(0.2, 0.3), (1.0, 0.5), (30.0, 0.9)])
@pytest.mark.parametrize("mass", [MASS, torch.ones(12, dtype=torch.float64)], ids=["mixed mass", "equal mass"])
def test_masks_and_gradients_are_those_of_an_unrolled_sinkhorn(epsilon: float, share: float, mass: Tensor) -> None:
    scores = SCORES.clone().requires_grad_()
    upstream = torch.randn(len(scores), dtype=torch.float64)
    exact = solve_exact(linear(scores, epsilon, share, mass))
    reference = solve_sinkhorn(linear(scores, epsilon, share, mass), tolerance=1e-14, max_iterations=3000)
    torch.testing.assert_close(exact.masks, reference.masks, rtol=0, atol=1e-12)
    assert exact.threshold == pytest.approx(reference.threshold, abs=1e-10)
    (gradient,) = torch.autograd.grad(exact.masks, scores, upstream)
    (expected,) = torch.autograd.grad(reference.masks, scores, upstream)
    assert float(expected.abs().max()) > 0.1 / epsilon
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-10)


@pytest.mark.parametrize(("epsilon", "share"), [(0.3, 0.3), (1.0, 0.5), (30.0, 0.9)])
def test_the_gradient_is_that_of_torch_through_pot_sinkhorn(epsilon: float, share: float) -> None:
    scores = SCORES.clone().requires_grad_()
    upstream = torch.randn(len(scores), dtype=torch.float64)
    (gradient,) = torch.autograd.grad(solve_exact(linear(scores, epsilon, share, MASS)).masks, scores, upstream)
    plan = ot.sinkhorn(
        MASS, bins(share), transport_cost(scores), epsilon, method="sinkhorn_log", stopThr=1e-13, numItermax=10_000
    )
    (expected,) = torch.autograd.grad(plan[:, 1] / MASS, scores, upstream)
    assert float(expected.abs().max()) > 0.1 / epsilon
    torch.testing.assert_close(gradient, expected, rtol=0, atol=1e-9)


@pytest.mark.parametrize("epsilon", [0.1, 1.0, 50.0])
@pytest.mark.parametrize("kept", [0.3, 2.0, 3.1])
def test_every_block_is_the_plan_of_pot_sinkhorn(epsilon: float, kept: float) -> None:
    scores = torch.stack([SCORES[:4], SCORES[4:8], SCORES[8:], torch.full((4,), 0.2, dtype=torch.float64)])
    masks = solve_blocks(BlockProblem(scores, epsilon, kept)).masks
    quarter = vector(1.0, 1.0, 1.0, 1.0) / 4
    for block, found in zip(scores, masks, strict=True):
        plan = ot.sinkhorn(
            quarter,
            bins(kept / 4),
            transport_cost(block),
            epsilon,
            method="sinkhorn_log",
            stopThr=1e-13,
            numItermax=100_000,
        )
        torch.testing.assert_close(found, 4 * plan[:, 1], rtol=0, atol=1e-10)


def test_two_of_every_four_at_a_small_epsilon_are_the_plans_of_pot_emd() -> None:
    scores = torch.randn(20, 4, dtype=torch.float64)
    masks = solve_blocks(BlockProblem(scores, 1e-6, 2)).masks
    for block, found in zip(scores, masks, strict=True):
        plan = ot.emd(np.full(4, 0.25), np.full(2, 0.5), transport_cost(block).numpy())
        np.testing.assert_allclose(found.numpy(), 4 * plan[:, 1], rtol=0, atol=1e-9)


def test_the_reference_says_where_its_iterations_did_not_do() -> None:
    result = solve_sinkhorn(linear(SCORES, 1e-3, 0.3, MASS), max_iterations=20)
    assert (result.iterations, result.converged) == (20, False)
    assert bool(result.masks.isfinite().all())


@pytest.mark.parametrize(
    ("problem", "message"),
    [
        (
            TransportProblem(SCORES, 1.0, chain_of_layers(groups_of((5, 4, 3))), 9.0),
            "solve_sinkhorn takes a LinearCost without floors: a plan whose masses are known. Take solve_exact.",
        ),
        (
            linear(SCORES, 1.0, 0.5, floors=Floors(groups_of((5, 4, 3)), vector(1.0, 1.0, 1.0))),
            "solve_sinkhorn takes a LinearCost without floors: a plan whose masses are known. Take solve_exact.",
        ),
        (
            linear(SCORES, 1.0, 0.0),
            "solve_sinkhorn takes a budget above zero and below the cost of all units, 12; it is 0. Take solve_exact.",
        ),
        (
            linear(SCORES, 1.0, 1.0),
            "solve_sinkhorn takes a budget above zero and below the cost of all units, 12; it is 12. Take solve_exact.",
        ),
    ],
    ids=["another cost", "floors", "budget 0", "budget 1"],
)
def test_what_the_reference_does_not_solve_it_refuses(problem: TransportProblem, message: str) -> None:
    with pytest.raises(TransportError) as error:
        solve_sinkhorn(problem)
    assert str(error.value) == message


def test_the_reference_makes_at_least_one_iteration() -> None:
    with pytest.raises(TransportError, match=r"max_iterations is 0; give 1 or more\."):
        solve_sinkhorn(linear(SCORES, 1.0, 0.5), max_iterations=0)
