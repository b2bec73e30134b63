"""A DataLoader that starts when it is read and can be resumed within an epoch."""

from __future__ import annotations

import copy
import warnings
from collections.abc import Iterator
from typing import Any

import cv2
import torch
from torch.utils.data import DataLoader, Dataset

from lightning_tuning.data.sampler import KeyedSampler


def quiet_opencv(worker_id: int = 0) -> None:
    """Make OpenCV work in the calling thread: on small images its own threads cost three times what they save."""
    cv2.setNumThreads(0)


class _NoBatches(list):
    """The batches of a part that is meant to be empty. Lightning names its class in a warning."""


def no_batches() -> list:
    """What a Trainer passes over without a word."""
    warnings.filterwarnings("ignore", message=f"Total length of `{_NoBatches.__name__}`")
    return _NoBatches()


class KeyedLoader(DataLoader):
    """Batches of a dataset that is indexed by what a :class:`KeyedSampler` yields.

    Iterating starts at the first ``next``, not at ``iter``: the Trainer calls ``iter`` before ``set_epoch``, and the
    workers of a plain ``DataLoader`` would by then have fetched batches of the wrong epoch. The position within the
    epoch is saved and restored through ``state_dict``, which the Trainer stores in its checkpoints.

    Args:
        dataset: Called with one item of the sampler, returns a whole batch.
        sampler: Decides order, seeds, epoch length and this rank's share.
        num_workers: Worker processes; 0 loads in the main process. The batches do not depend on it.
        **kwargs: Further arguments of ``DataLoader``, e.g. ``pin_memory``.
    """

    def __init__(self, dataset: Dataset, sampler: KeyedSampler, num_workers: int = 0, **kwargs: Any) -> None:
        kwargs.setdefault("persistent_workers", num_workers > 0)
        # Without a generator of its own, a loader takes a number from torch's default one at each epoch.
        kwargs.setdefault("generator", torch.Generator())
        kwargs.setdefault("worker_init_fn", quiet_opencv)
        super().__init__(dataset, sampler=sampler, batch_size=None, num_workers=num_workers, **kwargs)
        self._batches = 0
        self._resume: dict[str, int] | None = None

    def __iter__(self) -> Iterator[Any]:  # type: ignore[override]
        resume, self._resume = self._resume, None
        sampler: KeyedSampler = self.sampler  # type: ignore[assignment]
        same_epoch = resume is not None and resume["epoch"] == sampler.epoch
        self._batches = sampler.start = resume["batches"] if resume is not None and same_epoch else 0
        if self.num_workers == 0:
            quiet_opencv()
        for batch in super().__iter__():
            self._batches += 1  # before the yield: a checkpoint written while it is in use counts it as done
            yield batch

    def __copy__(self) -> KeyedLoader:
        """A loader of the same epoch from its start, which does not move this one's position."""
        copied = type(self).__new__(type(self))
        copied.__dict__.update(self.__dict__, sampler=copy.copy(self.sampler), _iterator=None, _resume=None, _batches=0)
        return copied

    def state_dict(self) -> dict[str, int]:
        """Epoch and number of batches handed out in it."""
        return self._resume or {"epoch": self.sampler.epoch, "batches": self._batches}  # type: ignore[attr-defined]

    def load_state_dict(self, state_dict: dict[str, int]) -> None:
        """Begin the next iteration where ``state_dict`` was taken, if it is of the same epoch; else at the start."""
        self._resume = dict(state_dict)
