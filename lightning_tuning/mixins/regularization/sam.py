"""Sharpness-aware minimization: the gradient is taken where the loss nearby is highest."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from functools import partial
from typing import Any

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import Metric

from lightning_tuning.errors import check_range
from lightning_tuning.functional import RngState, asam_ascent, get_rng_state, sam_ascent, set_rng_state
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.plan import Cost


class SAMMixin(TuningMixin):
    """Steps with the gradient at the nearby point of highest loss (Foret et al., 2021; ASAM: Kwon et al., 2021).

    Each step computes the gradient, climbs ``rho * g / ||g||``, computes the gradient there on the same batch with the
    same random numbers, goes back and lets the optimizer step with the second gradient, towards flat minima. It costs
    two steps. Losses and metrics are those of the first pass. With gradient accumulation the whole window climbs by one
    common ascent and is passed through a second time, so its batches are kept until then.

    Args:
        sam_rho: Radius of the neighbourhood, >= 0; 0.05 for SAM, 0.5 to 2 for ASAM. Off: 0.
        sam_adaptive: Whether to scale the neighbourhood with the size of each weight (ASAM).
        sam_eta: ASAM: added to each weight's size, >= 0.

    Raises:
        InvalidValueError: ``sam_rho`` or ``sam_eta`` is negative.

    Source: Foret et al., 2021, "Sharpness-aware minimization", algorithm 1, with the ascent from the gradient averaged
    over all devices; Kwon et al., 2021, "ASAM", algorithm 1, scaling parameters named ``*weight*`` as the authors do.
    """

    stem = "sam"
    stage = "optimizer"
    off = {"sam_rho": 0.0}
    needs = ("training_step",)
    changes = ("gradient",)

    def __init__(
        self, *args: Any, sam_rho: float = 0.05, sam_adaptive: bool = False, sam_eta: float = 0.01, **kwargs: Any
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("sam_rho", sam_rho)
        check_range("sam_eta", sam_eta)
        self.sam_rho = sam_rho
        self.sam_adaptive = sam_adaptive
        self.sam_eta = sam_eta
        self._sam_window: list[tuple[Any, int, RngState]] = []
        self._sam_climbed = False

    def extra_cost(self) -> Cost:
        return Cost(1, 1, "a copy of the weights, the batches of a window")

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.sam_rho != 0 and not self._sam_climbed and self._will_step:
            # A shallow copy: a host that exchanges items of its batch must find them in the second pass again.
            self._sam_window.append((copy.copy(batch), batch_idx, get_rng_state(self.device)))
        return super().training_step(batch, batch_idx)

    @property
    def _will_step(self) -> bool:
        """False in the passes without backward in which StochasticWeightAveraging renews batch norm's statistics."""
        return self._trainer is not None and not self._trainer.fit_loop._skip_backward

    def on_fit_end(self) -> None:
        super().on_fit_end()
        self._sam_window.clear()  # a fit may end within a window

    def on_before_zero_grad(self, optimizer: Optimizer) -> None:
        """A window begins: with the gradients of one that was broken off go its batches."""
        super().on_before_zero_grad(optimizer)
        del self._sam_window[:-1]

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.sam_rho != 0 and optimizer_closure is not None:
            optimizer_closure = partial(self._sam_closure, optimizer, optimizer_closure)
        super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)

    def _sam_closure(self, optimizer: Optimizer, closure: Callable[[], Any]) -> Any:
        """The closure of the last batch of the window leaves the whole window's gradient, averaged over the devices."""
        try:
            loss = closure()
            stepped = {id(p) for group in optimizer.param_groups for p in group["params"]}
            climbing = [(n, p) for n, p in self.named_parameters() if p.grad is not None and id(p) in stepped]
            if climbing and self._sam_window:  # none where training_step skipped the whole window
                with self._climb(climbing):
                    optimizer.zero_grad()
                    self._second_pass(optimizer)
            return loss
        finally:
            self._sam_window.clear()

    @contextmanager
    def _climb(self, named: list[tuple[str, nn.Parameter]]) -> Iterator[None]:
        """At the top of the ascent; afterwards weights and buffers are bitwise what they were."""
        parameters: list[Tensor] = [p.detach() for _, p in named]
        gradients = [p.grad for _, p in named if p.grad is not None]
        # By name, for a host may exchange a buffer instead of changing it.
        buffers = [
            (m, n, b, b.clone()) for m in self.modules() if m.training for n, b in m.named_buffers(recurse=False)
        ]
        kept_parameters = [p.clone() for p in parameters]
        if self.sam_adaptive:
            scaled = ["weight" in name for name, _ in named]
            ascent = asam_ascent(gradients, parameters, scaled, self.sam_rho, self.sam_eta)
        else:
            ascent = sam_ascent(gradients, self.sam_rho)
        self._sam_climbed = True
        try:
            torch._foreach_add_(parameters, ascent)
            with _metrics_kept(self):
                yield
        finally:
            self._sam_climbed = False
            torch._foreach_copy_(parameters, kept_parameters)
            for module, name, buffer, kept in buffers:
                setattr(module, name, buffer.copy_(kept))

    def _second_pass(self, optimizer: Optimizer) -> None:
        """Gradient of the window at the climbed weights, through the strategy and so through DDP and the scaler."""
        strategy = self.trainer.strategy
        *earlier, last = self._sam_window
        waiting = strategy.block_backward_sync if isinstance(strategy, ParallelStrategy) else nullcontext
        for entry in earlier:
            with waiting():
                self._replay(entry, optimizer)
        self._replay(last, optimizer)

    def _replay(self, entry: tuple[Any, int, RngState], optimizer: Optimizer) -> None:
        batch, batch_idx, rng_state = entry
        set_rng_state(rng_state)
        output: Any = self.trainer.strategy.training_step(batch, batch_idx)
        loss = output["loss"] if isinstance(output, Mapping) else output
        if loss is not None:
            self.trainer.strategy.backward(loss / self.trainer.accumulate_grad_batches, optimizer)

    def log(self, *args: Any, **kwargs: Any) -> None:
        if not self._sam_climbed:
            super().log(*args, **kwargs)

    def log_term(self, name: str, value: Tensor, prog_bar: bool = False) -> None:
        if not self._sam_climbed:
            super().log_term(name, value, prog_bar)


@contextmanager
def _metrics_kept(module: nn.Module) -> Iterator[None]:
    """Undo what happens to the torchmetrics inside: a second pass would count every sample twice."""
    # The first pass has updated what the second will: the others, such as validation's, need no copy.
    metrics = [m for m in module.modules() if isinstance(m, Metric) and m.update_called]
    kept = [{**_copied_state(m), **{name: getattr(m, name) for name in _METRIC_CACHES}} for m in metrics]
    try:
        yield
    finally:
        for metric, state in zip(metrics, kept, strict=True):
            for name, value in state.items():
                setattr(metric, name, value)


def _copied_state(metric: Metric) -> dict[str, Any]:
    # A list of tensors grows by appending, so its tensors need no copy.
    return {name: v.clone() if isinstance(v, Tensor) else list(v) for name, v in metric.metric_state.items()}


_METRIC_CACHES = ("_update_count", "_computed", "_forward_cache")
