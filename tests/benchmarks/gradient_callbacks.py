"""What the callbacks that edit gradients add to a training step, as a ratio to the bare step.

    OMP_NUM_THREADS=1 python tests/benchmarks/gradient_callbacks.py [--network resnet18] [--steps 1] [--rounds 12]

All trainings advance in turn, some steps at a time, so that a busy machine slows them alike. The ratio is taken in CPU
time of the threads within each round; printed are its median and quartiles over the rounds.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import threading
import time
import warnings
from collections.abc import Iterator

import torch
from lightning.pytorch import Callback, Trainer
from lightning.pytorch.loggers.logger import DummyLogger

from lightning_tuning.callbacks import AdaptiveGradientClipping, AutoClip, GradientCentralization, GradientNoise
from lightning_tuning.modules import Classifier

WARMUP = 2
VARIANTS = {
    "bare": ([], {}),
    "a callback that does nothing": ([Callback()], {}),
    "the Trainer's clipping by norm": ([], {"gradient_clip_val": 1.0}),
    "GradientCentralization": ([GradientCentralization()], {}),
    "AdaptiveGradientClipping": ([AdaptiveGradientClipping()], {}),
    "AutoClip": ([AutoClip()], {}),
    "GradientNoise": ([GradientNoise()], {}),
}


class Turns:
    """A loader that lets its training go on for one turn at a time."""

    def __init__(self, batch: tuple, steps: int, rounds: int) -> None:
        self.go, self.done = threading.Semaphore(0), threading.Semaphore(0)
        self.batch, self.steps, self.rounds = batch, steps, rounds
        self.seconds: list[float] = []

    def __iter__(self) -> Iterator[tuple]:
        for _ in range(self.rounds):
            self.go.acquire()
            start = time.thread_time()
            for _ in range(self.steps):
                yield self.batch
            self.seconds.append(time.thread_time() - start)
            self.done.release()
        yield self.batch  # the Trainer asks for a batch ahead of the last

    def __len__(self) -> int:
        return self.steps * self.rounds + 1


def start(network: str, turns: Turns, callbacks: list[Callback], settings: dict) -> threading.Thread:
    torch.manual_seed(0)
    model = Classifier(network=network, image_size=32, in_channels=3, optimizer="sgd", lr=0.01)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=1,
        callbacks=callbacks,
        logger=DummyLogger(),
        log_every_n_steps=50,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        **settings,
    )
    thread = threading.Thread(target=trainer.fit, args=(model, turns))
    thread.start()
    return thread


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    batch = torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
    rounds = args.rounds + WARMUP
    turns = {name: Turns(batch, args.steps, rounds) for name in VARIANTS}
    threads = [start(args.network, turns[name], *VARIANTS[name]) for name in VARIANTS]
    for i in range(rounds):
        for name in list(VARIANTS)[:: 1 if i % 2 else -1]:
            turns[name].go.release()
            turns[name].done.acquire()
    for thread in threads:
        thread.join()
    bare = turns["bare"].seconds[WARMUP:]
    step = statistics.median(bare) / args.steps
    print(f"{args.network}, batch {args.batch_size}, {args.rounds} rounds of {args.steps} steps of {1e3 * step:.2f} ms")
    for name in VARIANTS:
        ratios = [b / a for a, b in zip(bare, turns[name].seconds[WARMUP:], strict=True)]
        low, median, high = statistics.quantiles(ratios, n=4)
        print(f"{name:32} {median:5.3f}   (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
