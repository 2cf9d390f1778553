"""Many tiny transports at once: two of every four, and any other number of any other."""

from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor
from torch.autograd import gradcheck
from torch.autograd.gradcheck import GradcheckError

from dtp_deploy.errors import TransportError
from dtp_deploy.transport import (
    BlockProblem,
    MaskCount,
    TransportProblem,
    epsilon_for_block_softness,
    softness,
    solve_blocks,
    solve_exact,
)
from tests.dtp_deploy.transport.problems import epsilons

SCORES = torch.tensor([[0.9, -0.4, 0.3, 0.1], [1.2, 0.0, -0.8, 0.6], [0.2, 0.2, 0.2, 0.2]], dtype=torch.float64)


@st.composite
def block_problems(draw: st.DrawFn) -> BlockProblem:
    units = draw(st.integers(1, 6))
    rows = draw(st.lists(st.lists(st.floats(-3, 3), min_size=units, max_size=units), min_size=1, max_size=5))
    return BlockProblem(torch.tensor(rows, dtype=torch.float64), draw(epsilons), draw(st.floats(0, units)))


@given(block_problems())
def test_every_block_has_its_mass_and_masks_lie_between_zero_and_one(problem: BlockProblem) -> None:
    result = solve_blocks(problem)
    assert result.converged
    assert bool(((result.masks >= 0) & (result.masks <= 1)).all())
    kept = torch.full((len(problem.scores),), problem.kept, dtype=torch.float64)
    torch.testing.assert_close(result.masks.sum(1), kept, rtol=0, atol=1e-9)


@given(block_problems())
def test_each_block_is_the_transport_problem_of_its_own(problem: BlockProblem) -> None:
    masks = solve_blocks(problem).masks
    for scores, found in zip(problem.scores, masks, strict=True):
        alone = solve_exact(TransportProblem(scores, problem.epsilon, MaskCount(), problem.kept)).masks
        torch.testing.assert_close(found, alone, rtol=0, atol=1e-9)


@given(block_problems(), st.randoms(use_true_random=False))
def test_blocks_know_nothing_of_each_other(problem: BlockProblem, random) -> None:
    order = list(range(len(problem.scores)))
    random.shuffle(order)
    permuted = solve_blocks(replace(problem, scores=problem.scores[order]))
    torch.testing.assert_close(permuted.masks, solve_blocks(problem).masks[order], rtol=0, atol=1e-9)


@given(block_problems(), st.floats(-10, 10))
def test_a_start_changes_nothing_in_the_result(problem: BlockProblem, start: float) -> None:
    starts = torch.full((len(problem.scores),), start, dtype=torch.float64)
    warm, cold = solve_blocks(problem, starts), solve_blocks(problem)
    torch.testing.assert_close(warm.masks, cold.masks, rtol=0, atol=1e-9)


def test_the_solution_as_a_start_saves_iterations() -> None:
    problem = BlockProblem(torch.randn(1000, 4, dtype=torch.float64), 0.1, 2.5)
    cold = solve_blocks(problem)
    assert solve_blocks(problem, cold.thresholds).iterations <= 2 < cold.iterations


def test_small_epsilon_keeps_the_two_highest_scores_of_every_four() -> None:
    scores = torch.randn(500, 4, dtype=torch.float64)
    masks = solve_blocks(BlockProblem(scores, 1e-7, 2)).masks
    expected = torch.zeros_like(scores).scatter(1, scores.topk(2, dim=1).indices, 1.0)
    torch.testing.assert_close(masks, expected, rtol=0, atol=1e-6)


def test_scores_that_differ_by_little_at_a_tiny_epsilon_keep_the_mass() -> None:
    scores = torch.tensor([[1e6, 0.1, 0.1 + 1e-10, -1e6], [0.3, 0.3, 0.3, -5.0]], dtype=torch.float64)
    assert solve_blocks(BlockProblem(scores, 1e-9, 2)).converged


@pytest.mark.parametrize("kept", [0.0, 1.0, 2.0, 3.3, 4.0])
@pytest.mark.parametrize("epsilon", [0.3, 40.0])
def test_gradient_against_finite_differences(kept: float, epsilon: float) -> None:
    assert gradcheck(lambda s: solve_blocks(BlockProblem(s, epsilon, kept)).masks, SCORES.clone().requires_grad_())


def test_finite_differences_notice_a_gradient_without_the_price() -> None:
    thresholds = solve_blocks(BlockProblem(SCORES, 0.8, 2)).thresholds

    def masks(scores: Tensor) -> Tensor:
        exact = solve_blocks(BlockProblem(scores.detach(), 0.8, 2)).masks
        priceless = torch.sigmoid(2 * scores / 0.8 - thresholds[:, None])
        return exact + (priceless - priceless.detach())

    with pytest.raises(GradcheckError):
        gradcheck(masks, SCORES.clone().requires_grad_())


def test_hard_masks_have_gradient_zero_and_float32_stays_float32() -> None:
    scores = SCORES[:2].float().requires_grad_()
    masks = solve_blocks(BlockProblem(scores, 1e-6, 2)).masks
    (gradient,) = torch.autograd.grad(masks[:, 0].sum(), scores)
    assert masks.dtype == gradient.dtype == torch.float32
    assert not gradient.any()


@pytest.mark.parametrize("wanted", [0.9, 0.3, 0.01])
def test_epsilon_is_found_by_the_softness_that_it_gives(wanted: float) -> None:
    problem = BlockProblem(torch.randn(200, 4, dtype=torch.float64), 1.0, 2)
    epsilon = epsilon_for_block_softness(problem, wanted)
    assert softness(solve_blocks(replace(problem, epsilon=epsilon)).masks) == pytest.approx(wanted, rel=0.021)


@pytest.mark.parametrize(
    ("scores", "epsilon", "kept", "message"),
    [
        (torch.zeros(4), 1.0, 2, r"have shape \(4,\); give \(blocks, units\)"),
        (torch.zeros(0, 4), 1.0, 2, "neither of them zero"),
        (torch.zeros(1, 4, dtype=torch.float16), 1.0, 2, "give float32 or float64"),
        (torch.full((1, 4), torch.nan), 1.0, 2, "must be finite"),
        (torch.zeros(1, 4), 0.0, 2, "positive, finite"),
        (torch.zeros(1, 4), 1.0, 4.5, "kept is 4.5 of blocks of 4 units"),
    ],
)
def test_what_is_no_problem_is_refused(scores: Tensor, epsilon: float, kept: float, message: str) -> None:
    with pytest.raises(TransportError, match=message):
        BlockProblem(scores, epsilon, kept)
