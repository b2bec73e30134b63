"""TRADES: the answers to clean and to adversarial inputs are pulled together."""

from __future__ import annotations

from typing import Any, Literal

from torch import Tensor

from lightning_tuning.errors import CompositionError, InvalidValueError, check_choice, check_range
from lightning_tuning.functional import counted, kl_divergence
from lightning_tuning.mixins.attack import Attack, log_adversarial
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.inner_pass import inner_pass
from lightning_tuning.mixins.inputs import check_class_logits, check_compared
from lightning_tuning.mixins.perturbable import Perturbable
from lightning_tuning.mixins.plan import Cost


class TRADESMixin(TuningMixin):
    """Adds ``weight * KL(p(x) || p(x'))`` to the loss of the clean inputs (Zhang et al., 2019).

    x' is the input near x at which that divergence is highest, found by projected gradient ascent from x plus a little
    noise. Both answers are trained. The weight trades accuracy on clean inputs for accuracy on adversarial ones.

    Args:
        trades_weight: Factor of the divergence, beta = 1 / lambda of the paper, >= 0; 6 for CIFAR-10, 1 to 6 else.
            Off: 0.
        trades_epsilon: Radius of the ball around each input, >= 0, in pixels of [0, 1] where the module or its
            datamodule has ``normalize``, else in the inputs' own unit; 0.031 for CIFAR-10, 0.3 for MNIST.
        trades_steps: Gradient steps of the search, >= 1; 10, for MNIST 40.
        trades_step_size: Length of a step, > 0, in the unit of epsilon. None: 2.5 * epsilon / steps, for a
            single step 1.25 * epsilon.
        trades_norm: The ball's norm: ``linf`` or ``l2``.
        trades_reference: Whose p(x) it is: the ``student``'s own, which is trained too, or that of the ``teacher`` that
            gives the pseudo labels, which is not.

    Raises:
        InvalidValueError: A value is out of its range, the output is not one of two or more classes, or there is no
            teacher.

    Source: Zhang et al., 2019, "Theoretically principled trade-off between robustness and accuracy", the
    paper's algorithm. The search passes the network in evaluation mode, as the authors' code does.
    """

    stem = "trades"
    stage = "attack"
    off = {"trades_weight": 0.0}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("loss",)
    tasks = ("multiclass",)
    conflicts = alternatives("trades")

    def __init__(
        self,
        *args: Any,
        trades_weight: float = 6.0,
        trades_epsilon: float = 0.031,
        trades_steps: int = 10,
        trades_step_size: float | None = None,
        trades_norm: Literal["linf", "l2"] = "linf",
        trades_reference: Literal["student", "teacher"] = "student",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("trades_weight", trades_weight)
        check_choice("trades_reference", trades_reference, ("student", "teacher"))
        self.trades_weight = trades_weight
        self.trades_epsilon = trades_epsilon
        self.trades_steps = trades_steps
        self.trades_step_size = trades_step_size
        self.trades_norm = trades_norm
        self._trades_attack()  # checks the arguments
        self.trades_reference = trades_reference
        self._trades_x: Any = None

    def _trades_attack(self) -> Attack:
        return Attack.of(self, "trades", "gaussian")

    def asks_teacher(self) -> bool:
        return self.trades_reference == "teacher"

    def extra_cost(self) -> Cost:
        return Cost(self.trades_steps + 2, self.trades_steps + 1, "the activations of a second batch")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        if self.trades_weight == 0 or self.trades_reference == "student":
            return
        if self.teacher_module() is None:
            raise InvalidValueError(
                f"trades_reference is 'teacher', but {self._host_name} has none. Add a mixin of the stage teacher, "
                "such as EMATeacherMixin, and switch it on, or write trades_reference='student'."
            )
        if coupling := [t.__name__ for t in self.active_techniques() if t.couples]:
            raise CompositionError(
                f"TRADESMixin and {coupling[0]} conflict: it mixes samples within the student, and the teacher's "
                "answers are unmixed. Write trades_reference='student', or switch one of them off."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.trades_weight == 0:
            return super().training_step(batch, batch_idx)
        self._trades_x, _ = self.unpack_batch(batch)
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self._trades_x = None

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        x, self._trades_x = self._trades_x, None  # a host may call it again for a second head
        if x is None or not self.training:
            return loss
        check_class_logits(logits, "TRADESMixin")
        spot = Perturbable(self, x, "TRADESMixin")
        taught = self.pseudo_logits(x) if self.trades_reference == "teacher" else None
        counts = counted(target)  # what the loss ignores (id -100) is left alone
        delta = self.kept_for_replay("trades", lambda: self._trades_delta(spot, taught, logits, counts))
        moved = spot.logits(delta)
        log_adversarial(self, "trades", moved, target)
        divergence = kl_divergence(logits if taught is None else taught, moved, counts)
        return self.add_term("trades", loss, divergence, self.trades_weight)

    def _trades_delta(
        self, spot: Perturbable, reference: Tensor | None, logits: Tensor, counts: Tensor | None
    ) -> list[Tensor]:
        """Raises the divergence from ``reference``, by default the student's answer to the clean inputs in the mode in
        which the attack passes it; ``logits`` are what the loss is of."""
        if reference is None:
            # With a graph and detached: under autocast a pass without one would leave the weights without one.
            with inner_pass(self):
                reference = self(spot.x).detach()
        check_compared(logits, reference, "TRADESMixin")
        fixed, samples = reference, len(logits)
        return self._trades_attack().perturb(self, spot, lambda z: kl_divergence(fixed, z, counts) * samples)
