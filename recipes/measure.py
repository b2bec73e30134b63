"""Run recipes with several seeds and print mean and 95 % interval of a test metric.

    python recipes/measure.py digits_supervised digits_fixmatch --seeds 5
    python recipes/measure.py digits_supervised digits_supervised:model.mixup_alpha=0.2,model.sam_rho=0.05

Each run is an ordinary ``lightning-tuning fit`` in ``runs/``. The seed decides the initial weights, which images keep
their label, the order and the augmentations; the test images are always the same. Behind a recipe's name stand settings
to change. Of each but the first the paired difference to the first is printed too. The table is written to
``runs/measured/results.json``, the picture to ``runs/measured/results.png``.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import subprocess
import sys
import time
from pathlib import Path

from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tqdm import tqdm

RECIPES = Path(__file__).parent


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of the 95 % t-interval."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), float(student_t.ppf(0.975, max(len(values) - 1, 1))) * spread


def run(variant: str, seed: int) -> dict:
    """One run; what its summary.json says."""
    recipe, _, settings = variant.partition(":")
    overrides = [f"--{setting}" for setting in settings.split(",") if setting]
    name = f"measured/{recipe}/seed{seed}-{time.time_ns()}"
    command = [sys.executable, "-m", "lightning_tuning", "fit", f"--config={RECIPES / recipe / 'config.yaml'}"]
    command += [
        f"--seed_everything={seed}",
        f"--run.dir=runs/{name}",
        "--trainer.enable_progress_bar=false",
        *overrides,
    ]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"})
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed:\n{done.stdout}{done.stderr}")
    (summary,) = Path("runs", name).glob("*/*/summary.json")
    return json.loads(summary.read_text())


def draw(results: dict[str, list[float]], metric: str, path: Path) -> None:
    """One row of dots a recipe, with mean and interval."""
    figure = Figure(figsize=(7, 0.8 + 0.6 * len(results)), layout="constrained")
    axes = figure.subplots()
    for row, values in enumerate(results.values()):
        mean, half = interval(values)
        axes.errorbar(mean, row, xerr=half, fmt="o", color="black", capsize=4, zorder=3)
        axes.scatter(values, [row] * len(values), color="tab:blue", alpha=0.6)
    axes.set_yticks(range(len(results)), list(results))
    axes.invert_yaxis()
    axes.margins(y=0.3)
    axes.set_xlabel(f"{metric}: each seed, mean and 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "recipes", nargs="+", help="folders in recipes/, each with settings if wanted: NAME:KEY=VALUE,..."
    )
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--metric", default="test/accuracy")
    args = parser.parse_args()

    jobs = [(recipe, seed) for seed in range(args.seeds) for recipe in args.recipes]
    results: dict[str, list[float]] = {recipe: [] for recipe in args.recipes}
    seconds: dict[str, list[float]] = {recipe: [] for recipe in args.recipes}
    for recipe, seed in tqdm(jobs, desc="runs"):
        summary = run(recipe, seed)
        results[recipe].append(summary["metrics"][args.metric])
        seconds[recipe].append(summary["wall_time_seconds"])

    folder = Path("runs", "measured")
    for recipe, values in results.items():
        mean, half = interval(values)
        each = ", ".join(f"{value:.4f}" for value in values)
        print(f"{recipe}: {mean:.4f} ± {half:.4f}   ({each})   {statistics.mean(seconds[recipe]):.0f} s a run")
    for recipe in args.recipes[1:]:
        differences = [b - a for a, b in zip(results[args.recipes[0]], results[recipe], strict=True)]
        mean, half = interval(differences)
        print(f"{recipe} - {args.recipes[0]}: {mean:+.4f} ± {half:.4f} (paired)")
    (folder / "results.json").write_text(json.dumps({"metric": args.metric, "values": results, "seconds": seconds}))
    draw(results, args.metric, folder / "results.png")


if __name__ == "__main__":
    main()
