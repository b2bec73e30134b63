"""Dropout in a model that is there already: sets its rate, puts it in, schedules it."""

from __future__ import annotations

import itertools
from typing import Any, Literal, get_args

import torch
import torch.nn.functional as F
from torch import nn
from torch.nn.modules.conv import _ConvNd
from torch.nn.modules.dropout import _DropoutNd

from lightning_tuning.errors import check_choice, check_range
from lightning_tuning.functional import drop_rate
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.injection import (
    DropInput,
    Injection,
    check_pattern,
    hookable_modules,
    named,
    no_match,
    weight_layers,
)
from lightning_tuning.timing.progress import progress, total_steps

Schedule = Literal["constant", "linear", "curriculum", "early"]


class DropoutMixin(TuningMixin):
    r"""Sets the rate of a model's dropout (Srivastava et al., 2014), puts dropout in where there is none, and changes
    the rate over the run.

    It sets every dropout layer (``nn.Dropout`` and its kin, alpha dropout, the dropout of ``nn.MultiheadAttention`` and
    between the layers of ``nn.LSTM``, ``nn.GRU`` and ``nn.RNN``), whatever rate it had. Dropout that a ``forward``
    calls as a function is out of its reach.

    Args:
        dropout_rate: Probability that an activation is dropped, in [0, 1). 0 takes all dropout away. Off: None.
        dropout_inject: Whether to drop the inputs of the linear and convolutional layers too, element by element. The
            first of the model, which sees the data, is left out, and so is a layer right behind a dropout layer.
        dropout_layers: Regular expression for the whole names of the dropout layers to set and, with dropout_inject, of
            the linear and convolutional layers (then also the first), such as ``network\.head\..*``. None: all.
        dropout_schedule: The rate over the run: ``constant``; ``linear``: from 0 up to dropout_rate at the end;
            ``curriculum``: from 0 quickly up, as ``1 - exp(-dropout_gamma * t / T)``; ``early``: from dropout_rate down
            to 0, reached after dropout_early_share of the run.
        dropout_gamma: How quickly ``curriculum`` rises, above 0: with 10 it is at 63 % after a tenth of the run.
        dropout_early_share: The share of the run after which ``early`` is at 0, in (0, 1].

    Raises:
        InvalidValueError: A number, schedule or regular expression is not allowed.
        NoEffectError: At fit start: there is no dropout layer, and none was asked for.

    Source: Srivastava et al., 2014, "Dropout: a simple way to prevent neural networks from overfitting", with the
    scaling in training; schedules: Morerio et al., 2017, "Curriculum dropout"; Liu et al., 2023, "Dropout reduces
    underfitting".
    """

    stem = "dropout"
    stage = "layers"
    off = {"dropout_rate": None}
    changes = ("activations",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        dropout_rate: float | None = 0.1,
        dropout_inject: bool = False,
        dropout_layers: str | None = None,
        dropout_schedule: Schedule = "constant",
        dropout_gamma: float = 10.0,
        dropout_early_share: float = 0.2,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        if dropout_rate is not None:
            check_range("dropout_rate", dropout_rate, 0.0, 1.0, open_high=True)
        check_pattern("dropout_layers", dropout_layers)
        check_choice("dropout_schedule", dropout_schedule, get_args(Schedule))
        check_range("dropout_gamma", dropout_gamma, open_low=True)
        check_range("dropout_early_share", dropout_early_share, 0.0, 1.0, open_low=True)
        self.dropout_rate = dropout_rate
        self.dropout_inject = dropout_inject
        self.dropout_layers = dropout_layers
        self.dropout_schedule = dropout_schedule
        self.dropout_gamma = dropout_gamma
        self.dropout_early_share = dropout_early_share
        self._dropout_found: dict[str, nn.Module] = {}
        self._dropout_inputs = Injection()
        self._dropout_steps = 1
        self._dropout_now = dropout_rate
        self._place_dropout()

    def configure_model(self) -> None:
        """Once more, for layers that were exchanged or built since ``__init__``."""
        super().configure_model()
        self._place_dropout()

    def _place_dropout(self) -> None:
        if self.dropout_rate is None:
            return
        self._dropout_found = named(_dropout_layers(self), self.dropout_layers)
        if self.dropout_inject:
            layers = weight_layers(self, (nn.Linear, _ConvNd), self.dropout_layers)
            behind = _behind_dropout(self)
            layers = {name: m for name, m in layers.items() if m not in behind}
            self._dropout_inputs.place(self, layers, lambda place, name: DropInput(F.dropout, 0.0))
        self._set_dropout(self.dropout_rate)

    def _set_dropout(self, rate: float) -> None:
        self._dropout_now = rate
        for layer in self._dropout_found.values():
            setattr(layer, "p" if isinstance(layer, _DropoutNd) else "dropout", rate)
        self._dropout_inputs.set_rate(rate)

    def no_effect(self) -> str | None:
        if self._dropout_found or self._dropout_inputs.hooks:
            return None
        layers = _dropout_layers(self)
        if self.dropout_layers is not None and layers:
            return no_match("dropout_layers", self.dropout_layers, layers, "dropout layers")
        if self.dropout_inject:
            return (
                f"{self._host_name} has no dropout layer, and no linear or convolutional layer to put dropout before."
            )
        return f"{self._host_name} has no dropout layer. Write dropout_inject=true to put dropout before its layers."

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._dropout_is_scheduled:
            self._dropout_steps = total_steps(self.trainer, instead="--model.dropout_schedule=constant")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        skip = super().on_train_batch_start(batch, batch_idx)
        if self.dropout_rate is None:
            return skip
        rate = self.dropout_rate
        if self._dropout_is_scheduled:
            done = progress(self.trainer, self._dropout_steps)
            rate = drop_rate(self.dropout_schedule, rate, done, self.dropout_gamma, self.dropout_early_share)
            self.log_term("dropout", torch.tensor(rate))
        if rate != self._dropout_now:
            self._set_dropout(rate)
        return skip

    @property
    def _dropout_is_scheduled(self) -> bool:
        return self.dropout_rate is not None and self.dropout_schedule != "constant"


def _dropout_layers(module: nn.Module) -> dict[str, nn.Module]:
    """The layers with a rate that can be set. A recurrent layer drops between its layers, so it needs two."""
    return {
        name: m
        for name, m in hookable_modules(module).items()
        if isinstance(m, (_DropoutNd, nn.MultiheadAttention)) or (isinstance(m, nn.RNNBase) and m.num_layers > 1)
    }


def _behind_dropout(module: nn.Module) -> set[nn.Module]:
    """The layers whose input comes right out of a dropout layer, as far as the model's structure tells."""
    behind: set[nn.Module] = set()
    for m in module.modules():
        if isinstance(m, nn.Sequential):
            behind.update(b for a, b in itertools.pairwise(m) if isinstance(a, _DropoutNd))
        elif isinstance(m, (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)):
            behind.add(m.linear2)
    return behind
