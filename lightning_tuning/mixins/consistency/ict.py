"""Interpolation consistency: the prediction for a mixture is the mixture of the predictions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.functional import interpolation_consistency, mix, sample_beta
from lightning_tuning.mixins.inputs import check_class_logits, check_inputs, first_tensor, map_inputs
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.unlabeled import UnlabeledMixin


class ICTMixin(UnlabeledMixin):
    """Pulls the prediction for a mixture of two inputs to the mixture of their predictions (Verma et al., 2019).

    The squared difference of the probabilities, averaged over samples and classes, is added to the loss. It needs no
    labels: it acts on the unlabelled part of a batch ``{"labeled": ..., "unlabeled": ...}``, or on all inputs of a
    batch without one. The predictions that are mixed carry no gradient; with a teacher mixin left of it they are the
    teacher's, as in the paper, else the student's own.

    Args:
        ict_weight: Factor of the squared difference, >= 0; 1 to 100 in the paper. Off: 0.
        ict_alpha: Parameter of the Beta distribution that the share lambda is drawn from, once a batch, > 0; 0.1 to 2
            in the paper. 1 is the uniform distribution, small values give weak mixtures.
        ict_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as in
            ``"linear 40%"``, ``"sigmoid 5 epochs"`` or ``"cosine 2000 steps"``. None: the full weight at once.
        ict_statistics: Whether batch norm sees the labelled inputs and the mixtures as batches apart (``separate``) or
            as one (``joint``). Without batch norm they always go through the network as one.

    Raises:
        InvalidValueError: An argument is out of range, the batch is of another form, an input cannot be mixed (integers
            such as token ids), or the output is not one of two or more classes.

    Source: Verma et al., 2019, "Interpolation consistency training for semi-supervised learning", the paper's
    algorithm.
    """

    stem = "ict"
    off = {"ict_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    whole_batch = "mixes each sample with another of its batch"
    tasks = ("multiclass",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        ict_weight: float = 50.0,
        ict_alpha: float = 0.5,
        ict_ramp: str | None = None,
        ict_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("ict_weight", ict_weight)
        check_range("ict_alpha", ict_alpha, open_low=True)
        check_choice("ict_statistics", ict_statistics, ("separate", "joint"))
        self.ict_weight = ict_weight
        self.ict_alpha = ict_alpha
        self.ict_ramp = check_ramp("ict_ramp", ict_ramp)
        self.ict_statistics = ict_statistics

    def extra_cost(self) -> Cost:
        return Cost(2, 1, "a mixed copy of the unlabelled inputs and its activations")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.ict_weight == 0:
            return super().training_step(batch, batch_idx)
        x = self.unlabeled_of(batch, "ICTMixin").weak
        check_inputs(x, "ICTMixin")
        first = first_tensor(x)
        share = sample_beta(self.ict_alpha)
        partner = torch.randperm(len(first), device=first.device)
        mixed = map_inputs(lambda values: _mixed(values, partner, share), x)
        logits = self.pseudo_logits(x)
        check_class_logits(logits, "ICTMixin")
        of_mixed = self.along(mixed, joint=self.ict_statistics == "joint")
        output = super().training_step(batch, batch_idx)
        if output is None:
            return None
        loss = interpolation_consistency(of_mixed(), logits, partner, share)
        return self.add_term("ict", output, loss, self.ramped(self.ict_weight, self.ict_ramp))


def _mixed(values: Tensor, partner: Tensor, share: float) -> Tensor:
    if not values.is_floating_point():
        raise InvalidValueError(
            f"ICTMixin cannot mix inputs of type {values.dtype}. It mixes floating tensors only: use it on images or "
            "vectors, or leave it off (ict_weight=0). VATMixin moves the embeddings, and so takes token ids."
        )
    return mix(values, partner, share)
