"""What the techniques share that take the gradient at other weights: a second pass over the accumulation window."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer

from lightning_tuning.functional import RngState, get_rng_state, set_rng_state

from .base import TuningMixin
from .kept import metrics_kept


@dataclass
class _Entry:
    """A micro-batch of the window, and what its second pass takes over from the first."""

    batch: Any
    batch_idx: int
    rng_state: RngState
    kept: dict[str, tuple[Any, RngState]] = field(default_factory=dict)


class AscentMixin(TuningMixin):
    """Base of the techniques that climb in weight space before each step; it stands once right of all of them.

    The closure leaves the gradient of the whole window, averaged over the devices. Then the weights climb, each
    micro-batch is passed again with the random numbers of its first pass, and the weights are put back bitwise: the
    optimizer steps from them with the second gradient.
    """

    stage = "optimizer"
    needs = ("training_step",)
    changes = ("gradient",)
    whole_batch = "passes each batch of the window a second time"

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self._ascent_window: list[_Entry] = []
        self._ascent_entry: _Entry | None = None
        """The micro-batch that is passed now, in a window that climbs."""

    # What a technique overrides. It answers for itself where it is on, and otherwise asks those to its right.

    def _ascends(self) -> bool:
        """Whether the window under way is passed through twice."""
        return False

    def _ascent(self, named: Mapping[str, nn.Parameter]) -> tuple[list[Tensor], tuple[Tensor, ...]]:
        """The weights that climb, of those that have a gradient and are stepped, and how far each of them does."""
        raise NotImplementedError

    def _first_gradient(self, closure: Callable[[], Any]) -> Any:
        return closure()

    def _second_gradient(self, named: Mapping[str, nn.Parameter], optimizer: Optimizer) -> None:
        """Exchange the gradients for those at the top of the ascent."""
        with self._climb(named):
            optimizer.zero_grad()
            self._second_pass(optimizer)

    # The window.

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.replaying or not self._will_step or not self._ascends():
            return super().training_step(batch, batch_idx)
        # A shallow copy: a host that exchanges items of its batch must find them in the second pass again.
        self._ascent_entry = _Entry(copy.copy(batch), batch_idx, get_rng_state(self.device))
        self._ascent_window.append(self._ascent_entry)
        try:
            return super().training_step(batch, batch_idx)
        finally:
            self._ascent_entry = None

    def kept_for_replay(self, name: str, make: Callable[[], Any]) -> Any:
        entry = self._ascent_entry
        if entry is None:
            return super().kept_for_replay(name, make)
        if not self.replaying:
            entry.kept[name] = make(), get_rng_state(self.device)
        elif name in entry.kept:
            set_rng_state(entry.kept[name][1])
        return entry.kept[name][0] if name in entry.kept else make()

    @property
    def _will_step(self) -> bool:
        """False in the passes without backward in which StochasticWeightAveraging renews batch norm's statistics."""
        return self._trainer is not None and not self._trainer.fit_loop._skip_backward

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._ascent_window.clear()  # a fit may end within a window

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """A window begins: with the gradients of one that was broken off go its batches."""
        super().on_before_zero_grad(optimizer)
        del self._ascent_window[:-1]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if optimizer_closure is not None and self._ascends():
            optimizer_closure = partial(self._ascent_closure, optimizer, optimizer_closure)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def _ascent_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        """The closure of the last batch of the window leaves the whole window's gradient."""
        try:
            loss = self._first_gradient(closure)
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            named = {n: p for n, p in self.named_parameters() if p.grad is not None and id(p) in stepped}
            if named and self._ascent_window:  # none where training_step skipped the whole window
                self._second_gradient(named, optimizer)
            return loss
        finally:
            self._ascent_window.clear()

    @contextmanager
    def _climb(self, named: Mapping[str, nn.Parameter]) -> Iterator[None]:
        """At the top of the ascent; afterwards weights and buffers are bitwise what they were."""
        # By name, for a host may exchange a buffer instead of changing it.
        buffers = [
            (m, n, b, b.clone()) for m in self.modules() if m.training for n, b in m.named_buffers(recurse=False)
        ]
        parameters, ascent = self._ascent(named)
        kept_parameters = [p.clone() for p in parameters]
        self.replaying = True
        try:
            torch._foreach_add_(parameters, ascent)
            with metrics_kept(self):
                yield
        finally:
            self.replaying = False
            torch._foreach_copy_(parameters, kept_parameters)
            for module, name, buffer, kept in buffers:
                setattr(module, name, buffer.copy_(kept))

    def _second_pass(self, optimizer: Optimizer) -> None:
        """Gradient of the window at the climbed weights, through the strategy and so through DDP and the scaler."""
        *earlier, last = self._ascent_window
        for entry in earlier:
            with self._unsynchronized():
                self._pass_again(entry, optimizer)
        self._pass_again(last, optimizer)

    def _unsynchronized(self) -> AbstractContextManager[Any]:
        """Within it, DDP leaves each device its own gradient."""
        strategy = self.trainer.strategy
        return strategy.block_backward_sync() if isinstance(strategy, ParallelStrategy) else nullcontext()

    def _pass_again(self, entry: _Entry, optimizer: Optimizer) -> None:
        self._ascent_entry = entry
        set_rng_state(entry.rng_state)
        try:
            output: Any = self.trainer.strategy.training_step(entry.batch, entry.batch_idx)
        finally:
            self._ascent_entry = None
        loss = output["loss"] if isinstance(output, Mapping) else output
        if loss is not None:
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, optimizer)

    def log(self, *args: Any, **kwargs: Any) -> None:
        if not self.replaying:
            super().log(*args, **kwargs)
