"""Train DigitNet bare and with SAM, an EMA teacher and mixup, on the same images, and compare the test accuracies."""

import argparse
import logging
import statistics
import warnings

import lightning.pytorch as pl
import torch
from data import DigitData
from module import DigitNet
from scipy.stats import t as student

from lightning_tuning import EMATeacherMixin, MixupMixin, SAMMixin


class Net(SAMMixin, EMATeacherMixin, MixupMixin, DigitNet):
    """DigitNet with the three techniques, each of them on unless its argument says otherwise."""


OFF = {"sam_rho": 0.0, "ema_teacher_decay": None, "mixup_alpha": 0.0}
SETTINGS = {"sam_rho": 0.1, "ema_teacher_decay": 0.98, "mixup_alpha": 1.0}


def test_accuracy(cls: type[pl.LightningModule], seed: int, epochs: int, **settings: float | None) -> float:
    """Train on 200 images and return the accuracy on the test images, in percent."""
    pl.seed_everything(seed, verbose=False)
    data, model = DigitData(seed), cls(**settings)
    quiet = {
        "logger": False,
        "enable_checkpointing": False,
        "enable_progress_bar": False,
        "enable_model_summary": False,
    }
    trainer = pl.Trainer(max_epochs=epochs, accelerator="cpu", check_val_every_n_epoch=10, **quiet)
    trainer.fit(model, datamodule=data)
    return 100 * trainer.test(model, datamodule=data, verbose=False)[0]["test_acc"]


def mean_and_interval(values: list[float]) -> str:
    """Mean and half width of the 95 % t-interval; of one value, the value."""
    mean = statistics.mean(values)
    if len(values) == 1:
        return f"{mean:.2f}"
    half = student.ppf(0.975, len(values) - 1) * statistics.stdev(values) / len(values) ** 0.5
    return f"{mean:.2f} ± {half:.2f}"


def main(seeds: int = 5, epochs: int = 60, each: bool = False) -> dict[str, list[float]]:
    """Print a table of test accuracies and of their differences to the bare module, seed by seed.

    Args:
        seeds: Number of seeds; each draws its own training images, initial weights and order.
        epochs: Epochs of each training run.
        each: Whether to train with each technique alone as well.

    Returns:
        The accuracies in percent, by row of the table.
    """
    runs = {"DigitNet": (DigitNet, {}), "Net": (Net, SETTINGS)}
    if each:
        runs |= {f"Net, {name} only": (Net, {**OFF, name: value}) for name, value in SETTINGS.items()}
    accuracies: dict[str, list[float]] = {}
    print(f"{'':28}{'test accuracy, %':>18}{'difference':>16}")
    for name, (cls, settings) in runs.items():
        values = accuracies[name] = [test_accuracy(cls, seed, epochs, **settings) for seed in range(seeds)]
        differences = [value - bare for value, bare in zip(values, accuracies["DigitNet"], strict=True)]
        print(f"{name:28}{mean_and_interval(values):>18}{mean_and_interval(differences) if settings else '':>16}")
    return accuracies


if __name__ == "__main__":
    torch.set_num_threads(1)  # more threads make a network this small slower
    logging.getLogger("lightning.pytorch").setLevel(logging.ERROR)
    warnings.filterwarnings("ignore", message=".*LeafSpec.* is deprecated")  # Lightning's use of torch
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--epochs", type=int, default=60, help="epochs of each run")
    parser.add_argument("--each", action="store_true", help="train with each technique alone as well")
    main(**vars(parser.parse_args()))
