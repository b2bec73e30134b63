"""Whether a user's own run, stopped and resumed, equals the uninterrupted one; and if not, what differs first."""

from .check import MOMENTS, assert_resumes_exactly, check_resume
from .report import Difference, MomentResult, ResumeReport

__all__ = ["MOMENTS", "Difference", "MomentResult", "ResumeReport", "assert_resumes_exactly", "check_resume"]
