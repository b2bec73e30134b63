"""CutMix: train on images with a box pasted in from another image."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import mix, paste, sample_beta, sample_box
from lightning_tuning.mixins.inputs import first_tensor, image_size, map_inputs
from lightning_tuning.mixins.mixing import MixingMixin, Run, soft_target


class CutMixMixin(MixingMixin):
    """Pastes a box of another image into each image and mixes the labels by area (Yun et al., 2019).

    One box a batch: its area is 1 - lambda of the image, lambda ~ Beta(alpha, alpha), its centre uniform. It is clipped
    to the image, and lambda becomes the share of pixels that stay. Each image gets the box of a random partner of the
    same batch. Class ids ``[N]`` become probabilities ``[N, C]``, for which the module needs ``num_classes``; floating
    targets are mixed as they are. Into targets with an image of their own, such as masks ``[N, H, W]``, the partner's
    box is pasted too, so that ids stay ids.

    Args:
        cutmix_alpha: Parameter of the Beta distribution, >= 0; the paper's 1.0 draws the area uniformly. Off: 0.
        cutmix_probability: Chance that a batch is mixed, in (0, 1]; the paper's 0.5 on CIFAR and 1.0 on ImageNet. With
            other mixings on, its chance among them.
        cutmix_off_epoch: First epoch, counted from 0, that is not mixed any more, >= 1. None mixes to the end.

    Raises:
        InvalidValueError: An argument is out of range, or the inputs are not images ``[N, C, H, W]``.

    Source: Yun et al., 2019, "CutMix: regularization strategy to train strong classifiers with localizable features",
    equations 1 and 2, algorithm 1.
    """

    stem = "cutmix"
    off = {"cutmix_alpha": 0.0}
    changes = ("batch", "target")
    whole_batch = "mixes each sample with another of its batch"
    sharded = True

    def __init__(
        self,
        *args: Any,
        cutmix_alpha: float = 1.0,
        cutmix_probability: float = 1.0,
        cutmix_off_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("cutmix_alpha", cutmix_alpha)
        self.cutmix_alpha = cutmix_alpha
        self._set_mixing("cutmix", cutmix_probability, cutmix_off_epoch)

    def _mixing_step(self, run: Run, x: Any, target: Any) -> Any:
        height, width = image_size(x, "CutMixMixin", _OTHERWISE)
        dense = isinstance(target, Tensor) and target.ndim > 2
        if dense and target.shape[-2:] != (height, width):
            raise InvalidValueError(
                f"CutMixMixin pastes the same box into images and target, but the images are {height} by {width} and "
                f"the target is {list(target.shape)}. Give a target of the images' size, or leave it off "
                "(cutmix_alpha=0)."
            )
        soft = target if dense else soft_target(self, "CutMixMixin", target)
        box = sample_box(height, width, 1 - sample_beta(self.cutmix_alpha))
        partner = torch.randperm(len(soft), device=first_tensor(x).device)
        share = 1 - box.area / (height * width)

        def pasted(values: Tensor) -> Tensor:
            return paste(values, partner, box)

        self.log_term("cutmix", torch.tensor(max(share, 1 - share)))
        return run(map_inputs(pasted, x), pasted(soft) if dense else mix(soft, partner, share))


_OTHERWISE = (
    "Use MixupMixin for vectors and sequences, ManifoldMixupMixin for token ids, or leave it off (cutmix_alpha=0)."
)
