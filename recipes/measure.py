"""Run recipes with several seeds and compare a test metric: mean, 95 % interval, paired difference to the first.

    python recipes/measure.py digits_supervised digits_fixmatch
    python recipes/measure.py digits_supervised digits_supervised:model.mixup_alpha=0.2,model.sam_rho=0.05
    python recipes/measure.py regularization_ablation --variants recipes/regularization_ablation/variants.yaml --jobs 2

A recipe is a folder in recipes/ (its config.yaml) or a file there. Behind its name may stand settings to change. With
``--variants`` a YAML file names many changes of one recipe. Other options (``--data.path=...``) go to every run.

Each run is an ordinary ``lightning-tuning fit``. The seed decides the initial weights, which images keep their label,
the order and the augmentations; the test images are always the same. ``--out`` gets a line in runs.jsonl as each run
ends, and at the end results.md, results.json and results.png. Runs that are in runs.jsonl already are not repeated, so
a measurement that was broken off goes on.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import json
import logging
import os
import statistics
import textwrap
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from pathlib import Path
from typing import NamedTuple

import yaml
from matplotlib.figure import Figure
from scipy.stats import t as student_t
from tqdm import tqdm

RECIPES = Path(__file__).parent


class Job(NamedTuple):
    """One training run."""

    variant: str
    seed: int
    arguments: tuple[str, ...]


def interval(values: list[float]) -> tuple[float, float]:
    """Mean and half the width of the 95 % t-interval."""
    spread = statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else float("nan")
    return statistics.mean(values), float(student_t.ppf(0.975, max(len(values) - 1, 1))) * spread


def config_of(recipe: str) -> Path:
    """The configuration file of a recipe."""
    path = RECIPES / recipe
    path = path / "config.yaml" if path.is_dir() else path
    if not path.is_file():
        raise SystemExit(f"There is no recipe {path}.")
    return path


def variants_of(recipes: list[str], file: str | None) -> dict[str, list[str]]:
    """The arguments of each variant, by the name it gets in the table."""
    variants = {}
    for given in recipes:
        recipe, _, settings = given.partition(":")
        changes = [f"--{setting}" for setting in settings.split(",") if setting]
        variants[given] = [f"--config={config_of(recipe)}", *changes]
    if file:
        base = variants[recipes[0]]
        for name, settings in yaml.safe_load(Path(file).read_text()).items():
            variants[name] = [*base, *(f"--{key}={_written(value)}" for key, value in settings.items())]
    return variants


def _written(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def run(job: Job, folder: str) -> dict:
    """Train once; what is kept of the run's summary."""
    os.environ["OMP_NUM_THREADS"] = "1"
    import torch

    from lightning_tuning.cli.tuning_cli import main

    torch.set_num_threads(1)
    logging.getLogger("lightning.pytorch").setLevel(logging.WARNING)  # its handler keeps the stream that we redirect
    logging.getLogger("lightning.fabric").setLevel(logging.WARNING)
    name = "".join(c if c.isalnum() else "_" for c in job.variant)
    fixed = [f"--seed_everything={job.seed}", f"--run.dir={folder}/runs", f"--run.name={name}_{job.seed}"]
    runs, output = Path(folder, "runs", f"{name}_{job.seed}"), io.StringIO()
    earlier = {*runs.glob("*/summary.json")}
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(output):
        code = main(["fit", *job.arguments, *fixed, "--trainer.enable_progress_bar=false"])
    made = {*runs.glob("*/summary.json")} - earlier
    # One that ended with weights that are not finite, code 3, was measured; one that a guard ended was not.
    if code not in (0, 3) or not made:
        raise RuntimeError(f"{job.variant}, seed {job.seed} ended with code {code}:\n{output.getvalue()}")
    summary = json.loads(max(made).read_text())
    return {
        "variant": job.variant,
        "seed": job.seed,
        "arguments": job.arguments,
        "metrics": summary["metrics"],
        "seconds": summary["wall_time_seconds"],
        "checkpoint": summary["last_checkpoint"],
    }


def run_all(jobs: list[Job], folder: Path, processes: int) -> list[dict]:
    """The results of all jobs, those of earlier calls included."""
    journal = folder / "runs.jsonl"
    done = [json.loads(line) for line in journal.read_text().splitlines()] if journal.exists() else []
    by_job = {Job(r["variant"], r["seed"], tuple(r["arguments"])): r for r in done}
    todo = [job for job in jobs if job not in by_job]
    with ProcessPoolExecutor(processes, mp_context=get_context("spawn")) as pool:
        futures = {pool.submit(run, job, str(folder)): job for job in todo}
        for future in tqdm(as_completed(futures), total=len(todo), desc="runs"):
            if future.exception() is None:
                by_job[futures[future]] = result = future.result()
                with journal.open("a") as file:
                    file.write(json.dumps(result) + "\n")
    for future in futures:  # only now: what the other runs found is kept
        future.result()
    return [by_job[job] for job in jobs]


def table(values: dict[str, list[float]], seconds: dict[str, list[float]], metric: str) -> str:
    """The results as a Markdown table."""
    (first, reference), *_ = values.items()
    lines = [f"| | {metric} | difference to {first}, paired | seconds a run |", "|---|---|---|---|"]
    for name, own in values.items():
        mean, half = interval(own)
        difference = ""
        if name != first:
            change, width = interval([b - a for a, b in zip(reference, own, strict=True)])
            difference = f"{change:+.4f} ± {width:.4f}" + (" *" if abs(change) > width else "")
        lines.append(f"| {name} | {mean:.4f} ± {half:.4f} | {difference} | {statistics.mean(seconds[name]):.0f} |")
    return "\n".join([*lines, "", "\\* the 95 % interval of the difference leaves out 0."])


def draw(values: dict[str, list[float]], metric: str, path: Path) -> None:
    """One row a variant: each seed's paired difference to the first, mean and 95 % interval (green and red where it
    leaves out 0); the first's own values stand in the title."""
    (first, reference), *others = values.items()
    figure = Figure(figsize=(9, 1.2 + 0.27 * max(len(others), 2)), layout="constrained")
    axes = figure.subplots()
    for row, (_, own) in enumerate(others):
        differences = [b - a for a, b in zip(reference, own, strict=True)]
        mean, half = interval(differences)
        sure = abs(mean) > half
        colour = "black" if not sure else "tab:green" if mean > 0 else "tab:red"
        axes.errorbar(mean, row, xerr=half, fmt="o", color=colour, capsize=3, zorder=3)
        axes.scatter(differences, [row] * len(differences), color="tab:blue", alpha=0.4, s=14)
    axes.axvline(0, color="grey", linewidth=1)
    axes.set_yticks(range(len(others)), [textwrap.fill(name, 45) for name, _ in others], fontsize=9)
    axes.set_ylim(len(others) - 0.4, -0.6)
    mean, half = interval(reference)
    figure.suptitle(f"{metric} of {first}: {mean:.4f} ± {half:.4f}", fontsize=11)
    axes.set_xlabel("difference to it: each seed, mean, 95 % interval")
    axes.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=120)


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("recipes", nargs="+", help="folders or files in recipes/, each with settings if wanted")
    parser.add_argument("--variants", help="a YAML file: name of the variant -> settings changed in the first recipe")
    parser.add_argument("--only", nargs="+", help="names of variants to run, besides the first recipe")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds: 0, 1, ...")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--metric", default="test/accuracy")
    parser.add_argument("--out", type=Path, default=Path("runs", "measured"))
    args, others = parser.parse_known_args(arguments)

    variants = variants_of(args.recipes, args.variants)
    if args.only:
        unknown = set(args.only) - variants.keys()
        if unknown:
            parser.error(f"There is no variant {', '.join(unknown)}; there are {', '.join(variants)}.")
        variants = {name: variants[name] for name in [*args.recipes, *args.only]}
    args.out.mkdir(parents=True, exist_ok=True)
    jobs = [
        Job(name, seed, (*arguments, *others)) for seed in range(args.seeds) for name, arguments in variants.items()
    ]
    values: dict[str, list[float]] = {name: [] for name in variants}
    seconds: dict[str, list[float]] = {name: [] for name in variants}
    for job, result in zip(jobs, run_all(jobs, args.out, args.jobs), strict=True):
        values[job.variant].append(result["metrics"][args.metric])
        seconds[job.variant].append(result["seconds"])
    text = table(values, seconds, args.metric)
    print(text)
    (args.out / "results.md").write_text(text + "\n")
    (args.out / "results.json").write_text(json.dumps({"metric": args.metric, "values": values, "seconds": seconds}))
    draw(values, args.metric, args.out / "results.png")


if __name__ == "__main__":
    main()
