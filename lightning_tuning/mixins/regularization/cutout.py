"""Cutout: train on images with a square missing."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_count
from lightning_tuning.functional import squares
from lightning_tuning.mixins.inputs import first_tensor, image_size, map_inputs
from lightning_tuning.mixins.mixing import MixingMixin, Run


class CutoutMixin(MixingMixin):
    """Sets a square of each training image to 0, which is the mean of normalised images (DeVries & Taylor, 2017).

    Each image has its own square, around a pixel drawn uniformly, so that it may reach over the border. The target
    stays as it is.

    Args:
        cutout_size: Side of the square in pixels, >= 0; the paper's 16 on CIFAR-10 and 8 on CIFAR-100 (32 pixels a
            side). Off: 0.
        cutout_probability: Chance that a batch gets squares, in (0, 1]; with other mixings on, its chance among them.
        cutout_off_epoch: First epoch, counted from 0, without squares, >= 1. None goes on to the end.

    Raises:
        InvalidValueError: An argument is out of range, the inputs are not images ``[N, C, H, W]``, or they are smaller
            than the square.

    Source: DeVries & Taylor, 2017, "Improved regularization of convolutional neural networks with cutout", section 3.
    """

    stem = "cutout"
    off = {"cutout_size": 0}
    changes = ("batch",)
    sharded = True
    _mixing_pairs = False

    def __init__(
        self,
        *args: Any,
        cutout_size: int = 8,
        cutout_probability: float = 1.0,
        cutout_off_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_count("cutout_size", cutout_size, 0)
        self.cutout_size = cutout_size
        self._set_mixing("cutout", cutout_probability, cutout_off_epoch)

    def _mixing_step(self, run: Run, x: Any, target: Any) -> Any:
        height, width = image_size(x, "CutoutMixin", "Leave it off (cutout_size=0).")
        if self.cutout_size > max(height, width):
            raise InvalidValueError(
                f"cutout_size is {self.cutout_size}, but the images are {height} by {width}; it must be at most "
                f"{max(height, width)}. Half a side is a large square."
            )
        count, device = len(first_tensor(x)), first_tensor(x).device
        rows = torch.randint(height, (count,), device=device)
        columns = torch.randint(width, (count,), device=device)
        missing = squares(rows, columns, self.cutout_size, height, width)

        def cut(values: Tensor) -> Tensor:
            return values.masked_fill(missing, 0)

        # The share of the pixels that are missing.
        self.log_term("cutout", missing.float().mean())
        return run(map_inputs(cut, x), target)
