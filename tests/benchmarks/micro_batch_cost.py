"""What MicroBatch adds to a training step, as a ratio to the bare step.

    OMP_NUM_THREADS=1 python tests/benchmarks/micro_batch_cost.py [--parts 1 4] [--steps 8] [--rounds 12]

See ``turns.py`` for how it is timed.
"""

from __future__ import annotations

import argparse
from functools import partial

import torch
from lightning.pytorch import Callback
from step_cost import quiet
from turns import Variant, seconds_by_turns, show

from lightning_tuning.callbacks import MicroBatch
from lightning_tuning.modules import Classifier


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--parts", type=int, nargs="+", default=[1, 4])
    parser.add_argument("--rounds", type=int, default=12)
    parser.add_argument("--steps", type=int, default=8, help="steps in a turn")
    args = parser.parse_args()
    quiet()

    make = partial(Classifier, network="mlp", image_size=32, in_channels=3, optimizer="sgd", lr=0.01)
    variants = {
        "bare": Variant(make),
        "a callback that does nothing": Variant(make, [Callback()]),
        **{f"{parts} parts": Variant(make, [MicroBatch(parts)]) for parts in args.parts},
    }
    batch = torch.randn(64, 3, 32, 32), torch.randint(10, (64,))
    show("mlp, batch 64", seconds_by_turns(variants, batch, steps=args.steps, rounds=args.rounds))


if __name__ == "__main__":
    main()
