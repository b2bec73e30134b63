"""What objects hold, down to the bits of their tensors, to be put back later."""

from __future__ import annotations

import random
import sys
from array import array
from collections import deque
from collections.abc import Callable, Iterable
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.utils.data.dataloader import _BaseDataLoaderIter

_OTHERS = ("lightning", "pytorch_lightning", "lightning_fabric", "wandb", "multiprocessing", "threading", "logging")
"""Packages whose objects hold the whole program or talk to others: not looked into."""
_CLOSED = (type, FunctionType, MethodType, ModuleType, _BaseDataLoaderIter, str, bytes, int, float, complex)
_LONGEST_PART_OF_DATA = 1000


class Snapshot:
    """The state of some objects and of all that they hold: attributes, containers, tensors, random generators.

    ``restore`` puts it back in place: objects keep their identity, tensors get their bits and their ``grad``. Modules
    and objects of torch, of this package and of the user's own code are put back as a whole; of those from other
    installed packages only the random generators. Copies of tensors are kept in the CPU's memory.

    Args:
        roots: The objects.
        data: Whether they are data loaders and datasets, which training reads: their tensors, arrays and long lists
            are not copied.

    Example:
        >>> layer = nn.Linear(1, 1)
        >>> layer.seen = [1]
        >>> weight, snapshot = layer.weight.item(), Snapshot([layer])
        >>> layer.seen.append(2)
        >>> _ = nn.init.zeros_(layer.weight)
        >>> snapshot.restore()
        >>> layer.seen, layer.weight.item() == weight
        ([1], True)
    """

    def __init__(self, roots: Iterable[Any], data: bool = False) -> None:
        self._data = data
        self._kept: dict[int, Any] = {}
        """By identity all that was seen; held, so that no identity is used again."""
        self._undo: list[Callable[[], None]] = []
        waiting = list(roots)
        while waiting:
            waiting.extend(self._keep(waiting.pop()))

    def restore(self) -> None:
        """Put everything back."""
        with torch.no_grad():
            for undo in self._undo:
                undo()

    def _keep(self, value: Any) -> Iterable[Any]:
        """Remember how to put ``value`` back, and return what it holds."""
        if value is None or isinstance(value, _CLOSED) or id(value) in self._kept:
            return ()
        self._kept[id(value)] = value
        if isinstance(value, Tensor):
            return self._keep_tensor(value)
        if undo := _generator(value):
            self._undo.append(undo)
            return ()
        if isinstance(value, np.ndarray):
            if not self._data and value.flags.writeable:
                self._undo.append(_put_back_array(value))
            return ()
        held = self._keep_container(value)
        if isinstance(value, nn.Module) or _top(type(value)) not in _OTHERS:
            attributes = getattr(value, "__dict__", None)
            if isinstance(attributes, dict):
                if _is_own(type(value)):
                    self._undo.append(_put_back_mapping(attributes))
                held = [*held, *attributes.values()]
        return held

    def _keep_tensor(self, tensor: Tensor) -> Iterable[Any]:
        if self._data or not _can_be_written(tensor):
            return ()
        self._undo.append(_put_back_tensor(tensor))
        return [tensor.grad] if tensor.is_leaf else []

    def _keep_container(self, value: Any) -> list[Any]:
        if not isinstance(value, (dict, list, tuple, set, deque, array, bytearray)):
            return []
        if self._data and len(value) > _LONGEST_PART_OF_DATA:
            return []
        if isinstance(value, (dict, set)):
            self._undo.append(_put_back_mapping(value))
        elif not isinstance(value, tuple):
            self._undo.append(_put_back_sequence(value))
        if isinstance(value, (array, bytearray)):
            return []
        return list(value.values() if isinstance(value, dict) else value)


def _put_back_mapping(value: Any) -> Callable[[], None]:
    kept = dict(value) if isinstance(value, dict) else set(value)

    def undo() -> None:
        value.clear()
        value.update(kept)

    return undo


def _put_back_sequence(value: Any) -> Callable[[], None]:
    kept = list(value)

    def undo() -> None:
        while value:
            value.pop()
        value.extend(kept)

    return undo


def _put_back_array(array: np.ndarray) -> Callable[[], None]:
    kept = array.copy()
    return lambda: np.copyto(array, kept)


def _put_back_tensor(tensor: Tensor) -> Callable[[], None]:
    alias, kept = tensor.detach(), tensor.detach().to("cpu", copy=True)
    grad, requires_grad = (tensor.grad, tensor.requires_grad) if tensor.is_leaf else (None, None)

    def undo() -> None:
        if requires_grad is not None:
            if tensor.data_ptr() != alias.data_ptr():
                tensor.data = alias
            tensor.requires_grad_(requires_grad).grad = grad
        alias.copy_(kept)

    return undo


def _can_be_written(tensor: Tensor) -> bool:
    """Whether somebody may change it in place."""
    is_plain = tensor.layout is torch.strided and not tensor.is_meta and not tensor.is_inference()
    return is_plain and all(stride or size < 2 for stride, size in zip(tensor.stride(), tensor.shape, strict=True))


def _generator(value: Any) -> Callable[[], None] | None:
    """How to put a random generator back; None for anything else."""
    if isinstance(value, torch.Generator):
        kept = value.get_state()
        return lambda: value.set_state(kept)  # type: ignore[return-value]
    if isinstance(value, random.Random):
        state = value.getstate()
        return lambda: value.setstate(state)
    if isinstance(value, np.random.Generator):
        bits, inner = value.bit_generator, value.bit_generator.state
        return lambda: setattr(bits, "state", inner)
    if isinstance(value, np.random.RandomState):
        old = value.get_state()
        return lambda: value.set_state(old)
    return None


def _top(cls: type) -> str:
    return cls.__module__.partition(".")[0]


def _is_own(cls: type) -> bool:
    """Whether objects of this class are put back as a whole."""
    top = _top(cls)
    if issubclass(cls, nn.Module) or top in ("torch", "lightning_tuning"):
        return True
    file = getattr(sys.modules.get(cls.__module__), "__file__", None) or ""
    return top not in sys.stdlib_module_names and "site-packages" not in file and "dist-packages" not in file
