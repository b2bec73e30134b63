"""Dash: pseudo labels count whose loss is below a threshold that falls from the labelled loss."""

from __future__ import annotations

from typing import Any, Literal

import torch
import torch.nn.functional as F
from torch import Tensor

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.functional import sharpen
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.gates import LossThreshold
from lightning_tuning.mixins.pseudo_labels import PseudoLabelsMixin
from lightning_tuning.mixins.ramps import check_ramp
from lightning_tuning.mixins.ranks import rank_mean
from lightning_tuning.timing.durations import check_duration, duration_of


class DashMixin(PseudoLabelsMixin):
    """Learns from the pseudo labels with the smallest losses, ever fewer (Xu et al., 2021).

    After a warm-up on labelled inputs alone the threshold is the labelled loss ``r``. It falls as
    ``max(scale * decay^-k * r, floor)``. A pseudo label counts where the loss of the weak view on its own likeliest
    class is at most that. Targets are sharpened probabilities, and the likeliest class once the threshold is at its
    floor.
    Batches are ``{"labeled": <the host's batch>, "unlabeled": {"weak": x, "strong": x}}``.

    Args:
        dash_weight: Factor of the unlabelled loss, >= 0; the paper's 1. Off: 0.
        dash_scale: ``C``, factor of the threshold, at least 1; the paper's 1.0001.
        dash_decay: ``gamma``, what the threshold is divided by whenever it falls, > 1; the paper's 1.27.
        dash_floor: The least threshold, >= 0; the paper's 0.05, a probability of 0.951.
        dash_temperature: Temperature of the targets above the floor, > 0; below 1 it sharpens.
        dash_warmup: How long only the labelled loss counts: ``"1%"`` of the run, ``"5 epochs"`` or ``"2000 steps"``.
            The labelled loss is averaged over its last steps, about ten.
        dash_interval: How often the threshold falls, likewise; the paper's is 10 of 1024 epochs.
        dash_ramp: How the weight rises from the start on: ``linear``, ``sigmoid`` or ``cosine``, and a length, as in
            ``"linear 40%"``, ``"sigmoid 5 epochs"`` or ``"cosine 2000 steps"``. None: the full weight at once.
        dash_statistics: Whether batch norm sees the labelled and the strongly augmented inputs as batches apart
            (``separate``) or as one (``joint``). Without batch norm they always go through the network as one, and
            inputs whose pseudo labels do not count are left out.

    Raises:
        InvalidValueError: An argument is out of range, or the batch is of another form.

    Source: Xu et al., 2021, "Dash: semi-supervised learning with dynamic thresholding", the paper's algorithm.
    """

    stem = "dash"
    off = {"dash_weight": 0.0}
    needs = ("training_step", "forward", "compute_loss")
    changes = ("batch", "loss", "buffers")
    whole_batch = "takes its threshold from the mean loss of batches"
    fixed = ("dash_scale", "dash_decay", "dash_floor")
    tasks = ("multiclass",)
    conflicts = alternatives("dash")
    needs_streams = True
    sharded = True
    _dash_observes = False

    def __init__(
        self,
        *args: Any,
        dash_weight: float = 1.0,
        dash_scale: float = 1.0001,
        dash_decay: float = 1.27,
        dash_floor: float = 0.05,
        dash_temperature: float = 0.5,
        dash_warmup: str = "1%",
        dash_interval: str = "1%",
        dash_ramp: str | None = None,
        dash_statistics: Literal["separate", "joint"] = "separate",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("dash_weight", dash_weight)
        check_range("dash_scale", dash_scale, 1.0)
        check_range("dash_decay", dash_decay, 1.0, open_low=True)
        check_range("dash_floor", dash_floor)
        check_range("dash_temperature", dash_temperature, open_low=True)
        check_choice("dash_statistics", dash_statistics, ("separate", "joint"))
        self.dash_weight = dash_weight
        self.dash_scale = dash_scale
        self.dash_decay = dash_decay
        self.dash_floor = dash_floor
        self.dash_temperature = dash_temperature
        self.dash_warmup = check_duration("dash_warmup", dash_warmup)
        self.dash_interval = check_duration("dash_interval", dash_interval)
        self.dash_ramp = check_ramp("dash_ramp", dash_ramp)
        self.dash_statistics = dash_statistics
        if dash_weight > 0:
            self.dash_state = LossThreshold(dash_scale, dash_decay, dash_floor)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.dash_weight == 0:
            return super().training_step(batch, batch_idx)
        steps = self._steps_after_warmup()
        if steps < 0:
            self.unlabeled_of(batch, "DashMixin", two_views=True)  # a wrong batch is told at once
            self._dash_observes = not self.replaying
            try:
                return super().training_step(batch, batch_idx)
            finally:
                self._dash_observes = False
        self.dash_state.drops = int(steps // self._length(self.dash_interval))
        return self._pseudo_label_step(
            "dash",
            batch,
            batch_idx,
            weight=self.ramped(self.dash_weight, self.dash_ramp),
            gate=self.dash_state,
            target=self._target,
            joint=self.dash_statistics == "joint",
        )

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        if self._dash_observes:
            self._dash_observes = False
            self.dash_state.observe(rank_mean(F.cross_entropy(at_least_float32(logits.detach()), target)))
        return super().compute_loss(logits, target)

    def _target(self, q: Tensor) -> Tensor:
        one_hot = F.one_hot(q.argmax(dim=1), q.shape[1]).movedim(-1, 1).to(q.dtype)
        at_floor = self.dash_state.threshold <= self.dash_floor
        return torch.where(at_floor, one_hot, sharpen(q, self.dash_temperature))

    def _steps_after_warmup(self) -> float:
        if self._trainer is None:
            return 0.0
        return self.trainer.global_step - max(1.0, self._length(self.dash_warmup))

    def _length(self, text: str) -> float:
        return 1.0 if self._trainer is None else max(1.0, self.steps_in(duration_of(text)))
