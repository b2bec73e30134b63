"""Trainings that advance in turn, an epoch each, so that a busy machine slows them all alike."""

from __future__ import annotations

import statistics
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch.utils.data import DataLoader

WARMUP = 2


@dataclass
class Variant:
    """A training: what makes the module, its callbacks, further arguments of the Trainer."""

    module: Callable[[], LightningModule]
    callbacks: Sequence[Callback] = ()
    settings: Mapping[str, Any] = field(default_factory=dict)


class Turns:
    """A loader that lets its training go on for one epoch at a time, and notes the CPU time of each."""

    def __init__(self, batch: Any, steps: int) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.batch, self.steps = batch, steps
        self.seconds: list[float] = []
        self._start: float | None = None

    def __iter__(self) -> Iterator[Any]:
        if self._start is not None:
            self.seconds.append(time.thread_time() - self._start)
            self.done.release()
        self.go.acquire()
        self._start = time.thread_time()
        for _ in range(self.steps):
            yield self.batch

    def __len__(self) -> int:
        return self.steps


def seconds_by_turns(
    variants: Mapping[str, Variant], batch: Any, *, steps: int, rounds: int, validation: int = 0
) -> dict[str, list[float]]:
    """The CPU seconds that each variant takes for a step in each round.

    Args:
        variants: By name.
        batch: What every step trains on.
        steps: Steps of a turn: a multiple of the intervals at which something is done, such as logging every 50 steps.
        rounds: Turns that are counted; two more are not.
        validation: Batches of validation at the end of each turn; its time is counted with the steps'.
    """
    turns = {name: Turns(batch, steps) for name in variants}
    folder = tempfile.TemporaryDirectory()
    threads = []
    for name, variant in variants.items():
        torch.manual_seed(0)
        trainer = Trainer(
            accelerator="cpu",
            max_epochs=rounds + WARMUP + 1,  # the last is not counted: nobody asks for a batch after it
            callbacks=list(variant.callbacks),
            default_root_dir=folder.name,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            num_sanity_val_steps=0,
            **{"logger": DummyLogger(), "log_every_n_steps": 50, **variant.settings},
        )
        loaders = (turns[name], DataLoader([batch] * validation, batch_size=None)) if validation else (turns[name],)
        threads.append(threading.Thread(target=trainer.fit, args=(variant.module(), *loaders)))
        threads[-1].start()
    for i in range(rounds + WARMUP):
        for name in list(variants)[:: 1 if i % 2 else -1]:
            turns[name].go.release()
            turns[name].done.acquire()
    for name, thread in zip(variants, threads, strict=True):
        turns[name].go.release()
        thread.join()
    folder.cleanup()
    return {name: [s / steps for s in turns[name].seconds[WARMUP:]] for name in variants}


def show(title: str, seconds: Mapping[str, list[float]]) -> None:
    """Print the ratio of each variant to the first one within the rounds: the median and its quartiles."""
    bare = next(iter(seconds.values()))
    print(f"\n{title}: a step of {1e6 * statistics.median(bare):.0f} us, {len(bare)} rounds")
    for name, values in seconds.items():
        ratios = [value / base for base, value in zip(bare, values, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        added = statistics.median(value - base for base, value in zip(bare, values, strict=True))
        print(f"  {name:44} {median:6.3f}  (quartiles {low:.3f} to {high:.3f}), {1e6 * added:+.0f} us", flush=True)
