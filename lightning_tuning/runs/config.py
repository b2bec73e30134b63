"""The ``run`` keys of the command line."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from lightning_tuning.errors import InvalidValueError, check_count


@dataclass
class RunConfig:
    """Where a run's files go and which checkpoint counts as the best.

    Args:
        name: Folder of this experiment's runs, below ``dir``. Default: the name of the first configuration file that is
            not a preset (of its folder, if the file is called ``config.yaml``), else the model's class name.
        dir: Folder of all experiments.
        monitor: Metric that chooses ``checkpoints/best.ckpt``, e.g. ``val/accuracy``. None keeps ``last.ckpt`` alone.
        mode: ``max`` if a larger value of ``monitor`` is better, ``min`` if a smaller one is.
        test: Whether ``fit`` ends with a test of the best checkpoint (of the last one without ``monitor``).
        global_batch_size: Samples of each optimizer step over all devices, a multiple of the batch size times the
            number of processes: as many batches are accumulated as it takes. None: whatever it comes to.
    """

    name: str | None = None
    dir: str = "runs"
    monitor: str | None = None
    mode: Literal["min", "max"] | None = None
    test: bool = True
    global_batch_size: int | None = None

    def __post_init__(self) -> None:
        check_count("run.global_batch_size", self.global_batch_size, 1, optional=True)
        if self.name is not None and (self.name in ("", ".", "..") or Path(self.name).name != self.name):
            raise InvalidValueError(
                f"run.name is {self.name!r}; it must be the name of one folder. Write the path as run.dir."
            )
        if self.monitor is not None and self.mode is None:
            raise InvalidValueError(
                f"run.monitor is {self.monitor!r}, but run.mode is not given. "
                "Write --run.mode=max if a larger value is better, --run.mode=min if a smaller one is."
            )
