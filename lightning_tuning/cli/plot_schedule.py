"""``lightning-tuning plot-schedule``: the schedules of a configuration as a picture, before it is run."""

from __future__ import annotations

import os
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lightning.pytorch import Callback, LightningDataModule, LightningModule
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tuning.cli.curves import Line, Schedules, read_schedules
from lightning_tuning.cli.probe import before_first_step, world_size
from lightning_tuning.errors import InvalidValueError, check_count

COMMAND = "plot-schedule"
_MARK = "lightning-tuning plot-schedule"
_LEGEND_LIMIT = 10
_POINTS = 4000


@dataclass
class PlotConfig:
    """What ``plot-schedule`` draws and where.

    Args:
        path: The picture, a ``.png``. Default: ``<run.name>-schedule.png`` in the working folder. An earlier picture of
            this command is replaced; any other file of that name is left alone, with an error.
        batches_per_epoch: Training batches in an epoch of each process. The data are then not loaded. Default: as many
            as the data have.
    """

    path: str | None = None
    batches_per_epoch: int | None = None

    def __post_init__(self) -> None:
        check_count("plot.batches_per_epoch", self.batches_per_epoch, 1, optional=True)
        if self.path is not None and Path(self.path).suffix.lower() != ".png":
            raise InvalidValueError(f"plot.path is {self.path!r}; it must be the name of a .png file.")


def plot_schedule(
    plot: PlotConfig,
    name: str,
    model: LightningModule,
    datamodule: LightningDataModule | None,
    trainer: Mapping[str, Any],
    callbacks: Sequence[Callback],
) -> str:
    """Draw the schedules of a run.

    Args:
        plot: The command's own arguments.
        name: The run's name.
        model: The run's module.
        datamodule: Its data.
        trainer: The Trainer's settings.
        callbacks: The Trainer's callbacks.

    Returns:
        What to print.

    Raises:
        InvalidValueError: The path holds a file that this command has not written.
    """
    path = Path(plot.path or f"{name}-schedule.png")
    _check_path(path)
    found = before_first_step(read_schedules, model, datamodule, trainer, callbacks, plot.batches_per_epoch)
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.part.png")
    draw_schedules(found, name).savefig(part, dpi=110, metadata={"Software": _MARK})
    os.replace(part, path)
    processes = world_size(trainer)
    length = f"{found.steps} optimizer steps"
    if found.epoch_ends:
        length += f" in {len(found.epoch_ends)} epochs"
    length += f" of {processes} processes" if processes > 1 else " of one process"
    return "\n".join([*table(found.lines), f"{length}.", *found.notes, f"Picture: {path}"])


def _check_path(path: Path) -> None:
    if path.exists() and not (path.is_file() and _MARK.encode() in path.read_bytes()[:1000]):
        raise InvalidValueError(
            f"{path} is there already and was not drawn by this command. Remove it, or write --plot.path=OTHER.png"
        )


def table(lines: Sequence[Line]) -> list[str]:
    """Start, peak and end of each line.

    Example:
        >>> print("\\n".join(table([Line("lr", [0.5, 1.0, 1.0, 0.25], "lr")])))
        schedule     start      peak  at step       end  warm-up ends
        lr             0.5         1        1      0.25             1
    """
    width = max(len("schedule"), *(len(line.name) for line in lines))
    rows = [f"{'schedule':<{width}}{'start':>10}{'peak':>10}{'at step':>9}{'end':>10}{'warm-up ends':>14}"]
    for line in lines:
        peak = max(line.values)
        at = line.values.index(peak)
        ends = "-" if line.warmup_ends is None else str(line.warmup_ends)
        start, end = (f"{value:.3g}" for value in (line.values[0], line.values[-1]))
        rows.append(f"{line.name:<{width}}{start:>10}{f'{peak:.3g}':>10}{at:>9}{end:>10}{ends:>14}")
    return rows


def draw_schedules(found: Schedules, title: str = "") -> Figure:
    """One panel for each scheduled quantity, over the optimizer steps and the epochs."""
    panels: dict[str, list[Line]] = defaultdict(list)
    for line in found.lines:
        panels[line.panel].append(line)
    figure = Figure(figsize=(7.5, 0.5 + 2.7 * len(panels)), layout="constrained")
    figure.suptitle(title)
    for number, (name, lines) in enumerate(panels.items(), start=1):
        axes = figure.add_subplot(len(panels), 1, number)
        for line in lines:
            _draw(axes, line)
        axes.set_ylabel(name)
        axes.set_ylim(bottom=0)
        axes.margins(x=0.01)
        axes.grid(alpha=0.25)
        axes.spines[["right"]].set_visible(False)
        axes.tick_params(labelsize=8)
        if 1 < len(lines) <= _LEGEND_LIMIT:
            axes.legend(fontsize=8, frameon=False)
        if number == 1 and len(found.epoch_ends) > 1:
            _number_epochs(axes, found.epoch_ends)
        if number == len(panels):
            axes.set_xlabel("optimizer step")
    return figure


def _draw(axes: Axes, line: Line) -> None:
    every = max(len(line.values) // _POINTS, 1)
    steps = [*range(0, len(line.values), every)]
    if steps[-1] != len(line.values) - 1:
        steps.append(len(line.values) - 1)
    values = [line.values[step] for step in steps]
    style = "steps-post" if len(set(values)) < len(values) / 10 else "default"
    (drawn,) = axes.plot(steps, values, linewidth=1.8, label=line.name, drawstyle=style)
    if line.warmup_ends is not None and line.warmup_ends < len(line.values) - 1:
        axes.axvline(line.warmup_ends, color=drawn.get_color(), linestyle=":", linewidth=1)


def _number_epochs(axes: Axes, ends: Sequence[int]) -> None:
    """Above the panel, the epochs that are done."""
    every = max(round(len(ends) / 10), 1)
    above = axes.secondary_xaxis("top")
    above.set_xticks([0, *ends[every - 1 :: every]], [str(epoch) for epoch in range(0, len(ends) + 1, every)])
    above.tick_params(labelsize=8)
    above.set_xlabel("epoch", fontsize=9)
