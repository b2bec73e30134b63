"""What ActivationHealth adds to a training step, as a ratio to the bare step.

    OMP_NUM_THREADS=1 python tests/benchmarks/activation_health.py [--network resnet18] [--steps 2] [--rounds 12]

All trainings advance in turn, some steps at a time, so that a busy machine slows them alike. The ratio is taken in CPU
time of the threads within each round; printed are its median and quartiles over the rounds. With ``--steps 50`` each
turn of the default setting has exactly one look.
"""

from __future__ import annotations

import argparse
import statistics
import tempfile

import torch
from gradient_callbacks import Turns, start
from lightning.pytorch import Callback
from step_cost import quiet

from lightning_tuning.callbacks import ActivationHealth

WARMUP = 2
NEVER = 10**9
VARIANTS: dict[str, list[Callback]] = {
    "bare": [],
    "a callback that does nothing": [Callback()],
    "no step looked at": [ActivationHealth(NEVER)],
    "every 50th step": [ActivationHealth(50)],
    "every step": [ActivationHealth(1)],
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=2, help="steps in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    quiet()

    batch = torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
    rounds = args.rounds + WARMUP
    turns = {name: Turns(batch, args.steps, rounds) for name in VARIANTS}
    folder = {"default_root_dir": tempfile.mkdtemp()}  # for the pictures
    threads = [start(args.network, turns[name], VARIANTS[name], folder) for name in VARIANTS]
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
