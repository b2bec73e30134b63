"""GradientNorm: total and per-group gradient norms, taken from the clipping where there is one."""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal, cast

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.core.optimizer import LightningOptimizer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import Tensor, nn
from torch.optim import Optimizer
from torch.utils._foreach_utils import _group_tensors_by_device_and_dtype, _has_foreach_support

from lightning_tuning.errors import InvalidValueError, check_count

from ._gradients import holds_whole_gradients, is_logging_step, scaler_of_scaled_gradients


class Norms:
    """2-norms of the gradients of one step, computed in one foreach pass just as ``clip_grad_norm_`` does.

    Args:
        parameters: Those without a gradient are left out.
        widen: Whether half-precision gradients are summed up in float32, which clipping does not do.

    Example:
        >>> weight = nn.Parameter(torch.zeros(2))
        >>> weight.grad = torch.tensor([3.0, 4.0])
        >>> Norms([weight]).total.item()
        5.0
    """

    def __init__(self, parameters: Iterable[nn.Parameter], widen: bool = False) -> None:
        with_grad = [p for p in parameters if p.grad is not None]
        grads = [cast(Tensor, p.grad) for p in with_grad]
        self.parameters: list[nn.Parameter] = []
        norms: list[Tensor] = []
        # The order of the norms decides the last bit of the total, so tensors are grouped as clipping groups them.
        for (device, dtype), ((tensors,), indices) in _grouped(grads).items():
            wide = torch.float32 if widen and dtype in (torch.float16, torch.bfloat16) else None
            if _has_foreach_support(tensors, device):
                norms.extend(torch._foreach_norm(tensors, 2.0, dtype=wide))
            else:
                norms.extend(torch.linalg.vector_norm(grad, 2.0, dtype=wide) for grad in tensors)
            self.parameters.extend(with_grad[i] for i in indices)
        self.each = torch.stack([norm.to(grads[0].device) for norm in norms]) if norms else torch.zeros(0)
        self.total = torch.linalg.vector_norm(self.each, 2.0)


def _grouped(grads: list[Tensor]) -> dict[Any, Any]:
    return _group_tensors_by_device_and_dtype([grads], with_indices=True) if grads else {}  # type: ignore[list-item]


@dataclass
class _Record:
    """What one optimizer step leaves for the logging; read only at logging steps, so that a GPU is not waited for."""

    norms: Norms
    scale: float
    max_norm: float | None = None
    clipped: Tensor | None = None

    def values(self, prefix: str, names: dict[nn.Parameter, str]) -> dict[str, float]:
        squares: dict[str, float] = {}
        for parameter, norm in zip(self.norms.parameters, self.norms.each.tolist(), strict=True):
            name = names[parameter]
            squares[name] = squares.get(name, 0.0) + norm * norm
        values = {name: math.sqrt(square) for name, square in squares.items()} if len(squares) > 1 else {}
        total = values["total"] = self.norms.total.item()
        if self.max_norm is not None:
            coefficient = self.max_norm / (total + 1e-6)
            values["total_clipped"] = total * coefficient if coefficient < 1 else total
        elif self.clipped is not None:
            values["total_clipped"] = self.clipped.item()
        return {f"{prefix}{name}": value / self.scale for name, value in values.items()}


class GradientNorm(Callback):
    """Logs the gradient's 2-norm, in total and by group, before and after clipping.

    It logs ``grad_norm/total``; ``grad_norm/total_clipped`` if the Trainer clips; and ``grad_norm/<group>`` before
    clipping if there is more than one group. The values are unscaled under fp16, those of the accumulated gradient
    under accumulation, those of the reduced gradient under DDP, and NaN or infinite where the gradient is. They reach
    the loggers at the Trainer's logging steps (``log_every_n_steps``).

    Clipping by norm computes the norm anyway: it is taken from there, and the clipped weights stay bitwise the same.
    Otherwise nothing is computed between logging steps. Without clipping the norm is taken in this callback's
    ``on_before_optimizer_step``, so put it behind callbacks that edit gradients.

    In manual optimization the norm is what reaches the optimizer, after any clipping of your own; with several
    optimizers the keys become ``grad_norm/optimizer<i>/...``. Under FSDP, DeepSpeed and other strategies that do not
    hold whole gradients on each rank it warns once and logs nothing.

    Args:
        group_by: ``optimizer`` makes a group of each of the optimizer's parameter groups, called by the group's
            ``name`` or else ``group<i>``; ``module`` makes one of each submodule.
        depth: With ``group_by: module``, how many levels of submodules make a name, at least 1: ``encoder`` at 1,
            ``encoder.layer1`` at 2.

    Raises:
        InvalidValueError: If an argument is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> norm = GradientNorm(group_by="module")
        >>> trainer = Trainer(callbacks=[norm], gradient_clip_val=1.0, logger=False, accelerator="cpu")
    """

    def __init__(self, group_by: Literal["optimizer", "module"] = "optimizer", depth: int = 1) -> None:
        super().__init__()
        if group_by not in ("optimizer", "module"):
            raise InvalidValueError(f"group_by is {group_by!r}; it must be 'optimizer' or 'module'.")
        check_count("depth", depth, 1)
        self.group_by = group_by
        self.depth = depth
        self._plugin: Precision | None = None
        self._active = self._from_clipping = False
        self._names: dict[nn.Parameter, str] = {}
        self._records: dict[str, _Record] = {}

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if sum(isinstance(callback, GradientNorm) for callback in trainer.callbacks) > 1:  # type: ignore[attr-defined]
            raise MisconfigurationException(
                "The Trainer has more than one GradientNorm; they would log under the same names. Keep one."
            )

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names, self._records = {}, {}
        self._active = holds_whole_gradients(trainer.strategy)
        if not self._active:
            rank_zero_warn(
                f"GradientNorm logs nothing under {type(trainer.strategy).__name__}: no rank holds whole gradients"
                " there. Train on a single device or with DDP to see the norms, or remove the callback."
            )
            return
        plugin = trainer.precision_plugin
        # In manual optimization the gradients may still be scaled when the user has them clipped.
        if pl_module.automatic_optimization and type(plugin).clip_grad_by_norm is Precision.clip_grad_by_norm:
            self._plugin = plugin
            plugin.clip_grad_by_norm = partial(self._clip_by_norm, trainer)  # type: ignore[method-assign]
            plugin.clip_grad_by_value = partial(self._clip_by_value, trainer)  # type: ignore[method-assign]
            own_clipping = is_overridden("configure_gradient_clipping", pl_module)
            self._from_clipping = bool(trainer.gradient_clip_val) and not own_clipping

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._records.pop(self._prefix(trainer, optimizer), None)
        if self._active and not self._from_clipping and is_logging_step(trainer):
            self._record(trainer, optimizer, Norms(trainer.precision_plugin.main_params(optimizer), widen=True))

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        records, self._records = self._records, {}
        if records and is_logging_step(trainer):
            values: dict[str, float] = {}
            for prefix, record in records.items():
                self._name_parameters(trainer, pl_module, record.norms.parameters)
                values |= record.values(prefix, self._names)
            trainer._logger_connector.log_metrics(values)  # type: ignore[arg-type]

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        self.teardown(trainer, pl_module, "fit")

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if self._plugin is not None:
            del self._plugin.clip_grad_by_norm, self._plugin.clip_grad_by_value
        self._plugin, self._active, self._from_clipping = None, False, False

    def _clip_by_norm(self, trainer: Trainer, optimizer: Optimizer, clip_val: float) -> None:
        parameters = list(trainer.precision_plugin.main_params(optimizer))
        with torch.no_grad():
            norms = Norms(parameters)
            torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norms.total)
        self._record(trainer, optimizer, norms, max_norm=float(clip_val))

    def _clip_by_value(self, trainer: Trainer, optimizer: Optimizer, clip_val: float) -> None:
        parameters = list(trainer.precision_plugin.main_params(optimizer))
        before = Norms(parameters, widen=True) if is_logging_step(trainer) else None
        torch.nn.utils.clip_grad_value_(parameters, clip_val)
        if before is not None:
            self._record(trainer, optimizer, before, clipped=Norms(parameters, widen=True).total)

    def _record(self, trainer: Trainer, optimizer: Optimizer, norms: Norms, **clipping: Any) -> None:
        if norms.parameters:
            optimizer = optimizer.optimizer if isinstance(optimizer, LightningOptimizer) else optimizer
            scale = _remaining_scale(trainer.precision_plugin, optimizer)
            self._records[self._prefix(trainer, optimizer)] = _Record(norms, scale, **clipping)

    @staticmethod
    def _prefix(trainer: Trainer, optimizer: Optimizer) -> str:
        if len(trainer.optimizers) == 1:
            return "grad_norm/"
        index = next(i for i, other in enumerate(trainer.optimizers) if other is optimizer)
        return f"grad_norm/optimizer{index}/"

    def _name_parameters(self, trainer: Trainer, module: LightningModule, parameters: list[nn.Parameter]) -> None:
        """Look up the group of each parameter; done again only when a parameter is new, e.g. was just unfrozen."""
        if all(parameter in self._names for parameter in parameters):
            return
        self._names = dict.fromkeys(parameters, "other")
        if self.group_by == "optimizer":
            for optimizer in trainer.optimizers:
                for i, group in enumerate(optimizer.param_groups):
                    self._names.update(dict.fromkeys(group["params"], group.get("name") or f"group{i}"))
        else:
            for name, parameter in module.named_parameters():
                parts = name.replace("_orig_mod.", "").split(".")
                self._names[parameter] = ".".join(parts[:-1][: self.depth] or parts)


def _remaining_scale(plugin: Precision, optimizer: Optimizer) -> float:
    scaler = scaler_of_scaled_gradients(plugin, optimizer)
    return 1.0 if scaler is None else scaler.get_scale()
