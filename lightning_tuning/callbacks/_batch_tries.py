"""The tries of one training batch: forward and backward in parts, until all have come through."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from itertools import chain
from typing import Any

import torch
from lightning.pytorch import Trainer
from lightning.pytorch.loops.optimization.automatic import ClosureResult
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.memory import recursive_detach
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer

from lightning_tuning.errors import InvalidValueError

from ._batch_parts import Part, joined, parts_of, units_of
from ._held_logs import HeldLogs
from ._window_gradients import WindowGradients, average_over_ranks

PASSED, FAILED, INDIVISIBLE = 0, 1, 2
"""How a try ends; the last one: out of memory with a part of one sample, so that no other try can help."""
_WORDS = ("out of memory", "can't allocate memory", "not enough memory", "alloc_failed")


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an allocator had no memory left: torch's on a device or the CPU, or that of cuBLAS, cuDNN or Python.

    Example:
        >>> is_out_of_memory(RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling ..."))
        True
    """
    if isinstance(error, (torch.OutOfMemoryError, MemoryError)):
        return True
    return isinstance(error, RuntimeError) and any(word in str(error).lower() for word in _WORDS)


class BatchTries:
    """Passes one batch, as often as it is told to.

    Args:
        trainer: The Trainer, within a batch.
        kwargs: The arguments of ``training_step``.
        optimizer: The optimizer.
        zero_grad: Called once, before the first backward pass; None within an accumulation window.
    """

    def __init__(
        self, trainer: Trainer, kwargs: Any, optimizer: Optimizer, zero_grad: Callable[[], None] | None
    ) -> None:
        self._trainer, self._module, self._strategy = trainer, trainer.lightning_module, trainer.strategy
        self._kwargs, self._optimizer, self._zero_grad = kwargs, optimizer, zero_grad
        self._window: WindowGradients | None = None
        """From the first backward pass on."""
        self._announced = False
        self.parts: list[Part] = []
        """Those of the last try."""
        self.error = ""
        """What the allocator said in the last try, if it failed."""
        self.problem: InvalidValueError | None = None
        """Why the batch cannot be divided."""

    def run(self, count: int) -> int:
        """Try the batch in ``count`` parts; returns ``PASSED``, ``FAILED`` or ``INDIVISIBLE``."""
        batch, self.error = self._kwargs["batch"], ""
        self.parts = parts_of(batch, count) if count > 1 else [Part(batch, 1.0, 0)]
        self._logs = HeldLogs(self._trainer, self._module)
        self._results: list[ClosureResult] = []
        if self._window is not None:
            self._window.drop()
        fx = self._module._current_fx_name
        try:
            with self._unsynchronized():
                for part in self.parts:
                    self._pass(part)
            return PASSED
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            self.error = str(error).partition("\n")[0]
        # Here nothing refers to the frames that failed and to their tensors any more.
        self._module._current_fx_name = fx  # what the step would have done at its end
        self._results.clear()
        if self._window is not None:
            self._window.drop()
        try:
            return INDIVISIBLE if len(self.parts) >= units_of(batch) else FAILED
        except InvalidValueError as problem:  # raised when the other ranks know that this one ends
            self.problem = problem
            return INDIVISIBLE

    def finish(self) -> ClosureResult:
        """All parts have come through, on all ranks: leave the window's gradient, log, return what the step returns."""
        with self._trainer.precision_plugin.train_step_context():  # as logged: it sets the default dtype
            self._logs.hand_over()
        if self._window is not None:
            self._window.put_back()
        ddp = self._strategy.model
        if isinstance(ddp, DistributedDataParallel) and not self._trainer.fit_loop._should_accumulate():
            ignored = getattr(self._module, "_ddp_params_and_buffers_to_ignore", ())
            named = self._module.named_parameters()
            average_over_ranks([p for name, p in named if p.requires_grad and name not in ignored])
            ddp.require_forward_param_sync = True  # as behind a backward pass that reduces
        result = self._whole()
        if self._announced and result.closure_loss is not None:  # calls on_after_backward
            self._trainer.precision_plugin.post_backward(result.closure_loss, self._module)
        return result

    def _pass(self, part: Part) -> None:
        loop = self._trainer.fit_loop.epoch_loop.automatic_optimization
        with self._logs.held(part.share):
            result = loop._training_step(OrderedDict({**self._kwargs, "batch": part.batch}))
        if self._window is None:
            if self._zero_grad is not None:
                self._zero_grad()
            stepped = (p for group in self._optimizer.param_groups for p in group["params"])
            trained = [p for p in dict.fromkeys(chain(self._module.parameters(), stepped)) if p.requires_grad]
            self._window = WindowGradients(trained)
            self._window.set_aside()
        loss = result.closure_loss
        if loss is not None:
            self._backward(loss if len(self.parts) == 1 else loss * part.share)
        if len(self.parts) > 1:  # the graph goes before the next part comes
            extra = recursive_detach(result.extra)
            result = ClosureResult(None if loss is None else loss.detach(), extra=extra)
        self._results.append(result)

    def _backward(self, loss: Tensor) -> None:
        plugin, fx = self._trainer.precision_plugin, self._module._current_fx_name
        self._module._current_fx_name = "backward"
        with self._trainer.profiler.profile(f"[Strategy]{type(self._strategy).__name__}.backward"):  # type: ignore[attr-defined]
            if self._announced:
                scaler = getattr(plugin, "scaler", None)
                loss = loss if scaler is None else scaler.scale(loss)
            else:  # calls on_before_backward, once a batch
                self._announced = True
                loss = plugin.pre_backward(loss, self._module)
            plugin.backward(loss, self._module, self._optimizer)
        self._module._current_fx_name = fx

    def _whole(self) -> ClosureResult:
        if len(self.parts) == 1:
            return self._results[0]
        losses, extras, shares, rows = [], [], [], []
        for result, part in zip(self._results, self.parts, strict=True):
            if result.closure_loss is not None:
                losses.append(result.closure_loss * part.share)
                extras.append(result.extra)
                shares.append(part.share)
                rows.append(part.rows)
        return (
            ClosureResult(torch.stack(losses).sum(0), extra=joined(extras, shares, rows))
            if losses
            else ClosureResult(None)
        )

    def _unsynchronized(self) -> AbstractContextManager[Any]:
        """Within it, DDP leaves each rank its own gradient."""
        return self._strategy.block_backward_sync() if isinstance(self._strategy, ParallelStrategy) else nullcontext()
