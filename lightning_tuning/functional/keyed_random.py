"""Random numbers that are a function of a seed for each sample and of what they are for; no generator is used."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError

_MASK = 2**64 - 1
_GOLDEN, _FIRST, _SECOND = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


def keyed_bits(seeds: Tensor, purpose: str | int, count: int = 1) -> Tensor:
    """Random 64-bit numbers as a function of (seed, purpose, column) alone.

    Row ``i`` is what the generator SplitMix64 puts out from the state ``seeds[i] ^ key(purpose)``. There are only
    integer operations, so the numbers are the same on every device, in every batch and under autocast.

    Args:
        seeds: int64 ``[N]``, one for each sample: the bits of an unsigned 64-bit number.
        purpose: What the numbers are for; numbers of two purposes are unrelated. A text, or an integer of 64 bits
            such as a view's number.
        count: Columns, at least 0. The first columns do not depend on it.

    Returns:
        int64 ``[N, count]``: the bits of unsigned numbers.

    Raises:
        InvalidValueError: The seeds are of another type or shape.

    Source: Steele, Lea and Flood, 2014, "Fast splittable pseudorandom number generators", figure 17, with the
    constants of its variant 13 by Stafford.

    Example:
        >>> bits = keyed_bits(torch.tensor([7, 8]), "flip", 3)
        >>> torch.equal(bits[1:, :2], keyed_bits(torch.tensor([8]), "flip", 2))
        True
    """
    if seeds.dtype != torch.int64 or seeds.ndim != 1:
        raise InvalidValueError(
            f"The seeds are {seeds.dtype} {list(seeds.shape)}; they must be torch.int64 [N], one for each sample. "
            "Write torch.from_numpy(seeds.view(numpy.int64)) for unsigned ones."
        )
    columns = torch.arange(1, count + 1, device=seeds.device) * _signed(_GOLDEN)
    bits = (seeds ^ _signed(_key(purpose)))[:, None] + columns  # int64 wraps around
    bits = (bits ^ _shifted(bits, 30)) * _signed(_FIRST)
    bits = (bits ^ _shifted(bits, 27)) * _signed(_SECOND)
    return bits ^ _shifted(bits, 31)


def keyed_uniform(seeds: Tensor, purpose: str | int, count: int = 1) -> Tensor:
    """Uniform numbers in [0, 1), multiples of 2**-24, as a function of (seed, purpose, column) alone.

    Args:
        seeds: int64 ``[N]``; see :func:`keyed_bits`.
        purpose: What the numbers are for.
        count: Columns, at least 0.

    Returns:
        float32 ``[N, count]``: the upper 24 bits of :func:`keyed_bits`. For an integer ``n`` up to 2**24, ``n`` times
        such a number is below ``n`` in float32, too.

    Raises:
        InvalidValueError: The seeds are of another type or shape.

    Example:
        >>> keyed_uniform(torch.tensor([7, 8]), "flip")
        tensor([[0.6940],
                [0.7450]])
    """
    return _shifted(keyed_bits(seeds, purpose, count), 40).to(torch.float32) * 2.0**-24


def _key(purpose: str | int) -> int:
    """A 64-bit number: the FNV-1a hash of a text, or the integer itself, spread over all bits."""
    if isinstance(purpose, str):
        bits = 0xCBF29CE484222325
        for byte in purpose.encode():
            bits = (bits ^ byte) * 0x100000001B3 & _MASK
    else:
        bits = purpose & _MASK
    bits = bits + _GOLDEN & _MASK
    bits = (bits ^ bits >> 30) * _FIRST & _MASK
    bits = (bits ^ bits >> 27) * _SECOND & _MASK
    return bits ^ bits >> 31


def _signed(bits: int) -> int:
    """The int64 of the same bits."""
    return bits - 2**64 if bits >= 2**63 else bits


def _shifted(bits: Tensor, count: int) -> Tensor:
    """Shifted to the right as unsigned numbers are; torch's own shift repeats the sign."""
    return (bits >> count) & (2 ** (64 - count) - 1)
