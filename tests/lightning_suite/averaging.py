"""Lightning's averages of weights by their own arguments, made of WeightEMA."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from types import SimpleNamespace
from typing import Any

from lightning.pytorch import LightningModule, Trainer

from lightning_tuning.callbacks import WeightEMA


class WeightAveraging(WeightEMA):
    """WeightEMA by Lightning's arguments. ``avg_fn`` is an object with a ``decay``; it is never called.

    The tests count private methods of Lightning's callback: here they are where the same thing happens.
    """

    def __init__(self, device: Any = None, use_buffers: bool = True, avg_fn: Any = None, **kwargs: Any) -> None:
        buffers: Any = "average" if use_buffers else "copy"
        super().__init__(decay=avg_fn.decay, warmup_power=None, buffers=buffers, **kwargs)

    @property
    def _average_model(self) -> Any:
        return None if self._average is None else SimpleNamespace(n_averaged=self._updates)

    def _swap_models(self, exchange: Callable[[], None]) -> None:
        exchange()

    def _copy_average_to_current(self, exchange: Callable[[], None]) -> None:
        exchange()

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_models(partial(super().on_validation_start, trainer, pl_module))

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap_models(partial(super().on_validation_end, trainer, pl_module))

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._copy_average_to_current(partial(super().on_train_end, trainer, pl_module))


class EMAWeightAveraging(WeightAveraging):
    """The same with Lightning's arguments for an exponential moving average."""

    def __init__(
        self,
        device: Any = None,
        use_buffers: bool = True,
        decay: float = 0.999,
        update_every_n_steps: int = 1,
        update_starting_at_step: int | None = None,
        update_starting_at_epoch: int | None = None,
    ) -> None:
        start = f"{update_starting_at_step or 0}st"
        if update_starting_at_epoch is not None:
            start = f"{update_starting_at_epoch}ep"
        every, decay = update_every_n_steps, decay ** (1 / update_every_n_steps)  # Lightning's is that of an update
        super().__init__(device, use_buffers, SimpleNamespace(decay=decay), every_n_steps=every, start=start)
