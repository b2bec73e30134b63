"""MicroBatch: a batch that does not fit into memory is passed in parts."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer

from lightning_tuning.errors import check_count

from ._diagnosis import diagnose
from ._split_pass import SplitPass
from ._whole_batches import check_divisible


class MicroBatch(Callback):
    """Splits a batch that runs out of memory and repeats it, with the same random numbers, until it fits.

    The parts are passed forward and backward one by one. Each part's loss is weighted by its share of the samples, so
    that the gradients of a loss that is a mean over the samples add up to those of the whole batch; then the optimizer
    steps as always. The number of parts doubles until nothing runs out of memory, stays for the batches that follow,
    and is part of the checkpoint. As long as everything fits, a run is bitwise the run without the callback.

    What a try may have changed is put back: random generators, buffers, metrics, gradients that earlier batches of an
    accumulation window left. What it logged is dropped; a batch logs once, the mean over its parts. Several processes
    agree on the number of parts, also where one alone ran out of memory in the middle of its backward pass.

    Args:
        parts: Parts to begin with, at least 1. Off: 1, as long as nothing runs out of memory. A resumed run begins with
            those of its checkpoint, if they are more.

    Raises:
        InvalidValueError: ``parts`` is not an integer of at least 1.
        CompositionError: At fit start: a technique or a layer in training that couples the samples of a batch.
        MisconfigurationException: At fit start: manual optimization, or a strategy other than one device and DDP.
        DoesNotFitError: Even one sample alone runs out of memory.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[MicroBatch()], logger=False, accelerator="cpu")
    """

    def __init__(self, parts: int = 1) -> None:
        super().__init__()
        check_count("parts", parts, 1)
        self.parts = parts
        self._found = parts
        """How many the run has come to."""
        self._pass: SplitPass | None = None

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        check_divisible(trainer, pl_module)
        self._pass = SplitPass(trainer, self._found)

    def on_train_epoch_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self._pass is not None:
            self._pass.is_known = False

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self._pass is None or self._pass.parts == self._found:
            return
        self._found, rows = self._pass.parts, self._pass.rows
        diagnose(
            trainer,
            f"MicroBatch: out of memory, so the batch of {sum(rows)} samples was passed in {len(rows)} parts of at "
            f"most {max(rows)}, and the next ones are too.",
        )
        trainer._logger_connector.log_metrics({"train/micro_batch": torch.tensor(float(self._found))})

    def state_dict(self) -> dict[str, Any]:
        return {"parts": self._found}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._found = max(self.parts, state_dict["parts"])

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self._leave()

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        self._leave()

    def _leave(self) -> None:
        if self._pass is not None:
            self._pass.leave()
        self._pass = None
