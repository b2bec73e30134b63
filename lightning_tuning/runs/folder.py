"""One new folder for each run, the same one for all of its processes."""

from __future__ import annotations

import os
from datetime import datetime
from pathlib import Path

from lightning.pytorch.utilities import rank_zero_only

from lightning_tuning.errors import InvalidValueError

from .disk import is_full, room

_VARIABLE = "LIGHTNING_TUNING_RUN_FOLDER"


def new_run_folder(root: str | Path, name: str, suffix: str = "", now: datetime | None = None) -> Path:
    """Make ``<root>/<name>/<time><suffix>`` and return it.

    Two runs never share a folder, even if they start in the same second: the folder is made exclusively, and a run that
    finds its name taken tries ``-2``, ``-3`` and so on.

    Args:
        root: Folder of all experiments.
        name: Folder of this experiment's runs.
        suffix: Text after the time, e.g. ``-test``.
        now: The time; default: the clock's.

    Raises:
        InvalidValueError: No folder can be made there, or nothing be written to it.
    """
    parent = Path(root, name)
    stem = f"{now or datetime.now():%Y%m%d-%H%M%S}{suffix}"
    folder, number = parent / stem, 1
    try:
        parent.mkdir(parents=True, exist_ok=True)
        while not _make(folder):
            number += 1
            folder = parent / f"{stem}-{number}"
        _try_to_write(folder)
    except OSError as error:
        if is_full(error):
            raise InvalidValueError(
                f"{error.strerror}: no run can be written to {str(root)!r}, where {room(root)} are free. Make room, or "
                "write --run.dir=FOLDER on another disk."
            ) from error
        raise InvalidValueError(f"run.dir is {str(root)!r}, where no folder can be made: {error.strerror}.") from error
    return folder


def _try_to_write(folder: Path) -> None:
    """Find a disk that is full now, and not when loggers have started processes and threads that complain each."""
    file = folder / ".room"
    try:
        file.write_bytes(bytes(1000))
    except OSError:
        file.unlink(missing_ok=True)
        folder.rmdir()
        raise
    file.unlink()


def _make(folder: Path) -> bool:
    """Whether this process made the folder."""
    try:
        folder.mkdir()
    except FileExistsError:
        return False
    return True


def run_folder(root: str | Path, name: str, suffix: str = "") -> Path:
    """The folder of this run: new in the first process, and the first process's in those that Lightning starts from it.

    A process of higher rank that a cluster started gets the parent folder: it writes nothing there, and Lightning
    broadcasts the first process's folder where it matters (``trainer.log_dir``, checkpoints).
    """
    if is_first_process():
        folder = new_run_folder(root, name, suffix)
        os.environ[_VARIABLE] = str(folder)
        return folder
    return Path(os.environ.get(_VARIABLE, Path(root, name)))


def is_first_process() -> bool:
    """Whether this is the process of global rank 0, as far as the environment tells before training starts."""
    node = int(os.environ.get("NODE_RANK", os.environ.get("GROUP_RANK", 0)))
    return node == 0 and not getattr(rank_zero_only, "rank", 0)
