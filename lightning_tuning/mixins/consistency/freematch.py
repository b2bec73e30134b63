"""FreeMatch: thresholds that follow the network's confidence, and a term against unequal predictions."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.functional import class_fairness
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.alignments import class_rows
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.gates import SelfAdaptiveThreshold
from lightning_tuning.mixins.pseudo_labels import PseudoLabelsMixin
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.ranks import rank_sum


class FreeMatchMixin(PseudoLabelsMixin):
    """Learns from pseudo labels with self-adaptive thresholds and fairness (Wang et al., 2023).

    The threshold is the moving average of the confidence on weak views, times how often a class is predicted compared
    with the most frequent one. The fairness term spreads the predictions on strong views over the classes. Batches are
    ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong": x}}``.

    Args:
        freematch_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        freematch_momentum: Share of the old averages that stays at each optimizer step, in ``[0, 1]``; the paper's
            0.999.
        freematch_fairness_weight: Factor of the fairness term, >= 0, beside ``freematch_weight``; the paper's 0.001 to
            0.05. 0: without it.
        freematch_ramp: How both weights rise from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as
            in ``"linear 40%"``, ``"sigmoid 5 epochs"`` or ``"cosine 2000 steps"``. None: the full weights at once.
        freematch_statistics: Whether batch norm sees the labelled and the strongly augmented inputs as batches apart
            (``separate``) or as one (``joint``). Without batch norm they always go through the network as one, and
            inputs whose pseudo labels do not count are left out.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form.

    Source: Wang et al., 2023, "FreeMatch: self-adaptive thresholding for semi-supervised learning", equations 5 to 12.
    """

    stem = "freematch"
    off = {"freematch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    whole_batch = "compares a sample with averages over its batch"
    fixed = ("freematch_momentum",)
    tasks = ("multiclass",)
    conflicts = alternatives("freematch")
    needs_streams = True
    sharded = True

    def __init__(
        self,
        *args: Any,
        freematch_weight: float = 1.0,
        freematch_momentum: float = 0.999,
        freematch_fairness_weight: float = 0.01,
        freematch_ramp: str | None = None,
        freematch_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("freematch_weight", freematch_weight)
        check_range("freematch_momentum", freematch_momentum, 0.0, 1.0)
        check_range("freematch_fairness_weight", freematch_fairness_weight)
        check_choice("freematch_statistics", freematch_statistics, ("separate", "joint"))
        self.freematch_weight = freematch_weight
        self.freematch_momentum = freematch_momentum
        self.freematch_fairness_weight = freematch_fairness_weight
        self.freematch_ramp = check_ramp("freematch_ramp", freematch_ramp)
        self.freematch_statistics = freematch_statistics
        if freematch_weight > 0:
            self.freematch_state = SelfAdaptiveThreshold(self.class_count("FreeMatchMixin"), freematch_momentum)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.freematch_weight == 0:
            return super().training_step(batch, batch_idx)
        return self._pseudo_label_step(
            "freematch",
            batch,
            batch_idx,
            weight=self.ramped(self.freematch_weight, self.freematch_ramp),
            gate=self.freematch_state,
            joint=self.freematch_statistics == "joint",
            also=self._fairness if self.freematch_fairness_weight > 0 else None,
        )

    def _fairness(self, output: Any, strong_logits: Tensor, weights: Tensor) -> Any:
        p = class_rows(at_least_float32(strong_logits).softmax(dim=1))
        counted = weights.reshape(-1, 1).to(p.dtype)
        predicted = torch.nn.functional.one_hot(p.argmax(dim=1), p.shape[1])
        average, histogram = (values.to(p.dtype) for values in self.freematch_state.expected)
        fairness = class_fairness(
            rank_sum((p * counted).sum(dim=0)), rank_sum((predicted * counted).sum(dim=0)), average, histogram
        )
        weight = self.ramped(self.freematch_fairness_weight, self.freematch_ramp)
        return self.add_term("freematch_fairness", output, fairness, weight)
