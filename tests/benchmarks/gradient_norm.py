"""What GradientNorm and ExactResume add to a Trainer step: ``python tests/benchmarks/gradient_norm.py``.

Two trainings advance in turn, in slices of some steps, so that a busy machine slows both alike; the ratio of each pair
of slices is taken in CPU time of the two threads, and the median over all pairs is printed.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import warnings
from collections.abc import Iterator
from typing import Any

import torch
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_tuning.callbacks import ExactResume, GradientNorm

SLICE, ROUNDS = 20, 100


class Net(LightningModule):
    """31 linear layers: 62 tensors."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.layers = nn.Sequential(*[nn.Linear(64, 64) for _ in range(31)])

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return self.layers(batch).square().mean()

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters())


class Turns:
    """A loader that lets its training go on for one slice at a time."""

    def __init__(self) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.batch = torch.randn(32, 64)

    def __iter__(self) -> Iterator[torch.Tensor]:
        for _ in range(ROUNDS):
            self.go.acquire()
            start = time.thread_time()
            for _ in range(SLICE):
                yield self.batch
            self.seconds.append(time.thread_time() - start)
            self.done.release()

    def __len__(self) -> int:
        return SLICE * ROUNDS


def start(callbacks: list[Callback], settings: dict[str, Any]) -> tuple[Turns, threading.Thread]:
    turns = Turns()
    trainer = Trainer(
        max_epochs=1,
        callbacks=callbacks,
        logger=DummyLogger(),
        log_every_n_steps=50,
        accelerator="cpu",
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    thread = threading.Thread(target=trainer.fit, args=(Net(), turns))
    thread.start()
    return turns, thread


def compare(name: str, callback: Callback, settings: dict[str, Any]) -> None:
    runs = [start([], settings), start([callback], settings)]
    for i in range(ROUNDS):
        for turns, _ in runs if i % 2 else runs[::-1]:
            turns.go.release()
            # The last slice ends only with the training: the Trainer does not ask for a batch after the last.
            if i < ROUNDS - 1:
                turns.done.acquire()
    for _, thread in runs:
        thread.join()
    pairs = list(zip(runs[0][0].seconds[5:], runs[1][0].seconds[5:], strict=False))
    ratio = statistics.median(b / a for a, b in pairs)
    added = statistics.median(b - a for a, b in pairs) / SLICE * 1e6
    step = statistics.median(a for a, _ in pairs) / SLICE * 1e6
    print(f"{name:32s} ratio {ratio:.3f}, {added:+.0f} us in a step of {step:.0f} us")


if __name__ == "__main__":
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    clip = {"gradient_clip_val": 1.0}
    compare("nothing (noise), clipping", Callback(), clip)
    compare("GradientNorm, clipping by norm", GradientNorm(), clip)
    compare("GradientNorm, module groups", GradientNorm("module", depth=2), clip)
    compare("GradientNorm, clipping by value", GradientNorm(), clip | {"gradient_clip_algorithm": "value"})
    compare("GradientNorm, no clipping", GradientNorm(), {})
    compare("ExactResume", ExactResume(), {})
