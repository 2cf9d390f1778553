"""The solvers on a CUDA device give what they give on the CPU."""

from collections.abc import Callable

import pytest
import torch

from dtp_deploy.transport import (
    BlockProblem,
    Floors,
    LinearCost,
    MaskCount,
    TransportProblem,
    TransportResult,
    epsilon_for_block_softness,
    epsilon_for_softness,
    sinkhorn_step,
    solve_blocks,
    solve_exact,
    solve_sinkhorn,
)
from tests.dtp_deploy.transport.problems import vector

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="PyTorch sees no CUDA device"),
]

SOLVERS: dict[str, Callable[[TransportProblem], TransportResult]] = {
    "exact": solve_exact,
    "sinkhorn-1": lambda problem: sinkhorn_step(problem, 0.3),
    "sinkhorn": solve_sinkhorn,
}


def problem_on(
    device: str, dtype: torch.dtype, epsilon: float, *, floored: bool = False, count: int = 3000
) -> TransportProblem:
    generator = torch.Generator().manual_seed(0)
    scores = torch.randn(count, generator=generator).to(device, dtype).requires_grad_()
    costs = (torch.rand(count, dtype=torch.float64, generator=generator) + 0.1).to(device)
    group = torch.arange(count, device=device) % 3
    floors = Floors(group, vector(count / 5, 0.0, count / 8).to(device)) if floored else None
    return TransportProblem(scores, epsilon, LinearCost(costs), 0.3 * float(costs.sum()), floors)


@pytest.mark.parametrize(
    ("solver", "floored"),
    [("exact", False), ("exact", True), ("sinkhorn-1", False), ("sinkhorn-1", True), ("sinkhorn", False)],
)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("epsilon", [0.5, 5.0])
def test_masks_and_gradients_are_those_of_the_cpu(
    solver: str, floored: bool, dtype: torch.dtype, epsilon: float
) -> None:
    found = []
    for device in ("cpu", "cuda"):
        problem = problem_on(device, dtype, epsilon, floored=floored)
        result = SOLVERS[solver](problem)
        assert (result.masks.device.type, result.masks.dtype) == (device, dtype)
        result.masks.square().sum().backward()
        assert problem.scores.grad is not None
        found.append((result.masks.detach().cpu(), problem.scores.grad.cpu(), result.at_floor.cpu()))
    (masks, gradient, floor), (masks_there, gradient_there, floor_there) = found
    tolerance = 1e-9 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(masks_there, masks, rtol=0, atol=tolerance)
    torch.testing.assert_close(gradient_there, gradient, rtol=0, atol=tolerance)
    assert torch.equal(floor, floor_there)
    assert bool(floor.any()) == floored


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("count", [1, 1000, 1_000_000])
def test_the_budget_is_met_from_hard_to_soft(count: int, dtype: torch.dtype) -> None:
    for epsilon in (1e-4, 1e-2, 1.0, 1e3):
        problem = problem_on("cuda", dtype, epsilon, count=count)
        result = solve_exact(problem)
        assert result.converged
        result.masks.square().sum().backward()
        assert problem.scores.grad is not None
        assert bool(problem.scores.grad.isfinite().all())


def test_epsilon_is_found_by_softness() -> None:
    found = [epsilon_for_softness(problem_on(device, torch.float64, 1.0), 0.1) for device in ("cpu", "cuda")]
    assert found[1] == pytest.approx(found[0], rel=1e-6)


def test_a_count_of_masks_with_floors_is_that_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        linear = problem_on(device, torch.float64, 0.5, floored=True)
        problem = TransportProblem(linear.scores, 0.5, MaskCount(), 900.0, linear.floors)
        result = solve_exact(problem)
        result.masks.square().sum().backward()
        assert problem.scores.grad is not None
        found.append((result.masks.detach().cpu(), problem.scores.grad.cpu()))
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-9)


def test_blocks_are_those_of_the_cpu() -> None:
    found = []
    for device in ("cpu", "cuda"):
        scores = problem_on("cpu", torch.float64, 1.0, count=4000).scores.detach().view(-1, 4).to(device)
        epsilon = epsilon_for_block_softness(BlockProblem(scores, 1.0, 2.3), 0.3)
        problem = BlockProblem(scores.requires_grad_(), epsilon, 2.3)
        masks = solve_blocks(problem).masks
        masks.square().sum().backward()
        assert scores.grad is not None
        found.append((masks.detach().cpu(), scores.grad.cpu()))
    for there, here in zip(*found, strict=True):
        torch.testing.assert_close(there, here, rtol=0, atol=1e-6)
