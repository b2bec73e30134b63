"""DropBlock: drop square blocks of the feature maps."""

from __future__ import annotations

from typing import Any, Literal, get_args

import torch
from torch import nn

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.functional import drop_block, drop_rate
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.injection import DropInput, Injection, check_pattern, no_match, weight_layers
from lightning_tuning.timing.progress import progress, total_steps

Schedule = Literal["linear", "constant"]


class DropBlockMixin(TuningMixin):
    r"""Drops square blocks of the maps that convolutions take in (Ghiasi et al., 2018): neighbouring pixels tell much
    the same, so dropping single ones hides little.

    It hooks the 2-D convolutions of any model. Each sample and channel has blocks of its own; what is left is scaled by
    the share of pixels kept. On maps smaller than the block the block is the map, so that whole channels are dropped;
    maps of one pixel, such as those of squeeze-and-excitation, are left alone. It acts in training only.

    Args:
        dropblock_rate: Share of the pixels that is dropped, in [0, 1); 0.1 is usual. Off: 0.
        dropblock_size: Height and width of a block in pixels, at least 1; 7 for images of 224 pixels and last maps of
            14 or 28, less for small images. 1 is dropout.
        dropblock_layers: Regular expression for the whole names of the convolutions whose input is dropped, such as
            ``network\.[67]\..*``. None: every convolution but the first.
        dropblock_schedule: ``linear``: the rate rises from 0 at the start of the run to ``dropblock_rate`` at its end,
            or ``constant``.

    Raises:
        InvalidValueError: The rate, size, schedule or regular expression is not allowed.
        NoEffectError: At fit start: the model has no such convolution.

    Source: Ghiasi, Lin & Le, 2018, "DropBlock: a regularization method for convolutional networks", algorithm 1 and
    equation 1. The paper also drops the maps of the skip connections.
    """

    stem = "dropblock"
    stage = "layers"
    off = {"dropblock_rate": 0.0}
    couples = True
    changes = ("activations",)
    whole_batch = "scales what it keeps by a share of the whole batch"
    sharded = True

    def __init__(
        self,
        *args: Any,
        dropblock_rate: float = 0.1,
        dropblock_size: int = 7,
        dropblock_layers: str | None = None,
        dropblock_schedule: Schedule = "linear",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("dropblock_rate", dropblock_rate, 0.0, 1.0, open_high=True)
        check_range("dropblock_size", dropblock_size, 1)
        if int(dropblock_size) != dropblock_size:
            raise InvalidValueError(f"dropblock_size is {dropblock_size!r}; it must be a whole number of pixels.")
        check_pattern("dropblock_layers", dropblock_layers)
        check_choice("dropblock_schedule", dropblock_schedule, get_args(Schedule))
        self.dropblock_rate = dropblock_rate
        self.dropblock_size = int(dropblock_size)
        self.dropblock_layers = dropblock_layers
        self.dropblock_schedule = dropblock_schedule
        self._dropblock = Injection()
        self._dropblock_steps = 1
        self._place_dropblock()

    def configure_model(self) -> None:
        """Once more, for layers that were exchanged or built since ``__init__``."""
        super().configure_model()
        self._place_dropblock()

    def _place_dropblock(self) -> None:
        if self.dropblock_rate != 0:
            layers = weight_layers(self, _CONVOLUTIONS, self.dropblock_layers)
            settings = {"size": self.dropblock_size}
            self._dropblock.place(
                self, layers, lambda place, name: DropInput(drop_block, self.dropblock_rate, settings)
            )

    def no_effect(self) -> str | None:
        if self._dropblock.hooks:
            return None
        convolutions = {name: m for name, m in self.named_modules() if isinstance(m, _CONVOLUTIONS)}
        if self.dropblock_layers is None or not convolutions:
            return f"{self._host_name} has no 2-D convolution but its first."
        return no_match("dropblock_layers", self.dropblock_layers, convolutions, "2-D convolutions")

    def on_train_start(self) -> None:
        super().on_train_start()
        if self._dropblock_is_scheduled:
            self._dropblock_steps = total_steps(self.trainer, instead="--model.dropblock_schedule=constant")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> int | None:
        skip = super().on_train_batch_start(batch, batch_idx)
        rate = self.dropblock_rate
        if self._dropblock_is_scheduled:
            done = progress(self.trainer, self._dropblock_steps)
            rate = drop_rate(self.dropblock_schedule, rate, done)
            self.log_term("dropblock", torch.tensor(rate))
        self._dropblock.set_rate(rate)
        return skip

    @property
    def _dropblock_is_scheduled(self) -> bool:
        return self.dropblock_rate != 0 and self.dropblock_schedule != "constant"


_CONVOLUTIONS = (nn.Conv2d, nn.ConvTranspose2d)
