"""Adversarial weight perturbation: the gradient is taken where the loss nearby is high, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning.errors import check_range
from lightning_tuning.functional import awp_ascent
from lightning_tuning.mixins.ascent import AscentMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.timing.durations import check_duration, duration_of


class AWPMixin(AscentMixin):
    """Steps with the gradient at adversarially perturbed weights (Wu et al., 2020), against robust overfitting.

    Each step computes the gradient g of its loss, moves each layer's weights w by ``gamma * ||w|| * g / ||g||``,
    computes the gradient there, goes back and lets the optimizer step with that second gradient. The loss is that of
    the training step with all other techniques: with an adversarial one it is the adversarial loss, and both passes
    have the same adversarial inputs. Biases and norm layers stay. With gradient accumulation the whole window is
    perturbed once and passed through a second time, so its batches are kept until then.

    Args:
        awp_gamma: Size of the perturbation relative to each layer's weights, >= 0; 0.01 with adversarial training,
            0.005 with TRADES. Off: 0.
        awp_warmup: How long the run goes on without it at first: ``10%`` (of the run), ``500 steps`` or ``5 epochs``.
            None: it is on from the first step.

    Raises:
        InvalidValueError: ``awp_gamma`` is negative, or ``awp_warmup`` is not a length with its unit.

    Source: Wu, Xia & Wang, 2020, "Adversarial weight perturbation helps robust generalization", with
    one step for the weights; which parameters are perturbed: as in the authors' code, those of two or more dimensions
    whose name contains ``weight``.
    """

    stem = "awp"
    off = {"awp_gamma": 0.0}
    conflicts = alternatives("awp")

    def __init__(self, *args: Any, awp_gamma: float = 0.01, awp_warmup: str | None = None, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        check_range("awp_gamma", awp_gamma)
        if awp_warmup is not None:
            check_duration("awp_warmup", awp_warmup)
        self.awp_gamma = awp_gamma
        self.awp_warmup = awp_warmup

    def no_effect(self) -> str | None:
        if _perturbed({name: p for name, p in self.named_parameters() if p.requires_grad}):
            return None
        return (
            f"{self._host_name} has no trainable parameter of two or more dimensions whose name contains 'weight'. All "
            "may be frozen."
        )

    def extra_cost(self) -> Cost:
        return Cost(1, 1, "a copy of the weights, the batches of a window")

    @property
    def _awp_is_due(self) -> bool:
        """Whether this window is passed through twice."""
        if self.awp_gamma == 0:
            return False
        if self.awp_warmup is None or self._trainer is None:
            return True
        return self.trainer.global_step >= self.steps_in(duration_of(self.awp_warmup))

    def _ascends(self) -> bool:
        return self._awp_is_due or super()._ascends()

    def _ascent(self, named: Mapping[str, nn.Parameter]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        if not self._awp_is_due:
            return super()._ascent(named)
        weights = _perturbed(named)
        gradients = [p.grad for p in weights if p.grad is not None]
        parameters = [p.detach() for p in weights]
        return parameters, awp_ascent(gradients, parameters, self.awp_gamma)

    def _second_gradient(self, named: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        if not self._awp_is_due or _perturbed(named):  # with nothing to perturb the first gradient stays
            super()._second_gradient(named, optimizer)


def _perturbed(named: Mapping[str, nn.Parameter]) -> list[nn.Parameter]:
    """The parameters that are perturbed, of those given by name."""
    return [p for name, p in named.items() if p.ndim >= 2 and "weight" in name]
