"""What FiniteGuard and SpikeGuard add to a training step: ``python tests/benchmarks/guard_cost.py``.

Two trainings advance in turn, in slices of some steps, so that a busy machine slows both alike; the ratio of each pair
of slices is taken in CPU time of the two threads. Printed are the median over all pairs and its quartiles, and beneath
that the parts of a guard's work by themselves.
"""

from __future__ import annotations

import logging
import statistics
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import torch
import torch.nn.functional as F
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.loggers.logger import DummyLogger
from torch import nn

from lightning_tuning.callbacks import FiniteGuard, SpikeGuard
from lightning_tuning.callbacks._buffer_copies import BufferCopies
from lightning_tuning.functional import global_norm, spike_threshold

ROUNDS = 40


def digits_mlp() -> nn.Module:
    """6 tensors, for images of 8x8."""
    return nn.Sequential(
        nn.Flatten(), nn.Linear(64, 128), nn.ReLU(), nn.Linear(128, 128), nn.ReLU(), nn.Linear(128, 10)
    )


def net_of_62_tensors() -> nn.Module:
    """20 convolutions with batch norm (60 tensors and as many buffers) and a linear layer."""
    layers: list[nn.Module] = []
    for i in range(20):
        layers += [nn.Conv2d(32 if i else 1, 32, 3, padding=1, bias=False), nn.BatchNorm2d(32), nn.ReLU()]
    return nn.Sequential(*layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10))


NETS: dict[str, tuple[Callable[[], nn.Module], int]] = {"mlp": (digits_mlp, 50), "62 tensors": (net_of_62_tensors, 3)}


class Net(LightningModule):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def training_step(self, batch: Any, batch_idx: int) -> torch.Tensor:
        return F.cross_entropy(self.network(batch[0]), batch[1])

    def configure_optimizers(self) -> torch.optim.Optimizer:
        return torch.optim.AdamW(self.parameters(), lr=1e-6)  # so that no step is a spike


class Turns:
    """A loader that lets its training go on for one slice at a time."""

    def __init__(self, steps: int) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.seconds: list[float] = []
        self.steps = steps
        self.batch = torch.randn(64, 1, 8, 8), torch.randint(10, (64,))

    def __iter__(self) -> Iterator[tuple]:
        for _ in range(ROUNDS):
            self.go.acquire()
            start = time.thread_time()
            for _ in range(self.steps):
                yield self.batch
            self.seconds.append(time.thread_time() - start)
            self.done.release()
        yield self.batch  # the Trainer asks for a batch ahead of the last

    def __len__(self) -> int:
        return self.steps * ROUNDS + 1


def start(name: str, callbacks: list[Callback], settings: dict[str, Any]) -> tuple[Turns, threading.Thread]:
    make, steps = NETS[name]
    torch.manual_seed(0)
    turns = Turns(steps)
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
    thread = threading.Thread(target=trainer.fit, args=(Net(make()), turns))
    thread.start()
    return turns, thread


def compare(name: str, what: str, callbacks: list[Callback], **settings: Any) -> None:
    runs = [start(name, [], {}), start(name, callbacks, settings)]
    for i in range(ROUNDS):
        for turns, _ in runs if i % 2 else runs[::-1]:
            turns.go.release()
            turns.done.acquire()
    for _, thread in runs:
        thread.join()
    pairs = list(zip(runs[0][0].seconds[5:], runs[1][0].seconds[5:], strict=True))
    low, ratio, high = statistics.quantiles((b / a for a, b in pairs), n=4)
    steps = NETS[name][1]
    step, added = (statistics.median(v) / steps * 1e6 for v in ([a for a, _ in pairs], [b - a for a, b in pairs]))
    print(f"{name:11} {what:36} {ratio:.3f} ({low:.3f} to {high:.3f}), {added:+.0f} us in a step of {step:.0f} us")


def part(what: str, function: Callable[[], Any], times: int = 500) -> None:
    for _ in range(20):
        function()
    start = time.thread_time()
    for _ in range(times):
        function()
    print(f"  {what:46} {(time.thread_time() - start) / times * 1e6:.0f} us")


def main() -> None:
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    for name in NETS:
        compare(name, "a callback that does nothing", [Callback()])
        compare(name, "the Trainer's clipping by norm", [], gradient_clip_val=1.0)
        compare(name, "FiniteGuard", [FiniteGuard()])
        compare(name, "FiniteGuard, rewind every 100 steps", [FiniteGuard(action="rewind")])
        compare(name, "SpikeGuard", [SpikeGuard()])
        compare(name, "FiniteGuard and SpikeGuard", [FiniteGuard(), SpikeGuard()])
    for name, (make, _) in NETS.items():
        network = make()
        gradients = [torch.randn_like(p) for p in network.parameters()]
        copies = BufferCopies(network)
        copies.look_up()
        print(name)
        part("norm of the gradient", lambda g=gradients: global_norm(g))
        part("copies of the buffers", copies.take)
    values = torch.rand(128).tolist()
    part("threshold of 128 values", lambda: spike_threshold(values, 6))
    part("threshold of 128 values, robust", lambda: spike_threshold(values, 6, robust=True))


if __name__ == "__main__":
    main()
