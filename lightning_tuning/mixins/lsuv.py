"""Layer-sequential unit-variance initialisation: the part that needs data."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from torch import Tensor, nn
from torch.utils.data import DataLoader

from lightning_tuning.functional import get_rng_state, labeled_part, set_rng_state

from .base import TuningMixin


def scale_to_unit_variance(module: TuningMixin, layers: Collection[nn.Module]) -> None:
    """Scale each of ``layers`` so that its output has variance 1 on a training batch, in the order of the forward.

    One forward pass does it: each layer's output is made right before the next layer sees it, and a layer without bias
    is linear in its weight. The variance is that over the batches of all devices, so all scale alike. Random generators
    and buffers are put back.
    """
    with _random_state_kept(module), _buffers_kept(module):
        batch = _first_batch(module)
        if batch is None:
            return
        scaling = _Scaling(module)
        hooks = [layer.register_forward_hook(scaling, with_kwargs=True) for layer in layers]
        try:
            with (
                torch.no_grad(),
                torch.compiler.set_stance("force_eager"),  # compiled code may have been made without the hooks
                module.trainer.precision_plugin.forward_context(),
            ):
                module(module.unpack_batch(labeled_part(batch))[0])
        finally:
            for hook in hooks:
                hook.remove()


class _Scaling:
    """A forward hook for several layers; a layer that is called again is left as it is."""

    def __init__(self, module: TuningMixin) -> None:
        self._strategy = module.trainer.strategy
        self._done: set[nn.Module] = set()

    def __call__(self, layer: Any, args: tuple, kwargs: dict[str, Any], output: Tensor) -> Tensor | None:
        if layer in self._done:
            return None
        self._done.add(layer)
        deviation = self._deviation(output)
        if not 0 < deviation < float("inf"):  # behind a branch that is closed, for instance
            return None
        layer.weight.div_(deviation)
        return layer.forward(*args, **kwargs)

    def _deviation(self, output: Tensor) -> float:
        values = output.float() if output.dtype.itemsize < 4 else output
        count, total = self._summed(torch.stack([values.new_tensor(float(values.numel())), values.sum()]))
        return float((self._summed((values - total / count).square().sum()) / count).sqrt())

    def _summed(self, value: Tensor) -> Tensor:
        return self._strategy.reduce(value, reduce_op="sum")


def _first_batch(module: TuningMixin) -> Any:
    """The first batch of an iterator of its own, on the device; None of an empty loader."""
    trainer = module.trainer
    loader = CombinedLoader(trainer.train_dataloader, "max_size_cycle")
    loader.flattened = [_apart(part) for part in loader.flattened]
    found = next(iter(loader), None)
    if found is None:
        return None
    batch = trainer.precision_plugin.convert_input(found[0])
    batch = module._on_before_batch_transfer(batch, dataloader_idx=0)
    return trainer.strategy.batch_to_device(batch, dataloader_idx=0)


def _apart(loader: Any) -> Any:
    """``loader`` with an iterator of its own: persistent workers would start the Trainer's anew."""
    if not isinstance(loader, DataLoader):
        return loader
    loader = copy.copy(loader)
    loader._iterator = None
    return loader


@contextmanager
def _random_state_kept(module: TuningMixin) -> Iterator[None]:
    """The default generators, and those of the loaders and their samplers."""
    loaders = CombinedLoader(module.trainer.train_dataloader, "max_size_cycle").flattened
    owners = [o for loader in loaders for o in (loader, getattr(loader, "sampler", None))]
    generators = [g for g in (getattr(o, "generator", None) for o in owners) if isinstance(g, torch.Generator)]
    state, states = get_rng_state(module.device), [g.get_state() for g in generators]
    try:
        yield
    finally:
        set_rng_state(state)
        for generator, kept in zip(generators, states, strict=True):
            generator.set_state(kept)


@contextmanager
def _buffers_kept(module: nn.Module) -> Iterator[None]:
    # By name, for a host may exchange a buffer instead of changing it.
    buffers = [(m, n, b, b.clone()) for m in module.modules() for n, b in m.named_buffers(recurse=False)]
    try:
        yield
    finally:
        for owner, name, buffer, kept in buffers:
            setattr(owner, name, buffer.copy_(kept))
