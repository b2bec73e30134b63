"""Random numbers as a function of what they are for, so that nothing random has to be stored."""

from __future__ import annotations

import zlib

import numpy as np


def hashes(count: int, seed: int, purpose: str, epoch: int = 0, number: int = 0) -> np.ndarray:
    """Random 64-bit numbers that depend on the arguments alone.

    They come from NumPy's ``SeedSequence``, whose output is the same on every machine and in every release.

    Args:
        count: How many numbers, at least 0.
        seed: The run's seed, 0 to 2**32 - 1.
        purpose: What the numbers are for; numbers of two purposes are unrelated.
        epoch: The epoch, at least 0.
        number: Tells apart several draws of the same purpose and epoch, e.g. the passes over the data.

    Returns:
        ``[count]`` of uint64. The first numbers do not depend on ``count``.

    Example:
        >>> bool((hashes(3, 7, "order") == hashes(5, 7, "order")[:3]).all())
        True
    """
    # Always four words: SeedSequence pads with zeros, so (1,) and (1, 0) would give the same numbers.
    words = (seed, zlib.crc32(purpose.encode()), epoch, number)
    return np.random.SeedSequence(words).generate_state(count, np.uint64)


def permutation(count: int, seed: int, purpose: str, epoch: int = 0, number: int = 0) -> np.ndarray:
    """A random order of ``0 .. count - 1``, ``[count]`` of int64; the arguments are those of :func:`hashes`.

    Example:
        >>> sorted(permutation(4, 7, "order").tolist())
        [0, 1, 2, 3]
    """
    return np.argsort(hashes(count, seed, purpose, epoch, number), kind="stable")
