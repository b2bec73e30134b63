"""AdaMatch: labelled predictions set the threshold and the classes' shares of the unlabelled ones."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from lightning_tuning.errors import check_range
from lightning_tuning.functional import hard, is_batch_norm
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.alignments import Alignment, class_rows
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.inner_pass import in_inner_pass
from lightning_tuning.mixins.inputs import check_class_logits
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.mixins.pseudo_labels import PseudoLabels, PseudoLabelsMixin
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.ranks import gather_rows


class AdaMatchMixin(PseudoLabelsMixin):
    """Learns from unlabelled inputs of another distribution than the labelled ones (Berthelot et al., 2022).

    Pseudo labels are aligned with the classes' shares in the labelled predictions, and count from a part of the
    labelled confidence on. With batch norm the labelled logits are drawn between those of a pass with the unlabelled
    inputs and those of a pass without. Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong":
    x}}``.

    Args:
        adamatch_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        adamatch_threshold: Least probability of a pseudo label that counts, as a part of the labelled batch's mean
            confidence, in ``[0, 1]``; the paper's 0.9.
        adamatch_momentum: Share of the old averages of the predictions that stays at each optimizer step, in
            ``[0, 1]``.
        adamatch_interpolation: Whether labelled logits are interpolated at random. Without batch norm, or with manifold
            mixup, both passes would be one and the same, and only one is made.
        adamatch_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as
            in ``"cosine 50%"`` (the paper's), ``"sigmoid 5 epochs"`` or ``"linear 2000 steps"``. None: the full weight
            at once.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form.

    Source: Berthelot et al., 2022, "AdaMatch: a unified approach to semi-supervised learning and domain adaptation".
    """

    stem = "adamatch"
    off = {"adamatch_weight": 0.0}
    needs = ("training_step", "forward", "compute_loss")
    changes = ("batch", "loss", "buffers")
    whole_batch = "compares a sample with averages over its batch"
    fixed = ("adamatch_momentum",)
    tasks = ("multiclass",)
    conflicts = alternatives("adamatch")
    needs_streams = True
    sharded = True
    _adamatch_interpolates = False
    _adamatch_waits = False
    _adamatch_labeled: Tensor | None = None
    """The predictions on this step's labelled inputs, once they are known."""

    def __init__(
        self,
        *args: Any,
        adamatch_weight: float = 1.0,
        adamatch_threshold: float = 0.9,
        adamatch_momentum: float = 0.999,
        adamatch_interpolation: bool = True,
        adamatch_ramp: str | None = "cosine 50%",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("adamatch_weight", adamatch_weight)
        check_range("adamatch_threshold", adamatch_threshold, 0.0, 1.0)
        check_range("adamatch_momentum", adamatch_momentum, 0.0, 1.0)
        self.adamatch_weight = adamatch_weight
        self.adamatch_threshold = adamatch_threshold
        self.adamatch_momentum = adamatch_momentum
        self.adamatch_interpolation = adamatch_interpolation
        self.adamatch_ramp = check_ramp("adamatch_ramp", adamatch_ramp)
        if adamatch_weight > 0:
            self.adamatch_state = Alignment(self.class_count("AdaMatchMixin"), adamatch_momentum, labeled=True)

    def extra_cost(self) -> Cost:
        return Cost(3, 3, "the activations of the unlabelled batch's two views and of the labelled batch again")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.adamatch_weight == 0:
            return super().training_step(batch, batch_idx)
        unlabeled = self.unlabeled_of(batch, "AdaMatchMixin", two_views=True)
        self._adamatch_interpolates = joint = self.adamatch_interpolation and self._norms_couple()
        students = joint and self.teacher_module() is None
        riders = [self.along(unlabeled.strong, joint=True)] if joint else []
        if students:
            riders.append(self.along(unlabeled.weak, joint=True))
        self._adamatch_waits = True
        try:
            output = super().training_step(batch, batch_idx)
        finally:
            self._adamatch_interpolates = self._adamatch_waits = False
        labeled, self._adamatch_labeled = self._adamatch_labeled, None
        if output is None or labeled is None:
            return output
        weak = riders[1]().detach() if students else self.pseudo_logits(unlabeled.weak)
        check_class_logits(weak, "AdaMatchMixin")
        labels, threshold = self._pseudo_labels(at_least_float32(weak).softmax(dim=1), labeled)
        if joint:
            kept, logits = slice(None), riders[0]()
        else:
            kept, strong = self._needing_a_pass(labels.weights, unlabeled.strong)
            logits = weak[:0] if strong is None else self(strong)
        self.log_term("adamatch_threshold", threshold)
        weight = self.ramped(self.adamatch_weight, self.adamatch_ramp)
        return self._add_pseudo_labels("adamatch", output, logits, labels, kept, unlabeled.target, weight)

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._adamatch_waits:
            self._adamatch_waits = False
            self._adamatch_labeled = at_least_float32(logits.detach()).softmax(dim=1)
        return super().compute_loss(logits, target)

    def forward(self, *args: Any, **kwargs: Any) -> Any:
        interpolates = self._adamatch_interpolates and torch.is_grad_enabled() and not in_inner_pass(self)
        joint = super().forward(*args, **kwargs)
        if not interpolates:
            return joint
        self._adamatch_interpolates = False
        with self._norms_kept():  # as in the authors' code only the pass with the unlabelled inputs moves them
            separate = super().forward(*args, **kwargs)
        return torch.lerp(joint, separate, torch.rand_like(joint))

    def _pseudo_labels(self, q: Tensor, labeled: Tensor) -> tuple[PseudoLabels, Tensor]:
        confidence = gather_rows(class_rows(labeled)).amax(dim=1).mean()
        threshold = self.adamatch_threshold * confidence
        aligned = self.adamatch_state(q, labeled, record=not self.replaying)
        weights = (aligned.amax(dim=1) >= threshold).to(q.dtype)
        return PseudoLabels(aligned, hard(aligned), weights), threshold

    def _norms_couple(self) -> bool:
        return self.samples_coupled() and not any(t.couples for t in self.active_techniques())

    @contextmanager
    def _norms_kept(self) -> Iterator[None]:
        norms = [m for m in self.modules() if m.training and is_batch_norm(m)]
        kept = [(m, name, buffer) for m in norms for name, buffer in m.named_buffers(recurse=False)]
        # Copies for the time being: written back in place, the buffers would spoil the first pass's graph.
        for norm, name, buffer in kept:
            setattr(norm, name, buffer.clone())
        try:
            yield
        finally:
            for norm, name, buffer in kept:
                setattr(norm, name, buffer)
