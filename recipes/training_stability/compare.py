"""Train every variant with several seeds, print a table of test accuracies, draw the curves of one seed.

    python -m recipes.training_stability.compare --jobs 2

``--out`` gets the table as results.md, the curves as curves.png, what ActivationHealth said of the drawn seed as
diagnoses.md, and the runs. Runs that are there already are not repeated.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import yaml
from matplotlib.figure import Figure

from lightning_tuning.runs import read_journal
from lightning_tuning.runs.curves import read_series
from recipes import measure

HERE = Path(__file__).parent
METRIC = "test/accuracy"


def draw(folders: dict[str, Path], path: Path) -> None:
    """Training loss and validation accuracy by epoch of the runs in ``folders``, by variant; those of the higher
    learning rate in a row of their own. A loss that is not finite has no curve.
    """
    is_faster = {name: name.startswith("learning rate") for name in folders}
    rows = [[name for name in folders if is_faster[name] is faster] for faster in (False, True)]
    rows = [names for names in rows if names]
    figure = Figure(figsize=(11, 3.6 * len(rows)), layout="constrained")
    for names, (loss, accuracy) in zip(rows, figure.subplots(len(rows), 2, squeeze=False), strict=True):
        for name in names:
            series = read_series(read_journal(folders[name] / "metrics.jsonl"))
            style = {"marker": "o", "markersize": 3, "label": name}
            loss.plot(*series.get("train/loss_epoch", ((), ())), **style)
            accuracy.plot(*series["val/accuracy"], **style)
        loss.set(title="training loss", xlabel="optimizer step", yscale="log", ylim=(1e-4, 4))
        accuracy.set(title="validation accuracy", xlabel="optimizer step", ylim=(0, 1))
        accuracy.legend(fontsize=9, frameon=False, loc="center right")
        for axes in (loss, accuracy):
            axes.grid(alpha=0.25)
    figure.savefig(path, dpi=110)


def diagnoses(folders: dict[str, Path]) -> str:
    """What was said of each run, as Markdown."""
    parts = []
    for name, folder in folders.items():
        said = folder / "diagnosis.txt"
        lines = said.read_text().splitlines() if said.exists() else ["nothing"]
        parts.append("\n".join([f"{name}:", "", *(f"* {line}" for line in lines)]))
    return "\n\n".join(parts) + "\n"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--variants", type=Path, default=HERE / "variants.yaml", help="the settings of each variant")
    parser.add_argument("--first-seed", type=int, default=0, help="the seed that is drawn; the others follow it")
    parser.add_argument("--seeds", type=int, default=5, help="number of seeds")
    parser.add_argument("--jobs", type=int, default=1, help="runs at a time, one core each")
    parser.add_argument("--out", type=Path, default=Path("runs", "training_stability"))
    args, others = parser.parse_known_args()

    names = list(yaml.safe_load(args.variants.read_text()))
    arguments = measure.variants_of(["training_stability"], str(args.variants))
    seeds = range(args.first_seed, args.first_seed + args.seeds)
    jobs = [measure.Job(name, seed, (*arguments[name], *others)) for seed in seeds for name in names]
    args.out.mkdir(parents=True, exist_ok=True)
    results = {(r["variant"], r["seed"]): r for r in measure.run_all(jobs, args.out, args.jobs)}

    values = {name: [results[name, seed]["metrics"][METRIC] for seed in seeds] for name in names}
    seconds = {name: [results[name, seed]["seconds"] for seed in seeds] for name in names}
    table = measure.table(values, seconds, METRIC)
    print(table)
    (args.out / "results.md").write_text(table + "\n")
    # The last checkpoint lies in <run>/checkpoints.
    folders = {name: Path(results[name, args.first_seed]["checkpoint"]).parents[1] for name in names}
    draw(folders, args.out / "curves.png")
    (args.out / "diagnoses.md").write_text(diagnoses(folders))


if __name__ == "__main__":
    main()
