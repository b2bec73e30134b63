"""Free adversarial training: one backward pass gives the weights their gradient and the perturbation its own."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from functools import partial
from typing import Any, Literal, NamedTuple

import torch
from lightning.pytorch.strategies import ParallelStrategy
from torch import Tensor, distributed

from lightning_tuning.errors import check_count
from lightning_tuning.functional import ascent_direction, in_inputs, project, start_of
from lightning_tuning.functional.normalizing import NormalizedBefore
from lightning_tuning.functional.precision import at_least_float32
from lightning_tuning.mixins.attack import Attack, log_adversarial, pixels_of, scales_of
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.families import alternatives
from lightning_tuning.mixins.kept import metrics_kept
from lightning_tuning.mixins.perturbable import Perturbable
from lightning_tuning.mixins.plan import Cost
from lightning_tuning.timing.step_hook import after_each_step

_NAME = "FreeAdversarialMixin"
_STATE_KEY = "free_adversarial_deltas"
_REPLAYS = "it replays the window itself and steps after each. Choose one of them."


class _Passed(NamedTuple):
    """A micro-batch of the window under way."""

    batch: Any
    """As the Trainer gave it, before any technique."""
    batch_idx: int
    spot: Perturbable
    points: list[Tensor]
    """What was added to its inputs; the backward pass leaves the gradient there."""


class FreeAdversarialMixin(TuningMixin):
    """Trains on adversarial inputs at the cost of plain training: each batch is passed several times, and each backward
    pass gives the weights their step and the perturbation its own (Shafahi et al., 2019).

    The perturbation goes on from batch to batch, row by row, and is saved with the checkpoint. ``trainer.global_step``
    counts a batch once, with all its steps, and so do ``max_steps`` and schedules: divide the epochs by the replays.
    Losses and metrics are those of the first pass. Units and range are those of ``AdversarialMixin``.

    Args:
        free_adversarial_epsilon: Radius of the ball, >= 0; 0.0314 is 8/255. Off: 0.
        free_adversarial_replays: Passes and optimizer steps for each batch (with accumulation: each window), >= 1; 8
            for CIFAR, 4 for ImageNet.
        free_adversarial_step_size: How far the perturbation moves after each pass, > 0. None: epsilon.
        free_adversarial_norm: ``linf``: each pixel moves by at most epsilon; ``l2``: the Euclidean norm of a sample's
            whole change is at most epsilon.

    Raises:
        InvalidValueError: An argument is out of range, or inputs or output cannot be attacked.

    Source: Shafahi et al., 2019, "Adversarial training for free!", the algorithm "Free-m".
    """

    stem = "free_adversarial"
    stage = "attack"
    off = {"free_adversarial_epsilon": 0.0}
    needs = ("training_step", "compute_loss", "forward")
    changes = ("batch", "weights")
    whole_batch = "steps several times on one batch"
    tasks = ("multiclass",)
    conflicts = {**alternatives("free_adversarial"), "sam": _REPLAYS, "awp": _REPLAYS}

    def __init__(
        self,
        *args: Any,
        free_adversarial_epsilon: float = 0.0314,
        free_adversarial_replays: int = 8,
        free_adversarial_step_size: float | None = None,
        free_adversarial_norm: Literal["linf", "l2"] = "linf",
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_count("free_adversarial_replays", free_adversarial_replays, 1)
        self.free_adversarial_epsilon = free_adversarial_epsilon
        self.free_adversarial_replays = free_adversarial_replays
        self.free_adversarial_step_size = free_adversarial_step_size
        self.free_adversarial_norm = free_adversarial_norm
        self._free_attack()  # checks the arguments
        self._free_batch: Any = None
        self._free_window: list[_Passed] = []
        self._free_deltas: list[list[Tensor]] = []
        """For each micro-batch of a window the perturbation of its rows, in the unit of epsilon."""
        self._free_moved = False

    def _free_attack(self) -> Attack:
        return Attack.of(self, "free_adversarial", "clean", steps=1)

    def extra_cost(self) -> Cost:
        more = self.free_adversarial_replays - 1
        return Cost(more, more, "the perturbation, the batches of a window")

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> Any:
        if self.free_adversarial_epsilon:
            # A shallow copy: a host that exchanges items of its batch must find them in the replays again.
            self._free_batch = copy.copy(batch)
        return super().on_train_batch_start(batch, batch_idx)

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.free_adversarial_epsilon == 0 or not self._will_step:
            return super().training_step(batch, batch_idx)
        x, target = self.unpack_batch(batch)
        spot = Perturbable(self, x, _NAME)
        attack = self._free_attack()
        scales = attack.scales(self, spot)
        own = self._free_delta(len(self._free_window), spot)
        delta = project(own, attack.epsilon, attack.norm, pixels_of(spot, scales))
        points = [d.requires_grad_() for d in in_inputs(delta, spot.clean, scales)]
        self._free_window.append(_Passed(self._free_batch, batch_idx, spot, points))
        self.log_term("free_adversarial_perturbation", attack.size(self, spot, points))
        self._free_moved = True
        try:
            with spot.moved(points) as moved_x, NormalizedBefore(self, _NAME):
                return super().training_step(self.pack_batch(batch, moved_x, target), batch_idx)
        finally:
            self._free_moved = False

    def compute_loss(self, logits: Tensor, target: Tensor) -> Tensor:
        loss = super().compute_loss(logits, target)
        if self._free_moved and self.training:
            log_adversarial(self, "free_adversarial", logits, target, loss_too=True)
        return loss

    @property
    def _will_step(self) -> bool:
        """False in the passes without backward in which StochasticWeightAveraging renews batch norm's statistics."""
        return self._trainer is not None and not self._trainer.fit_loop._skip_backward

    def _free_delta(self, position: int, spot: Perturbable) -> list[Tensor]:
        """The perturbation for the rows of a window's micro-batch; it starts at 0 where the inputs' shapes changed."""
        if position == len(self._free_deltas):
            self._free_deltas.append([])
        kept, fresh = self._free_deltas[position], start_of(spot.clean, 0.0, "linf", "clean")
        if [d.shape[1:] for d in kept] != [d.shape[1:] for d in fresh]:
            kept = []
        # As long as the longest batch so far: a shorter one, such as an epoch's last, leaves the other rows alone.
        self._free_deltas[position] = [
            torch.cat([d.to(f), f[len(d) :]]) for d, f in zip(kept or fresh, fresh, strict=True)
        ]
        return [d[: len(f)] for d, f in zip(self._free_deltas[position], fresh, strict=True)]

    def _advance(self) -> None:
        """Move the perturbation along the gradient of the step just made."""
        attack = self._free_attack()
        for deltas, (_, _, spot, points) in zip(self._free_deltas, self._free_window, strict=False):
            if any(p.grad is None for p in points):  # training_step returned None
                continue
            scales = scales_of(self, spot)
            found = [at_least_float32(p.grad) for p in points]  # type: ignore[arg-type]
            found = [g if s is None else s.change(g) for s, g in zip(scales, found, strict=True)]
            steps = ascent_direction(found, attack.norm)
            rows = [d[: len(s)] + attack.step_size * s for d, s in zip(deltas, steps, strict=True)]
            # Not onto the range of pixels: that of the next batch is another.
            for delta, row in zip(deltas, project(rows, attack.epsilon, attack.norm, [None] * len(rows)), strict=True):
                delta[: len(row)] = row

    def optimizer_step(
        self, epoch: int, batch_idx: int, optimizer: Any, optimizer_closure: Callable[[], Any] | None = None
    ) -> None:
        if self.free_adversarial_epsilon == 0 or optimizer_closure is None:
            super().optimizer_step(epoch, batch_idx, optimizer, optimizer_closure)
            return
        hooks = after_each_step([optimizer.optimizer], self._advance)
        closures: list[Callable[[], Any]] = [optimizer_closure]
        closures += [partial(self._replay, optimizer)] * (self.free_adversarial_replays - 1)
        try:
            for closure in closures:
                super().optimizer_step(epoch, batch_idx, optimizer, closure)
                self.replaying = True  # from the second on
        finally:
            self.replaying = False
            self._free_window.clear()
            for hook in hooks:
                hook.remove()

    def _replay(self, optimizer: Any) -> Tensor | None:
        """The closure of a further step: the window's gradient, through the strategy and so through DDP and scaler."""
        window, self._free_window = self._free_window, []
        optimizer.zero_grad()
        strategy, total = self.trainer.strategy, None
        with metrics_kept(self):
            for left, passed in zip(reversed(range(len(window))), window, strict=True):
                self._free_batch = passed.batch
                averages_later = left and isinstance(strategy, ParallelStrategy)
                with strategy.block_backward_sync() if averages_later else nullcontext():  # type: ignore[attr-defined]
                    output: Any = strategy.training_step(copy.copy(passed.batch), passed.batch_idx)
                    loss = output["loss"] if isinstance(output, Mapping) else output
                    if loss is not None:
                        loss = loss / self.trainer.accumulate_grad_batches
                        strategy.backward(loss, optimizer)
                        total = loss.detach() if total is None else total + loss.detach()
        return total

    def log(self, *args: Any, **kwargs: Any) -> None:
        if not self.replaying:
            super().log(*args, **kwargs)

    def on_before_zero_grad(self, optimizer: Any) -> None:
        """A window begins: with the gradients of one that was broken off go its batches."""
        super().on_before_zero_grad(optimizer)
        del self._free_window[:-1]

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self._free_window.clear()  # an earlier fit may have been broken off within a window

    # The ranks have perturbations of their own, so a checkpoint holds a list of all of them.

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_save_checkpoint(checkpoint)
        if self.free_adversarial_epsilon:
            own = [[d.cpu() for d in deltas] for deltas in self._free_deltas]
            ranks: list[Any] = [own]
            if distributed.is_available() and distributed.is_initialized():
                ranks = [None] * distributed.get_world_size()
                distributed.all_gather_object(ranks, own)
            checkpoint[_STATE_KEY] = ranks

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        super().on_load_checkpoint(checkpoint)
        ranks, rank = checkpoint.get(_STATE_KEY, []), self.global_rank
        self._free_deltas = [[d.clone() for d in deltas] for deltas in ranks[rank]] if rank < len(ranks) else []
