"""Mixup: train on convex combinations of pairs of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import mix, sample_beta
from lightning_tuning.mixins.inputs import first_tensor, map_inputs
from lightning_tuning.mixins.mixing import MixingMixin, Run, soft_target


class MixupMixin(MixingMixin):
    """Trains on mixtures of two samples and of their labels (Zhang et al., 2018).

    One share lambda ~ Beta(alpha, alpha) a batch; each sample is mixed with a random partner of the same batch. The
    host sees an ordinary batch. Class ids become probabilities ``[N, C]``, for which the module needs ``num_classes``;
    floating targets (probabilities, several labels, regression) are mixed as they are.

    Args:
        mixup_alpha: Parameter of the Beta distribution, >= 0; 0.1 to 0.4 for large data sets, 1.0 for small ones.
            Off: 0.
        mixup_probability: Chance that a batch is mixed, in (0, 1]; with other mixings on, its chance among them.
        mixup_off_epoch: First epoch, counted from 0, that is not mixed any more, >= 1. None mixes to the end.

    Raises:
        InvalidValueError: An argument is out of range, or an input cannot be mixed (integers such as token ids).

    Source: Zhang et al., 2018, "mixup: beyond empirical risk minimization", equation 1.
    """

    stem = "mixup"
    off = {"mixup_alpha": 0.0}
    changes = ("batch", "target")
    whole_batch = "mixes each sample with another of its batch"
    sharded = True

    def __init__(
        self,
        *args: Any,
        mixup_alpha: float = 1.0,
        mixup_probability: float = 1.0,
        mixup_off_epoch: int | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("mixup_alpha", mixup_alpha)
        self.mixup_alpha = mixup_alpha
        self._set_mixing("mixup", mixup_probability, mixup_off_epoch)

    def _mixing_step(self, run: Run, x: Any, target: Any) -> Any:
        soft = soft_target(self, "MixupMixin", target)
        share = sample_beta(self.mixup_alpha)
        partner = torch.randperm(len(soft), device=first_tensor(x).device)

        def mixed(values: Tensor) -> Tensor:
            if not values.is_floating_point():
                raise InvalidValueError(
                    f"MixupMixin cannot mix inputs of type {values.dtype}. It mixes floating tensors only: use it on "
                    "images or vectors, or leave it off (mixup_alpha=0). ManifoldMixupMixin mixes hidden layers, and "
                    "so takes token ids."
                )
            return mix(values, partner, share)

        # The larger share of a mixture: 0.5 is an even mixture, 1 none.
        self.log_term("mixup", torch.tensor(max(share, 1 - share)))
        return run(map_inputs(mixed, x), mix(soft, partner, share))
