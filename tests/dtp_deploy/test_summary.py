"""What the report says of a run in words."""

import pytest

from dtp_deploy.summary import no_faster


@pytest.mark.parametrize(("time", "macs"), [(0.9, 0.5), (0.95, 0.2), (1.2, 0.8), (1.0, 1.0)])
def test_a_model_that_is_faster_or_computes_about_as_much_needs_no_note(time: float, macs: float) -> None:
    assert no_faster(time, macs) == []


@pytest.mark.parametrize(("time", "said"), [(0.96, "96% of the time"), (2.1, "210% of the time")])
def test_one_that_computes_less_and_is_no_faster_is_noted_with_its_figures(time: float, said: str) -> None:
    (note,) = no_faster(time, 0.3)
    assert note.startswith(f"The pruned model takes {said} of the dense one")
    assert "only 30% of its MACs" in note
    assert "--round-to" in note
