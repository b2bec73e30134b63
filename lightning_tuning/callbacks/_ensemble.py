"""Several states of one module answering together."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from torch import Tensor
from torch.func import functional_call

from lightning_tuning.errors import InvalidValueError
from lightning_tuning.functional import ensemble_logits, prediction_quality, prediction_sums


class Ensemble:
    """Stands in for a module's ``forward``: runs it once with each state, and returns what stands for the mean
    prediction, so that the module's own metrics and predictions are the ensemble's.

    Args:
        module: The module, whose ``task`` tells what its outputs are; classes if it has none.
        members: Its states.
    """

    def __init__(self, module: LightningModule, members: Sequence[Mapping[str, Tensor]]) -> None:
        self._module = module
        self._members = [{name: value.to(module.device) for name, value in member.items()} for member in members]
        self._forward = module.forward
        self._task = getattr(module, "task", "multiclass")
        self._runs = False
        self._outputs: Tensor | None = None
        """Of this batch, ``[M, N, C, ...]``."""
        self._called = False
        self._sums: dict[int, Tensor] = {}
        module.forward = self  # type: ignore[method-assign]

    def remove(self) -> None:
        """Give the module its own ``forward`` back."""
        vars(self._module).pop("forward", None)

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        if self._runs:
            return self._forward(*args, **kwargs)
        self._runs = True
        try:
            outputs = [functional_call(self._module, dict(member), args, kwargs) for member in self._members]
        finally:
            self._runs = False
        if not all(isinstance(output, Tensor) for output in outputs):
            raise InvalidValueError(
                f"SnapshotEnsemble averages predictions, but {type(self._module).__name__}.forward returned a "
                f"{type(outputs[0]).__name__}. Return the tensor of logits from forward."
            )
        stacked = torch.stack(outputs)
        if self._outputs is None:
            self._outputs = stacked
        self._called = True
        return ensemble_logits(stacked, self._task)

    def begin_batch(self) -> None:
        self._outputs = None

    def measure(self, batch: Any, loader: int) -> None:
        """Count what the members and the ensemble predicted of a batch with classes.

        Raises:
            InvalidValueError: Nothing has called the module.
        """
        if not self._called:
            raise InvalidValueError(
                f"SnapshotEnsemble answers when {type(self._module).__name__} is called, but its step did not call "
                "self(x). Do so, in place of self.network(x) or the like."
            )
        outputs, self._outputs = self._outputs, None
        target = _target(self._module, batch)
        if self._task != "multiclass" or outputs is None or outputs.ndim != 3 or target is None:
            return
        if len(target) != outputs.shape[1]:
            return
        voices = [*outputs, ensemble_logits(outputs)]
        sums = torch.stack([prediction_sums(logits.cpu(), target.cpu()) for logits in voices])
        self._sums[loader] = self._sums.get(loader, torch.zeros_like(sums)) + sums

    def log(self, trainer: Trainer, part: str) -> None:
        """Log each member's and the ensemble's quality over all ranks. Every rank has to call it."""
        many = len(self._sums) > 1
        for loader, sums in self._sums.items():
            if trainer.world_size > 1:
                sums = trainer.strategy.reduce(sums.to(self._module.device), reduce_op="sum").cpu()
            suffix = f"/dataloader_idx_{loader}" if many else ""
            names = [f"member_{i}" for i in range(1, len(sums))] + ["ensemble"]
            for name, row in zip(names, sums, strict=True):
                for metric, value in prediction_quality(row).items():
                    # Equal on all ranks already; sync_dist keeps Lightning from warning.
                    key = f"{part}/{name}_{metric}{suffix}"
                    self._module.log(key, value, sync_dist=True, add_dataloader_idx=False)
        self._sums = {}


def _target(module: LightningModule, batch: Any) -> Tensor | None:
    unpack = getattr(module, "unpack_batch", None)
    items = unpack(batch) if unpack is not None else batch
    if isinstance(items, (tuple, list)) and len(items) > 1 and isinstance(items[1], Tensor):
        target = items[1]
        return target if target.ndim == (2 if target.is_floating_point() else 1) else None
    return None
