import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dtp_deploy.parity import SMALLEST_SCALE, ParityResult, compare


def constant(*outputs):
    """A callable that ignores its batch."""
    return lambda batch: [np.asarray(output) for output in outputs]


def judge(reference, candidate, tolerance=1e-4):
    return compare("stage", constant(*reference), constant(*candidate), [None], tolerance)


def test_equal_outputs_have_no_error():
    a = np.arange(6.0).reshape(2, 3)
    assert judge([a, a + 1], [a.copy(), a + 1]) == ParityResult("stage", 0.0, 0.0, 1e-4, passed=True)


def test_error_is_relative_to_the_largest_magnitude_of_the_reference():
    result = judge([[-4.0, 0.0]], [[-4.0, 0.001]])
    assert result.max_abs_error == pytest.approx(0.001)
    assert result.max_rel_error == pytest.approx(0.00025)
    assert not result.passed


def test_the_tolerance_itself_passes_and_anything_above_does_not():
    assert judge([[1.0]], [[1.25]], tolerance=0.25).passed
    assert not judge([[1.0]], [[np.nextafter(1.25, 2.0)]], tolerance=0.25).passed


@given(
    st.lists(st.floats(-100, 100), min_size=1, max_size=8).filter(lambda values: max(map(abs, values)) > 1e-2),
    st.integers(-6, 20),
)
def test_the_relative_error_does_not_depend_on_the_unit(values, exponent):
    a = np.asarray(values)
    b = a + 0.01 * np.cos(np.arange(len(a)))
    unit = 2.0**exponent
    assert judge([a * unit], [b * unit]).max_rel_error == judge([a], [b]).max_rel_error


def test_a_large_output_does_not_hide_a_wrong_small_one():
    result = judge([[1000.0], [0.001]], [[1000.0], [0.002]])
    assert result.max_rel_error == pytest.approx(1.0)
    assert result.max_abs_error == pytest.approx(0.001)


def test_the_worst_batch_decides():
    result = compare("stage", lambda x: [np.ones(1)], lambda x: [np.ones(1) + x], [0.0, 0.5, 0.1])
    assert result.max_abs_error == result.max_rel_error == 0.5


def test_an_output_keeps_its_scale_in_a_batch_where_it_happens_to_be_near_zero():
    result = compare("stage", lambda x: [np.ones(1) * x], lambda x: [np.ones(1) * x + 2**-20], [1e-5, 2.0, -1.0])
    assert result.max_rel_error == pytest.approx(2**-21)
    assert result.passed


def test_a_bad_batch_is_not_forgotten_after_a_good_one():
    result = compare("stage", lambda x: [np.ones(1)], lambda x: [np.ones(x)], [1, 2, 1])
    assert not result.passed


@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("side", ["reference", "candidate", "both"])
def test_what_is_not_finite_never_passes(bad, side):
    good, broken = [[1.0, 2.0]], [[1.0, bad]]
    result = judge(good if side == "candidate" else broken, good if side == "reference" else broken, tolerance=1e9)
    assert (result.max_abs_error, result.max_rel_error, result.passed) == (np.inf, np.inf, False)


@pytest.mark.parametrize(
    ("reference", "candidate"),
    [
        ([[1.0], [2.0]], [[1.0]]),
        ([[1.0]], [[1.0], [2.0]]),
        ([[1.0]], []),
        ([np.ones((2, 3))], [np.ones((3, 2))]),
        ([np.ones((2, 3))], [np.ones((1, 3))]),
        ([np.ones(1)], [np.float64(1.0)]),
    ],
    ids=["missing", "extra", "none", "shape", "broadcastable", "scalar"],
)
def test_outputs_that_cannot_be_compared_never_pass(reference, candidate):
    result = judge(reference, candidate, tolerance=1e9)
    assert (result.max_abs_error, result.max_rel_error, result.passed) == (np.inf, np.inf, False)


def test_a_reference_of_zeros_is_judged_at_the_smallest_scale():
    assert judge([[0.0, 0.0]], [[0.0, 0.0]]).passed
    assert judge([[0.0]], [[0.5e-4 * SMALLEST_SCALE]]).passed
    assert not judge([[0.0]], [[2e-4 * SMALLEST_SCALE]]).passed


def test_an_empty_output_has_no_error():
    assert judge([np.ones((0, 4)), [1.0]], [np.ones((0, 4)), [1.0]]).passed


def test_types_may_differ():
    assert judge([np.float32([1, 2])], [np.float16([1, 2])]).passed
    assert judge([np.array([3, 250], np.uint8)], [np.array([3, 250], np.int64)]).passed
    assert not judge([np.array([True, False])], [np.array([True, True])]).passed


def test_unsigned_differences_do_not_wrap():
    assert judge([np.array([0], np.uint8)], [np.array([1], np.uint8)]).max_abs_error == 1.0


def test_no_batches_is_refused():
    with pytest.raises(ValueError, match=r"^Parity of 'onnx' was asked for on no batches\. Give at least one\.$"):
        compare("onnx", constant(1.0), constant(1.0), [])


def test_a_reference_without_outputs_is_refused():
    with pytest.raises(ValueError, match=r"^The reference of 'stage' has no outputs\. Compare"):
        judge([], [])


@pytest.mark.parametrize("tolerance", [0.0, -1.0, np.nan, np.inf])
def test_a_tolerance_that_judges_nothing_is_refused(tolerance):
    with pytest.raises(ValueError, match=r"Give a finite number above zero\.$"):
        judge([1.0], [1.0], tolerance)


def test_an_error_in_a_callable_is_not_swallowed():
    def broken(batch):
        raise RuntimeError("engine died")

    with pytest.raises(RuntimeError, match="engine died"):
        compare("engine", constant(1.0), broken, [None])
