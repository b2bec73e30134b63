"""Measure clean and robust accuracy of the recipe and its variants, and draw them with attacked images.

    python -m recipes.mnist_adversarial.measure --data.path=mnist.npz --seeds=5 --jobs=2

Options are those of recipes/measure.py. Besides its files ``--out`` gets adversarial.png: clean against robust accuracy
of every run, and for the first seed's network of some variants the images, what PGD-50 makes of them, and the change.
"""

from __future__ import annotations

import json
import sys
from collections import defaultdict
from pathlib import Path
from statistics import mean
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor

from lightning_tuning import ArrayDataModule, ImageClassifier
from lightning_tuning.functional import PixelScale, error_odds, projected_ascent, start_of
from recipes import measure

HERE = Path(__file__).parent
RECIPE = HERE.name
SHOWN = (RECIPE, "standard")
EPSILON, STEPS, STEP_SIZE, IMAGES = 0.3, 50, 0.01, 8


def attacked(network: torch.nn.Module, x: Tensor, y: Tensor, scale: PixelScale) -> Tensor:
    """What PGD makes of images, from one random start."""

    def gradient(delta: list[Tensor]) -> list[Tensor]:
        moved = (x + delta[0]).requires_grad_()
        return list(torch.autograd.grad(error_odds(network(moved), y), [moved]))

    start = start_of([x], EPSILON, "linf", "uniform")
    (delta,) = projected_ascent([x], start, gradient, epsilon=EPSILON, steps=STEPS, step_size=STEP_SIZE, scales=[scale])
    return x + delta


def draw(runs: list[dict[str, Any]], data: str, path: Path) -> None:
    """The runs' clean and robust accuracies, and below them attacked images."""
    by_variant = defaultdict(list)
    for result in runs:
        by_variant[result["variant"]].append(result)
    shown = {name: by_variant[name][0] for name in SHOWN if name in by_variant}
    figure = Figure(figsize=(9, 4.5 + 2.2 * len(shown)), layout="constrained")
    top, *parts = figure.subfigures(1 + len(shown), 1, height_ratios=[4.5, *[2.2] * len(shown)], squeeze=False)[:, 0]
    axes = top.subplots()
    for name, results in by_variant.items():
        clean, robust = ([r["metrics"][f"test/{kind}_accuracy"] for r in results] for kind in ("clean", "robust"))
        points = axes.scatter(clean, robust, s=16, alpha=0.5)
        label = "PGD-7" if name == RECIPE else name
        axes.scatter(mean(clean), mean(robust), s=70, color=points.get_facecolor(), alpha=1, label=label)
    axes.set(xlabel="test accuracy", ylabel=f"test accuracy under PGD-{STEPS}, epsilon {EPSILON}")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)

    datamodule = ArrayDataModule(data, augment="none")
    datamodule.setup()
    x, y = next(iter(datamodule.test_dataloader()))
    x, y = x[:IMAGES], y[:IMAGES]
    scale = PixelScale.of(datamodule.normalize)
    for part, (name, result) in zip(parts, shown.items(), strict=True):
        network = ImageClassifier.load_from_checkpoint(result["checkpoint"], map_location="cpu").eval()
        torch.manual_seed(0)
        draw_images(part, "PGD-7" if name == RECIPE else name, network, x, y, scale)
    figure.savefig(path, dpi=120)


def draw_images(part: Any, title: str, network: torch.nn.Module, x: Tensor, y: Tensor, scale: PixelScale) -> None:
    """Three rows: images, attacked images with the network's answer, and what was added."""
    moved = attacked(network, x, y, scale)
    answers = network(moved).argmax(1).tolist()
    before, after = (scale.pixels(images)[:, 0].detach().numpy() for images in (x, moved))
    part.suptitle(f"{title}: images, attacked images (answer), change", fontsize=10)
    for column, axes in enumerate(part.subplots(3, len(x), squeeze=False).T):
        axes[0].imshow(before[column], cmap="gray", vmin=0, vmax=1)
        axes[1].imshow(after[column], cmap="gray", vmin=0, vmax=1)
        axes[2].imshow(after[column] - before[column], cmap="RdBu", vmin=-EPSILON, vmax=EPSILON)
        right = answers[column] == y[column]
        axes[1].set_ylabel(
            answers[column], color="tab:green" if right else "tab:red", rotation=0, labelpad=6, fontsize=9
        )
        for each in axes:
            each.set(xticks=np.array([]), yticks=np.array([]))


def main(arguments: list[str]) -> None:
    out = next((a.split("=", 1)[1] for a in arguments if a.startswith("--out=")), str(Path("runs", RECIPE)))
    data = next((a.split("=", 1)[1] for a in arguments if a.startswith("--data.path=")), "mnist.npz")
    variants = f"--variants={HERE / 'variants.yaml'}"
    measure.main([RECIPE, variants, "--metric=test/robust_accuracy", f"--out={out}", *arguments])
    lines = Path(out, "runs.jsonl").read_text().splitlines()
    draw([json.loads(line) for line in lines], data, Path(out, "adversarial.png"))


if __name__ == "__main__":
    main(sys.argv[1:])
