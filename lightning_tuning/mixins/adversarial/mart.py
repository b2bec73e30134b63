"""MART: adversarial training that weighs samples by how well they are classified."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_tuning.errors import check_range
from lightning_tuning.functional import error_odds, mart_divergence, mart_margin
from lightning_tuning.mixins.attack import Attack, log_adversarial
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.inputs import check_class_logits, check_compared
from lightning_tuning.mixins.perturbable import Perturbable
from lightning_tuning.mixins.plan import Cost


class MARTMixin(TuningMixin):
    """Trains on adversarial inputs x', with more weight on the samples that are misclassified when clean (Wang et al.,
    2020).

    The loss is that of x', plus ``-log(1 - max_{k != y} p_k(x'))``, plus ``weight * KL(p(x) || p(x')) * (1 - p_y(x))``.
    x' maximises the cross entropy. The host's step runs on x', so its metrics are those of x', and label smoothing and
    the like act on its cross entropy. Where the target is class probabilities (mixup), y is averaged over.

    Args:
        mart_weight: Factor of the weighted divergence, lambda of the paper, >= 0; 5. 0 leaves the two terms of the
            boosted cross entropy. Off: None.
        mart_epsilon: Radius of the ball around each input, >= 0, in pixels of [0, 1] where the module or its datamodule
            has ``normalize``, else in the inputs' own unit; 0.031 for CIFAR-10, 0.3 for MNIST.
        mart_steps: Gradient steps of the search, >= 1; 10, for MNIST 40.
        mart_step_size: Length of a step, > 0, in the unit of epsilon. None: 2.5 * epsilon / steps, for a
            single step 1.25 * epsilon.
        mart_norm: The ball's norm: ``linf`` or ``l2``.

    Raises:
        InvalidValueError: A value is out of its range, or the output is not one of two or more classes.

    Source: Wang et al., 2020, "Improving adversarial robustness requires revisiting misclassified examples", the
    boosted cross entropy and the overall objective.
    """

    stem = "mart"
    stage = "attack"
    off = {"mart_weight": None}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("batch", "loss")
    tasks = ("multiclass",)
    conflicts = alternatives("mart")

    def __init__(
        self,
        *args: Any,
        mart_weight: float | None = 5.0,
        mart_epsilon: float = 0.031,
        mart_steps: int = 10,
        mart_step_size: float | None = None,
        mart_norm: Literal["linf", "l2"] = "linf",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if mart_weight is not None:
            check_range("mart_weight", mart_weight)
        self.mart_weight = mart_weight
        self.mart_epsilon = mart_epsilon
        self.mart_steps = mart_steps
        self.mart_step_size = mart_step_size
        self.mart_norm = mart_norm
        self._mart_attack()  # checks the arguments
        self._mart_clean: Tensor | None = None

    def _mart_attack(self) -> Attack:
        return Attack.of(self, "mart", "uniform")

    def extra_cost(self) -> Cost:
        return Cost(self.mart_steps + 1, self.mart_steps + 1, "the activations of a second batch")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.mart_weight is None:
            return super().training_step(batch, batch_idx)
        x, target = self.unpack_batch(batch)
        spot = Perturbable(self, x, "MARTMixin")
        delta = self.kept_for_replay("mart", lambda: self._mart_delta(spot, target))
        self._mart_clean = self(x)
        try:
            with spot.moved(delta) as moved:
                return super().training_step(self.pack_batch(batch, moved, target), batch_idx)
        finally:
            self._mart_clean = None

    def _mart_delta(self, spot: Perturbable, target: Tensor) -> list[Tensor]:
        return self._mart_attack().perturb(self, spot, lambda logits: error_odds(_checked(logits), target))

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        clean, self._mart_clean = self._mart_clean, None  # a host may call it again for a second head
        if clean is None or self.mart_weight is None or not self.training:
            return loss
        check_compared(logits, clean, "MARTMixin")
        log_adversarial(self, "mart", logits, target)
        loss = self.add_term("mart_margin", loss, mart_margin(logits, target))
        return self.add_term("mart", loss, mart_divergence(clean, logits, target), self.mart_weight)


def _checked(logits: Tensor) -> Tensor:
    check_class_logits(logits, "MARTMixin")
    return logits
