"""Datasets that return whole batches: augmented views for training, plain samples for evaluation."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import Dataset

from lightning_tuning.data.bad_samples import BadSampleError, BadSamples
from lightning_tuning.data.sampler import Keys
from lightning_tuning.errors import InvalidValueError


class View(Protocol):
    """Makes a batch of inputs of samples as they are read."""

    def __call__(self, samples: Sequence[Any], seeds: np.ndarray | None) -> Any:
        """The inputs, a tensor or a dictionary of tensors ``[B, ...]``; inputs and targets where these are read with
        the samples, as masks are.

        Args:
            samples: What was read, ``[B]``.
            seeds: One seed for each sample, ``[B]`` of uint64. None: without augmentation.
        """


class Reader:
    """Reads samples, and knows what to do where one is bad.

    Args:
        samples: ``samples[index]`` reads one, and raises :class:`BadSampleError` if it is bad.
        targets: Of each sample, ``[N, ...]``. None: the views return them.
        bad: Counts the bad samples that are skipped. None: the first one ends the run.
    """

    def __init__(
        self, samples: Sequence[Any] | np.ndarray, targets: Tensor | None, bad: BadSamples | None = None
    ) -> None:
        self.samples = samples
        self.targets = targets
        self.bad = bad

    def read(self, indices: np.ndarray, pool: np.ndarray | None = None) -> tuple[list[Any], np.ndarray]:
        """The samples of ``indices``, and the indices that they are of.

        Args:
            indices: Which samples, ``[B]``.
            pool: Increasing indices that hold all ``indices``: in a bad sample's place comes the next one here, the
                same in every epoch, run and worker. None: bad samples are left out.
        """
        samples, read = [], []
        for index in indices.tolist():
            for candidate in [index] if pool is None else _from(index, pool):
                sample = self._sample(candidate)
                if sample is not None:
                    samples.append(sample)
                    read.append(candidate)
                    break
            else:
                if pool is not None:
                    raise InvalidValueError(f"All {len(pool)} samples to draw from are bad. Mend or remove them.")
        return samples, np.array(read, dtype=np.int64)

    def _sample(self, index: int) -> Any:
        """A sample; None if it is to be skipped."""
        try:
            return self.samples[index]
        except BadSampleError as error:
            if self.bad is None:
                raise
            self.bad.check(index, error)
            return None

    def targets_of(self, indices: np.ndarray) -> Tensor:
        """The targets of samples: ``[B, ...]``."""
        if self.targets is None:
            raise TypeError("The targets are read with the samples.")
        return self.targets[torch.from_numpy(indices)]

    def pair(self, view: View, samples: Sequence[Any], seeds: np.ndarray | None, indices: np.ndarray) -> Any:
        """Inputs and targets."""
        inputs = view(samples, seeds)
        return inputs if self.targets is None else (inputs, self.targets_of(indices))


def _from(index: int, pool: np.ndarray) -> Iterator[int]:
    """The pool, beginning with ``index``."""
    yield index
    place = int(np.searchsorted(pool, index))
    for position in range(place + 1, place + len(pool)):
        yield int(pool[position % len(pool)])


class TrainBatches(Dataset):
    """Training batches, asked for with the :class:`Keys` of a step.

    One key: the supervised batch ``(x, y)``. Two keys: ``{"labeled": (x, y), "unlabeled": {name: x, ..., "index": ids,
    "target": y}}``, in which the unlabelled views show the same samples in the same order; each is read once.

    Args:
        reader: Reads the samples.
        labeled: The view of the labelled samples.
        unlabeled: The views of the unlabelled samples, by name.
        pools: The samples that each stream draws from, increasing; an unlabelled sample's id is its position there.
    """

    def __init__(
        self, reader: Reader, labeled: View, unlabeled: Mapping[str, View], pools: Sequence[np.ndarray]
    ) -> None:
        self.reader = reader
        self.labeled = labeled
        self.unlabeled = dict(unlabeled)
        self.pools = [*pools]

    def __getitem__(self, step: tuple[Keys, ...]) -> Any:
        (labeled, samples, indices), *rest = [
            (keys, *self.reader.read(keys.indices, pool)) for keys, pool in zip(step, self.pools, strict=False)
        ]
        batch = self.reader.pair(self.labeled, samples, labeled.seeds, indices)
        if not rest:
            return batch
        (keys, samples, indices), pool = *rest, self.pools[1]
        views = {name: view(samples, keys.seeds) for name, view in self.unlabeled.items()}
        ids = torch.from_numpy(np.searchsorted(pool, indices))
        return {"labeled": batch, "unlabeled": {**views, "index": ids, "target": self.reader.targets_of(indices)}}


class EvalBatches(Dataset):
    """Batches ``(x, y)`` without augmentation, asked for with the positions of a batch.

    Args:
        reader: Reads the samples.
        indices: The part to evaluate on, in order, ``[M]``.
        view: Makes the inputs.
    """

    def __init__(self, reader: Reader, indices: np.ndarray, view: View) -> None:
        self.reader = reader
        self.indices = indices
        self.view = view

    def __len__(self) -> int:
        return len(self.indices)

    def __getitem__(self, positions: np.ndarray) -> Any:
        """A batch ``[B, ...]`` and its targets ``[B, ...]``; bad samples are left out."""
        samples, indices = self.reader.read(self.indices[positions])
        if not samples:
            raise InvalidValueError(
                f"{'The only sample' if len(positions) == 1 else f'All {len(positions)} samples'} of a batch "
                f"{'is' if len(positions) == 1 else 'are'} bad, and an empty batch cannot be evaluated. Mend or "
                "remove them, or raise eval_batch_size."
            )
        return self.reader.pair(self.view, samples, None, indices)
