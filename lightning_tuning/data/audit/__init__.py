"""Reads every sample of a datamodule once and reports what is wrong with it."""

from lightning_tuning.data.audit.collect import Audit, audit_samples, set_up
from lightning_tuning.data.audit.findings import Finding, find
from lightning_tuning.data.audit.report import conclusion, summary, write_report
from lightning_tuning.data.audit.sheet import save_sheet

__all__ = [
    "Audit",
    "Finding",
    "audit_samples",
    "conclusion",
    "find",
    "save_sheet",
    "set_up",
    "summary",
    "write_report",
]
