"""docs/report.md is the schema's own description."""

from pathlib import Path

from dtp_deploy.report.reference import render_reference
from dtp_deploy.report.schema import ModelEntry, Report

DOCUMENT = Path(__file__).parents[3] / "docs" / "report.md"


def test_the_document_is_up_to_date() -> None:
    assert DOCUMENT.read_text(encoding="utf-8") == render_reference(), (
        "run: python -m dtp_deploy.report.reference > docs/report.md"
    )


def test_every_field_is_described() -> None:
    text = render_reference()

    for name in [*Report.model_fields, *ModelEntry.model_fields, "frozen_because", "samples_ms"]:
        assert f"| `{name}` | " in text
    assert "| `samples_ms` | list of number | every sample after the warm-up, in the order taken |" in text
    assert "## dense, pruned" in text
