"""Optimizer steps as training makes them, of which nothing is left afterwards."""

from __future__ import annotations

import copy
import itertools
from collections import OrderedDict
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from lightning.fabric.utilities.data import _set_sampler_epoch
from lightning.pytorch import LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from lightning.pytorch.loops.fetchers import _DataFetcher, _DataLoaderIterDataFetcher
from lightning.pytorch.loops.utilities import _select_data_fetcher
from lightning.pytorch.trainer import call
from lightning.pytorch.trainer.connectors.logger_connector.result import _ResultCollection
from lightning.pytorch.trainer.states import RunningStage
from lightning.pytorch.utilities.combined_loader import CombinedLoader
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import Tensor
from torch.nn.parameter import is_lazy
from torch.utils.data import DataLoader

from lightning_tuning.functional import get_rng_state, set_rng_state

from ._gradients import holds_whole_gradients
from ._snapshot import Snapshot
from ._step_gate import StepGate


class Rehearsal:
    """The steps that can be made within :func:`rehearsal`."""

    def __init__(self, trainer: Trainer, loader: CombinedLoader) -> None:
        self._trainer = trainer
        self._loader = loader
        self._fetcher: _DataFetcher | None = None
        self._batches = self._passes()

    def step(self) -> float | None:
        """Make one optimizer step: one batch, or as many as are accumulated.

        Returns:
            The mean of their losses over all ranks, taken before the step; None if ``training_step`` skipped them all.
        """
        losses = []
        while True:
            loss = self._pass_batch()
            if loss is not None:
                losses.append(loss)
            if not self._trainer.fit_loop._should_accumulate():
                break
        self._trainer.fit_loop.epoch_loop._batches_that_stepped += 1
        if not losses:
            return None
        return float(self._trainer.strategy.reduce(torch.stack(losses).mean(), reduce_op="mean"))

    def close(self) -> None:
        """Let go of the loader's workers."""
        if self._fetcher is not None:
            self._fetcher.teardown()

    def _pass_batch(self) -> Tensor | None:
        """What an epoch's loop does with a batch, but for schedulers, logging, validation and checkpoints."""
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop
        batch_idx, batch = next(self._batches)
        batch = trainer.precision_plugin.convert_input(batch)
        batch = trainer.lightning_module._on_before_batch_transfer(batch, dataloader_idx=0)
        batch = call._call_strategy_hook(trainer, "batch_to_device", batch, dataloader_idx=0)
        loop.batch_progress.increment_ready()
        trainer._logger_connector.on_batch_start(batch)
        call._call_callback_hooks(trainer, "on_train_batch_start", batch, batch_idx)
        answer = call._call_lightning_module_hook(trainer, "on_train_batch_start", batch, batch_idx)
        call._call_strategy_hook(trainer, "on_train_batch_start", batch, batch_idx)
        if answer == -1 and batch_idx > 0:  # the module skips the rest of the epoch
            self._batches = self._passes()
            return self._pass_batch()
        loop.batch_progress.increment_started()
        arguments = loop._build_kwargs(OrderedDict(), batch, batch_idx)
        output: Any = loop.automatic_optimization.run(trainer.optimizers[0], batch_idx, arguments)
        loop.batch_progress.increment_processed()
        call._call_callback_hooks(trainer, "on_train_batch_end", output, batch, batch_idx)
        call._call_lightning_module_hook(trainer, "on_train_batch_end", output, batch, batch_idx)
        trainer._logger_connector.on_batch_end()
        loop.batch_progress.increment_completed()
        loss = output.get("loss")
        return None if loss is None else loss.float() * trainer.accumulate_grad_batches

    def _passes(self) -> Iterator[tuple[int, Any]]:
        """Number in its epoch and batch, from the first one on, epoch after epoch."""
        trainer, loop = self._trainer, self._trainer.fit_loop.epoch_loop
        for epoch in itertools.count(trainer.current_epoch):
            for loader in self._loader.flattened:
                _set_sampler_epoch(loader, epoch)
            self._fetcher = fetcher = _select_data_fetcher(trainer, RunningStage.TRAINING)
            fetcher.setup(self._loader)
            loop.batch_progress.reset_on_run()
            for batch_idx, (batch, _, _) in enumerate(iter(fetcher)):
                loop.batch_progress.is_last_batch = fetcher.done
                yield batch_idx, batch
            fetcher.teardown()


@contextmanager
def rehearsal(trainer: Trainer, module: LightningModule, what: str) -> Iterator[Rehearsal]:
    """Within it training steps can be made; afterwards all is bitwise what it was.

    The steps are the Trainer's own: hooks, precision, accumulation, clipping, strategy, optimizer. They read the
    training data through loaders of their own, from the first batch on. No callback acts but those whose ``changes``
    name the gradient, no guard judges, no scheduler steps and no logger gets anything. Put back are the weights and
    their gradients, buffers, attributes, what techniques and callbacks keep, the optimizer, schedulers, the gradient
    scaler, progress, logged values and all random generators, also those that samplers and datasets hold.

    Args:
        trainer: A Trainer whose fit has begun (``on_train_batch_start`` of the first batch, or where it is as far).
        module: Its module.
        what: Who asks, for the message.

    Raises:
        MisconfigurationException: Steps of this kind of training cannot be taken back.
    """
    loop, connector = trainer.fit_loop.epoch_loop, trainer._logger_connector
    combined = trainer.fit_loop._combined_loader
    assert combined is not None  # training has begun
    _check(trainer, module, combined, what)
    rng = get_rng_state(module.device)
    own = [c for c in trainer.callbacks if not type(c).__module__.startswith("lightning.")]  # type: ignore[attr-defined]
    schedulers = [config.scheduler for config in trainer.lr_scheduler_configs]
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    snapshots = [
        Snapshot([module, *trainer.optimizers, *schedulers, scaler, *own]),
        Snapshot([*combined.flattened, getattr(trainer, "datamodule", None)], data=True),
    ]
    exchanged: list[tuple[Any, dict[str, Any]]] = [
        (
            trainer,
            {
                "callbacks": [c for c in own if "gradient" in getattr(c, "changes", ())],
                "_loggers": [DummyLogger() for _ in trainer.loggers],
                "should_stop": False,
            },
        ),
        (connector, {name: dict(v) if isinstance(v, dict) else v for name, v in vars(connector).items()}),
        (
            loop,
            {
                "_results": _ResultCollection(training=True),
                "batch_progress": copy.deepcopy(loop.batch_progress),
                "_batches_that_stepped": loop._batches_that_stepped,
            },
        ),
        (loop.automatic_optimization, {"optim_progress": copy.deepcopy(loop.automatic_optimization.optim_progress)}),
    ]
    plugin = vars(trainer.precision_plugin)
    gate = plugin.get("optimizer_step")
    originals = [(owner, {name: vars(owner)[name] for name in new}) for owner, new in exchanged]
    steps = Rehearsal(trainer, _own_loaders(combined))
    try:
        for owner, new in exchanged:
            vars(owner).update(new)
        if isinstance(gate, StepGate):  # guards are to judge the run's own steps
            del plugin["optimizer_step"]
        yield steps
    finally:
        steps.close()
        if isinstance(gate, StepGate):
            plugin["optimizer_step"] = gate
        for owner, old in originals:
            vars(owner).update(old)
        for snapshot in snapshots:
            snapshot.restore()
        set_rng_state(rng)


def _check(trainer: Trainer, module: LightningModule, combined: CombinedLoader, what: str) -> None:
    """Refuse trainings whose steps cannot be made and taken back."""
    name = type(module).__name__
    if not module.automatic_optimization:
        why = f"{name} steps its optimizers itself (automatic_optimization is False)"
    elif not holds_whole_gradients(trainer.strategy):
        why = f"no process holds whole weights and gradients under {type(trainer.strategy).__name__}"
    elif any(is_lazy(parameter) for parameter in module.parameters()):
        why = f"{name} has lazy parameters, whose shape nobody knows yet; pass one batch through it before the fit"
    elif isinstance(trainer.fit_loop._data_fetcher, _DataLoaderIterDataFetcher):
        why = f"{name}.training_step takes dataloader_iter"
    elif any(isinstance(loader, Iterator) for loader in combined.flattened):
        why = "the training data are an iterator, which gives each batch only once; give a DataLoader"
    else:
        return
    raise MisconfigurationException(f"{what} makes training steps and takes them back, which cannot be done: {why}.")


def _own_loaders(combined: CombinedLoader) -> CombinedLoader:
    """The same data through loaders that share no iterator and no worker with those that training reads."""
    loaders = []
    for loader in combined.flattened:
        if isinstance(loader, DataLoader):
            loader = copy.copy(loader)
            vars(loader)["_iterator"] = None
        loaders.append(loader)
    own = copy.copy(combined)
    own._iterator = None
    own.flattened = loaders
    return own
