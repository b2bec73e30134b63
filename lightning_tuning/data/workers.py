"""How many worker processes a loader gets if nobody says."""

from __future__ import annotations

import os

from lightning.pytorch import Trainer

MOST = 8


def worker_count(trainer: Trainer | None, in_memory: bool) -> int:
    """The number of processes that prepare batches.

    One core for each rank stays with its training, the others are shared by the ranks of this machine. Data in memory
    are prepared faster than a model on the CPU learns from them, and then the processes only take its cores.

    Args:
        trainer: The run's. None: the loader is read by hand, without processes.
        in_memory: Whether reading a sample costs next to nothing.
    """
    if trainer is None or (in_memory and trainer.strategy.root_device.type == "cpu"):
        return 0
    return _share(trainer.num_devices)


def reader_count() -> int:
    """The number of processes that read samples when nothing is trained."""
    return _share()


def _share(ranks: int = 1) -> int:
    return min(max(_cores() // max(ranks, 1) - 1, 0), MOST)


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1
