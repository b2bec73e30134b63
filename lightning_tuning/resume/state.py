"""All that a run's future depends on, as one flat dictionary."""

from __future__ import annotations

import hashlib
import os
import random
import re
from collections import deque
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import Checkpoint
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

HINT = "python state"
"""Group of what no checkpoint holds. It need not matter, so it is never a difference, but it may explain one."""
_PLAIN = (bool, int, float, complex, str, bytes, type(None))
_LONGEST = 10_000
_DEPTH = 3
_OTHERS = ("lightning.", "lightning_tuning.")
"""Packages whose callbacks save what matters."""


def snapshot(trainer: Trainer, module: LightningModule, batch: Any = None) -> dict[str, Any]:
    """What a step is made from: ``"group: name"`` to tensors (copied to the CPU), numbers and text.

    Args:
        trainer: The Trainer.
        module: Its module.
        batch: The batch that the step is about to use, if any. Of it and of the random generators digests are kept.
    """
    state: dict[str, Any] = {f"random numbers: {name}": digest(value) for name, value in _generators(trainer).items()}
    if batch is not None:
        state["data: batch"] = digest(batch)
    groups: dict[str, Any] = {
        "weights": dict(module.named_parameters()),
        "buffers": dict(module.named_buffers()),
        **{f"optimizer{_number(i)}": _optimizer(o, module) for i, o in enumerate(trainer.optimizers)},
        **{f"scheduler{_number(i)}": c.scheduler.state_dict() for i, c in enumerate(trainer.lr_scheduler_configs)},
        "precision": trainer.precision_plugin.state_dict(),
        "progress": {"global_step": trainer.global_step, "current_epoch": trainer.current_epoch},
        **{f"callback {type(c).__name__}": c.state_dict() for c in _stateful(trainer)},
        HINT: dict(_python_state(trainer, module)),
    }
    for group, value in groups.items():
        state.update((f"{group}: {name}", _nowhere(leaf, trainer)) for name, leaf in flatten(value))
    return state


def flatten(value: Any, name: str = "") -> Iterator[tuple[str, Any]]:
    """The leaves of nested containers, each with its path.

    Example:
        >>> dict(flatten({"a": [1, {"b": 2.5}], "c": None}))
        {'a[0]': 1, 'a[1].b': 2.5, 'c': None}
    """
    if isinstance(value, Tensor):
        yield name, value.detach().cpu().clone()
    elif isinstance(value, np.ndarray):
        yield name, f"array {value.dtype}{list(value.shape)} {digest(value)}"
    elif isinstance(value, Mapping):
        for key, part in value.items():
            yield from flatten(part, f"{name}.{key}" if name else str(key))
    elif isinstance(value, (list, tuple, deque)):
        for index, part in enumerate(value):
            yield from flatten(part, f"{name}[{index}]")
    elif isinstance(value, _PLAIN):
        yield name, value
    elif isinstance(value, (set, frozenset)):
        yield name, str(sorted(map(str, value)))
    else:
        yield name, type(value).__name__


def digest(value: Any) -> str:
    """A hash of the bits of nested tensors, arrays, numbers and text."""
    found = hashlib.blake2b(digest_size=8)
    for leaf in tree_leaves(value):
        if isinstance(leaf, Tensor):
            found.update(str((leaf.dtype, tuple(leaf.shape))).encode())
            found.update(leaf.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy().tobytes())
        elif isinstance(leaf, np.ndarray):
            found.update(str((leaf.dtype, leaf.shape)).encode() + leaf.tobytes())
        else:
            found.update(repr(leaf).encode())
    return found.hexdigest()


def _nowhere(leaf: Any, trainer: Trainer) -> Any:
    """A path in a run's folder without the folder: the check's runs stand side by side."""
    beside = re.escape(f"{Path(trainer.default_root_dir).parent}{os.sep}")
    return re.sub(rf"^{beside}[^/\\\\]+", "<run>", leaf) if isinstance(leaf, str) else leaf


def _number(index: int) -> str:
    return f" {index}" if index else ""


def _generators(trainer: Trainer) -> dict[str, Any]:
    states = {"torch": torch.get_rng_state(), "numpy": np.random.get_state(), "python": random.getstate()}  # noqa: NPY002
    device = trainer.strategy.root_device
    if device.type not in ("cpu", "mps"):
        states["device"] = torch.get_device_module(device).get_rng_state(device)
    return states


def _optimizer(optimizer: torch.optim.Optimizer, module: LightningModule) -> dict[str, Any]:
    names = {id(p): name for name, p in module.named_parameters()}
    groups = [{k: v for k, v in group.items() if k != "params"} for group in optimizer.param_groups]
    states = {f"{key} of {names.get(id(p), '?')}": v for p, s in optimizer.state.items() for key, v in s.items()}
    return {"group": groups, **states}


def _stateful(trainer: Trainer) -> list[Callback]:
    callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]
    return [c for c in callbacks if not isinstance(c, Checkpoint)]  # the states of those are paths


def _python_state(trainer: Trainer, module: LightningModule) -> Iterator[tuple[str, Any]]:
    for name, part in module.named_modules():
        yield from _attributes(part, f"module.{name}" if name else "module", 1)
    for callback in _stateful(trainer):
        own = not type(callback).__module__.startswith(_OTHERS)
        if own and not callback.state_dict():
            yield from _attributes(callback, type(callback).__name__, 1)
    datamodule = getattr(trainer, "datamodule", None)
    if datamodule is not None:
        yield from _attributes(datamodule, "datamodule", _DEPTH)
    combined = trainer.fit_loop._combined_loader
    for loader in combined.flattened if combined is not None else ():
        yield from _attributes(getattr(loader, "dataset", None), "dataset", _DEPTH)


def _attributes(owner: Any, name: str, depth: int) -> Iterator[tuple[str, Any]]:
    """The numbers, texts, tensors, containers and random generators among an object's public attributes."""
    for key, value in getattr(owner, "__dict__", {}).items():
        if key.startswith("_") or key == "training":
            continue
        path = f"{name}.{key}"
        if isinstance(value, torch.Generator):
            yield path, digest(value.get_state())
        elif isinstance(value, np.random.Generator):
            yield path, digest(str(value.bit_generator.state))
        elif isinstance(value, np.random.RandomState):
            yield path, digest(value.get_state())
        elif isinstance(value, random.Random):
            yield path, digest(value.getstate())
        elif isinstance(value, Tensor):
            yield path, digest(value) if value.numel() <= _LONGEST else None
        elif isinstance(value, _PLAIN):
            yield path, value
        elif isinstance(value, (list, tuple, dict, set, deque)) and len(value) <= _LONGEST:
            if all(isinstance(leaf, (*_PLAIN, Tensor)) for leaf in tree_leaves(value)):
                yield path, f"{len(value)} items, {digest(value)}"
        elif depth > 1 and not isinstance(value, (nn.Module, type)) and not callable(getattr(value, "fit", None)):
            yield from _attributes(value, path, depth - 1)
