"""Draws the first weights of any network anew."""

from __future__ import annotations

from typing import Any, Literal, get_args

from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.functional import activation_gain, init_weight_, is_orthonormal
from lightning_tuning.mixins.base import _SHARDED_STRATEGIES, TuningMixin
from lightning_tuning.mixins.flow import network_flow
from lightning_tuning.mixins.kinds import NORMS
from lightning_tuning.mixins.lsuv import scale_to_unit_variance
from lightning_tuning.mixins.residual_scales import residual_scales

InitMethod = Literal[
    "xavier_uniform", "xavier_normal", "kaiming_uniform", "kaiming_normal", "orthogonal", "truncated_normal", "lsuv"
]
_TRANSPOSED = (nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
_DRAWN = (nn.Linear, nn.Conv1d, nn.Conv2d, nn.Conv3d, *_TRANSPOSED)


class InitMixin(TuningMixin):
    """Draws the first weights of linear and (transposed) convolutional layers anew at the end of ``__init__``.

    Their biases become 0, norm layers get weight 1 and bias 0. Frozen parameters, embeddings and weights shared with
    one, recurrent layers, ``nn.MultiheadAttention`` and parametrized weights stay. Weights that are loaded later win.
    Numbers come from torch's default generator: call ``seed_everything`` before the module is made.

    Args:
        init_method: ``xavier_uniform``, ``xavier_normal``, ``kaiming_uniform``, ``kaiming_normal``, ``orthogonal``,
            ``truncated_normal`` (as ``kaiming_normal``, cut off at two standard deviations), or ``lsuv``: orthogonal,
            then scaled on the first batch of a new run so that each layer's output has variance 1. Off: None.
        init_gain: Factor on the weights, above 0; not for ``lsuv``. None = what makes up for the activation that
            follows the layer (ReLU: sqrt(2)), with norm, dropout, pooling and additions between them or not; 1 for
            layers that no activation follows and for the last one.
        init_zero_residual: Whether each residual branch begins as zero, by the weight and bias of its last norm layer
            or, where it ends without one, its last layer. It also works without a method. Off: False.

    Raises:
        InvalidValueError: ``init_method`` is unknown, ``init_gain`` is not above 0 or stands beside ``lsuv``.
        MisconfigurationException: At fit start, if ``lsuv`` is to scale parameters that are split over processes.
        NoEffectError: At fit start, if there was nothing to draw.

    Source: Glorot & Bengio, 2010; He et al., 2015; Saxe et al., 2014 (orthogonal); Mishkin & Matas, 2016, "All you need
    is a good init", algorithm 1; zero residual branches: Goyal et al., 2017, section 5.1, and Zhang et al., 2019,
    "Fixup initialization".
    """

    stem = "init"
    stage = "init"
    off = {"init_method": None, "init_zero_residual": False}
    changes = ("model",)
    fixed = ("init_gain",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        init_method: InitMethod | None = "kaiming_normal",
        init_gain: float | None = None,
        init_zero_residual: bool = False,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if init_method is not None:
            check_choice("init_method", init_method, get_args(InitMethod))
        if init_gain is not None:
            check_range("init_gain", init_gain, open_low=True)
            if init_method == "lsuv":
                raise InvalidValueError(
                    "init_gain is for the other methods: 'lsuv' finds each layer's scale. Leave it out."
                )
        self.init_method = init_method
        self.init_gain = init_gain
        self.init_zero_residual = init_zero_residual
        self._init_idle: str | None = None
        if init_method is not None:
            self._draw_weights()
        if init_zero_residual:
            self._close_branches()

    def no_effect(self) -> str | None:
        return self._init_idle

    def _draw_weights(self) -> None:
        layers = _drawn_layers(self)
        if not layers:
            self._init_idle = (
                f"{self._host_name} has no trainable linear or convolutional layer after its __init__. Build the "
                "layers there, not in configure_model."
            )
            return
        by_activation = _gains(self) if self.init_gain is None and self.init_method != "lsuv" else {}
        method = "orthogonal" if self.init_method == "lsuv" else str(self.init_method)
        for layer in layers:
            gain = by_activation.get(layer, 1.0) if self.init_gain is None else self.init_gain
            init_weight_(layer.weight.data, method, gain, isinstance(layer, _TRANSPOSED), getattr(layer, "groups", 1))
            _fill(layer, "bias", 0.0)
        for norm in self.modules():
            if isinstance(norm, NORMS):
                _fill(norm, "weight", 1.0)
                _fill(norm, "bias", 0.0)

    def _close_branches(self) -> None:
        ends = [layer for _, layer in residual_scales(self) if isinstance(layer, (*NORMS, *_DRAWN))]
        if not ends:
            self._init_idle = (
                f"init_zero_residual is on, but {self._host_name} has no residual block whose forward torch.fx can "
                "trace and whose branch ends with a norm, linear or convolutional layer."
            )
        for layer in ends:
            _fill(layer, "weight", 0.0)
            _fill(layer, "bias", 0.0)

    def on_fit_start(self) -> None:
        super().on_fit_start()
        strategy = type(self.trainer.strategy).__name__
        if self.init_method == "lsuv" and strategy in _SHARDED_STRATEGIES:
            raise MisconfigurationException(
                f"init_method='lsuv' cannot scale the weights under {strategy}, which splits them over the processes. "
                "Use init_method='orthogonal', or preset:ddp."
            )

    def on_train_start(self) -> None:
        """Scales the layers of ``lsuv`` in a run that begins anew."""
        super().on_train_start()
        if self.init_method != "lsuv" or self.trainer.global_step > 0 or self.trainer.ckpt_path is not None:
            return
        # What is orthonormal no longer was loaded, trained or closed since, and wins.
        fresh = [
            layer
            for layer in _drawn_layers(self)
            if is_orthonormal(layer.weight, isinstance(layer, _TRANSPOSED), getattr(layer, "groups", 1))
        ]
        if fresh:
            scale_to_unit_variance(self, fresh)


def _drawn_layers(host: nn.Module) -> list[Any]:
    """The layers to draw, each weight once."""
    apart = (nn.MultiheadAttention, nn.Embedding, nn.EmbeddingBag)
    taken = {p for m in host.modules() if isinstance(m, apart) for p in m.parameters()}
    layers = []
    for layer in host.modules():
        weight = layer._parameters.get("weight") if isinstance(layer, _DRAWN) else None
        # A parametrized weight is no parameter of the layer; a lazy one has no shape yet.
        if weight is None or isinstance(weight, nn.UninitializedParameter):
            continue
        if weight.requires_grad and weight not in taken:
            taken.add(weight)
            layers.append(layer)
    return layers


def _gains(host: nn.Module) -> dict[nn.Module, float]:
    """The gain of each layer that an activation follows."""
    gains: dict[nn.Module, float] = {}
    for op in network_flow(host):
        activation = op.next_activation() if isinstance(op.module, _DRAWN) else None
        if op.module is not None and activation is not None:
            gains.setdefault(op.module, activation_gain(activation))
    return gains


def _fill(layer: nn.Module, name: str, value: float) -> None:
    parameter: Tensor | None = layer._parameters.get(name)
    if parameter is not None and parameter.requires_grad:
        parameter.data.fill_(value)
