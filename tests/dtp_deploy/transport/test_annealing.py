"""epsilon is found by the softness that it gives."""

from dataclasses import replace

import pytest
import torch
from hypothesis import assume, given
from hypothesis import strategies as st

from dtp_deploy.errors import TransportError
from dtp_deploy.transport import Floors, TransportProblem, epsilon_for_softness, softness, solve_exact
from tests.dtp_deploy.transport.problems import chain_of_layers, groups_of, linear, vector

FIRST_GUESSES = [1e-9, 1.0, 1e6]


def softness_at(problem: TransportProblem, epsilon: float) -> float:
    return softness(solve_exact(replace(problem, epsilon=epsilon)).masks)


@pytest.mark.parametrize(
    ("masks", "expected"),
    [([0.0, 1.0, 1.0], 0.0), ([0.5, 0.5], 1.0), ([0.0, 0.5], 0.5), ([0.25], 0.75), ([0.1, 0.9], 0.36)],
)
def test_softness_is_the_mean_of_4_m_times_1_minus_m(masks: list[float], expected: float) -> None:
    assert softness(vector(*masks)) == pytest.approx(expected)
    assert softness(torch.tensor(masks, requires_grad=True)) == pytest.approx(expected)


@pytest.mark.parametrize("guess", FIRST_GUESSES)
@pytest.mark.parametrize("wanted", [0.5, 0.1, 0.005])
@pytest.mark.parametrize("scale", [1e-3, 1.0, 100.0])
def test_the_wanted_softness_is_reached_within_two_percent_from_any_first_guess(
    guess: float, wanted: float, scale: float
) -> None:
    problem = linear(torch.randn(400, dtype=torch.float64) * scale, guess, 0.3)
    assert softness_at(problem, epsilon_for_softness(problem, wanted)) == pytest.approx(wanted, rel=0.0205)


@pytest.mark.parametrize("guess", FIRST_GUESSES)
def test_it_is_reached_with_a_bilinear_cost_and_floors(guess: float) -> None:
    group = groups_of((40, 60, 50))
    cost = chain_of_layers(group)
    budget = float(cost(torch.ones(150, dtype=torch.float64))[0]) * 0.3
    floors = Floors(group, vector(10.0, 25.0, 12.0))
    problem = TransportProblem(torch.randn(150), guess, cost, budget, floors)
    assert softness_at(problem, epsilon_for_softness(problem, 0.2)) == pytest.approx(0.2, rel=0.0205)


@given(
    st.lists(st.floats(-3.0, 3.0), min_size=2, max_size=20, unique=True),
    st.floats(-9.0, 6.0),
    st.floats(0.05, 0.95),
    st.floats(0.02, 0.98),
)
def test_any_softness_between_those_of_the_ends_is_reached(
    values: list[float], exponent: float, share: float, position: float
) -> None:
    problem = linear(vector(*values), 10.0**exponent, share)
    hardest, softest = softness_at(problem, 1e-9), softness_at(problem, 1e6)
    wanted = hardest + position * (softest - hardest)
    assume(wanted > hardest * 1.03 + 1e-6)
    assume(wanted < softest * 0.97)
    assert softness_at(problem, epsilon_for_softness(problem, wanted)) == pytest.approx(wanted, rel=0.0205)


@pytest.mark.parametrize("guess", FIRST_GUESSES)
def test_a_single_undecided_unit_stays_undecided_and_the_search_ends_at_the_lower_end(guess: float) -> None:
    assert epsilon_for_softness(linear(vector(0.3), guess, 0.5), 0.1) == pytest.approx(1e-9)


@pytest.mark.parametrize("guess", FIRST_GUESSES)
def test_more_softness_than_equal_masks_have_ends_at_the_upper_end(guess: float) -> None:
    assert epsilon_for_softness(linear(vector(0.1, 0.2, 0.5), guess, 0.1), 0.9) == pytest.approx(1e6)


@pytest.mark.parametrize("guess", [1e-30, 1e30])
def test_a_first_guess_out_of_range_starts_at_the_end_of_it(guess: float) -> None:
    problem = linear(torch.randn(100, dtype=torch.float64), guess, 0.3)
    assert softness_at(problem, epsilon_for_softness(problem, 0.1)) == pytest.approx(0.1, rel=0.0205)


def test_a_first_guess_that_is_right_is_kept() -> None:
    problem = linear(torch.randn(100, dtype=torch.float64), 0.7, 0.3)
    assert epsilon_for_softness(problem, softness_at(problem, 0.7)) == pytest.approx(0.7)


def test_scores_that_require_a_gradient_get_none_from_the_search() -> None:
    problem = linear(torch.randn(50, dtype=torch.float64).requires_grad_(), 1.0, 0.3)
    epsilon_for_softness(problem, 0.1)
    assert problem.scores.grad is None


@pytest.mark.parametrize("wanted", [0.0, 1.0, -0.1, 1.5, float("nan")])
def test_a_softness_outside_of_zero_and_one_is_refused(wanted: float) -> None:
    with pytest.raises(TransportError) as error:
        epsilon_for_softness(linear(vector(0.1, 0.2), 1.0, 0.5), wanted)
    assert str(error.value) == f"The wanted softness is {wanted}; give a number between 0 and 1, both excluded."
