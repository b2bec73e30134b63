"""What stands before the optimizer's step and lets guards decide whether it is made."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor, distributed
from torch.optim import Optimizer

from lightning_tuning.functional import global_norm
from lightning_tuning.functional.precision import at_least_float32

from ._bad_batches import find_index
from ._buffer_copies import BufferCopies
from ._gradients import remaining_scale

if TYPE_CHECKING:
    from ._guard import Guard


@dataclass
class SeenBatch:
    """A micro-batch of the accumulation window under way."""

    batch_idx: int
    index: Any
    """The ids of its samples, if it has some."""
    loss: Tensor | None = None
    """Its loss, divided by the number of batches that are accumulated."""


@dataclass(frozen=True)
class StepValues:
    """What a step is judged by, the same on all ranks."""

    loss: float | None
    """Mean over the window and the ranks; None if nobody knows it."""
    norm: float
    """2-norm of the gradient, unscaled."""


class StepGate:
    """Takes the place of the precision plugin's ``optimizer_step``: the closure runs first, then the guards are asked.

    A step that they refuse is one that fp16's scaler skips: the optimizer is not called, so what counts its steps by
    hooks leaves it out, and the buffers are put back to what they were before the window.

    Args:
        trainer: The Trainer of the fit.
    """

    def __init__(self, trainer: Trainer) -> None:
        self.trainer = trainer
        self._step = trainer.precision_plugin.optimizer_step
        self._buffers = BufferCopies(trainer.lightning_module)
        self.guards: list[Guard] = []
        self.batches: list[SeenBatch] = []
        self._asked = self._refused = False

    @classmethod
    def of(cls, trainer: Trainer) -> StepGate:
        """The gate of this Trainer; made if there is none."""
        gate = vars(trainer.precision_plugin).get("optimizer_step")
        if not isinstance(gate, cls):
            gate = cls(trainer)
            vars(trainer.precision_plugin)["optimizer_step"] = gate
        return gate

    def leave(self, guard: Guard) -> None:
        """A guard goes; the last one takes the gate along."""
        if guard in self.guards:
            self.guards.remove(guard)
        if not self.guards:
            vars(self.trainer.precision_plugin).pop("optimizer_step", None)

    def begin(self, batch: Any, batch_idx: int) -> None:
        """A micro-batch begins; with the first of a window the buffers are copied."""
        if batch_idx == 0 or not self.batches:
            self._buffers.look_up()
        if batch_idx % self.trainer.accumulate_grad_batches == 0 or not self.batches:
            self.batches = []
            self._asked = self._refused = False
            self._buffers.take()
        self.batches.append(SeenBatch(batch_idx, find_index(batch)))

    def note(self, outputs: Any) -> None:
        """A micro-batch has ended."""
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if not self._asked and isinstance(loss, Tensor):
            self.batches[-1].loss = loss.detach()

    def __call__(self, optimizer: Optimizer, model: LightningModule, closure: Callable[[], Any], **kwargs: Any) -> Any:
        again, self._asked = self._asked, True
        if again:  # free adversarial training steps several times on one window
            self._buffers.take()
        loss = closure()
        values = self._measure(optimizer, loss, again)
        if values is not None and self._is_refused(values):
            return loss
        if values is not None:
            for guard in self.guards:
                guard.on_let_through(self.trainer, values)
        with _times(math.prod(guard.rate for guard in self.guards), optimizer):
            return self._step(optimizer, model=model, closure=lambda: loss, **kwargs)

    def _is_refused(self, values: StepValues) -> bool:
        """Whether a guard objects; the first that does notes it, once a window."""
        for guard in self.guards:
            if (reason := guard.objection(values)) is not None:
                self._buffers.put_back()
                counts, self._refused = not self._refused, True
                if counts:
                    guard.on_refused(self.trainer, self.batches, values, reason)
                return True
        return False

    def _measure(self, optimizer: Optimizer, loss: Any, again: bool) -> StepValues | None:
        """The window's loss and gradient; None if there is no gradient, or one that overflowed by fp16's scale alone,
        which the scaler takes care of."""
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"] if p.grad is not None]
        if not gradients:
            return None
        norm = global_norm(gradients)
        scale = remaining_scale(self.trainer, optimizer, norm)
        both = [norm if scale is None else norm / scale]
        if isinstance(loss, Tensor):
            if not again:
                self.batches[-1].loss = loss.detach()
            known = [b.loss for b in self.batches if b.loss is not None]
            # A further step's closure has passed the whole window through, and returns the sum.
            parts = [loss.detach()] if again else known
            total = parts[0] if len(parts) == 1 else torch.stack([at_least_float32(part) for part in parts]).sum()
            share = self.trainer.accumulate_grad_batches / len(known)
            both.append(total if share == 1 else total * share)
        # One transfer, which waits for the device, and one reduction.
        values = torch.stack(both)
        if self.trainer.world_size > 1:
            distributed.all_reduce(values)
            values /= self.trainer.world_size
        length, mean = [*values.tolist(), None][:2]
        overflowed = not math.isfinite(length) and (mean is None or math.isfinite(mean))
        if overflowed and scale is not None and scale.item() > 1:
            return None
        return StepValues(mean, length)


@contextmanager
def _times(rate: float, optimizer: Optimizer) -> Iterator[None]:
    """Within it the learning rates are multiplied. A schedule goes on from those that it has set."""
    kept = [group["lr"] for group in optimizer.param_groups] if rate != 1 else []
    for group, lr in zip(optimizer.param_groups, kept, strict=False):
        group["lr"] = lr * rate
    try:
        yield
    finally:
        for group, lr in zip(optimizer.param_groups, kept, strict=False):
            group["lr"] = lr
