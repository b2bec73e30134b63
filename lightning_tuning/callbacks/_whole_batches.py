"""What cannot be trained on the parts of a batch, and says so before the first step."""

from __future__ import annotations

import inspect

from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torch.nn.parallel import DistributedDataParallel

from lightning_tuning.errors import CompositionError
from lightning_tuning.functional import is_batch_norm


def check_divisible(trainer: Trainer, pl_module: LightningModule) -> None:
    """Refuse what needs a batch as a whole: a technique, a strategy, a loop of the module's own.

    Raises:
        CompositionError: A technique couples the samples of a batch, or passes it several times.
        MisconfigurationException: Manual optimization, ``dataloader_iter``, or a strategy that is not supported.
    """
    name = type(pl_module).__name__
    if not pl_module.automatic_optimization:
        raise MisconfigurationException(
            f"MicroBatch needs automatic optimization, but {name} sets self.automatic_optimization = False. Remove "
            "that line, or the callback."
        )
    if "dataloader_iter" in inspect.signature(pl_module.training_step).parameters:
        raise MisconfigurationException(
            f"MicroBatch cannot split what {name}.training_step takes from dataloader_iter. Write "
            "training_step(self, batch, batch_idx), or remove the callback."
        )
    for technique in getattr(pl_module, "active_techniques", list)():
        if technique.whole_batch:
            off = ", ".join(f"{argument}={value}" for argument, value in technique.off.items())
            raise CompositionError(
                f"MicroBatch cannot split a batch with {technique.__name__}, which {technique.whole_batch}. Remove the "
                f"callback and set a smaller batch_size and trainer.accumulate_grad_batches, or switch it off: {off}."
            )
    for parameter_name, parameter in pl_module.named_parameters():
        if parameter._post_accumulate_grad_hooks:
            raise MisconfigurationException(
                f"MicroBatch cannot work with the hook on the gradient of {parameter_name}, which would run for each "
                "part of a batch (register_post_accumulate_grad_hook). Remove the hook or the callback."
            )
    _check_strategy(trainer, pl_module)


def _check_strategy(trainer: Trainer, pl_module: LightningModule) -> None:
    strategy = trainer.strategy
    # DeepSpeed's, which accumulates by itself, is a DDPStrategy too.
    if not isinstance(strategy, (SingleDeviceStrategy, DDPStrategy)) or strategy.handles_gradient_accumulation:
        raise MisconfigurationException(
            f"MicroBatch cannot work under {type(strategy).__name__}: it works on one device and under DDP, where it "
            "reduces the gradients itself. Use preset:ddp, or remove the callback."
        )
    if not isinstance(strategy, DDPStrategy):
        return
    if strategy._ddp_comm_hook is not None or strategy._ddp_comm_state is not None:
        raise MisconfigurationException(
            "MicroBatch reduces the gradients itself, so DDP's communication hook would not be called. Leave "
            "ddp_comm_hook out, or remove the callback."
        )
    if isinstance(strategy.model, DistributedDataParallel) and strategy.model.static_graph:
        raise MisconfigurationException(
            "MicroBatch passes a batch in parts, a graph that may change: leave static_graph=True out, or remove the "
            "callback."
        )
    sparse = [name for name, m in pl_module.named_modules() if getattr(m, "sparse", False) is True]
    if sparse:
        raise MisconfigurationException(
            f"MicroBatch cannot reduce the sparse gradients of {sparse[0]} over several processes. Write sparse=False, "
            "or remove the callback."
        )


def check_layers(pl_module: nn.Module) -> None:
    """Refuse layers whose output, or state, in training depends on the whole batch. Frozen ones are fine.

    Raises:
        CompositionError: There is one.
    """
    for name, layer in pl_module.named_modules():
        if layer.training and (is_batch_norm(layer) or getattr(layer, "track_running_stats", False)):
            raise CompositionError(
                f"MicroBatch cannot split a batch for {name}, a {type(layer).__name__} in training: its statistics are "
                "those of the whole batch. Use group norm (NormMixin, norm_name=group), freeze the layer (eval()), or "
                "remove the callback and set a smaller batch_size and trainer.accumulate_grad_batches."
            )
