"""Flips, crops, erasing and normalising of whole batches, with a number for each sample and without loops over them."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn.functional import pad

from .samples import of_samples


def batch_flip(x: Tensor, flip: Tensor) -> Tensor:
    """Mirror some of the images left to right.

    Args:
        x: Images or masks ``[N, ..., H, W]`` of any type.
        flip: Which ones, booleans ``[N]``.

    Returns:
        ``[N, ..., H, W]``, laid out in memory as ``x`` is.

    Example:
        >>> batch_flip(torch.tensor([[[1, 2]], [[3, 4]]]), torch.tensor([True, False])).tolist()
        [[[2, 1]], [[3, 4]]]
    """
    # On a CPU index_select copies whole images, in half the time of torch.where. It returns the layout of the indices,
    # so the dimensions go in by falling stride.
    order = [0, *sorted(range(1, x.ndim), key=x.stride, reverse=True)]
    both = torch.cat([x, x.flip(-1)]).permute(order)
    chosen = both.index_select(0, torch.arange(len(x), device=x.device) + len(x) * flip)
    return chosen.permute([order.index(d) for d in range(x.ndim)])


def batch_crop(x: Tensor, padding: int, top: Tensor, left: Tensor, fill: float = 0.0) -> Tensor:
    """Pad each side, then cut each image down to its size again at a place of its own.

    Args:
        x: Images or masks ``[N, ..., H, W]`` of any type.
        padding: Pixels added to each of the four sides, at least 0.
        top: First row of the cut in the padded image, ``[N]`` of int64 from 0 to ``2 * padding``; ``padding`` is the
            image's own place.
        left: First column of the cut, likewise.
        fill: Value of the pixels added.

    Returns:
        ``[N, ..., H, W]``, laid out in memory as ``x`` is.

    Example:
        >>> batch_crop(torch.tensor([[[1, 2], [3, 4]]]), 1, torch.tensor([0]), torch.tensor([2])).tolist()
        [[[0, 0], [2, 0]]]
    """
    height, width = x.shape[-2:]
    padded = pad(x, (padding,) * 4, value=fill)
    # A view of all cuts there are, [N, 2 * padding + 1, 2 * padding + 1, ..., H, W], of which one a sample is read.
    cuts = padded.unfold(-2, height, 1).unfold(-2, width, 1).movedim((-4, -3), (1, 2))
    return cuts[torch.arange(len(x), device=x.device), top, left]


def batch_erase(x: Tensor, top: Tensor, left: Tensor, height: Tensor, width: Tensor, fill: float = 0.0) -> Tensor:
    """Overwrite one box in each image.

    Args:
        x: Images or masks ``[N, ..., H, W]`` of any type.
        top: First row of each box, ``[N]`` integers. A box may reach over the border.
        left: First column of each box, ``[N]`` integers.
        height: Rows of each box, ``[N]`` integers; 0 erases nothing.
        width: Columns of each box, ``[N]`` integers; 0 erases nothing.
        fill: The new value; on normalised images 0 is the mean.

    Returns:
        ``[N, ..., H, W]``, laid out in memory as ``x`` is.

    Example:
        >>> one = torch.tensor([1])
        >>> batch_erase(torch.ones(1, 2, 3, dtype=torch.uint8), one, one, one, 2 * one, fill=9).tolist()
        [[[1, 1, 1], [1, 9, 9]]]
    """
    rows = _inside(top, height, x.shape[-2])
    columns = _inside(left, width, x.shape[-1])
    box = rows[:, :, None] & columns[:, None, :]
    box = box.view(len(x), *[1] * (x.ndim - 3), *x.shape[-2:])
    if x.dtype == torch.uint8:  # on a CPU a fifth of the time of a broadcast mask
        return x * ~box + box.to(x.dtype) * int(fill)
    # A copy first: masked_fill would not keep channels_last.
    return x.clone().masked_fill_(box, fill)


def _inside(first: Tensor, count: Tensor, side: int) -> Tensor:
    offset = torch.arange(side, device=first.device) - first[:, None]
    return (offset >= 0) & (offset < count[:, None])


def flip_boxes(boxes: Tensor, flip: Tensor, width: int) -> Tensor:
    """Move bounding boxes as :func:`batch_flip` moves the pixels.

    Args:
        boxes: ``[N, K, 4]``, (left, top, right, bottom) in pixels; the image's edges are at 0 and ``width``.
        flip: Which samples, booleans ``[N]``.
        width: Columns of the images.

    Returns:
        ``[N, K, 4]``.

    Example:
        >>> flip_boxes(torch.tensor([[[1, 0, 3, 2]]]), torch.tensor([True]), 8).tolist()
        [[[5, 0, 7, 2]]]
    """
    left, top, right, bottom = boxes.unbind(-1)
    return torch.where(of_samples(flip, boxes), torch.stack([width - right, top, width - left, bottom], -1), boxes)


def crop_boxes(boxes: Tensor, padding: int, top: Tensor, left: Tensor, height: int, width: int) -> Tensor:
    """Move bounding boxes as :func:`batch_crop` moves the pixels, and clip them to the image.

    Args:
        boxes: ``[N, K, 4]``, (left, top, right, bottom) in pixels.
        padding: As in :func:`batch_crop`.
        top: As in :func:`batch_crop`.
        left: As in :func:`batch_crop`.
        height: Rows of the images.
        width: Columns of the images.

    Returns:
        ``[N, K, 4]``; a box that lies wholly outside has no area.

    Example:
        >>> crop_boxes(torch.tensor([[[1, 0, 3, 2]]]), 4, torch.tensor([5]), torch.tensor([2]), 8, 8).tolist()
        [[[3, 0, 5, 1]]]
    """
    shift = padding - torch.stack([left, top, left, top], -1)[:, None]
    side = torch.tensor([width, height, width, height], device=boxes.device)
    return torch.minimum((boxes + shift).clamp(min=0), side.to(boxes.dtype))


def fused_normalize(
    x: Tensor,
    mean: Tensor,
    std: Tensor,
    dtype: torch.dtype = torch.float32,
    memory_format: torch.memory_format = torch.preserve_format,
) -> Tensor:
    """``(x - 255 mean) / (255 std)``: one pass that converts, then two in place.

    Args:
        x: uint8 ``[N, C, H, W]``, or floating with values of 0 to 255; it is not changed.
        mean: Mean of each channel, of values in [0, 1]: float32 ``[C]`` on the device of ``x``.
        std: Standard deviation of each channel, above 0, likewise.
        dtype: Type of the result, which is computed in float32.
        memory_format: Layout of the result in memory; without it that of ``x``.

    Returns:
        ``[N, C, H, W]``; in float32 the same bits as :class:`lightning_tuning.data.normalize.Normalize` gives.

    Example:
        >>> half = torch.tensor([0.5])
        >>> fused_normalize(torch.full((1, 1, 1, 2), 255, dtype=torch.uint8), half, half).tolist()
        [[[[1.0, 1.0]]]]
    """
    batch = x.to(torch.float32, copy=True, memory_format=memory_format)
    return batch.sub_((255 * mean).view(-1, 1, 1)).div_((255 * std).view(-1, 1, 1)).to(dtype)
