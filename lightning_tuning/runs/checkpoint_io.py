"""Writing checkpoints so that a crash, a power cut or a full disk never costs the last one."""

from __future__ import annotations

import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.plugins.io.torch_io import TorchCheckpointIO
from lightning.fabric.utilities.types import _PATH
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from torch.utils._pytree import tree_iter

from lightning_tuning.checkpoint_file import is_checkpoint, local_path, read_checkpoint
from lightning_tuning.whole_file import write_whole

from .disk import is_full, megabytes, room, system_error


class SafeCheckpointIO(TorchCheckpointIO):
    """Writes whole checkpoints or none, and loads none that was damaged or holds code.

    A checkpoint is written beside its place, brought onto the disk (fsync of the file and its folder) and renamed:
    under its name there is the old one or the new one at any time. Where the system refuses to write, for one because
    the disk is full, a warning says so, the old checkpoint stays and training goes on; a checkpoint that the new one
    was to replace under another name is kept as long as there is none in its place. Loading compares the checksums and
    unpickles data alone. Removed are only checkpoints, and none elsewhere that the state of a loaded one names. Remote
    paths are written in Lightning's way; the folders of sharded checkpoints do not pass here.

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
        self._remote_folders: set[str] = set()

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
                self._remote_folders.add(str(path).rpartition("/")[0])
                super().save_checkpoint(checkpoint, path, storage_options)
            else:
                write_whole(checkpoint, local)
        except Exception as error:
            refused = system_error(error, earlier)
            if refused is None:
                raise
            self._warn(refused, checkpoint, path, local)
            self.failed = str(path)
        else:
            self.failed = None
            self._remove(self._stand_ins.pop(str(path), ()))

    def load_checkpoint(
        self, path: _PATH, map_location: Any = lambda storage, loc: storage, weights_only: bool | None = None
    ) -> dict[str, Any]:
        """Load a checkpoint.

        Args:
            path: A path or an address.
            map_location: As in ``torch.load``.
            weights_only: None means True; False runs the code that a local file holds.
        """
        return read_checkpoint(path, map_location, weights_only)

    def remove_checkpoint(self, path: _PATH) -> None:
        """Remove a checkpoint, and what was kept in its place; but keep it in the place of one just not written."""
        removed = [*self._stand_ins.pop(str(path), ()), str(path)]
        if self.failed is not None:
            kept = [file for file in removed if file != self.failed]
            self._stand_ins.setdefault(self.failed, []).extend(kept)
            return
        self._remove(removed)

    def _remove(self, paths: Iterable[str]) -> None:
        for path in paths:
            if self._may_be_removed(path):
                super().remove_checkpoint(path)

    def _may_be_removed(self, path: str) -> bool:
        """Whether a run's ModelCheckpoint can have written this. Its state comes from the checkpoint that a run goes on
        from, and Lightning takes ``<its folder>/../..`` for a place within, and ``local://`` for another machine."""
        local = local_path(path)
        if local is None:
            is_own = path.rpartition("/")[0] in self._remote_folders
        elif not local.exists():
            return False
        else:
            is_own = "://" not in path and ".." not in Path(path).parts and is_checkpoint(local)
        if not is_own:
            rank_zero_warn(
                f"{path} was not removed: it is no checkpoint that this run can have written. The checkpoint that the "
                "run goes on from names it; remove it by hand if it is one of yours."
            )
        return is_own

    def _warn(self, error: OSError, checkpoint: dict[str, Any], path: _PATH, local: Path | None) -> None:
        if self.failed is not None:
            return  # one warning until a checkpoint is written again
        space = ""
        if is_full(error) and local is not None:
            space = f" It needs {megabytes(_size(checkpoint))}, and {room(local.parent)} are free there."
        rank_zero_warn(
            f"The checkpoint {path} was not written: {error.strerror or error}.{space} Training goes on, and earlier "
            "checkpoints stay."
        )

    def _tell_of_remote(self, path: _PATH) -> None:
        if not self._told_of_remote:
            self._told_of_remote = True
            rank_zero_info(f"{path} is remote: it is written in Lightning's way, without fsync and rename.")


def _size(checkpoint: dict[str, Any]) -> int:
    return sum(leaf.nbytes for leaf in tree_iter(checkpoint) if isinstance(leaf, torch.Tensor))
