"""A run's folder and what is in it: journal, curves, checkpoints, summary."""

from .checkpoints import RunCheckpoint
from .config import RunConfig
from .curves import draw_curves, save_curves
from .folder import new_run_folder
from .journal import JournalLogger, read_journal

__all__ = [
    "JournalLogger",
    "RunCheckpoint",
    "RunConfig",
    "draw_curves",
    "new_run_folder",
    "read_journal",
    "save_curves",
]
