"""Mixup: train on convex combinations of pairs of samples."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import class_probabilities, mix, sample_beta
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.inputs import first_tensor, map_inputs


class MixupMixin(TuningMixin):
    """Trains on mixtures of two samples and of their labels (Zhang et al., 2018).

    One share lambda ~ Beta(alpha, alpha) a batch; each sample is mixed with a random partner of the same batch. The
    host sees an ordinary batch whose target is probabilities ``[N, C]``; the module needs ``num_classes``.

    Args:
        mixup_alpha: Parameter of the Beta distribution, >= 0; 0.1 to 0.4 for large data sets, 1.0 for small ones.
            Off: 0.

    Raises:
        InvalidValueError: ``mixup_alpha`` is negative, or an input cannot be mixed (integers such as token ids).

    Source: Zhang et al., 2018, "mixup: beyond empirical risk minimization", equation 1.
    """

    stem = "mixup"
    stage = "mix"
    off = {"mixup_alpha": 0.0}
    needs = ("training_step", "num_classes")
    changes = ("batch", "target")
    sharded = True

    def __init__(self, *args: Any, mixup_alpha: float = 1.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_range("mixup_alpha", mixup_alpha)
        self.mixup_alpha = mixup_alpha

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.mixup_alpha == 0:
            return super().training_step(batch, batch_idx)
        x, target = self.unpack_batch(batch)
        target = class_probabilities(target, self.class_count())
        share = sample_beta(self.mixup_alpha)
        device = first_tensor(x).device
        partner = torch.randperm(len(target), device=device)

        def mixed(values: Tensor) -> Tensor:
            if not values.is_floating_point():
                raise InvalidValueError(
                    f"MixupMixin cannot mix inputs of type {values.dtype}. It mixes floating tensors only: use it on "
                    "images or vectors, or leave it off (mixup_alpha=0)."
                )
            return mix(values, partner, share)

        # The larger share of a mixture: 0.5 is an even mixture, 1 none.
        self.log_term("mixup", torch.tensor(max(share, 1 - share)))
        batch = self.pack_batch(batch, map_inputs(mixed, x), mixed(target))
        try:
            return super().training_step(batch, batch_idx)
        except Exception as error:
            if hasattr(error, "add_note"):  # Python 3.11
                error.add_note(_NOTE)
            raise


_NOTE = (
    "MixupMixin made the target of this batch class probabilities [N, C]. Cross entropy takes them; an accuracy has to "
    "use target.argmax(1) where target.ndim == 2."
)
