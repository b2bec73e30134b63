"""Weights, buffers and the optimizers' state of an earlier step, in main memory."""

from __future__ import annotations

from typing import Any

import torch
from lightning.pytorch import LightningModule, Trainer
from lightning_utilities.core.apply_func import apply_to_collection
from torch import Tensor

from ._buffer_copies import buffer_owners, rank_zero_buffers


def take_snapshot(trainer: Trainer) -> dict[str, Any]:
    """Copies, as a checkpoint can hold them. States that advance with the optimizer are left out: they hold good steps
    only. Every rank has to call it."""
    module = trainer.lightning_module
    tensors = {name: _copy(tensor) for name, tensor in _tensors(module).items()}
    return {
        "step": trainer.global_step,
        "tensors": tensors | rank_zero_buffers(trainer, tensors),
        "callbacks": {c.state_key: apply_to_collection(c.rewind_state(), Tensor, _copy) for c in _rewound(trainer)},
        "optimizers": [apply_to_collection(o.state_dict()["state"], Tensor, _copy) for o in trainer.optimizers],
    }


@torch.no_grad()
def put_back(snapshot: dict[str, Any], trainer: Trainer) -> None:
    """Make the training go on from a snapshot. The optimizers' settings, such as learning rates, stay as they are."""
    module = trainer.lightning_module
    for name, tensor in _tensors(module).items():
        kept = snapshot["tensors"].get(name)
        if kept is not None and kept.shape == tensor.shape:  # layers may have been exchanged
            tensor.copy_(kept)
    for optimizer, state in zip(trainer.optimizers, snapshot["optimizers"], strict=True):
        groups = optimizer.param_groups  # schedules and callbacks may hold them
        state = apply_to_collection(state, Tensor, Tensor.clone)  # the optimizer goes on writing to what it is given
        optimizer.load_state_dict({"state": state, "param_groups": optimizer.state_dict()["param_groups"]})
        optimizer.param_groups = groups
    for callback in _rewound(trainer):
        if callback.state_key in snapshot["callbacks"]:  # else it came with a resume
            callback.rewind(snapshot["callbacks"][callback.state_key])
    tell = getattr(module, "on_rewind", None)
    if callable(tell):
        tell()


def _rewound(trainer: Trainer) -> list[Any]:
    """The callbacks that follow the weights, such as averages of them."""
    return [callback for callback in trainer.callbacks if hasattr(callback, "rewind_state")]  # type: ignore[attr-defined]


def _tensors(module: LightningModule) -> dict[str, Tensor]:
    """Parameters and buffers, by name."""
    names = {owner: name for name, owner in module.named_modules()}
    buffers = {f"{names[owner]}.{name}": owner._buffers[name] for owner, name in buffer_owners(module)}
    return {**dict(module.named_parameters()), **{name: b for name, b in buffers.items() if b is not None}}


def _copy(tensor: Tensor) -> Tensor:
    return tensor.detach().to("cpu", copy=True)
