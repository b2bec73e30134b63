"""What the Trainer's switches cost in a training step: ``python tests/benchmarks/trainer_switches.py``.

Two trainings of the same small network advance in turn, in slices of 10 steps of one long epoch, so that a busy machine
slows both alike: a raw loop and a Trainer, or the Trainer of ``preset:fast`` and the same with one switch more. Printed
are the ratio in CPU time (the median over the pairs of slices, and its quartiles) and what is added to a step (the
median over the pairs, and the difference of the quickest slices, which other work on the machine has slowed least).
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import logging
import os
import statistics
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from torch import nn

from lightning_tuning import preset
from lightning_tuning.callbacks import ExactResume, GradientNorm, MonitorCheck
from lightning_tuning.runs import GlobalBatch, JournalLogger, RunCheckpoint

STEPS, WARMUP = 10, 5
FAST = preset("fast")
rates = functools.partial(LearningRateMonitor, "step")
Training = Callable[["Slices"], None]


class Net(LightningModule):
    """An MLP of 6 tensors for vectors of 32 numbers.

    Args:
        logs: Whether each step logs its loss, to the logger and the progress bar.
    """

    def __init__(self, logs: bool = False) -> None:
        super().__init__()
        self.network = nn.Sequential(nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 10))
        self.logs = logs

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        loss = F.cross_entropy(self.network(batch[0]), batch[1])
        if self.logs:
            self.log("train/loss", loss, prog_bar=True)
        return loss

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.SGD(self.parameters(), lr=0.01, momentum=0.9)


def raw_loop(slices: Slices) -> None:
    module = Net()
    optimizer = module.configure_optimizers()
    for index, batch in enumerate(slices):
        loss = module.training_step(batch, index)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()


def stock(
    logs: bool = False, made: Sequence[Callable[[], Callback]] = (), journal: bool = False, **settings: Any
) -> Training:
    """A Trainer with the settings given, and the callbacks of the classes in ``made``."""

    def train(slices: Slices) -> None:
        with tempfile.TemporaryDirectory() as folder:
            trainer = Trainer(
                accelerator="cpu",
                devices=1,
                max_epochs=1,
                default_root_dir=folder,
                callbacks=[make() for make in made],
                **(settings | {"logger": JournalLogger(folder)} if journal else settings),
            )
            trainer.fit(Net(logs), slices)

    return train


def fast(
    logs: bool = False, made: Sequence[Callable[[], Callback]] = (), journal: bool = False, **settings: Any
) -> Training:
    return stock(logs, made, journal, **{**FAST, **settings})


BASE = "fast"
# Each is compared with the raw loop and, if it is a switch by itself, with the Trainer of preset:fast.
WHOLE: dict[str, Training] = {
    "stock": stock(),
    "stock, loss logged": stock(True),
    BASE: fast(),
    "fast, loss logged": fast(True),
    "barebones, loss logged": stock(True, barebones=True),
    "command line": stock(
        made=[GlobalBatch, ExactResume, MonitorCheck, GradientNorm, rates, RunCheckpoint], journal=True
    ),
    "command line, fast": fast(made=[GlobalBatch, ExactResume, MonitorCheck], journal=True),
}
SWITCHES: dict[str, Training] = {
    "nothing": fast(),
    "summary and sanity check left out": fast(enable_model_summary=False, num_sanity_val_steps=0),
    "progress bar": fast(enable_progress_bar=True),
    "checkpointing": fast(enable_checkpointing=True),
    "journal, every 10 steps": fast(journal=True, log_every_n_steps=10),
    "one value logged": fast(True),
    "one value logged, journal every step": fast(True, journal=True, log_every_n_steps=1),
    "one value logged, progress bar": fast(True, enable_progress_bar=True),
    "clipping by norm": fast(gradient_clip_val=1.0),
    "inference_mode off": fast(inference_mode=False),
    "bf16": fast(precision="bf16-mixed"),
    "simple profiler": fast(profiler="simple"),
    "a callback that does nothing": fast(made=[Callback]),
    "ExactResume": fast(made=[ExactResume]),
    "GradientNorm, journal every 10 steps": fast(made=[GradientNorm], journal=True, log_every_n_steps=10),
    "LearningRateMonitor, journal every 10 steps": fast(made=[rates], journal=True, log_every_n_steps=10),
}


class Slices:
    """A loader of one long epoch that lets its training go on for one slice of steps at a time."""

    def __init__(self, rounds: int) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.rounds = rounds
        self.batch = torch.randn(32, 32), torch.randint(10, (32,))
        self.seconds: list[float] = []

    def __len__(self) -> int:
        return self.rounds * STEPS + 1

    def __iter__(self) -> Iterator[Any]:
        for _ in range(self.rounds):
            self.go.acquire()
            start = time.thread_time()
            for _ in range(STEPS):
                yield self.batch
            self.seconds.append((time.thread_time() - start) / STEPS)
            self.done.release()
        yield self.batch  # the Trainer asks for a batch ahead of the last


def measure(trainings: Sequence[Training], rounds: int) -> list[list[float]]:
    """The CPU seconds of a step of each training, in each round after the first two."""
    slices = [Slices(rounds + WARMUP) for _ in trainings]
    threads = [threading.Thread(target=train, args=(its,)) for train, its in zip(trainings, slices, strict=True)]
    for thread in threads:
        thread.start()
    for i in range(rounds + WARMUP):
        for its in slices[:: 1 if i % 2 else -1]:
            its.go.release()
            its.done.acquire()
    for thread in threads:
        thread.join()
    return [its.seconds[WARMUP:] for its in slices]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--rounds", type=int, default=75)
    rounds = parser.parse_args().rounds
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name, training in [*WHOLE.items(), *SWITCHES.items()]:
        is_switch = name in SWITCHES
        with open(os.devnull, "w") as nothing, contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            base, found = measure([WHOLE[BASE] if is_switch else raw_loop, training], rounds)
        ratios = [value / other for value, other in zip(found, base, strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        added = statistics.median(value - other for value, other in zip(found, base, strict=True))
        least = min(found) - min(base)
        compared = f"fast + {name}" if is_switch else f"{name} / raw loop"
        print(
            f"{compared:54} {median:.2f} ({low:.2f} to {high:.2f}), quickest {min(found) / min(base):.2f}; "
            f"{1e6 * added:+.0f} us, quickest {1e6 * least:+.0f} us",
            flush=True,
        )


if __name__ == "__main__":
    main()
