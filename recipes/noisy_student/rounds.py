"""Noisy Student: a teacher labels what has no label, a larger and noised student learns it and becomes the teacher.

    python -m recipes.noisy_student.rounds --seeds 5
    python -m recipes.noisy_student.rounds --widths 16 24 --data.num_labels=100

Run it from the repository's root. ``--out`` gets a folder named by the time. In it every round, an ordinary
``lightning-tuning fit``, keeps a run folder of its own, ``runs/seed<seed>_round<number>/<time>``; the labels that it
gives lie in the folder of the ``predict`` after it. Beside them stand results.md, results.json and results.png. The
last row, ``control``, is the last student's network with the same noise and the labelled images alone. Other options go
to every ``fit`` and ``predict``.

Source: Xie, Luong, Hovy & Le, 2020, "Self-training with Noisy Student improves ImageNet classification", algorithm 1.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import os
import statistics
from concurrent.futures import ProcessPoolExecutor
from multiprocessing import get_context
from pathlib import Path

import numpy as np
import torch
import yaml
from matplotlib.figure import Figure
from tqdm import tqdm

from lightning_tuning.cli.tuning_cli import TuningCLI
from lightning_tuning.runs.folder import new_run_folder
from lightning_tuning.runs.quiet import quiet
from recipes.measure import interval
from recipes.noisy_student.data import PseudoLabeledDigits
from recipes.noisy_student.pseudo_labels import select

RECIPE = Path(__file__).parent


def command(arguments: list[str]) -> Path:
    """Run ``lightning-tuning`` in this process without its output; the run's folder."""
    output = io.StringIO()
    try:
        with quiet(), contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
            return TuningCLI([*arguments, "--trainer.enable_progress_bar=false"]).folder
    except SystemExit as end:
        raise RuntimeError(f"lightning-tuning {' '.join(arguments)} failed:\n{output.getvalue()}{end}") from None


def fit(options: list[str], width: int, pseudo_labels: Path | None, noised: bool) -> Path:
    """Train one network; its run's folder."""
    configs = [f"--config={RECIPE / 'teacher.yaml'}"] + [f"--config={RECIPE / 'student.yaml'}"] * noised
    taught = [f"--data.pseudo_labels={pseudo_labels}"] if pseudo_labels else []
    return command(["fit", *configs, f"--model.network.init_args.width={width}", *options, *taught])


def label(options: list[str], teacher: Path, threshold: float) -> tuple[Path, dict[str, float]]:
    """Write the clean teacher's soft labels of the images that the next student is taught.

    Returns:
        The file ``pseudo_labels.npz``, and of its images, each counted once, ``kept`` (their share of all images
        without a label) and ``right`` (the share whose likeliest class is the true one).
    """
    checkpoint = teacher / "checkpoints" / "last.ckpt"
    folder = command(["predict", f"--config={teacher / 'config.yaml'}", f"--ckpt_path={checkpoint}", *options])
    probabilities = torch.cat(torch.load(folder / "predictions.pt", weights_only=True)).numpy()
    data = PseudoLabeledDigits(**yaml.safe_load((folder / "config.yaml").read_text())["data"]["init_args"])
    data.setup()
    rows = select(probabilities, threshold)
    if not len(rows):
        raise SystemExit(f"{teacher} is nowhere surer than {threshold}: train it longer, or lower --threshold.")
    images, kept = data.without_label, np.unique(rows)
    np.savez(folder / "pseudo_labels.npz", indices=images[rows], probabilities=probabilities[rows])
    right = probabilities[kept].argmax(axis=1) == data.labels[images[kept]]
    return folder / "pseudo_labels.npz", {"kept": len(kept) / len(images), "right": float(right.mean())}


def accuracy(folder: Path) -> float:
    """The test accuracy of a run, in percent."""
    return 100 * json.loads((folder / "summary.json").read_text())["metrics"]["test/accuracy"]


def run_seed(seed: int, widths: list[int], threshold: float, out: Path, others: list[str]) -> dict[str, dict]:
    """All rounds of one seed; what is told of each, by the row's name."""
    torch.set_num_threads(1)
    rows: dict[str, dict] = {}
    pseudo_labels, quality = None, {}

    def options(name: str) -> list[str]:
        fixed = [f"--seed_everything={seed}", f"--data.seed={seed}"]
        return [*fixed, f"--run.dir={out / 'runs'}", f"--run.name=seed{seed}_{name}", *others]

    for number, width in enumerate(widths):
        name = f"round{number}"
        folder = fit(options(name), width, pseudo_labels, noised=number > 0)
        rows[name] = {"accuracy": accuracy(folder), "folder": str(folder), **quality}
        if number + 1 < len(widths):
            pseudo_labels, quality = label(options(name), folder, threshold)
    folder = fit(options("control"), widths[-1], None, noised=True)
    rows["control"] = {"accuracy": accuracy(folder), "folder": str(folder)}
    return rows


def table(results: list[dict[str, dict]], widths: list[int]) -> str:
    """The results of all seeds as a Markdown table."""
    lines = [
        "| | width | pseudo labels kept, % | right among them, % | test accuracy, % | difference to round 0, paired |",
        "|---|---|---|---|---|---|",
    ]
    for name, width in zip(results[0], [*widths, widths[-1]], strict=True):
        own = [rows[name]["accuracy"] for rows in results]
        mean, half = interval(own)
        kept, right = (
            f"{100 * statistics.mean(rows[name][key] for rows in results):.1f}" if key in results[0][name] else ""
            for key in ("kept", "right")
        )
        difference = ""
        if name != "round0":
            change, span = interval([rows[name]["accuracy"] - rows["round0"]["accuracy"] for rows in results])
            difference = f"{change:+.2f} ± {span:.2f}"
        lines.append(f"| {name} | {width} | {kept} | {right} | {mean:.2f} ± {half:.2f} | {difference} |")
    return "\n".join(lines)


def draw(results: list[dict[str, dict]], path: Path) -> None:
    """Each seed's accuracy by round, with the mean and its 95 % interval; the control stands apart."""
    names = list(results[0])
    places = [float(n) for n in range(len(names))]
    figure = Figure(figsize=(6.5, 4), layout="constrained")
    axes = figure.subplots()
    for seed, rows in enumerate(results):
        values = [rows[name]["accuracy"] for name in names]
        (line,) = axes.plot(places[:-1], values[:-1], marker=".", alpha=0.4, linewidth=1, label=f"seed {seed}")
        axes.plot(places[-1], values[-1], marker=".", alpha=0.4, color=line.get_color())
    means, halves = zip(*(interval([rows[name]["accuracy"] for rows in results]) for name in names), strict=True)
    for part in (slice(0, -1), slice(-1, None)):
        axes.errorbar(places[part], means[part], yerr=halves[part], fmt="o-", color="black", capsize=4, zorder=3)
    axes.set_xticks(places, ["teacher", *(f"student {n}" for n in range(1, len(names) - 1)), "control"])
    axes.set_ylabel("test accuracy, % (mean, 95 % interval)")
    axes.grid(axis="y", alpha=0.3)
    axes.legend(fontsize=8)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--widths", type=int, nargs="+", default=[16, 24, 32], help="teacher's, then each student's")
    parser.add_argument("--threshold", type=float, default=0.3, help="least confidence of a pseudo label")
    parser.add_argument("--jobs", type=int, default=1, help="seeds at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("runs", "noisy_student"), help="gets a folder by the time")
    args, others = parser.parse_known_args(arguments)
    os.environ["OMP_NUM_THREADS"] = "1"  # for the processes of the seeds
    out = new_run_folder(args.out, "")
    with ProcessPoolExecutor(args.jobs, mp_context=get_context("spawn")) as pool:
        futures = [pool.submit(run_seed, seed, args.widths, args.threshold, out, others) for seed in range(args.seeds)]
        results = [future.result() for future in tqdm(futures, desc="seeds")]
    text = table(results, args.widths)
    print(text)
    (out / "results.md").write_text(text + "\n")
    (out / "results.json").write_text(json.dumps({"widths": args.widths, "seeds": results}, indent=1))
    draw(results, out / "results.png")


if __name__ == "__main__":
    main()
