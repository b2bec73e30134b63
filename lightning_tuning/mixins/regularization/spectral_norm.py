"""Spectral normalization: each layer's weight is divided by its largest singular value."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError, check_count, check_range
from lightning_tuning.functional import power_iteration, spectral_norm
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.injection import check_pattern, named
from lightning_tuning.mixins.layers import raw_weight, unit_matrix, weighted_layers
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.timing.step_hook import after_each_step


class SpectralNormMixin(TuningMixin):
    """Gives linear and convolutional layers the weight ``bound * W / sigma(W)``, sigma the largest singular value
    (Miyato et al., 2018): no layer then stretches its input by more than the bound.

    The parameter W keeps its name, in checkpoints too. Beside it each layer has a buffer ``spectral_norm_u``, the
    estimate of a singular vector, which follows W by power iteration after each optimizer step that counted: all
    forwards of a step use the same one. A state dict without it loads; it is then computed from the weights there. A
    kernel is the matrix ``[out, in * kh * kw]``. Biases, norm layers, embeddings and layers that are frozen from the
    start stay as they are.

    Args:
        spectral_norm_bound: The largest singular value that each weight is given, > 0; 1 as in the paper. Off: None.
        spectral_norm_iterations: Power iterations after each step, at least 1; 1 is enough, for weights move slowly.
        spectral_norm_layers: Regular expression that matches the whole names of the layers, such as
            ``network\\.features.*``. None: all linear and convolutional layers.

    Raises:
        InvalidValueError: An argument is out of range, the expression is not one, or a weight is all zeros.

    Source: Miyato, Kataoka, Koyama & Yoshida, 2018, "Spectral normalization for generative adversarial networks",
    equations 7 and 8, algorithm 1. The paper iterates in each forward.
    """

    stem = "spectral_norm"
    stage = "weights"
    off = {"spectral_norm_bound": None}
    changes = ("weights", "buffers")
    fixed = ("spectral_norm_bound",)

    def __init__(
        self,
        *args: Any,
        spectral_norm_bound: float | None = 1.0,
        spectral_norm_iterations: int = 1,
        spectral_norm_layers: str | None = None,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if spectral_norm_bound is not None:
            check_range("spectral_norm_bound", spectral_norm_bound, open_low=True)
        check_count("spectral_norm_iterations", spectral_norm_iterations, 1)
        self.spectral_norm_bound = spectral_norm_bound
        self.spectral_norm_iterations = spectral_norm_iterations
        self.spectral_norm_layers = spectral_norm_layers
        check_pattern("spectral_norm_layers", spectral_norm_layers)
        self._spectral_norm_names: list[str] = []
        if spectral_norm_bound is not None:
            layers = named(weighted_layers(self), spectral_norm_layers)
            self._spectral_norm_names = [*layers]
            for layer in layers.values():
                _normalize(layer, spectral_norm_bound)

    def no_effect(self) -> str | None:
        if self._normalized():
            return None
        which = "" if self.spectral_norm_layers is None else f" whose name matches {self.spectral_norm_layers!r}"
        return (
            f"{self._host_name} has no linear or convolutional layer with a trainable weight{which} at the end of its "
            "__init__, where it has to build them."
        )

    def extra_cost(self) -> Cost:
        return Cost(memory="a copy of the weights")

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._release_spectral_norm()
        layers = self._normalized()
        if not layers:
            return
        resumed = self.trainer.ckpt_path is not None
        for name, layer in layers.items():
            if not raw_weight(layer).any():
                raise InvalidValueError(
                    f"SpectralNormMixin cannot divide the weight of {name}, which is all zeros, by its size. "
                    "Initialise it otherwise, or leave the layer out through spectral_norm_layers."
                )
            if not resumed:  # the weights may have been changed since the buffer was made
                _follow(layer, _START)
        hooks = after_each_step(self.trainer.optimizers, self._follow_weights)
        self.__dict__["_spectral_norm_hooks"] = hooks

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._release_spectral_norm()

    def _release_spectral_norm(self) -> None:
        for hook in self.__dict__.pop("_spectral_norm_hooks", ()):
            hook.remove()

    def _normalized(self) -> dict[str, nn.Module]:
        """The layers by name; one that was exchanged since is normalised no more, and a teacher's are averages."""
        modules = dict(self.named_modules())
        return {n: modules[n] for n in self._spectral_norm_names if hasattr(modules.get(n), "spectral_norm_u")}

    def _follow_weights(self) -> None:
        for layer in self._normalized().values():
            _follow(layer, self.spectral_norm_iterations)


_START = 20
"""Power iterations from a random vector."""


def _normalize(layer: nn.Module, bound: float) -> None:
    matrix = unit_matrix(layer)
    # An own generator: the run's random numbers stay what they are without the technique.
    start = torch.randn(len(matrix), generator=torch.Generator().manual_seed(0), dtype=torch.float32)
    layer.register_buffer("spectral_norm_u", start.to(matrix))
    _follow(layer, _START)
    layer.register_load_state_dict_pre_hook(_complete_state)
    layer.register_forward_pre_hook(_Show(bound))
    layer.register_forward_hook(_hide, always_call=True)


def _follow(layer: nn.Module, iterations: int) -> None:
    u: Tensor = layer.spectral_norm_u  # type: ignore[assignment]
    u.copy_(power_iteration(unit_matrix(layer), u, iterations))


class _Show:
    """Forward pre-hook: the layer finds the normalised weight in place of its parameter.

    torch's own parametrization renames the parameter in the state dict, and its modules cannot be pickled.
    """

    def __init__(self, bound: float) -> None:
        self.bound = bound

    def __call__(self, layer: nn.Module, args: Any) -> None:
        weight = raw_weight(layer)
        with torch.autocast(weight.device.type, enabled=False):
            scale = self.bound / spectral_norm(unit_matrix(layer), layer.spectral_norm_u)  # type: ignore[arg-type]
            layer.__dict__["weight"] = weight * scale.to(weight.dtype)


def _hide(layer: nn.Module, args: Any, output: Any) -> None:
    layer.__dict__.pop("weight", None)


def _complete_state(layer: nn.Module, state_dict: dict[str, Any], prefix: str, *args: Any) -> None:
    """A state without the buffer, of a module that was not normalised, gets one for its own weight."""
    name = f"{prefix}spectral_norm_u"
    weight = state_dict.get(f"{prefix}weight")
    if name not in state_dict and weight is not None and weight.shape == raw_weight(layer).shape:
        u: Tensor = layer.spectral_norm_u  # type: ignore[assignment]
        state_dict[name] = power_iteration(unit_matrix(layer, weight), u, _START)
