"""Exchanges the norm layers of any network."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, Literal, get_args

import torch
from lightning.pytorch.strategies import ParallelStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from lightning_tuning.errors import InvalidValueError, check_choice, check_range
from lightning_tuning.mixins.base import TuningMixin
from lightning_tuning.mixins.ghost_batch_norm import BatchNorm, GhostBatchNorm
from lightning_tuning.mixins.kinds import TRANSFORMERS, exchange

NormName = Literal["batch", "group", "layer", "instance", "ghost_batch", "sync_batch"]
_BATCH_NORMS = (nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, BatchNorm)
_EXCHANGED = (
    *(*_BATCH_NORMS, nn.SyncBatchNorm, GhostBatchNorm, nn.GroupNorm, nn.LayerNorm),
    *(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d),
)


class NormMixin(TuningMixin):
    """Replaces the norm layers that the host builds in its ``__init__`` by those of another kind.

    The new layer has the old one's channels and ``eps`` (and ``momentum``, where both have one), weight 1 and bias 0 if
    the old one had them, under the same names. Group, layer and instance norm do not depend on the batch; batch norm's
    running statistics go, or begin anew. A ``LayerNorm`` over the last dimension is exchanged too, that dimension being
    the channels, except within torch's own Transformer layers. Subclasses of torch's layers stay.

    Args:
        norm_name: ``batch``; ``group`` (Wu & He, 2018); ``layer``: one group of all channels and positions;
            ``instance``: each channel of each sample by itself; ``ghost_batch``: batch norm over parts of the batch
            (Hoffer et al., 2017); ``sync_batch``: batch norm over the batches of all devices, on CUDA. Off: None.
        norm_groups: Groups of ``group``, at least 1. Where they do not divide the channels, or would leave a group one
            channel, it is the next smaller number that does not.
        norm_ghost_size: Samples of a part for ``ghost_batch``, at least 2.

    Raises:
        InvalidValueError: An argument is not allowed; in the first training step, if a norm layer that takes its
            statistics from the batch gets one sample, or an instance norm one position.
        MisconfigurationException: At fit start, if ``sync_batch`` would have to synchronise processes without CUDA, or
            ``Trainer(sync_batchnorm=True)`` has taken the ghost batches away.
        NoEffectError: At fit start, if no layer was exchanged.

    Source: Wu & He, 2018, "Group normalization", section 3; Hoffer, Hubara & Soudry, 2017, "Train longer, generalize
    better", algorithm 1.
    """

    stem = "norm"
    stage = "layers"
    off = {"norm_name": None}
    needs = ("training_step",)
    changes = ("model",)
    sharded = True

    def __init__(
        self,
        *args: Any,
        norm_name: NormName | None = "group",
        norm_groups: int = 32,
        norm_ghost_size: int = 32,
        **kwargs: Any,
    ) -> None:
        super().__init__(*args, **kwargs)
        check_range("norm_groups", norm_groups, 1)
        check_range("norm_ghost_size", norm_ghost_size, 2)
        self.norm_name = norm_name
        self.norm_groups = norm_groups
        self.norm_ghost_size = norm_ghost_size
        self._norm_idle: str | None = None
        if norm_name is not None:
            check_choice("norm_name", norm_name, get_args(NormName))
            self._norm_idle = self._exchange_norms(norm_name)

    def no_effect(self) -> str | None:
        return self._norm_idle

    def _exchange_norms(self, name: NormName) -> str | None:
        """Returns why nothing was exchanged, if nothing was."""
        transformers = [m for m in self.modules() if isinstance(m, TRANSFORMERS)]
        kept = {m for transformer in transformers for m in transformer.modules()}
        norms = [m for m in self.modules() if _is_exchanged(m) and m not in kept]
        if not norms:
            return f"{self._host_name} has no norm layer of torch.nn after its __init__ that it could exchange."
        new = {m: self._made_like(m, name) for m in norms}
        new = {old: made for old, made in new.items() if not _is_already(old, made, name)}
        exchange(self, new)
        return None if new else f"every norm layer of {self._host_name} is such a one already."

    def _made_like(self, old: Any, name: NormName) -> nn.Module:
        weight, bias = getattr(old, "weight", None), getattr(old, "bias", None)
        channels = old.normalized_shape[0] if isinstance(old, nn.LayerNorm) else _channels(old)
        options = {"eps": old.eps, "affine": weight is not None}
        batch = {
            **options,
            "momentum": getattr(old, "momentum", 0.1),
            "track_running_stats": old.track_running_stats if isinstance(old, _BatchNorm) else True,
        }
        groups = {"group": fitting_groups(channels, self.norm_groups), "layer": 1, "instance": channels}
        makers: dict[str, Callable[[], Any]] = {
            "batch": partial(BatchNorm, channels, **batch),
            "ghost_batch": partial(GhostBatchNorm, channels, self.norm_ghost_size, **batch),
            "sync_batch": partial(nn.SyncBatchNorm, channels, **batch),
        }
        new = makers[name]() if name in makers else nn.GroupNorm(groups[name], channels, **options)
        given = weight if weight is not None else getattr(old, "running_mean", None)
        if given is not None:
            new.to(given.device, given.dtype)
        if bias is None:
            new.bias = None
        for parameter, before in ((new.weight, weight), (new.bias, bias)):
            if parameter is not None and before is not None:
                parameter.requires_grad_(before.requires_grad)
        if isinstance(old, nn.LayerNorm):
            new.register_forward_pre_hook(_channels_second)
            new.register_forward_hook(_channels_last)
        return new.train(old.training)

    def setup(self, stage: str) -> None:
        super().setup(stage)
        strategy = self.trainer.strategy
        on_cpus = isinstance(strategy, ParallelStrategy) and strategy.root_device.type == "cpu"
        # Here, for torch's DDP would refuse the layers before on_fit_start, without telling what to do.
        if self.norm_name == "sync_batch" and stage == "fit" and on_cpus:
            raise MisconfigurationException(
                "norm_name='sync_batch' synchronises processes on accelerators only, but these run on the CPU. Use "
                "norm_name='group', or one process without DDP."
            )

    def on_fit_start(self) -> None:
        super().on_fit_start()
        self.__dict__["_norm_checked"] = self.norm_name is None
        # The Trainer converts every batch norm, this one too.
        if self.norm_name == "ghost_batch" and not any(isinstance(m, GhostBatchNorm) for m in self.modules()):
            raise MisconfigurationException(
                "Trainer(sync_batchnorm=True) has replaced the layers of norm_name='ghost_batch'. Leave one of the two "
                "out."
            )

    def training_step(self, batch: Any, batch_idx: int) -> Any:
        if self.__dict__.get("_norm_checked", True):
            return super().training_step(batch, batch_idx)
        checks = [
            m.register_forward_pre_hook(partial(_check_input, name)) for name, m in self.named_modules() if m.training
        ]
        try:
            output = super().training_step(batch, batch_idx)
        finally:
            for check in checks:
                check.remove()
        self.__dict__["_norm_checked"] = True
        return output


def fitting_groups(channels: int, groups: int) -> int:
    """The largest number up to ``groups`` that divides ``channels`` and leaves two or more channels to a group.

    Example:
        >>> fitting_groups(64, 32), fitting_groups(32, 32), fitting_groups(12, 5), fitting_groups(7, 32)
        (32, 16, 4, 1)
    """
    return next(g for g in range(min(groups, max(channels // 2, 1)), 0, -1) if channels % g == 0)


def _is_exchanged(module: nn.Module) -> bool:
    if type(module) not in _EXCHANGED:
        return False
    return not isinstance(module, nn.LayerNorm) or len(module.normalized_shape) == 1


def _channels(norm: Any) -> int:
    return norm.num_channels if isinstance(norm, nn.GroupNorm) else norm.num_features


def _is_already(old: Any, new: Any, name: NormName) -> bool:
    if isinstance(old, nn.LayerNorm):
        return name == "layer"
    if isinstance(new, nn.GroupNorm):
        per_channel = isinstance(old, nn.modules.instancenorm._InstanceNorm) and not old.track_running_stats
        return getattr(old, "num_groups", old.num_features if per_channel else 0) == new.num_groups
    if type(new) is BatchNorm:
        return type(old) in _BATCH_NORMS
    return type(old) is type(new) and getattr(old, "ghost_size", 0) == getattr(new, "ghost_size", 0)


def _channels_second(norm: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0].movedim(-1, 1), *args[1:])


def _channels_last(norm: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output.movedim(1, -1)


def _check_input(name: str, norm: nn.Module, args: tuple[Tensor, ...]) -> None:
    """Refuse what a norm layer would turn into zeros, or into something that tells of a single sample."""
    shape = list(args[0].shape) if args and isinstance(args[0], Tensor) else []
    across_devices = isinstance(norm, nn.SyncBatchNorm) and torch.distributed.is_initialized()
    if isinstance(norm, _BatchNorm) and shape[:1] == [1] and not across_devices:
        raise InvalidValueError(
            f"{name} ({type(norm).__name__}) takes its statistics from the batch, but a batch on this device has one "
            f"sample ({shape}). Raise the batch size, or use norm_name='group'."
        )
    if isinstance(norm, nn.GroupNorm) and norm.num_groups == norm.num_channels > 1 and len(shape) == 2:
        raise InvalidValueError(
            f"{name} is an instance norm, but its input {shape} has one value for each channel of a sample, which it "
            "turns into zero. Use norm_name='layer'."
        )
