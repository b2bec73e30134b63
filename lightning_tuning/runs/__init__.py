"""A run's folder and what is in it: journal, curves, checkpoints, summary."""

from .checkpoint_io import SafeCheckpointIO
from .checkpoints import RunCheckpoint
from .config import RunConfig
from .curves import draw_curves, save_curves
from .folder import new_run_folder
from .global_batch import GlobalBatch
from .journal import JournalLogger, read_journal, whole_journal
from .wandb_logger import ResilientWandbLogger

__all__ = [
    "GlobalBatch",
    "JournalLogger",
    "ResilientWandbLogger",
    "RunCheckpoint",
    "RunConfig",
    "SafeCheckpointIO",
    "draw_curves",
    "new_run_folder",
    "read_journal",
    "save_curves",
    "whole_journal",
]
