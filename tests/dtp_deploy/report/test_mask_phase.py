"""The picture of the mask phase, and its place in the report."""

import xml.etree.ElementTree as ElementTree
from pathlib import Path

import pytest
from pydantic import ValidationError

from dtp_deploy.artefact import write_report
from dtp_deploy.report import MASK_PHASE, Report, read_report, render_markdown, render_mask_phase
from dtp_deploy.report.charts import Series, chart, colour, ticks
from dtp_deploy.report.schema import GroupEntry, MaskPhaseEntry

SVG = "{http://www.w3.org/2000/svg}"
NAMES = ("stem", "stages.0.<conv>", "a" * 50)


def entry(epoch: float, widths: tuple[int, ...], price: float | None = 2.0, accuracy: float | None = 0.75):
    return MaskPhaseEntry(
        step=int(100 * epoch),
        epoch=epoch,
        undecided=0.4,
        entropy_bits=0.3,
        cost_share=0.5,
        price=price,
        accuracy_soft=accuracy,
        accuracy_hard=accuracy,
        widths=widths,
    )


def report_of(*entries: MaskPhaseEntry, names: tuple[str, ...] = NAMES) -> Report:
    sample = read_report(Path(__file__).parent / "sample_report.json")
    groups = [GroupEntry(name=name, width_before=20, width_after=10, frozen_because=None) for name in names]
    frozen = GroupEntry(name="head", width_before=7, width_after=7, frozen_because="an output")
    return sample.model_copy(update={"groups": (*groups, frozen), "mask_phase": entries})


def test_the_picture_is_well_formed_and_shows_every_group_at_every_epoch() -> None:
    entries = (entry(0, (20, 20, 20), price=None), entry(1, (15, 10, 20)), entry(2, (10, 5, 20)))
    picture = render_mask_phase(report_of(*entries))
    assert picture is not None
    root = ElementTree.fromstring(picture)
    cells = [rect.find(f"{SVG}title") for rect in root.iter(f"{SVG}rect")]
    told = [title.text for title in cells if title is not None]
    assert len(told) == 9
    assert told[4] == "10 of 20 channels (50%), epoch 1"
    texts = [element.text for element in root.iter(f"{SVG}text")]
    assert "stages.0.<conv>" in texts
    assert f"…{'a' * 35}" in texts
    assert "head" not in texts
    assert "20 → 5 (25%)" in texts
    height = float(root.attrib["height"])
    assert all(float(element.attrib["y"]) <= height - 4 for element in root.iter(f"{SVG}text"))


def test_what_is_not_known_is_said_and_leaves_no_line() -> None:
    picture = render_mask_phase(report_of(entry(0, (1, 1, 1), accuracy=None), entry(1, (1, 1, 1), accuracy=None)))
    assert picture is not None
    assert "soft masks (not known)" in picture
    assert "nan" not in picture
    assert "None" not in picture


def test_nothing_is_drawn_where_there_is_nothing_to_draw(tmp_path: Path) -> None:
    report = report_of()
    assert render_mask_phase(report) is None
    write_report(report, tmp_path)
    assert not (tmp_path / MASK_PHASE).exists()
    assert MASK_PHASE not in render_markdown(report)


def test_widths_of_other_groups_are_refused() -> None:
    with pytest.raises(ValidationError, match="mask_phase has the widths of 1 groups or layers, and 3 are pruned"):
        Report.model_validate(report_of(entry(0, (20,))).model_dump())


def test_the_report_links_the_picture_and_lists_the_epochs(tmp_path: Path) -> None:
    report = report_of(entry(0, (20, 20, 20), price=None), entry(0.5, (15, 10, 20)))
    write_report(report, tmp_path)
    assert (tmp_path / MASK_PHASE).read_text(encoding="utf-8") == render_mask_phase(report)
    text = (tmp_path / "report.md").read_text(encoding="utf-8")
    assert f"]({MASK_PHASE})" in text
    assert "| 0 | 50.0% | 40.0% | 0.300 | not known | 75.00 | 75.00 |" in text
    assert "| 0.5 | 50.0% | 40.0% | 0.300 | 0.02 | 75.00 | 75.00 |" in text
    assert read_report(tmp_path / "report.json") == report


def test_colours_go_from_light_to_dark() -> None:
    lightness = [sum(int(colour(share / 20)[place : place + 2], 16) for place in (1, 3, 5)) for share in range(21)]
    assert lightness == sorted(lightness, reverse=True)
    assert len(set(lightness)) == 21
    assert (colour(-1), colour(2)) == (colour(0), colour(1))


@pytest.mark.parametrize(("low", "high"), [(0, 1), (0, 0.0031), (-3, 7), (0, 12), (5, 6), (0, 1e-9), (0, 320)])
@pytest.mark.parametrize("most", [3, 5, 9])
def test_ticks_are_round_and_few_and_inside(low: float, high: float, most: int) -> None:
    found = ticks(low, high, most)
    assert 1 <= len(found) <= most
    assert all(low - 1e-9 <= tick <= high + 1e-9 for tick in found)


def test_a_chart_of_one_place_or_of_equal_values_can_be_drawn() -> None:
    for values in ([0.0], [3.0], [-2.0]):
        assert "nan" not in "".join(chart((0, 0, 300, 200), "t", [0.0], [Series("a", values)]))
    assert "nan" not in "".join(chart((0, 0, 300, 200), "t", [0.0, 1.0], [Series("a", [0.0, 0.0])]))
