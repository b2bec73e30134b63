"""How far a run has come, how long a duration is in it, and schedules over it."""

from .lr_scheduler import ScheduleLR

__all__ = ["ScheduleLR"]
