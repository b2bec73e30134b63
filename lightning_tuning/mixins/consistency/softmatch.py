"""SoftMatch: each pseudo label weighs as much as it is trusted."""

from __future__ import annotations

from typing import Any, Literal

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.gates import TruncatedGaussian
from lightning_tuning.mixins.pseudo_labels import PseudoLabelsMixin
from lightning_tuning.mixins.ramps import check_ramp


class SoftMatchMixin(PseudoLabelsMixin):
    """Learns from all pseudo labels, the less certain ones with less weight (Chen et al., 2023).

    The weight is 1 from the moving average of the confidence on, and falls below it as a Gaussian whose width is the
    confidence's own. Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong": x}}``.

    Args:
        softmatch_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        softmatch_sigmas: How many standard deviations of the weight make one of the confidence, > 0: the larger, the
            more it is like a threshold. The authors' code's 2.
        softmatch_momentum: Share of the old averages that stays at each optimizer step, in ``[0, 1]``; the paper's
            0.999.
        softmatch_alignment: Whether the confidence that is weighed is that of uniformly aligned predictions, which
            weighs rarely predicted classes up. The labels stay what they are.
        softmatch_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as
            in ``"linear 40%"``, ``"sigmoid 5 epochs"`` or ``"cosine 2000 steps"``. None: the full weight at once.
        softmatch_statistics: Whether batch norm sees the labelled and the strongly augmented inputs as batches apart
            (``separate``) or as one (``joint``). Without batch norm they always go through the network as one.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form.

    Source: Chen et al., 2023, "SoftMatch: addressing the quantity-quality trade-off in semi-supervised learning",
    equations 5 to 9.
    """

    stem = "softmatch"
    off = {"softmatch_weight": 0.0}
    needs = ("training_step", "forward")
    changes = ("batch", "loss", "buffers")
    whole_batch = "compares a sample with averages over its batch"
    fixed = ("softmatch_momentum",)
    tasks = ("multiclass",)
    conflicts = alternatives("softmatch")
    needs_streams = True
    sharded = True

    def __init__(
        self,
        *args: Any,
        softmatch_weight: float = 1.0,
        softmatch_sigmas: float = 2.0,
        softmatch_momentum: float = 0.999,
        softmatch_alignment: bool = True,
        softmatch_ramp: str | None = None,
        softmatch_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("softmatch_weight", softmatch_weight)
        check_range("softmatch_sigmas", softmatch_sigmas, open_low=True)
        check_range("softmatch_momentum", softmatch_momentum, 0.0, 1.0)
        check_choice("softmatch_statistics", softmatch_statistics, ("separate", "joint"))
        self.softmatch_weight = softmatch_weight
        self.softmatch_sigmas = softmatch_sigmas
        self.softmatch_momentum = softmatch_momentum
        self.softmatch_alignment = softmatch_alignment
        self.softmatch_ramp = check_ramp("softmatch_ramp", softmatch_ramp)
        self.softmatch_statistics = softmatch_statistics
        if softmatch_weight > 0:
            count = self.class_count("SoftMatchMixin")
            self.softmatch_state = TruncatedGaussian(count, softmatch_momentum, softmatch_sigmas, softmatch_alignment)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.softmatch_weight == 0:
            return super().training_step(batch, batch_idx)
        self.softmatch_state.n_sigma = self.softmatch_sigmas
        return self._pseudo_label_step(
            "softmatch",
            batch,
            batch_idx,
            weight=self.ramped(self.softmatch_weight, self.softmatch_ramp),
            gate=self.softmatch_state,
            joint=self.softmatch_statistics == "joint",
        )
