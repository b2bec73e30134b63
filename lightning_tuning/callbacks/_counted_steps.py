"""What the callbacks share that act after the optimizer steps that counted."""

from __future__ import annotations

from typing import Any

from lightning.pytorch import Callback, LightningModule, Trainer
from torch.utils.hooks import RemovableHandle

from lightning_tuning.timing.step_hook import after_each_step


class CountedSteps(Callback):
    """Base of the callbacks that act after each training batch in which an optimizer stepped.

    A step that fp16's gradient scaler skipped is none, nor is a micro-batch of an accumulation window. It acts at the
    batch's end, when everybody is through with the weights (SAM's ascent, projections behind the step).
    """

    def __init__(self) -> None:
        super().__init__()
        self._steps = 0
        """Batches of the run in which an optimizer stepped."""
        self._stepped = False
        self._handles: list[RemovableHandle] = []

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        # Not before: restoring a sharded optimizer steps it.
        self._release()
        self._handles = after_each_step(trainer.optimizers, self._note_step)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._stepped:
            self._stepped = False
            self._steps += 1
            self._after_step(trainer, pl_module)

    def _after_step(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """An optimizer changed the weights in this batch."""

    def _note_step(self) -> None:
        self._stepped = True

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._release()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._release()

    def _release(self) -> None:
        self._stepped = False
        while self._handles:
            self._handles.pop().remove()
