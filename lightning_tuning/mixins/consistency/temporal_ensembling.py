"""Temporal ensembling: predictions must agree with the average of those of earlier epochs."""

from __future__ import annotations

from typing import Any, Literal

import torch.nn.functional as F
from torch import Tensor

from lightning_tuning.errors import InvalidValueError, check_choice, check_count, check_range
from lightning_tuning.functional import temporal_ensembling_loss
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.inputs import check_class_logits
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.prediction_table import PredictionTable
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.ranks import gather_rows
from lightning_tuning.mixins.unlabeled import UnlabeledMixin


class TemporalEnsemblingMixin(UnlabeledMixin):
    """Pulls each prediction to the average of the same sample's predictions in earlier epochs (Laine & Aila, 2017).

    Once an epoch each sample's average becomes ``Z = alpha Z + (1 - alpha) z`` with z its prediction in training, of
    the weak view; the target is ``Z / (1 - alpha^t)`` with t the number of updates of that sample, and the term the
    mean over samples and classes of ``(p - target)^2``. Samples without an update yet, all of the first epoch, count
    as 0. Of a sample drawn more than once in an epoch z is the mean. Samples are known by ids: ``{"weak": x, "strong":
    x, "index": ids}`` in the unlabelled stream, or ``(x, target, ids)`` without one.

    Args:
        temporal_ensembling_weight: Factor of the term, >= 0; the paper's 30 for the mean over samples and classes.
            Off: 0.
        temporal_ensembling_alpha: Share of the old average that stays at an update, in ``[0, 1)``.
        temporal_ensembling_ramp: How the weight rises, e.g. ``sigmoid 40%``, ``linear 2000 steps`` or ``sigmoid 80
            epochs``. None: the full weight from the first step.
        temporal_ensembling_samples: Number of samples, at least 1; ids are below it, and all rows of the table are made
            at once. None: the table grows with the largest id.
        temporal_ensembling_statistics: Whether batch norm sees the labelled and the unlabelled inputs apart
            (``separate``) or as one batch (``joint``).

    Raises:
        InvalidValueError: An argument is out of range, the batch has no ids or one that is out of range, or the output
            is not one of two or more classes.

    Source: Laine & Aila, 2017, "Temporal ensembling for semi-supervised learning", its pseudocode.
    """

    stem = "temporal_ensembling"
    off = {"temporal_ensembling_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    whole_batch = "notes each batch's predictions in its table"
    fixed = ("temporal_ensembling_alpha",)
    tasks = ("multiclass",)

    def __init__(
        self,
        *args: Any,
        temporal_ensembling_weight: float = 30.0,
        temporal_ensembling_alpha: float = 0.6,
        temporal_ensembling_ramp: str | None = None,
        temporal_ensembling_samples: int | None = None,
        temporal_ensembling_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("temporal_ensembling_weight", temporal_ensembling_weight)
        check_range("temporal_ensembling_alpha", temporal_ensembling_alpha, 0.0, 1.0, open_high=True)
        check_count("temporal_ensembling_samples", temporal_ensembling_samples, 1, optional=True)
        check_choice("temporal_ensembling_statistics", temporal_ensembling_statistics, ("separate", "joint"))
        self.temporal_ensembling_weight = temporal_ensembling_weight
        self.temporal_ensembling_alpha = temporal_ensembling_alpha
        self.temporal_ensembling_ramp = check_ramp("temporal_ensembling_ramp", temporal_ensembling_ramp)
        self.temporal_ensembling_samples = temporal_ensembling_samples
        self.temporal_ensembling_statistics = temporal_ensembling_statistics
        if temporal_ensembling_weight != 0:
            self.temporal_ensembling_state = PredictionTable(temporal_ensembling_alpha, temporal_ensembling_samples)

    def extra_cost(self) -> Cost:
        return Cost(1, 1, "the unlabelled batch's activations, two rows of classes a sample")

    def on_train_start(self) -> None:
        super().on_train_start()
        # A second fit may begin with the epoch that the first one ended in.
        if self.temporal_ensembling_weight != 0 and self.trainer.ckpt_path is None:
            self.temporal_ensembling_state.fold()

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.temporal_ensembling_weight == 0:
            return super().training_step(batch, batch_idx)
        unlabeled, table = self.unlabeled_of(batch, "TemporalEnsemblingMixin"), self.temporal_ensembling_state
        index = _checked_ids(unlabeled.index, self.temporal_ensembling_samples)
        forward = self.along(unlabeled.weak, joint=self.temporal_ensembling_statistics == "joint")
        output = super().training_step(batch, batch_idx)
        if output is None:
            return None
        logits = forward()
        check_class_logits(logits, "TemporalEnsemblingMixin")
        predictions = F.softmax(at_least_float32(logits.detach()), dim=1)
        table.begin_epoch(self.current_epoch)
        target, known = table.target(index, predictions)
        if not self.replaying:
            table.record(gather_rows(index), gather_rows(predictions))
        term = temporal_ensembling_loss(logits, target, known)
        self.log_term("temporal_ensembling_share", known.float().mean())
        weight = self.ramped(self.temporal_ensembling_weight, self.temporal_ensembling_ramp)
        return self.add_term("temporal_ensembling", output, term, weight)


def _checked_ids(index: Tensor | None, size: int | None) -> Tensor:
    """The ids of a batch's samples.

    Raises:
        InvalidValueError: There are none, or one is negative or not below ``size``.
    """
    if index is None:
        raise InvalidValueError(
            "TemporalEnsemblingMixin needs to know which samples a batch holds, but it has no ids. Give integers [N], "
            'one a sample and the same in each epoch: unlabelled batches {"weak": x, "strong": x, "index": ids}, or '
            "(x, target, ids) without an unlabelled stream. The datamodules of lightning_tuning have them in their "
            "unlabelled batches."
        )
    low, high = (int(bound) for bound in index.aminmax()) if len(index) else (0, 0)
    if low < 0 or (size is not None and high >= size):
        allowed = "at least 0" if size is None else f"from 0 to {size - 1}, as temporal_ensembling_samples is {size}"
        wrong = low if low < 0 else high
        raise InvalidValueError(f"The id {wrong} of a sample is out of range; it must be {allowed}.")
    return index.long()
