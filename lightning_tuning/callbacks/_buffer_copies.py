"""A module's buffers as they were before a forward pass."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import torch
from lightning.pytorch import Trainer
from torch import Tensor, nn


@dataclass
class _Kept:
    buffer: Tensor
    version: int
    copy: Tensor


class BufferCopies:
    """Copies of a module's buffers, such as batch norm's statistics, which a forward pass changes.

    Only what may have changed since the last copy is copied, by the counter of changes that each tensor has. Torch's
    batch norm moves its running statistics past that counter, so vectors are always copied. States that advance with
    the optimizer are left out: they take care of themselves.

    Args:
        module: Whose buffers.
    """

    def __init__(self, module: nn.Module) -> None:
        self._module = module
        self._owners: list[tuple[nn.Module, str]] = []
        self._kept: dict[tuple[nn.Module, str], _Kept] = {}

    def look_up(self) -> None:
        """Walk the module anew: layers may have been exchanged."""
        self._owners = list(buffer_owners(self._module))
        self._kept = {place: self._kept[place] for place in self._owners if place in self._kept}

    @torch.no_grad()
    def take(self) -> None:
        """Copy the buffers."""
        copies, buffers = [], []
        for place in self._owners:
            buffer, kept = place[0]._buffers.get(place[1]), self._kept.get(place)
            if buffer is None or (kept is not None and _is_unchanged(kept, buffer)):
                continue
            if kept is not None and kept.buffer is buffer:
                copies.append(kept.copy)
                buffers.append(buffer)
                kept.version = _version(buffer)
            else:  # by name, for a module may exchange a buffer instead of changing it
                self._kept[place] = _Kept(buffer, _version(buffer), buffer.clone())
        if copies:
            torch._foreach_copy_(copies, buffers)

    @torch.no_grad()
    def put_back(self) -> None:
        """Give the buffers the values that they had at the last :meth:`take`."""
        for (owner, name), kept in self._kept.items():
            buffer = owner._buffers.get(name)
            if buffer is not None and not _is_unchanged(kept, buffer):
                owner._buffers[name] = kept.buffer.copy_(kept.copy)
                kept.version = _version(kept.buffer)


def buffer_owners(module: nn.Module) -> Iterator[tuple[nn.Module, str]]:
    """Each submodule and the name of each of its buffers, but for states that advance with the optimizer."""
    for owner in module.modules():
        if not getattr(owner, "advances_with_optimizer", False):
            yield from ((owner, name) for name in owner._buffers)


def rank_zero_buffers(trainer: Trainer, copies: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Rank 0's of those copies that are of the module's buffers, by name. Every rank has to call it.

    Batch norm's statistics differ from rank to rank. Checkpoints have rank 0's, and DDP gives them to all ranks, so a
    run that keeps each rank's own would not be the resumed one.
    """
    names = [name for name, _ in trainer.lightning_module.named_buffers() if name in copies]
    return trainer.strategy.broadcast({name: copies[name] for name in names})


def _version(tensor: Tensor) -> int:
    """How often the tensor was changed in place; -1 if torch does not count."""
    return -1 if tensor.is_inference() else tensor._version


def _is_unchanged(kept: _Kept, buffer: Tensor) -> bool:
    return kept.buffer is buffer and buffer.ndim != 1 and kept.version == _version(buffer) >= 0
