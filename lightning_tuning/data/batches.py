"""Datasets that return whole batches: augmented views for training, plain samples for evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tuning.data.sampler import Keys


class View(Protocol):
    """Makes a batch of inputs of samples as they are read."""

    def __call__(self, samples: Sequence[Any], seeds: np.ndarray | None) -> Any:
        """The inputs, a tensor or a dictionary of tensors ``[B, ...]``.

        Args:
            samples: What was read, ``[B]``.
            seeds: One seed for each sample, ``[B]`` of uint64. None: without augmentation.
        """


class TrainBatches(Dataset):
    """Training batches, asked for with the :class:`Keys` of a step.

    One key: the supervised batch ``(x, y)``. Two keys: ``{"labeled": (x, y), "unlabeled": {name: x, ..., "index": ids,
    "target": y}}``, in which the unlabelled views show the same samples in the same order; each is read once.

    Args:
        samples: ``samples[index]`` reads one.
        targets: Of each sample, ``[N, ...]``.
        labeled: The view of the labelled samples.
        unlabeled: The views of the unlabelled samples, by name.
        pool: The samples that unlabelled ones are drawn from, increasing, ``[M]``; a sample's id is its position here.
    """

    def __init__(
        self,
        samples: Sequence[Any] | np.ndarray,
        targets: Tensor,
        labeled: View,
        unlabeled: Mapping[str, View],
        pool: np.ndarray,
    ) -> None:
        self.samples = samples
        self.targets = targets
        self.labeled = labeled
        self.unlabeled = dict(unlabeled)
        self.pool = pool

    def __getitem__(self, step: tuple[Keys, ...]) -> Any:
        labeled, *rest = step
        batch = self.labeled(self.read(labeled), labeled.seeds), self.targets_of(labeled)
        if not rest:
            return batch
        (keys,) = rest
        samples = self.read(keys)
        views = {name: view(samples, keys.seeds) for name, view in self.unlabeled.items()}
        ids = torch.from_numpy(np.searchsorted(self.pool, keys.indices))
        return {"labeled": batch, "unlabeled": {**views, "index": ids, "target": self.targets_of(keys)}}

    def read(self, keys: Keys) -> list[Any]:
        """The samples of ``keys``."""
        return [self.samples[index] for index in keys.indices.tolist()]

    def targets_of(self, keys: Keys) -> Tensor:
        """The targets of the samples of ``keys``: ``[B, ...]``."""
        return self.targets[torch.from_numpy(keys.indices)]


class EvalBatches(Dataset):
    """Batches ``(x, y)`` without augmentation, asked for with the positions of a batch.

    Args:
        samples: ``samples[index]`` reads one.
        targets: Of each sample, ``[N, ...]``.
        indices: The part to evaluate on, in order, ``[M]``.
        view: Makes the inputs.
    """

    def __init__(self, samples: Sequence[Any] | np.ndarray, targets: Tensor, indices: np.ndarray, view: View) -> None:
        self.samples = samples
        self.targets = targets
        self.indices = indices
        self.view = view

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: np.ndarray) -> tuple[Any, Tensor]:
        """A batch ``[B, ...]`` and its targets ``[B, ...]``."""
        indices = self.indices[positions]
        samples = [self.samples[index] for index in indices.tolist()]
        return self.view(samples, None), self.targets[torch.from_numpy(indices)]
