"""Where callbacks put their pictures."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from lightning.pytorch import Trainer
from lightning.pytorch.loggers import TensorBoardLogger, WandbLogger
from lightning.pytorch.utilities.rank_zero import rank_zero_warn

if TYPE_CHECKING:
    from matplotlib.figure import Figure


def run_folder(trainer: Trainer) -> Path:
    """The folder of this run's files: a logger's, else the Trainer's ``default_root_dir``. Every rank has to ask."""
    return Path(trainer.log_dir or trainer.default_root_dir)


def save_picture(trainer: Trainer, figure: Figure, name: str) -> Path | None:
    """Write ``<name>.png`` into the run's folder and show it to those of its loggers that take images.

    An earlier picture of this run is replaced as a whole, so there is never half of one.

    Args:
        trainer: The Trainer of the run.
        figure: What to write.
        name: The file's name without its ending.

    Returns:
        The file; None on all processes but the first, and where the system refused to write it.
    """
    folder = run_folder(trainer)
    if not trainer.is_global_zero:
        return None
    path, part = folder / f"{name}.png", folder / f".{name}.part.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        figure.savefig(part, dpi=110)
        os.replace(part, path)
    except OSError as error:
        part.unlink(missing_ok=True)
        rank_zero_warn(f"{path} was not written: {error.strerror or error}. Training goes on.")
        return None
    show_picture(trainer, path)
    return path


def show_picture(trainer: Trainer, path: str | Path) -> None:
    """Hand a PNG to Weights & Biases and TensorBoard, where they are among the run's loggers, under the file's name.

    Args:
        trainer: The Trainer of the run.
        path: The file.
    """
    path = Path(path)
    for logger in trainer.loggers:
        if not trainer.is_global_zero:
            continue
        if isinstance(logger, WandbLogger):
            logger.log_image(path.stem, [str(path)])
        elif isinstance(logger, TensorBoardLogger):
            from PIL import Image

            pixels = np.asarray(Image.open(path).convert("RGB"))
            logger.experiment.add_image(path.stem, pixels, trainer.global_step, dataformats="HWC")
            logger.experiment.flush()  # the Trainer may have closed it already


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
