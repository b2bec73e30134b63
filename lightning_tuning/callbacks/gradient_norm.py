"""GradientNorm: norms of gradients before and after clipping, taken from the clipping itself, and of updates."""

from __future__ import annotations

import math
from collections.abc import Callable
from functools import partial
from typing import Any, Literal

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.plugins.precision import Precision
from lightning.pytorch.utilities.model_helpers import is_overridden
from lightning.pytorch.utilities.rank_zero import rank_zero_warn
from torch import nn
from torch.optim import Optimizer

from lightning_tuning.errors import check_choice, check_count, check_used

from ._clipped_share import ClippedShare
from ._gradients import (
    StepFollower,
    clipping_callbacks,
    holds_whole_gradients,
    is_logging_step,
    scaler_of_scaled_gradients,
)
from ._heat_maps import norm_map
from ._layer_names import names_by_layer
from ._norms import Look, Norms, UpdateRatio
from ._pictures import save_after_error, save_picture
from ._timeline import Timeline
from .auto_clip import AutoClip

_GROUPS = ("optimizer", "module", "layer", "parameter")


class GradientNorm(StepFollower):
    """Logs the 2-norm of the gradient before and after clipping, how often it is clipped, and how far a step moves the
    weights.

    At the Trainer's logging steps (``log_every_n_steps``) it logs

    * ``grad_norm/total`` and, if there is more than one group, ``grad_norm/<group>``: before clipping;
    * ``grad_norm/total_clipped`` and ``grad_norm/<group>_clipped``: after it, where something clips: the Trainer, the
      module's own ``configure_gradient_clipping``, ``AutoClip`` or ``AdaptiveGradientClipping``;
    * ``grad_norm/clipped_share``: of the optimizer steps since the last logging step that counted, how many were
      clipped, 0 to 1. Where the norm is no by-product of every step (clipping by value, of the module's own, of each
      unit, or two at once) only the logging step itself is judged;
    * ``update_ratio/total`` and ``update_ratio/<group>``: the norm of the step's change of the weights, divided by that
      of the weights before. About 1e-3 is usual.

    The values are unscaled under fp16, those of the accumulated gradient under accumulation, those of the reduced
    gradient under DDP, and NaN or infinite where the gradient is. Nothing is computed between logging steps: clipping
    by norm computes the norm anyway, and it is taken from there. The weights stay bitwise the same.

    With ``group_by`` other than ``optimizer`` the norms are drawn at the end as ``gradient_norm.png`` in the run's
    folder: one row a group, one column a logging step.

    It looks at the gradient that the callbacks leave for the Trainer's clipping. Put it in front of ``AutoClip`` and
    ``AdaptiveGradientClipping`` to see what they clip. In manual optimization the norm is what reaches the optimizer,
    after any clipping of your own; with several optimizers the keys become ``grad_norm/optimizer<i>/...``. Under FSDP,
    DeepSpeed and other strategies that do not hold whole gradients on each rank it warns once and logs nothing.

    Args:
        group_by: ``optimizer`` makes a group of each of the optimizer's parameter groups, called by the group's
            ``name`` or else ``group<i>``; ``module`` makes one of each submodule, ``layer`` one of each module that
            owns parameters, ``parameter`` one of each parameter.
        depth: With ``group_by: module``, how many levels of submodules make a name, at least 1: ``encoder`` at 1,
            ``encoder.layer1`` at 2.
        update_ratio: Whether the update-to-weight ratio is taken. For the length of a logging step it holds a copy of
            the trained weights.

    Raises:
        InvalidValueError: If an argument is not allowed.

    Example:
        >>> from lightning.pytorch import Trainer
        >>> norm = GradientNorm(group_by="layer")
        >>> trainer = Trainer(callbacks=[norm], gradient_clip_val=1.0, logger=False, accelerator="cpu")
    """

    def __init__(
        self,
        group_by: Literal["optimizer", "module", "layer", "parameter"] = "optimizer",
        depth: int = 1,
        update_ratio: bool = True,
    ) -> None:
        super().__init__()
        check_choice("group_by", group_by, _GROUPS)
        check_count("depth", depth, 1)
        check_used("depth", depth, 1, "group_by: module", group_by == "module")
        self.group_by = group_by
        self.depth = depth
        self.update_ratio = update_ratio
        self._plugin: Precision | None = None
        self._due = False
        self._clipping: Literal["", "norm", "auto_clip", "other"] = ""
        self._clippers: list[Any] = []
        self._names: dict[nn.Parameter, str] = {}
        self._looks: dict[int, Look] = {}
        self._updates: dict[int, UpdateRatio] = {}
        self._shares: dict[int, ClippedShare] = {}
        self._timeline = Timeline()

    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        if stage == "fit" and trainer.global_step == 0:  # a later fit of the same Trainer goes on
            self._shares, self._timeline = {}, Timeline()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._names, self._looks, self._updates = {}, {}, {}
        if not holds_whole_gradients(trainer.strategy):
            rank_zero_warn(
                f"GradientNorm logs nothing under {type(trainer.strategy).__name__}: no rank holds whole gradients"
                " there. Train on a single device or with DDP to see the norms, or remove the callback."
            )
            return
        if not trainer.loggers or trainer.log_every_n_steps == 0:  # type: ignore[attr-defined]
            return
        self._find_clipping(trainer, pl_module)
        self._plugin = plugin = trainer.precision_plugin
        plugin._clip_gradients = partial(self._around_clipping, trainer, plugin._clip_gradients)  # type: ignore
        if self._clipping == "norm":
            plugin.clip_grad_by_norm = partial(self._clip_by_norm, trainer)  # type: ignore[method-assign]
        if self._clipping:
            self._shares = {i: self._shares.get(i, ClippedShare()) for i in range(len(trainer.optimizers))}
            self.follow_steps(trainer)
        else:
            self._shares = {}

    def _find_clipping(self, trainer: Trainer, module: LightningModule) -> None:
        behind, in_front = clipping_callbacks(trainer, self)
        if in_front:
            names = " and ".join(type(callback).__name__ for callback in in_front)
            rank_zero_warn(
                f"GradientNorm stands behind {names} in the list of callbacks, so it sees gradients that are clipped "
                "already. Put it in front."
            )
        automatic = module.automatic_optimization
        own = automatic and is_overridden("configure_gradient_clipping", module)
        by_trainer = automatic and (bool(trainer.gradient_clip_val) or own)
        stock = type(trainer.precision_plugin).clip_grad_by_norm is Precision.clip_grad_by_norm
        self._clippers = behind
        if by_trainer and not own and not behind and stock and trainer.gradient_clip_algorithm != "value":
            self._clipping = "norm"
        elif not by_trainer and len(behind) == 1 and isinstance(behind[0], AutoClip):
            self._clipping = "auto_clip"
        else:
            self._clipping = "other" if by_trainer or behind else ""

    def on_before_optimizer_step(self, trainer: Trainer, pl_module: LightningModule, optimizer: Optimizer) -> None:
        self._due = self._plugin is not None and is_logging_step(trainer)
        if self._due:
            index = trainer.optimizers.index(optimizer)
            self._looks.pop(index, None)
            if self._clippers:
                self._look(trainer, index, Norms(trainer.precision_plugin.main_params(optimizer), widen=True))

    def _around_clipping(
        self,
        trainer: Trainer,
        clip_gradients: Callable[..., None],
        module: LightningModule,
        optimizer: Optimizer,
        *args: Any,
        **kwargs: Any,
    ) -> None:
        """The Trainer's clipping, which comes after all callbacks, with a look before it and one behind it."""
        index = trainer.optimizers.index(optimizer)
        share = self._shares.get(index)
        if share is not None and self._clipping == "auto_clip":
            share.note(self._clippers[0].clipped.get(index), 0.5)
        if self._due and self._clipping != "norm" and index not in self._looks:
            self._look(trainer, index, Norms(trainer.precision_plugin.main_params(optimizer), widen=True))
        clip_gradients(module, optimizer, *args, **kwargs)
        look = self._looks.get(index) if self._due else None
        if look is None:
            return
        if self._clipping in ("auto_clip", "other"):
            look.after = Norms(look.before.parameters, widen=True)
            if self._clipping == "other" and share is not None:
                share.note((look.after.each < look.before.each).any(), 0.5)
        if self.update_ratio and index not in self._updates:  # LBFGS comes here several times in a step
            self._updates[index] = UpdateRatio(look.before.parameters)

    def _clip_by_norm(self, trainer: Trainer, optimizer: Optimizer, clip_val: float) -> None:
        parameters = list(trainer.precision_plugin.main_params(optimizer))
        index = trainer.optimizers.index(optimizer)
        if self._due:
            with torch.no_grad():
                norms = Norms(parameters)
                torch.nn.utils.clip_grads_with_norm_(parameters, clip_val, norms.total)
            self._look(trainer, index, norms, float(clip_val))
            total = norms.total
        else:
            total = torch.nn.utils.clip_grad_norm_(parameters, clip_val)
        self._shares[index].note(total, clip_val)

    def _look(self, trainer: Trainer, index: int, norms: Norms, max_norm: float | None = None) -> None:
        if norms.parameters:
            scaler = scaler_of_scaled_gradients(trainer.precision_plugin, trainer.optimizers[index])
            self._looks[index] = Look(norms, 1.0 if scaler is None else scaler.get_scale(), max_norm)

    def _on_step(self, index: int) -> None:
        self._shares[index].count()

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if not self._looks:
            return
        looks, self._looks = self._looks, {}
        updates, self._updates = self._updates, {}
        if not is_logging_step(trainer):
            return
        values: dict[str, float] = {}
        rows: dict[str, float] = {}
        for index, look in looks.items():
            prefix = f"optimizer{index}/" if len(trainer.optimizers) > 1 else ""
            self._name_parameters(trainer, pl_module, look.before.parameters)
            norms = look.norms(self._names)
            share = self._shares[index].take() if index in self._shares else None
            if share is not None:
                norms["clipped_share"] = share
            values |= {f"grad_norm/{prefix}{name}": value for name, value in norms.items()}
            if index in updates:
                self._name_parameters(trainer, pl_module, updates[index].parameters)
                ratios = updates[index].by_group(self._names)
                values |= {f"update_ratio/{prefix}{name}": value for name, value in ratios.items()}
            rows |= {f"{prefix}{name}": value for name, value in look.groups(self._names).items()}
        trainer._logger_connector.log_metrics(values)  # type: ignore[arg-type]
        if self.group_by != "optimizer":
            finite = {name: value if math.isfinite(value) else math.inf for name, value in rows.items()}
            self._timeline.add(trainer.fit_loop.epoch_loop._batches_that_stepped, finite)

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._draw(trainer)

    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        save_after_error(trainer, self._draw)
        super().on_exception(trainer, pl_module, exception)

    def teardown(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        super().teardown(trainer, pl_module, stage)
        if self._plugin is not None:
            del self._plugin._clip_gradients
            self._plugin.__dict__.pop("clip_grad_by_norm", None)
        self._plugin, self._clipping, self._clippers = None, "", []

    def state_dict(self) -> dict[str, Any]:
        shares = {index: share.state() for index, share in self._shares.items()}
        return {"clipped": shares, "norms": self._timeline.state()} if shares or len(self._timeline) else {}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        for index, state in state_dict["clipped"].items():
            self._shares[index] = ClippedShare()
            self._shares[index].load(state)
        self._timeline.load(state_dict["norms"])

    def _draw(self, trainer: Trainer) -> None:
        if len(self._timeline):
            title = f"norm of the gradient before clipping, by {self.group_by}"
            save_picture(trainer, norm_map(*self._timeline.arrays(), title), "gradient_norm")

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
            self._names |= names_by_layer(module, self.group_by, self.depth if self.group_by == "module" else None)
