"""What the callbacks that edit gradients, and schedules, add to a training step, as a ratio to the bare step.

    OMP_NUM_THREADS=1 python tests/benchmarks/gradient_callbacks.py [--network resnet18] [--steps 1] [--rounds 12]

See ``turns.py`` for how it is timed.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning.pytorch import Callback
from step_cost import quiet
from turns import Variant, seconds_by_turns, show

from lightning_tuning.callbacks import (
    AdaptiveGradientClipping,
    AutoClip,
    GradientCentralization,
    GradientNoise,
    Schedule,
)
from lightning_tuning.modules import Classifier

CALLBACKS = (GradientCentralization, AdaptiveGradientClipping, AutoClip, GradientNoise, Schedule)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="resnet18")
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=1, help="steps in a turn")
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    quiet()

    make = partial(Classifier, network=args.network, image_size=32, in_channels=3, optimizer="sgd", lr=0.01)
    variants = {
        "bare": Variant(make),
        "a callback that does nothing": Variant(make, [Callback()]),
        "the Trainer's clipping by norm": Variant(make, (), {"gradient_clip_val": 1.0}),
        **{kind.__name__: Variant(make, [kind()]) for kind in CALLBACKS},
        "layer decay": Variant(make, [Schedule(layer_decay=0.8)]),
        "two schedules": Variant(make, [Schedule(warmup="5%"), Schedule("momentum", "one_cycle")]),
    }
    batch = torch.randn(args.batch_size, 3, 32, 32), torch.randint(10, (args.batch_size,))
    show(
        f"{args.network}, batch {args.batch_size}",
        seconds_by_turns(variants, batch, steps=args.steps, rounds=args.rounds),
    )


if __name__ == "__main__":
    main()
