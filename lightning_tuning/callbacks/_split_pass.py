"""The closure of a training step that passes its batch in as many parts as memory needs."""

from __future__ import annotations

import gc
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.optimization.automatic import Closure, ClosureResult
from torch import distributed
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_tuning.errors import DoesNotFitError

from ._batch_tries import INDIVISIBLE, PASSED, BatchTries
from ._before_batch import BeforeBatch
from ._whole_batches import check_layers


class SplitPass:
    """Takes the place of the loop's ``_make_closure``: the closure passes the batch in parts, and repeats it in twice
    as many as long as it runs out of memory.

    Several ranks pass their batches without DDP's reduction, agree whether all have come through, and reduce the
    gradients at the window's end. So a rank that fails in its backward pass lets no other wait.

    Args:
        trainer: The Trainer of the fit.
        parts: How many parts to begin with.
    """

    def __init__(self, trainer: Trainer, parts: int) -> None:
        self.trainer, self.parts = trainer, parts
        self.rows: list[int] = []
        """The sizes of the last batch's parts, if it was split."""
        self.is_known = False
        """Whether the module's layers were looked at in this epoch."""
        self._loop = trainer.fit_loop.epoch_loop.automatic_optimization
        self._stock = self._loop._make_closure
        self._before = BeforeBatch(trainer.lightning_module, trainer.strategy.root_device)
        vars(self._loop)["_make_closure"] = self._make_closure

    def leave(self) -> None:
        """Give the loop its own closure back."""
        vars(self._loop).pop("_make_closure", None)

    def _make_closure(self, kwargs: Any, optimizer: Optimizer, batch_idx: int) -> Closure:
        if self._loop._skip_backward:
            return self._stock(kwargs, optimizer, batch_idx)
        zero_grad = self._loop._make_zero_grad_fn(batch_idx, optimizer)
        return Closure(partial(self._pass, kwargs, optimizer, zero_grad))

    def _pass(self, kwargs: Any, optimizer: Optimizer, zero_grad: Callable[[], None] | None) -> ClosureResult:
        """The training step and the backward pass of one batch."""
        strategy = self.trainer.strategy
        if not self.is_known:  # behind all hooks that freeze or exchange layers at an epoch's start
            check_layers(self.trainer.lightning_module)
            self._before.look_up()
            self.is_known = True
        tries = BatchTries(self.trainer, kwargs, optimizer, zero_grad)
        self._before.take()
        ddp = strategy.model if isinstance(strategy.model, DistributedDataParallel) else None
        # The first forward pass behind a step broadcasts the buffers. A rank whose try failed has to do so again
        # when the others do.
        broadcasts = ddp is not None and ddp.require_forward_param_sync
        while True:
            if ddp is not None:
                ddp.require_forward_param_sync = broadcasts
            verdict = self._agreed(tries.run(self.parts))
            if verdict == PASSED:
                self.rows = [part.rows for part in tries.parts]
                return tries.finish()
            self._free()
            if verdict == INDIVISIBLE:
                raise tries.problem or DoesNotFitError(_too_large(tries))
            self._before.restore()
            self.parts *= 2

    def _agreed(self, verdict: int) -> int:
        """The worst of all ranks' verdicts."""
        if self.trainer.world_size == 1:
            return verdict
        worst = torch.tensor(verdict, device=self.trainer.strategy.root_device)
        distributed.all_reduce(worst, op=distributed.ReduceOp.MAX)
        return int(worst)

    def _free(self) -> None:
        gc.collect()
        if self.trainer.strategy.root_device.type == "cuda":
            torch.cuda.empty_cache()


def _too_large(tries: BatchTries) -> str:
    where = "" if tries.error else " of another rank"
    said = f" The allocator said: {tries.error}" if tries.error else ""
    return (
        f"MicroBatch: a training step{where} does not fit into memory, even with the batch in {len(tries.parts)} "
        "parts, as many as it can be divided into. Make the inputs or the network smaller, train in bf16-mixed, or "
        f"recompute activations (torch.utils.checkpoint).{said}"
    )
