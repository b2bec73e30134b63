"""Histograms of magnitudes in octaves, read from the exponents of the floating-point numbers."""

from __future__ import annotations

import torch
from torch import Tensor

LOWEST, HIGHEST = -48, 15
"""The exponents of the first and the last octave."""
OCTAVES = HIGHEST - LOWEST + 1


def magnitude_counts(tensors: list[Tensor]) -> Tensor:
    """How many elements of each tensor lie in each octave, are zero, are not finite.

    Octave ``k`` holds the magnitudes in ``[2^e, 2^(e + 1))`` with ``e = k - 48``; the first one holds all smaller ones
    too, the last one all larger ones. The exponent is read from the number's bits, so nothing is rounded.

    Args:
        tensors: Floating tensors of any shape, at least one, on one device.

    Returns:
        Counts ``[len(tensors), 66]``: 64 octaves, the zeros, and what is infinite or NaN.

    Example:
        >>> counts = magnitude_counts([torch.tensor([0.0, 1.0, -1.9, 2.0, 2.0**-60, float("nan")])])
        >>> counts[0, -2:].tolist(), counts[0, 0].item(), counts[0, 48:50].tolist()
        ([1, 1], 1, [2, 1])
    """
    counts = torch.stack([torch.bincount(_exponents(t).flatten(), minlength=256) for t in tensors])
    zeros = torch.stack([t.numel() - torch.count_nonzero(t) for t in tensors])
    # Of the 256 exponents 0 is that of zero and of what float32 cannot write with full precision, 255 is not finite.
    first, last = LOWEST + 127, HIGHEST + 127
    lowest = counts[:, : first + 1].sum(1) - zeros
    highest = counts[:, last:255].sum(1)
    parts = [lowest[:, None], counts[:, first + 1 : last], highest[:, None], zeros[:, None], counts[:, 255:]]
    return torch.cat(parts, 1)


def _exponents(tensor: Tensor) -> Tensor:
    """The exponent bits that each element has, or would have, in float32."""
    if tensor.dtype == torch.float64:
        bits = tensor.contiguous().view(torch.int64) >> 52 & 0x7FF
        return torch.where(bits == 0x7FF, 255, (bits - 1023 + 127).clamp(0, 254))
    return tensor.float().view(torch.int32) >> 23 & 0xFF
