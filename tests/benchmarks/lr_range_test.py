"""How the rates that LRRangeTest suggests train, beside a grid of rates: ``python tests/benchmarks/lr_range_test.py``.

A small network learns scikit-learn's digits for ten epochs at each rate; printed is the mean test error of the seeds in
percent. And what the test costs: its process CPU time in steps of the run.
"""

from __future__ import annotations

import logging
import statistics
import tempfile
import time
import warnings
from typing import Any

import torch
from lightning.pytorch import Trainer, seed_everything

from lightning_tuning import DigitsDataModule, ImageClassifier, LRRangeTest
from lightning_tuning.functional.lr_range import LR_RULES

GRID = [10.0 ** (k / 2) for k in range(-9, 3)]
SEEDS, EPOCHS = range(3), 10


def run(optimizer: str, lr: float, seed: int, *callbacks: Any, epochs: int = EPOCHS) -> tuple[float, float, int]:
    """Test error in percent, CPU seconds of the training, steps."""
    seed_everything(seed, verbose=False)
    data = DigitsDataModule(image_size=8, batch_size=32, augment="none", val_size=0)
    model = ImageClassifier(network="mlp", image_size=8, in_channels=1, num_classes=10, optimizer=optimizer, lr=lr)
    trainer = Trainer(
        accelerator="cpu",
        max_epochs=epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=list(callbacks),
        default_root_dir=tempfile.mkdtemp(),
    )
    start = time.process_time()
    trainer.fit(model, datamodule=data)
    seconds, steps = time.process_time() - start, trainer.global_step
    accuracy = trainer.test(model, datamodule=data, verbose=False)[0]["test/accuracy"]
    return 100 * (1 - accuracy), seconds, steps


def main() -> None:
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    for name in ("lightning.pytorch", "lightning.pytorch.utilities.rank_zero", "lightning.fabric"):
        logging.getLogger(name).setLevel(logging.ERROR)
    costs = []
    for optimizer in ("sgd", "adamw"):
        errors = {f"{lr:.3g}": [run(optimizer, lr, seed)[0] for seed in SEEDS] for lr in GRID}
        rates: dict[str, list[float]] = {rule: [] for rule in LR_RULES}
        for seed in SEEDS:
            _, bare, steps = run(optimizer, 0.01, seed, epochs=EPOCHS)
            test = LRRangeTest()
            _, with_test, _ = run(optimizer, 0.01, seed, test)
            costs.append((with_test - bare) / (bare / steps))
            for rule in LR_RULES:
                lr = test.suggestions[rule]
                if lr is not None:
                    rates[rule].append(lr)
                    errors.setdefault(rule, []).append(run(optimizer, lr, seed)[0])
        for key, values in errors.items():
            at = f" at {', '.join(f'{lr:.3g}' for lr in rates[key])}" if key in rates else ""
            print(f"{optimizer:6} {key:10} {statistics.mean(values):6.2f}{at}", flush=True)
    print(f"cost of the test: {statistics.median(costs):.0f} steps ({[round(cost) for cost in costs]})")


if __name__ == "__main__":
    main()
