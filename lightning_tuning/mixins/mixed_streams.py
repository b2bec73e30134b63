"""What the techniques share that mix labelled inputs with unlabelled ones whose labels they guess."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import dominant_shares, labeled_part, mix
from lightning_tuning.functional.precision import at_least_float32

from .inputs import check_class_logits, check_inputs, map_inputs
from .mixing import soft_target
from .unlabeled import Unlabeled, UnlabeledMixin, agreement, fits, joined


class MixedStreams(NamedTuple):
    """All samples of a batch, mixed."""

    batch: Any
    """The batch with a mixed labelled part."""
    x: Any
    """The mixed unlabelled inputs, all views one after the other."""
    target: Tensor
    """Their labels, probabilities ``[K * M, C, ...]``."""
    softened: bool
    """Whether the labelled part had class ids, which are probabilities now."""


class MixedStreamsMixin(UnlabeledMixin):
    """Base of MixMatch and ReMixMatch."""

    needs_streams = True

    def _check_mixable(self, technique: str, batch: Any, views: list[Any]) -> None:
        """Refuse unlabelled inputs of another shape than the labelled ones, and inputs that cannot be mixed."""
        x, _ = self.unpack_batch(labeled_part(batch))
        check_inputs(x, technique)
        for view in views:
            if not fits(x, view):
                raise InvalidValueError(
                    f"{technique} mixes labelled with unlabelled inputs, but these are {_described(view)}, and the "
                    f"labelled ones {_described(x)}. They must be alike in all but the number of samples."
                )
        for values in x.values() if isinstance(x, Mapping) else [x]:
            if not values.is_floating_point():
                raise InvalidValueError(
                    f"{technique} cannot mix inputs of type {values.dtype}. It mixes floating tensors only: use it on "
                    "images or vectors. FixMatchMixin takes token ids."
                )

    def _predicted(self, technique: str, views: list[Any]) -> Tensor:
        """The mean of the predictions on views of the same inputs, probabilities ``[N, C, ...]`` without graph."""
        logits = [self.pseudo_logits(view) for view in views]
        check_class_logits(logits[0], technique)
        return torch.stack([at_least_float32(z).softmax(dim=1) for z in logits]).mean(dim=0)

    def _mix_streams(self, technique: str, batch: Any, views: list[Any], guess: Tensor, alpha: float) -> MixedStreams:
        """Mix all samples, labelled and unlabelled, each with a random one of them all (Berthelot et al., 2019,
        algorithm 1).

        Args:
            technique: Who asks, for messages.
            batch: ``{"labeled": ..., "unlabeled": ...}``.
            views: The unlabelled inputs to mix, K views of the same M samples.
            guess: Their labels, probabilities ``[M, C, ...]``.
            alpha: Both parameters of the shares' Beta distribution.
        """
        labeled = labeled_part(batch)
        x, target = self.unpack_batch(labeled)
        soft = soft_target(self, technique, target)
        labels = torch.cat([soft.to(guess.dtype), *[guess] * len(views)])
        shares = dominant_shares(len(labels), alpha).to(labels.device)
        partner = torch.randperm(len(labels), device=labels.device)
        inputs = map_inputs(lambda values: mix(values, partner, shares), joined([x, *views]))
        labels, count = mix(labels, partner, shares), len(soft)
        packed = self.pack_batch(labeled, map_inputs(lambda values: values[:count], inputs), labels[:count])
        rest = map_inputs(lambda values: values[count:], inputs)
        return MixedStreams({**batch, "labeled": packed}, rest, labels[count:], soft is not target)

    def _log_precision(self, stem: str, guess: Tensor, unlabeled: Unlabeled) -> None:
        """Record how often a guess's likeliest class is the true one, where the batch tells."""
        if unlabeled.target is not None:
            right, known = agreement(guess.argmax(dim=1), unlabeled.target)
            precision = right.sum() / known.sum().clamp(min=1)
            self.log_term(f"{stem}_precision", precision, count=known.sum())


def _described(x: Any) -> str:
    if isinstance(x, Mapping):
        return "{" + ", ".join(f"{key!r}: {_described(value)}" for key, value in x.items()) + "}"
    return f"{x.dtype} {list(x.shape)}" if isinstance(x, Tensor) else f"a {type(x).__name__}"
