"""Random omission of activations: whole branches, blocks of a map, and how its rate changes over a run."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor


def drop_path(x: Tensor, rate: float, batch_dim: int = 0) -> Tensor:
    """Set whole samples of ``x`` to zero and scale the others, so that the expectation stays.

    Args:
        x: A residual branch, any shape with the samples along ``batch_dim``.
        rate: Probability that a sample is dropped, in [0, 1).
        batch_dim: The dimension of the samples.

    Returns:
        ``b * x / (1 - rate)`` of the shape of ``x``, with one ``b`` in {0, 1} a sample. Source: Huang et al., 2016,
        "Deep networks with stochastic depth", equation 2, here scaled in training instead of in evaluation.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> drop_path(torch.ones(4, 2), rate=0.5)[:, 0]
        tensor([0., 2., 0., 0.])
    """
    shape = [1] * x.ndim
    shape[batch_dim] = x.shape[batch_dim]
    kept = torch.rand(shape, device=x.device) >= rate
    # Divided by a Python number, and not by a bf16 mask, whose rounding would bias the expectation.
    return torch.where(kept, x / (1 - rate), 0)


def drop_block_gamma(rate: float, size: int, height: int, width: int) -> float:
    """The probability of a block's corner that makes the share of dropped pixels about ``rate``.

    Args:
        rate: The share of pixels to drop, in [0, 1).
        size: Height and width of a block; clipped to the map.
        height: Height of the map.
        width: Width of the map.

    Returns:
        ``rate * H W / (b_h b_w (H - b_h + 1) (W - b_w + 1))``. Source: Ghiasi et al., 2018, "DropBlock", equation 1.

    Example:
        >>> drop_block_gamma(0.1, size=1, height=8, width=8)
        0.1
    """
    rows, columns = min(size, height), min(size, width)
    corners = (height - rows + 1) * (width - columns + 1)
    return rate * height * width / (rows * columns * corners)


def drop_block_mask(x: Tensor, rate: float, size: int) -> Tensor:
    """Where DropBlock drops: blocks that lie wholly within the map, drawn for each sample and channel by itself.

    Args:
        x: Maps ``[..., C, H, W]``.
        rate: The share of pixels to drop, in [0, 1).
        size: Height and width of a block, even or odd; clipped to the map.

    Returns:
        True where dropped, a boolean tensor ``[..., C, H, W]``.
    """
    *outer, height, width = x.shape
    rows, columns = min(size, height), min(size, width)
    corners = torch.rand(*outer, height - rows + 1, width - columns + 1, device=x.device)
    drawn = corners < drop_block_gamma(rate, size, height, width)
    return _reaching(_reaching(F.pad(drawn, (0, columns - 1, 0, rows - 1)), rows, -2), columns, -1)


def _reaching(mask: Tensor, length: int, dim: int) -> Tensor:
    """``mask`` with each True made a run of ``length`` along ``dim`` (-2 or -1). Max pooling would do it too, on a CPU
    5 to 20 times slower."""
    reach = 1
    while reach < length:
        step = min(reach, length - reach)
        mask = mask | F.pad(mask, (step, -step) if dim == -1 else (0, 0, step, -step))
        reach += step
    return mask


def drop_block(x: Tensor, rate: float, size: int) -> Tensor:
    """Set blocks of the maps ``x`` to zero, and scale what is left by the share of the pixels kept in all of ``x``.

    Args:
        x: Maps ``[N, C, H, W]`` or ``[C, H, W]``.
        rate: The share of pixels to drop, in [0, 1).
        size: Height and width of a block; clipped to the map.

    Returns:
        A tensor of the shape of ``x``; zero where all is dropped, and ``x`` itself if its maps are single pixels, such
        as those of squeeze-and-excitation, which have no neighbours. Source: Ghiasi et al., 2018, "DropBlock",
        algorithm 1.

    Example:
        >>> _ = torch.manual_seed(0)
        >>> drop_block(torch.ones(1, 1, 4, 4), rate=0.3, size=2)[0, 0]
        tensor([[2., 2., 0., 0.],
                [0., 0., 0., 0.],
                [0., 0., 2., 2.],
                [2., 2., 2., 2.]])
    """
    if x.shape[-2:].numel() == 1:
        return x
    dropped = drop_block_mask(x, rate, size)
    kept = dropped.numel() - dropped.sum()
    scale = torch.where(kept > 0, dropped.numel() / kept, 1)
    return torch.where(dropped, 0, x * scale)


def drop_rate(schedule: str, rate: float, progress: float, gamma: float = 10.0, share: float = 0.2) -> float:
    """The dropout rate at one moment of a run.

    Args:
        schedule: ``constant``; ``linear``: rising from 0 at the start to ``rate`` at the end; ``curriculum``: rising as
            ``rate * (1 - exp(-gamma * progress))``; ``early``: falling linearly to 0 over the first ``share`` of the
            run and 0 from there on.
        rate: The full rate.
        progress: The share of the run that is over, in [0, 1].
        gamma: How fast ``curriculum`` rises.
        share: Where ``early`` ends, in (0, 1].

    Returns:
        The rate. Sources: Morerio et al., 2017, "Curriculum dropout", the exponential schedule; Liu et al., 2023,
        "Dropout reduces underfitting", with the linear decrease of the authors' commands.

    Example:
        >>> [drop_rate("linear", 0.5, progress) for progress in (0.0, 0.5, 1.0)]
        [0.0, 0.25, 0.5]
        >>> [drop_rate("early", 0.5, progress, share=0.5) for progress in (0.0, 0.25, 0.5, 0.75)]
        [0.5, 0.25, 0.0, 0.0]
    """
    if schedule == "linear":
        return rate * progress
    if schedule == "curriculum":
        return rate * (1 - math.exp(-gamma * progress))
    if schedule == "early":
        return rate * max(1 - progress / share, 0.0)
    return rate
