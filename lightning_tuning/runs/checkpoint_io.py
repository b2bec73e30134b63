"""Writing checkpoints so that a crash, a power cut or a full disk never costs the last one."""

from __future__ import annotations

import errno
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils._pytree import tree_iter

from lightning_tuning.checkpoint_file import local_path, read_checkpoint
from lightning_tuning.whole_file import write_whole

_NO_SPACE = (errno.ENOSPC, errno.EFBIG, getattr(errno, "EDQUOT", errno.ENOSPC))


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes whole checkpoints or none, and loads none that was damaged or holds code.

    A checkpoint is written beside its place, brought onto the disk (fsync of the file and its folder) and renamed:
    under its name there is the old one or the new one at any time. Where the system refuses to write, for one because
    the disk is full, a warning says so, the old checkpoint stays and training goes on; a checkpoint that the new one
    was to replace under another name is kept as long as there is none in its place. Loading compares the checksums and
    unpickles data alone. Remote paths are written in Lightning's way; the folders of sharded checkpoints do not pass
    here.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(plugins=[SafeCheckpointIO()], logger=False)
    """

    def __init__(self) -> None:
        super().__init__()
        self.failed: str | None = None
        """The path of the last checkpoint, if it could not be written."""
        self._stand_ins: dict[str, list[str]] = {}
        self._told_of_remote = False

    def save_checkpoint(self, checkpoint: dict[str, Any], path: _PATH, storage_options: Any = None) -> None:
        """Write a checkpoint.

        Args:
            checkpoint: Its content.
            path: Its path.
            storage_options: Nothing, as in ``TorchCheckpointIO``.
        """
        local, earlier = local_path(path), sys.exc_info()[1]
        try:
            if local is None or storage_options is not None:
                self._tell_of_remote(path)
                super().save_checkpoint(checkpoint, path, storage_options)
            else:
                write_whole(checkpoint, local)
        except Exception as error:
            refused = next((e for e in _chain(error, earlier) if isinstance(e, OSError)), None)
            if refused is None:
                raise
            self._warn(refused, checkpoint, path, local)
            self.failed = str(path)
        else:
            self.failed = None
            for file in self._stand_ins.pop(str(path), ()):
                super().remove_checkpoint(file)

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            path: A path or an address.
            map_location: As in ``torch.load``.
            weights_only: None means True; False runs the code that a local file holds.
        """
        local = local_path(path)
        if local is not None and local.is_dir():
            return super().load_checkpoint(path, map_location, weights_only)
        return read_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, and what was kept in its place; but keep it in the place of one just not written."""
        removed = [*self._stand_ins.pop(str(path), ()), str(path)]
        if self.failed is not None:
            kept = [file for file in removed if file != self.failed]
            self._stand_ins.setdefault(self.failed, []).extend(kept)
            return
        for file in removed:
            super().remove_checkpoint(file)

    def _warn(self, error: OSError, checkpoint: dict[str, Any], path: _PATH, local: Path | None) -> None:
        if self.failed is not None:
            return  # one warning until a checkpoint is written again
        space = ""
        if error.errno in _NO_SPACE and local is not None:
            free = shutil.disk_usage(next(folder for folder in local.parents if folder.is_dir())).free
            space = f" It needs {_megabytes(_size(checkpoint))}, and {_megabytes(free)} are free there."
        rank_zero_warn(
            f"The checkpoint {path} was not written: {error.strerror or error}.{space} Training goes on, and earlier "
            "checkpoints stay."
        )

    def _tell_of_remote(self, path: _PATH) -> None:
        if not self._told_of_remote:
            self._told_of_remote = True
            rank_zero_info(f"{path} is remote: it is written in Lightning's way, without fsync and rename.")


def _chain(error: BaseException | None, earlier: BaseException | None) -> Iterator[BaseException]:
    """An error and those that it was raised from or during, up to one that was under way before."""
    while error is not None and error is not earlier:
        yield error
        error = error.__cause__ or error.__context__


def _size(checkpoint: dict[str, Any]) -> int:
    return sum(leaf.nbytes for leaf in tree_iter(checkpoint) if isinstance(leaf, torch.Tensor))


def _megabytes(size: int) -> str:
    return f"{size / 1e6:.1f} MB"
