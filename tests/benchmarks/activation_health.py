"""What ActivationHealth adds to a training step, as a ratio to the bare step.

    OMP_NUM_THREADS=1 python tests/benchmarks/activation_health.py [--network cnn] [--steps 50] [--rounds 12]

In turns of 50 steps the default setting has one look. See ``turns.py`` for how it is timed.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning.pytorch import Callback
from step_cost import quiet
from turns import Variant, seconds_by_turns, show

from lightning_tuning.callbacks import ActivationHealth
from lightning_tuning.modules import Classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=50, help="steps in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    parser.add_argument("--image-size", type=int, default=32)
    args = parser.parse_args()
    quiet()

    size = args.image_size
    make = partial(Classifier, network=args.network, image_size=size, in_channels=3, optimizer="sgd", lr=0.01)
    variants = {
        "bare": Variant(make),
        "a callback that does nothing": Variant(make, [Callback()]),
        "no step looked at": Variant(make, [ActivationHealth(10**9)]),
        "every 50th step": Variant(make, [ActivationHealth()]),
        "every step": Variant(make, [ActivationHealth(1)]),
    }
    batch = torch.randn(args.batch_size, 3, size, size), torch.randint(10, (args.batch_size,))
    title = f"{args.network}, batch {args.batch_size}"
    show(title, seconds_by_turns(variants, batch, steps=args.steps, rounds=args.rounds))


if __name__ == "__main__":
    main()
