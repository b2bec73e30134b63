"""The training step of the techniques that learn from pseudo labels: a gate and a target."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.functional.pseudo_label import hard, pseudo_label_loss

from .composition import techniques_of
from .gates import Gate
from .inputs import check_class_logits, map_inputs
from .plan import Cost
from .unlabeled import UnlabeledMixin, agreement


@dataclass(frozen=True)
class PseudoLabels:
    """The targets of strong views."""

    probabilities: Tensor
    """Aligned predictions on the weak views, ``[N, C, ...]``."""
    label: Tensor
    """Class ids ``[N, ...]`` or probabilities ``[N, C, ...]``."""
    weights: Tensor
    """How much each counts, ``[N, ...]``."""


class PseudoLabelsMixin(UnlabeledMixin):
    """Base of the techniques in which predictions on weak views are the targets of strong views."""

    def extra_cost(self) -> Cost:
        return Cost(2, 1, "the unlabelled batch's activations")

    def _pseudo_label_step(
        self,
        stem: str,
        batch: Any,
        batch_idx: int,
        *,
        weight: float,
        gate: Callable[[Tensor, Tensor | None, bool], Tensor],
        target: Callable[[Tensor], Tensor] = hard,
        joint: bool = False,
        divergence: bool = False,
        also: Callable[[Any, Tensor, Tensor], Any] | None = None,
    ) -> Any:
        """The host's step and the loss on pseudo labels.

        Args:
            stem: The technique's, for what is logged.
            batch: As ``unlabeled_of`` takes it.
            batch_idx: The batch's number.
            weight: Factor of the loss.
            gate: Weighs the pseudo labels, a ``Gate`` or a function: of the weak views' probabilities ``[N, C, ...]``,
                the ids ``[N]`` and whether the batch may move a state (not where a window is passed through again) it
                makes weights ``[N, ...]``.
            target: Makes the pseudo label of these probabilities, after the gate.
            joint: Whether batch norm may see labelled and strongly augmented inputs as one batch.
            divergence: Whether the loss is the KL divergence from the target, not the cross entropy.
            also: Adds another term: of the step's output, the strong views' logits ``[M, C, ...]`` and their weights
                ``[M, ...]``, without those that had no pass, it makes the output. Called by every rank.
        """
        technique = next(t for t in techniques_of(type(self)) if t.stem == stem)
        name = technique.__name__
        unlabeled = self.unlabeled_of(batch, name, two_views=True)
        logits = self.pseudo_logits(unlabeled.weak)
        check_class_logits(logits, name)
        q = at_least_float32(logits).softmax(dim=1)
        weights = gate(q, unlabeled.index, not self.replaying)
        labels = PseudoLabels(q, target(q), weights)
        kept, strong = self._needing_a_pass(labels.weights, unlabeled.strong)
        forward = None if strong is None else self.along(strong, joint)
        # What stands right of the technique: right of this class, others of it in between would be passed over.
        output = super(technique, self).training_step(batch, batch_idx)
        if output is None:
            return None
        strong_logits = q[:0] if forward is None else forward()
        if isinstance(gate, Gate):
            self.log_term(f"{stem}_threshold", gate.threshold.mean())
        output = self._add_pseudo_labels(
            stem, output, strong_logits, labels, kept, unlabeled.target, weight, divergence=divergence
        )
        return output if also is None else also(output, strong_logits, weights[kept])

    def _needing_a_pass(self, weights: Tensor, strong: Any) -> tuple[Any, Any]:
        """Which rows of the strong views need a pass, as an index, and these; None instead of no row at all.

        Where a sample's logits depend on it alone, those that count nothing need none.
        """
        if self.samples_coupled():
            return slice(None), strong
        kept = weights.reshape(len(weights), -1).any(1).nonzero()[:, 0]
        return kept, map_inputs(lambda values: values[kept], strong) if len(kept) else None

    def _add_pseudo_labels(
        self,
        stem: str,
        output: Any,
        logits: Tensor,
        labels: PseudoLabels,
        kept: Any,
        target: Tensor | None,
        weight: float,
        *,
        divergence: bool = False,
    ) -> Any:
        """Add the loss on pseudo labels, and record how many count and, where the true classes are known, are right.

        Args:
            stem: The technique's.
            output: The host's.
            logits: Those of the strong views that had a pass, ``[M, C, ...]``.
            labels: Those of all strong views.
            kept: The index of the views that had a pass.
            target: The true classes ``[N, ...]``, if they are known.
            weight: Factor of the loss.
            divergence: Whether it is the KL divergence from the labels, which then are probabilities.
        """
        weights, label = labels.weights, labels.label[kept]
        self.log_term(f"{stem}_share", weights.mean())
        if target is not None:
            right, known = (which.to(weights.dtype) for which in agreement(labels.probabilities.argmax(dim=1), target))
            counted = (weights > 0).to(weights.dtype) * known
            precision = (right * counted).sum() / counted.sum().clamp(min=1)
            self.log_term(f"{stem}_precision", precision, count=counted.sum())
        loss = pseudo_label_loss(logits, label, weights[kept], weights.numel())
        if divergence:  # the cross entropy less the targets' own entropy
            loss = loss - (weights[kept] * torch.special.entr(label).sum(dim=1)).sum() / weights.numel()
        return self.add_term(stem, output, loss, weight)
