"""The figures and files that docs/method.md names are those of the code."""

import re
from pathlib import Path

import pytest

from dtp_deploy.cost import latency
from dtp_deploy.limits import StrictestCost
from dtp_deploy.prune import MaskSettings, masks, schedule
from dtp_deploy.train import Settings

ROOT = Path(__file__).parents[2]
PAGE = " ".join((ROOT / "docs/method.md").read_text(encoding="utf-8").split())
MASKS, TRAINING = MaskSettings(), Settings()


@pytest.mark.parametrize(
    "statement",
    [
        f"h0 = {MASKS.softness_start} of the softness of equal masks at the budget, h1 = {MASKS.softness_end}",
        f"momentum ({MASKS.score_momentum}) on their gradient",
        f"rate {MASKS.for_granularity('channels').score_rate} sqrt(1 - p)",
        f"at rate {MASKS.for_granularity('weights').score_rate},",
        f"(1 - p / {MASKS.budget_reached})^3 until p = {MASKS.budget_reached}",
        f"The mask phase is {TRAINING.mask_share:.0%} of all steps".replace("%", " %"),
        f"statistics are estimated anew on {TRAINING.batchnorm_batches} batches",
        f"more than {masks._LARGEST_LAG:.0%} away".replace("%", " %"),
        f"a slope of {latency._RISE:.1%} in all".replace("%", " %"),
        f"p = {StrictestCost((), ()).power:g}, of each cost",
        {0.25: "a quarter of the first softness"}.get(MASKS.sinkhorn_softness, "another share"),
        {0.5: "below half of its width at the uniform ratio"}.get(MASKS.floor_share, "another share"),
        {0.5: "half of the overall ratio in every layer"}.get(MASKS.floor_share, "another share"),
        {2: "nor below two units"}.get(MASKS.floor_units, "another number"),
        f"`--solver {MASKS.solver}`, the default",
        "re-implementation from the published description",
    ],
)
def test_the_page_states_what_the_code_does(statement: str) -> None:
    assert statement in PAGE


def test_the_share_of_undecided_masks_follows_from_the_softness() -> None:
    share = MASKS.softness_end / (4 * 0.02 * 0.98)
    assert f"at most {100 * share + 0.05:.1f} % of all masks can lie in (0.02, 0.98)" in PAGE


def test_the_end_of_softness_where_few_are_kept_is_the_codes() -> None:
    few = (1 - (1 - MASKS.softness_end / schedule._LARGEST_END) ** 0.5) / 2  # 4 m (1 - m) times it is the usual end
    assert f"fewer than {100 * few:.1f} % are kept, h1 is {100 * schedule._LARGEST_END:g} % of" in " ".join(
        PAGE.split()
    )


def test_every_file_that_the_page_names_exists() -> None:
    names = set(re.findall(r"`([a-z_/]+\.py)`", PAGE))
    assert {"transport/exact.py", "prune/masks.py", "limits.py", "test_references.py"} <= names
    places = [ROOT, ROOT / "dtp_deploy", ROOT / "tests/dtp_deploy/transport"]
    assert [name for name in names if not any((place / name).exists() for place in places)] == []
