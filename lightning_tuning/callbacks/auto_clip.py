"""AutoClip: clips the gradient to a percentile of its own past norms."""

from __future__ import annotations

from typing import Any, cast

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.optim import Optimizer

from lightning_tuning.errors import InvalidValueError, check_range
from lightning_tuning.functional import NormHistory, global_norm

from ._gradients import GradientCallback, is_logging_step, remaining_scale


class AutoClip(GradientCallback):
    """Clips the gradient's global norm to a percentile of its norms so far (Seetharaman et al., 2020).

    The threshold is the percentile of the norms of all earlier optimizer steps and this one, before clipping. It
    replaces the Trainer's ``gradient_clip_val``, so the two together are refused. It acts once an optimizer step, on
    the accumulated, reduced and unscaled gradient; callbacks that edit gradients act in the order of the list. Steps
    that fp16's scaler skips and norms that are not finite do not enter the history, and a gradient that is not finite
    is left as it is. The history is saved in checkpoints. Each optimizer has a history of its own.

    Logged at the Trainer's logging steps: ``train/auto_clip`` (the threshold) and ``train/auto_clip_norm`` (the norm
    before clipping).

    Args:
        percentile: Of the norms, 0 to 100: at 10 nine of ten steps are clipped. Off: 100.
        history: How many steps the percentile is taken of, this one included, at least 2. Null takes all, for 16
            bytes a step.
        min_history: Earlier norms that are needed before it clips, at least 0.

    Raises:
        InvalidValueError: If an argument is not allowed.
        MisconfigurationException: When training starts, if the Trainer has a ``gradient_clip_val`` or splits gradients
            over the processes.
        NoEffectError: When training starts, if nothing is trained.

    Source: Seetharaman, Wichern, Pardo and Le Roux, 2020, "AutoClip: adaptive gradient clipping for source separation
    networks".

    Example:
        >>> from lightning.pytorch import Trainer
        >>> trainer = Trainer(callbacks=[AutoClip(percentile=10)], logger=False, accelerator="cpu")
    """

    clips = True

    def __init__(self, percentile: float = 10.0, history: int | None = None, min_history: int = 0) -> None:
        super().__init__()
        check_range("percentile", percentile, 0, 100)
        if history is not None and not _is_integer(history, 2):
            raise InvalidValueError(
                f"history is {history!r}; it must be an integer of at least 2, or None for all steps."
            )
        if not _is_integer(min_history, 0) or (history is not None and min_history >= history):
            below = "" if history is None else f" and below history, {history}"
            raise InvalidValueError(f"min_history is {min_history!r}; it must be an integer of at least 0{below}.")
        self.percentile = percentile
        self.history = history
        self.min_history = min_history
        self.clipped: dict[int, Tensor] = {}
        """By optimizer: whether the last gradient was clipped, on the device."""
        self._histories: list[NormHistory] = []
        self._pending: dict[int, Tensor] = {}
        self._arriving: dict[int, _Arriving] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._histories = []
            self._pending, self._arriving = {}, {}

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        super().on_fit_start(trainer, pl_module)
        if trainer.gradient_clip_val:
            raise MisconfigurationException(
                f"AutoClip chooses the norm to clip to, but the Trainer clips to gradient_clip_val="
                f"{trainer.gradient_clip_val} as well. Remove gradient_clip_val, or AutoClip."
            )
        while len(self._histories) < len(trainer.optimizers):
            self._histories.append(self._new_history())
        self.follow_steps(trainer)

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        index = trainer.optimizers.index(optimizer)
        self.clipped.pop(index, None)
        gradients = [cast(Tensor, p.grad) for p in self.edited(optimizer)]
        if not gradients:
            return
        self._settle(index)
        norm = global_norm(gradients)
        scale = remaining_scale(trainer, optimizer, norm)
        norm = norm if scale is None else norm / scale
        self._pending[index] = norm
        history = self._histories[index]
        if len(history) >= self.min_history:
            threshold = history.percentile_with(norm, self.percentile)
            # Decided on the device, which is not waited for. Times 1 changes no bit.
            clips = norm.isfinite() & (norm > threshold)
            torch._foreach_mul_(gradients, torch.where(clips, threshold / norm, 1.0))
            if is_logging_step(trainer):
                self.add_term(trainer, optimizer, "auto_clip", threshold)
        else:
            clips = torch.zeros_like(norm, dtype=torch.bool)
        self.clipped[index] = clips
        if is_logging_step(trainer):
            self.add_term(trainer, optimizer, "auto_clip_norm", norm)

    def _on_step(self, index: int) -> None:
        if index in self._pending:
            self._arriving[index] = _Arriving(self._pending.pop(index))

    def _settle(self, index: int) -> None:
        """Take the norm of the last step that counted into the history."""
        if index in self._arriving:
            self._histories[index].add(self._arriving.pop(index).value())

    def _new_history(self) -> NormHistory:
        return NormHistory(None if self.history is None else self.history - 1)

    def state_dict(self) -> dict[str, Any]:
        for index in list(self._arriving):
            self._settle(index)
        return {"norms": [history.state() for history in self._histories]}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self._pending, self._arriving = {}, {}
        self._histories = [self._new_history() for _ in state_dict["norms"]]
        for history, norms in zip(self._histories, state_dict["norms"], strict=True):
            history.load(norms)


class _Arriving:
    """A scalar on its way from the GPU, which is not waited for until the next step wants it."""

    def __init__(self, scalar: Tensor) -> None:
        self._scalar, self._event = scalar, None
        if scalar.device.type == "cuda":
            self._scalar, self._event = scalar.to("cpu", non_blocking=True), torch.cuda.Event()
            self._event.record(torch.cuda.current_stream(scalar.device))

    def value(self) -> float:
        if self._event is not None:
            self._event.synchronize()
        return self._scalar.item()


def _is_integer(value: Any, low: int) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= low
