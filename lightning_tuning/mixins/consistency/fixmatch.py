"""FixMatch: confident predictions on weak views are the labels of strong views."""

from __future__ import annotations

from typing import Any

from lightning_tuning.errors import check_range
from lightning_tuning.functional import fixmatch_loss
from lightning_tuning.mixins.base import TuningMixin, add_to_loss
from lightning_tuning.mixins.plan import Cost

from .streams import labeled_part, split_streams, weak_and_strong


class FixMatchMixin(TuningMixin):
    """Learns from unlabelled inputs by pseudo labels it is sure of (Sohn et al., 2020).

    The likeliest class of the weakly augmented view, where its probability reaches the threshold, is the target of the
    strongly augmented view. Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong": x}}``; the
    host's own step gets the labelled part. With a teacher mixin left of it the teacher gives the pseudo labels.

    Args:
        fixmatch_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        fixmatch_threshold: Least probability of a pseudo label that counts, in ``[0, 1]``; the paper's 0.95.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form.

    Source: Sohn et al., 2020, "FixMatch: simplifying semi-supervised learning with consistency and confidence",
    equations 3 and 4, algorithm 1. The three batches go through the network one after the other, the weak one without a
    graph; the authors' code joins them, which changes batch norm's statistics only.
    """

    stem = "fixmatch"
    stage = "split"
    off = {"fixmatch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    tasks = ("multiclass",)
    sharded = True

    def __init__(
        self, *args: Any, fixmatch_weight: float = 1.0, fixmatch_threshold: float = 0.95, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("fixmatch_weight", fixmatch_weight)
        check_range("fixmatch_threshold", fixmatch_threshold, 0.0, 1.0)
        self.fixmatch_weight = fixmatch_weight
        self.fixmatch_threshold = fixmatch_threshold

    def extra_cost(self) -> Cost:
        return Cost(2, 1, "the unlabelled batch's activations")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.fixmatch_weight == 0:
            return super().training_step(labeled_part(batch), batch_idx)
        labeled, unlabeled = split_streams(batch, "FixMatchMixin")
        output = super().training_step(labeled, batch_idx)
        if output is None:
            return None
        weak, strong = weak_and_strong(unlabeled, "FixMatchMixin")
        pseudo = self.pseudo_logits(weak)
        loss, share = fixmatch_loss(self(strong), pseudo, self.fixmatch_threshold)
        self.log_term("fixmatch", loss)
        self.log_term("fixmatch_share", share)
        return add_to_loss(output, self.fixmatch_weight * loss)
