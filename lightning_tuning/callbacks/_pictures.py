"""Where callbacks put their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from lightning.pytorch import Trainer
from lightning.pytorch.loggers import WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run's files: a logger's, else the Trainer's ``default_root_dir``. Every rank has to ask."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def save_picture(trainer: Trainer, figure: Figure, name: str) -> Path | None:
    """Write ``<name>.png`` into the run's folder and show it to Weights & Biases if the run has that logger.

    An earlier picture of this run is replaced as a whole, so there is never half of one.

    Args:
        trainer: The Trainer of the run.
        figure: What to write.
        name: The file's name without its ending.

    Returns:
        The file; None on all processes but the first.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return None
    folder.mkdir(parents=True, exist_ok=True)
    path, part = folder / f"{name}.png", folder / f".{name}.part.png"
    figure.savefig(part, dpi=110)
    os.replace(part, path)
    for logger in trainer.loggers:
        if isinstance(logger, WandbLogger):
            logger.log_image(name, [str(path)])
    return path


def save_after_error(trainer: Trainer, save: Callable[[Trainer], None]) -> None:
    """Call ``save(trainer)`` where training ends by an error. Call it in ``on_exception``.

    Nothing is saved by several processes, for the others may not be there, and no error of saving takes the place of
    the one that ended the training.
    """
    if trainer.world_size > 1:
        return
    try:
        save(trainer)
    except Exception as error:
        rank_zero_warn(f"After the error that ended the training something could not be saved: {error!r}")
