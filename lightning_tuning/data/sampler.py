"""Samplers whose order and augmentation seeds are functions of (seed, epoch), whatever the number of workers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
from torch.utils.data import DistributedSampler, SequentialSampler

from lightning_tuning.data.hashing import hashes, permutation
from lightning_tuning.data.weighted_order import weighted_order


class Keys(NamedTuple):
    """The images of one batch, each with the seed of its augmentation; this is what travels to a worker.

    Attributes:
        indices: Which images, ``[B]`` of int64.
        seeds: One seed for each image, ``[B]`` of uint64.
    """

    indices: np.ndarray
    seeds: np.ndarray


@dataclass(frozen=True)
class Stream:
    """A pool of images and how many of them a step takes.

    Attributes:
        name: Keeps the random numbers of two streams apart.
        indices: The images to draw from, ``[N]``, at least one.
        batch_size: Images for each step and rank, at least 1.
        weights: How often each image is drawn, in proportion, ``[N]``. None: each once in a pass.
        labels: With weights, the images' classes, ``[N]``, whose shares of an epoch are then exact up to rounding.
    """

    name: str
    indices: np.ndarray
    batch_size: int
    weights: np.ndarray | None = None
    labels: np.ndarray | None = None


class KeyedSampler(DistributedSampler):
    """Yields for each step one :class:`Keys` of each stream.

    In an epoch, a stream goes through its pool in a fresh permutation, then in the next one, until all steps are
    filled, or draws from it by weights; every position has a seed of its own, so an image that comes twice is augmented
    differently. All batches are full. Position ``p`` of the epoch goes to rank ``p % num_replicas``, so the ranks
    together see in each step what one process with ``num_replicas`` times the batch size would see, with the same
    augmentations.

    It is a ``DistributedSampler`` so that the Trainer calls ``set_epoch`` and does not replace it. Use it with
    ``DataLoader(batch_size=None)``: what it yields is a batch already.

    Args:
        streams: The streams, with different names.
        steps: Steps for each epoch and rank, at least 1.
        seed: The run's seed, 0 to 2**32 - 1.
        num_replicas: Number of ranks.
        rank: This process's rank, 0 to ``num_replicas - 1``.

    Attributes:
        start: Step at which the next iteration begins; 0 but for a resume within an epoch.

    Example:
        >>> sampler = KeyedSampler([Stream("labeled", np.array([10, 11, 12]), 2)], steps=3, seed=0)
        >>> steps = [keys.indices.tolist() for (keys,) in sampler]
        >>> sorted(steps[0] + steps[1][:1]), sorted(steps[1][1:] + steps[2])
        ([10, 11, 12], [10, 11, 12])
    """

    def __init__(
        self, streams: Sequence[Stream], steps: int, *, seed: int = 0, num_replicas: int = 1, rank: int = 0
    ) -> None:
        # The base class takes the length from a dataset and divides it by the ranks.
        length: Any = range(steps * num_replicas)
        super().__init__(length, num_replicas=num_replicas, rank=rank, seed=seed)
        self.streams = tuple(streams)
        self.steps = steps
        self.start = 0

    @property
    def batch_size(self) -> int:
        """Samples of the first stream, the labelled one, for each step and rank."""
        return self.streams[0].batch_size

    def __iter__(self) -> Iterator[tuple[Keys, ...]]:
        drawn = [self._draw(stream, self.epoch) for stream in self.streams]
        for step in range(self.start, self.steps):
            yield tuple(Keys(keys.indices[step], keys.seeds[step]) for keys in drawn)

    def indices_at(self, step: int) -> dict[str, list[int]]:
        """Which images this rank's batch of that step of the epoch holds, by stream."""
        return {s.name: self._draw(s, self.epoch).indices[step].tolist() for s in self.streams}

    def _draw(self, stream: Stream, epoch: int) -> Keys:
        """This rank's share of the epoch, both arrays ``[steps, batch_size]``."""
        count = self.steps * stream.batch_size * self.num_replicas
        indices = stream.indices[self._order(stream, count, epoch)]
        seeds = hashes(count, self.seed, f"augmentation of {stream.name}", epoch)
        share, shape = slice(self.rank, None, self.num_replicas), (self.steps, stream.batch_size)
        return Keys(indices[share].reshape(shape), seeds[share].reshape(shape))

    def _order(self, stream: Stream, count: int, epoch: int) -> np.ndarray:
        """The places in the stream's pool that an epoch draws, ``[count]``."""
        purpose = f"order of {stream.name}"
        if stream.weights is not None:
            return weighted_order(stream.weights, count, self.seed, purpose, epoch, labels=stream.labels)
        size = len(stream.indices)
        passes = [permutation(size, self.seed, purpose, epoch, number) for number in range(-(-count // size))]
        return np.concatenate(passes)[:count]


class EvalSampler(DistributedSampler, SequentialSampler):
    """Yields the positions of whole evaluation batches, every position once over all ranks.

    PyTorch's own distributed sampler repeats samples until the ranks have equally many, and metrics count those twice.
    Here the ranks' shares differ by one sample at most, and all have the same number of batches: DDP communicates in
    each of them. So with ``batch_size=1`` a batch of a larger share has two. Use it with
    ``DataLoader(batch_size=None)``. It is a ``DistributedSampler`` and a ``SequentialSampler`` so that the Trainer
    keeps it, with ``overfit_batches`` too.

    Args:
        size: Number of samples, at least ``num_replicas``.
        batch_size: Most samples of a batch, at least 1.
        num_replicas: Number of ranks.
        rank: This process's rank.

    Example:
        >>> [positions.tolist() for positions in EvalSampler(5, batch_size=2)]
        [[0, 1], [2, 3], [4]]
        >>> [positions.tolist() for positions in EvalSampler(5, batch_size=2, num_replicas=2, rank=1)]
        [[1], [3]]
    """

    def __init__(self, size: int, batch_size: int, num_replicas: int = 1, rank: int = 0) -> None:
        positions: Any = range(size)
        super().__init__(positions, num_replicas=num_replicas, rank=rank, shuffle=False)
        smallest_share, largest_share = size // num_replicas, -(-size // num_replicas)
        self.batches = min(-(-largest_share // batch_size), max(smallest_share, 1))

    def __iter__(self) -> Iterator[np.ndarray]:  # type: ignore[override]
        share = np.arange(len(self.dataset))[self.rank :: self.num_replicas]  # type: ignore[arg-type]
        if not len(share):  # fewer samples than ranks: no batch may be empty
            share = np.append(share, len(self.dataset) - 1)  # type: ignore[arg-type]
        return iter(np.array_split(share, self.batches))

    def __len__(self) -> int:
        return self.batches


class FixedSampler(KeyedSampler, SequentialSampler):  # type: ignore[misc]
    """Repeats the first epoch for ever, for ``Trainer(overfit_batches=...)``.

    Under that flag the Trainer replaces every sampler that is not a ``SequentialSampler``; this one it keeps.
    """

    def _draw(self, stream: Stream, epoch: int) -> Keys:
        return super()._draw(stream, 0)
