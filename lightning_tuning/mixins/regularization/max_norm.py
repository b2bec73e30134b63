"""Max-norm: no unit's incoming weights grow longer than a bound."""

from __future__ import annotations

from typing import Any

from lightning_tuning.errors import check_range
from lightning_tuning.functional import max_norm_
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.layers import unit_weights, weighted_layers
from lightning_tuning.timing.step_hook import after_each_step


class MaxNormMixin(TuningMixin):
    """After each optimizer step scales the incoming weights of each unit back to norm ``max_norm_bound`` where they
    exceed it (Srivastava et al., 2014).

    It acts on linear and convolutional layers; a unit of a convolution is an output channel. Biases and frozen layers
    are left out. A step that fp16's gradient scaler skipped changes nothing here either.

    Args:
        max_norm_bound: The largest norm of a unit's incoming weights, > 0; 2 to 4 is usual. Off: None.

    Raises:
        InvalidValueError: ``max_norm_bound`` is not above 0.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from overfitting", section 5.1.
    """

    stem = "max_norm"
    stage = "weights"
    off = {"max_norm_bound": None}
    changes = ("weights",)
    conflicts = {
        "spectral_norm": "A normalised layer divides its weight by its size, so a bound on that size would change "
        "nothing. Switch one of them off: max_norm_bound=None or spectral_norm_bound=None."
    }

    def __init__(self, *args: Any, max_norm_bound: float | None = 3.0, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        if max_norm_bound is not None:
            check_range("max_norm_bound", max_norm_bound, open_low=True)
        self.max_norm_bound = max_norm_bound

    def no_effect(self) -> str | None:
        if weighted_layers(self):
            return None
        return f"{self._host_name} has no linear or convolutional layer with a trainable weight. All may be frozen."

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._release_max_norm()
        if self.max_norm_bound is not None:
            # A teacher left of this mixin registers later, and so follows the weights within the bound.
            self.__dict__["_max_norm_hooks"] = after_each_step(self.trainer.optimizers, self._project)

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._release_max_norm()

    def _release_max_norm(self) -> None:
        for hook in self.__dict__.pop("_max_norm_hooks", ()):
            hook.remove()

    def _project(self) -> None:
        # Looked up at each step: callbacks freeze, unfreeze and add layers.
        weights = [weight for layer in weighted_layers(self).values() for weight in unit_weights(layer)]
        max_norm_(weights, self.max_norm_bound or 0.0)
