"""Gaussian noise on the weights during each training step."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import nn
from torch.func import functional_call

from lightning_tuning.errors import check_range
from lightning_tuning.functional import weight_noise
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.plan import Cost


class WeightNoiseMixin(TuningMixin):
    """Takes loss and gradient at weights with Gaussian noise on them (An, 1996; Graves, 2011).

    Each training step draws new noise, with accumulation each batch of the window. The weights themselves never change:
    while ``training_step`` runs, the layers use copies with the noise added, and the gradient there becomes that of the
    weights. So optimizer, checkpoints, averages and evaluation see the weights without noise, and so do the penalties
    on weights, which are about the weights that are kept. Biases and the scales of norm layers have no noise.

    Args:
        weight_noise_std: Standard deviation of the noise, >= 0; with weight_noise_relative 0.01 to 0.2, else 0.001 to
            0.1. Off: 0.
        weight_noise_relative: Whether the noise is relative to the size of the weights: its standard deviation is then
            weight_noise_std times that of the elements of each weight tensor.

    Raises:
        InvalidValueError: ``weight_noise_std`` is negative.

    Source: An, 1996, "The effects of adding noise during backpropagation training on a generalization performance";
    Graves, 2011, "Practical variational inference for neural networks", with a fixed variance and no prior.
    """

    stem = "weight_noise"
    stage = "weights"
    off = {"weight_noise_std": 0.0}
    needs = ("training_step",)
    changes = ("gradient",)

    def __init__(
        self, *args: Any, weight_noise_std: float = 0.01, weight_noise_relative: bool = False, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("weight_noise_std", weight_noise_std)
        self.weight_noise_std = weight_noise_std
        self.weight_noise_relative = weight_noise_relative
        self._weight_noise_clean: dict[str, nn.Parameter] = {}

    def no_effect(self) -> str | None:
        return self.without_weights()

    def extra_cost(self) -> Cost:
        return Cost(memory="a copy of the weights")

    def penalized_parameters(self) -> dict[str, nn.Parameter]:
        """Those without noise, also while the step runs: a penalty is on the weights that are kept."""
        return {**super().penalized_parameters(), **self._weight_noise_clean}

    def trainable_parameters(self) -> list[nn.Parameter]:
        if not self._weight_noise_clean:
            return super().trainable_parameters()
        named = {name: p for name, p in self.named_parameters() if p.requires_grad}
        return [*{**named, **self._weight_noise_clean}.values()]

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        clean = self.penalized_parameters() if self.weight_noise_std else {}
        if not clean:
            return super().training_step(batch, batch_idx)
        noisy = weight_noise([*clean.values()], self.weight_noise_std, self.weight_noise_relative)
        exchanged = {f"module.{name}": value for name, value in zip(clean, noisy, strict=True)}
        self._weight_noise_clean = clean
        try:
            # The graph keeps the noisy copies, so the weights can come back before the backward pass.
            return functional_call(_Call(self, super().training_step), exchanged, (batch, batch_idx))
        finally:
            self._weight_noise_clean = {}


class _Call(nn.Module):
    """Lets ``functional_call``, which exchanges weights and runs ``forward``, run another method of a module."""

    def __init__(self, module: nn.Module, method: Callable[..., Any]) -> None:
        super().__init__()
        self.module = module
        self.method = method

    def forward(self, *args: Any) -> Any:
        return self.method(*args)
