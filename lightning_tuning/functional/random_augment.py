"""Random flips, crops and erasing of whole batches, each sample with the random numbers of its own seed."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from .batch_augment import batch_crop, batch_erase, batch_flip
from .keyed_random import keyed_uniform


class Boxes(NamedTuple):
    """One box of pixels for each sample, all of int64 ``[N]``; a height of 0 is an empty box."""

    top: Tensor
    left: Tensor
    height: Tensor
    width: Tensor


def sample_flips(seeds: Tensor, p: float) -> Tensor:
    """Which samples to mirror: booleans ``[N]``, each True with probability ``p`` in [0, 1].

    Example:
        >>> sample_flips(torch.arange(4), 1.0).tolist()
        [True, True, True, True]
    """
    return keyed_uniform(seeds, "flip")[:, 0] < p


def sample_shifts(seeds: Tensor, padding: int) -> tuple[Tensor, Tensor]:
    """First row and first column of each sample's cut, int64 ``[N]``, uniform in ``0 .. 2 * padding``.

    Example:
        >>> top, left = sample_shifts(torch.arange(1000), 4)
        >>> top.unique().tolist() == left.unique().tolist() == list(range(9))
        True
    """
    top, left = (keyed_uniform(seeds, "crop", 2) * (2 * padding + 1)).long().unbind(1)
    return top, left


def sample_erasing(
    seeds: Tensor,
    height: int,
    width: int,
    p: float,
    scale: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
) -> Boxes:
    """The box that random erasing overwrites in each sample (Zhong et al., 2020, algorithm 1).

    The paper draws a box anywhere again and again until it lies inside the image. Here there is one draw: the
    area's share is uniform in ``scale``; the ratio is log-uniform in the part of ``ratio`` with which that area fits
    into the image; the place is uniform among those where the box lies inside. If no ratio fits, the nearest one
    is taken and the box is cut to the image. Sides are rounded to whole pixels, at least 1.

    Args:
        seeds: int64 ``[N]``; see :func:`~lightning_tuning.functional.keyed_bits`.
        height: Rows of the images.
        width: Columns of the images.
        p: Probability of a box, in [0, 1].
        scale: Smallest and largest share of the image's area, in (0, 1].
        ratio: Smallest and largest height divided by width, above 0.

    Returns:
        The boxes; those of samples left alone are of height and width 0.

    Example:
        >>> boxes = sample_erasing(torch.arange(100), 32, 32, p=1.0, scale=(0.25, 0.25), ratio=(1.0, 1.0))
        >>> boxes.height.unique().tolist(), boxes.width.unique().tolist(), int(boxes.top.max())
        ([16], [16], 16)
    """
    # In float64, in which the last bit of exp, the one thing that devices may disagree on, is too small to tell.
    # Apple's devices do not have it.
    precision = torch.float32 if seeds.device.type == "mps" else torch.float64
    erased, share, shape, row, column = keyed_uniform(seeds, "erase", 5).to(precision).unbind(1)
    area = (scale[0] + share * (scale[1] - scale[0])) * (height * width)
    low = (area / width**2).log().clamp(min=math.log(ratio[0]), max=math.log(ratio[1]))
    high = (height**2 / area).log().clamp(min=math.log(ratio[0]), max=math.log(ratio[1]))
    chosen = (low + shape * (high - low)).exp()
    on = erased < p
    rows = (area * chosen).sqrt().round().clamp(1, height)
    columns = (area / chosen).sqrt().round().clamp(1, width)
    top, left = row * (height - rows + 1), column * (width - columns + 1)
    return Boxes(top.long(), left.long(), rows.long() * on, columns.long() * on)


def random_flip(x: Tensor, seeds: Tensor, p: float = 0.5) -> Tensor:
    """Mirror each image left to right with probability ``p``.

    Args:
        x: Images or masks ``[N, ..., H, W]``; a mask with the seeds of its images moves as they do.
        seeds: int64 ``[N]``; see :func:`~lightning_tuning.functional.keyed_bits`.
        p: In [0, 1]. 0 returns ``x`` itself.

    Example:
        >>> random_flip(torch.tensor([[[1, 2]]]), torch.tensor([5]), p=1.0).tolist()
        [[[2, 1]]]
    """
    return batch_flip(x, sample_flips(seeds, p)) if p else x


def random_crop(x: Tensor, seeds: Tensor, padding: int = 4, fill: float = 0.0) -> Tensor:
    """Shift each image by up to ``padding`` pixels in both directions: pad, then crop at random.

    Args:
        x: Images or masks ``[N, ..., H, W]``; a mask with the seeds of its images moves as they do.
        seeds: int64 ``[N]``; see :func:`~lightning_tuning.functional.keyed_bits`.
        padding: Pixels, at least 0. 0 returns ``x`` itself.
        fill: Value of the pixels that come in from outside; of a mask, the class that the loss ignores.

    Example:
        >>> x = torch.arange(16).view(1, 4, 4)
        >>> random_crop(x, torch.tensor([5]), padding=1).shape
        torch.Size([1, 4, 4])
    """
    return batch_crop(x, padding, *sample_shifts(seeds, padding), fill) if padding else x


def random_erase(
    x: Tensor,
    seeds: Tensor,
    p: float = 0.5,
    scale: tuple[float, float] = (0.02, 0.4),
    ratio: tuple[float, float] = (0.3, 1 / 0.3),
    fill: float = 0.0,
) -> Tensor:
    """Overwrite one random box with probability ``p`` in each image.

    Args:
        x: Images ``[N, ..., H, W]``.
        seeds: int64 ``[N]``; see :func:`~lightning_tuning.functional.keyed_bits`.
        p: In [0, 1]. 0 returns ``x`` itself.
        scale: Smallest and largest share of the image's area, in (0, 1].
        ratio: Smallest and largest height divided by width, above 0.
        fill: The new value; on normalised images 0 is the mean.

    Source: Zhong et al., 2020, "Random erasing data augmentation", algorithm 1; how the box is drawn differs, see
    :func:`sample_erasing`. The defaults of ``scale`` and ``ratio`` are the paper's for CIFAR-10.

    Example:
        >>> erased = random_erase(torch.ones(1, 1, 4, 4), torch.tensor([5]), 1.0, (0.25, 0.25), (1.0, 1.0))
        >>> int(erased.sum())
        12
    """
    if not p:
        return x
    height, width = x.shape[-2:]
    return batch_erase(x, *sample_erasing(seeds, height, width, p, scale, ratio), fill)
