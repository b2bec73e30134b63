"""Cost of a training step with each technique, as a ratio to the bare module's step.

    OMP_NUM_THREADS=1 python tests/benchmarks/step_cost.py [--network cnn] [--rounds 15]

Each round trains every variant for a few steps, one after the other, and compares process CPU time within the round;
printed is the median ratio over the rounds. ``floor`` is what cannot be avoided: two steps for SAM, a doubled batch for
R-Drop.
"""

from __future__ import annotations

import argparse
import logging
import statistics
import time
import warnings

import lightning.pytorch as pl
import torch
from torch.utils.data import DataLoader, TensorDataset
from tqdm import tqdm

from lightning_tuning import ImageClassifier
from lightning_tuning.modules import Classifier

VARIANTS = {
    "bare": None,
    "all off": {},
    "SAM (floor 2.00)": {"sam_rho": 0.05},
    "ASAM (floor 2.00)": {"sam_rho": 0.5, "sam_adaptive": True},
    "EMA teacher": {"ema_teacher_decay": 0.999},
    "mixup": {"mixup_alpha": 0.2},
    "CutMix": {"cutmix_alpha": 1.0},
    "manifold mixup": {"manifold_mixup_alpha": 2.0},
    "cutout": {"cutout_size": 16},
    "R-Drop (floor: twice the batch)": {"rdrop_weight": 1.0},
    "label smoothing": {"label_smoothing_epsilon": 0.1},
    "confidence penalty": {"confidence_penalty_weight": 0.1},
    "flooding": {"flooding_level": 0.05},
    "L1": {"l1_weight": 1e-5},
    "L2": {"l2_weight": 1e-4},
    "L2-SP": {"l2sp_weight": 0.01},
    "orthogonal": {"orthogonal_weight": 1e-4},
    "Jacobian": {"jacobian_weight": 0.01},
    "gradient penalty": {"gradient_penalty_weight": 0.1},
    "max-norm": {"max_norm_bound": 3.0},
    "spectral norm": {"spectral_norm_bound": 1.0},
}


class Stopwatch(pl.Callback):
    """CPU seconds from the end of the first step to the end of the last."""

    def __init__(self) -> None:
        self.start = self.seconds = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        now = time.process_time()
        self.start = self.start or now
        self.seconds = now - self.start


def fit_seconds(network: str, arguments: dict | None, data: DataLoader, steps: int) -> float:
    host = Classifier if arguments is None else ImageClassifier
    model = host(network=network, image_size=32, in_channels=3, optimizer="sgd", lr=0.01, **(arguments or {}))
    watch = Stopwatch()
    trainer = pl.Trainer(
        accelerator="cpu",
        max_steps=steps,
        callbacks=[watch],
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(model, data)
    return watch.seconds


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--network", default="cnn")
    parser.add_argument("--only", nargs="*", help="variants, by name; default: all")
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--batch-size", type=int, default=64)
    args = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)

    variants = {name: a for name, a in VARIANTS.items() if name == "bare" or not args.only or name in args.only}
    size = args.batch_size * (args.steps + 1)
    data = DataLoader(
        TensorDataset(torch.randn(size, 3, 32, 32), torch.randint(10, (size,))), args.batch_size, drop_last=True
    )
    ratios: dict[str, list[float]] = {name: [] for name in variants}
    for _ in tqdm(range(args.rounds), desc="rounds"):
        seconds = {name: fit_seconds(args.network, a, data, args.steps) for name, a in variants.items()}
        for name, value in seconds.items():
            ratios[name].append(value / seconds["bare"])
    print(f"{args.network}, batch {args.batch_size}, median of {args.rounds} rounds of {args.steps} steps")
    for name, values in ratios.items():
        low, high = statistics.quantiles(values, n=4)[0], statistics.quantiles(values, n=4)[2]
        print(f"{name:34} {statistics.median(values):5.3f}   (quartiles {low:.3f} to {high:.3f})")


if __name__ == "__main__":
    main()
