"""The report of a run: its schema, and its faces for people."""

from dtp_deploy.report.markdown import MASK_PHASE as MASK_PHASE
from dtp_deploy.report.markdown import headlines as headlines
from dtp_deploy.report.markdown import render_markdown as render_markdown
from dtp_deploy.report.mask_phase import render_mask_phase as render_mask_phase
from dtp_deploy.report.privacy import hide_home as hide_home
from dtp_deploy.report.schema import Report as Report
from dtp_deploy.report.schema import read_report as read_report
from dtp_deploy.report.table import SummaryRow as SummaryRow
from dtp_deploy.report.table import quantity as quantity
from dtp_deploy.report.table import summary_rows as summary_rows

__all__ = [
    "MASK_PHASE",
    "Report",
    "SummaryRow",
    "headlines",
    "hide_home",
    "quantity",
    "read_report",
    "render_markdown",
    "render_mask_phase",
    "summary_rows",
]
