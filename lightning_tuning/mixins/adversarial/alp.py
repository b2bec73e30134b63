"""Adversarial logit pairing: clean inputs and their adversarial versions get equal logits."""

from __future__ import annotations

from typing import Any, Literal

import torch
from torch import Tensor

from lightning_tuning.errors import check_range
from lightning_tuning.functional import counted, error_odds, logit_distance
from lightning_tuning.mixins.attack import Attack, log_adversarial
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.inputs import check_class_logits, map_inputs
from lightning_tuning.mixins.perturbable import Perturbable
from lightning_tuning.mixins.plan import Cost


class ALPMixin(TuningMixin):
    """Trains on clean and adversarial inputs and adds ``weight * ||f(x) - f(x')||^2`` of their logits (Kannan et al.,
    2018).

    The host's step runs on the batch of both, so its loss is the mean of ``CE(x)`` and ``CE(x')``. x' maximises the
    cross entropy. The robustness reported for it did not hold against stronger attacks (Engstrom et al., 2018); for
    robust networks take adversarial training, TRADES or MART.

    Args:
        alp_weight: Factor of the distance, >= 0; 0.5 to 1, divided by the number of classes for the authors' scaling. 0
            leaves training on both kinds of inputs. Off: None.
        alp_epsilon: Radius of the ball around each input, >= 0, in pixels of [0, 1] where the module or its datamodule
            has ``normalize``, else in the inputs' own unit; 0.031 for CIFAR-10, 0.3 for MNIST.
        alp_steps: Gradient steps of the search, >= 1; 10, for MNIST 40.
        alp_step_size: Length of a step, > 0, in the unit of epsilon. None: 2.5 * epsilon / steps, for a
            single step 1.25 * epsilon.
        alp_norm: The ball's norm: ``linf`` or ``l2``.

    Raises:
        InvalidValueError: A value is out of its range, or the output is not one of two or more classes.

    Source: Kannan, Kurakin & Goodfellow, 2018, "Adversarial logit pairing", with an attack that is not targeted.
    Engstrom, Ilyas & Athalye, 2018, "Evaluating and understanding the robustness of adversarial logit
    pairing".
    """

    stem = "alp"
    stage = "attack"
    off = {"alp_weight": None}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("batch", "target", "loss")
    tasks = ("multiclass",)
    conflicts = alternatives("alp")

    def __init__(
        self,
        *args: Any,
        alp_weight: float | None = 0.5,
        alp_epsilon: float = 0.031,
        alp_steps: int = 10,
        alp_step_size: float | None = None,
        alp_norm: Literal["linf", "l2"] = "linf",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if alp_weight is not None:
            check_range("alp_weight", alp_weight)
        self.alp_weight = alp_weight
        self.alp_epsilon = alp_epsilon
        self.alp_steps = alp_steps
        self.alp_step_size = alp_step_size
        self.alp_norm = alp_norm
        self._alp_attack()  # checks the arguments
        self._alp_doubled = False

    def _alp_attack(self) -> Attack:
        return Attack.of(self, "alp", "uniform")

    def extra_cost(self) -> Cost:
        return Cost(self.alp_steps + 1, self.alp_steps + 1, "the activations of a second batch")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.alp_weight is None:
            return super().training_step(batch, batch_idx)
        x, target = self.unpack_batch(batch)
        spot = Perturbable(self, x, "ALPMixin")
        delta = self.kept_for_replay("alp", lambda: self._alp_delta(spot, target))
        both = Perturbable(self, map_inputs(_twice, x), "ALPMixin")
        self._alp_doubled = True
        try:
            with both.moved([torch.cat([torch.zeros_like(d), d]) for d in delta]) as moved:
                return super().training_step(self.pack_batch(batch, moved, _twice(target)), batch_idx)
        finally:
            self._alp_doubled = False

    def _alp_delta(self, spot: Perturbable, target: Tensor) -> list[Tensor]:
        return self._alp_attack().perturb(self, spot, lambda logits: error_odds(_checked(logits), target))

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        if self.alp_weight is None or not self._alp_doubled:
            return loss
        self._alp_doubled = False  # a host may call it again for a second head
        clean, adversarial = logits.chunk(2)
        log_adversarial(self, "alp", adversarial, target.chunk(2)[1])
        distance = logit_distance(clean, adversarial, counted(target.chunk(2)[0]))
        return self.add_term("alp", loss, distance, self.alp_weight)


def _checked(logits: Tensor) -> Tensor:
    check_class_logits(logits, "ALPMixin")
    return logits


def _twice(values: Tensor) -> Tensor:
    return torch.cat([values, values])
