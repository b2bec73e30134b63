"""The curves of a run as one picture, drawn from its journal."""

from __future__ import annotations

import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from lightning_tuning.whole_file import whole_file

from .journal import whole_journal

Series = tuple[list[float], list[float]]

_SPLIT = re.compile(r"^(train|val|valid|validation)[/_]")
_INTERVAL = re.compile(r"_(step|epoch)$")
_RAW = re.compile(r"_raw(?=$|/)")
_FIRST = ("loss", "accuracy", "learning rate", "gradient norm")
_LEGEND_LIMIT = 8


def read_series(records: Iterable[Mapping[str, Any]]) -> dict[str, Series]:
    """The steps and values of each metric; values that are not finite are left out (they cannot be drawn).

    Args:
        records: Lines of a journal.

    Example:
        >>> read_series([{"step": 0, "epoch": 0, "val/loss": 2.0}, {"step": 9, "epoch": 1, "val/loss": 1.5}])
        {'val/loss': ([0, 9], [2.0, 1.5])}
    """
    series: dict[str, Series] = defaultdict(lambda: ([], []))
    for record in records:
        for key, value in record.items():
            if key not in ("step", "epoch") and isinstance(value, (int, float)) and math.isfinite(value):
                steps, values = series[key]
                steps.append(record["step"] or 0)
                values.append(value)
    return dict(series)


def panel_of(key: str) -> str | None:
    """The panel that a metric is drawn in; None for a metric of the test, which is a number and not a curve, and for
    those of ActivationHealth, which has a picture of its own.

    Example:
        >>> [panel_of(k) for k in ("train/loss_step", "val/loss", "lr-SGD", "grad_norm/total", "train/rdrop_epoch")]
        ['loss', 'loss', 'learning rate', 'gradient norm', 'rdrop']
        >>> [panel_of(k) for k in ("grad_norm/clipped_share", "update_ratio/total", "gradient_histogram/zeros")]
        ['share of clipped steps', 'update-to-weight ratio', 'share of zeros and non-finite values']
        >>> [panel_of(k) for k in ("val/loss_raw", "val/accuracy_raw/dataloader_idx_1")]  # beside the averaged weights'
        ['loss', 'accuracy/dataloader_idx_1']
        >>> [panel_of(k) for k in ("term_gradient/task", "term_gradient/fixmatch", "term_cosine/fixmatch")]
        ['gradient of each term', 'gradient of each term', "cosine to the task's gradient"]
    """
    if re.match(r"test[/_]|health/", key):
        return None
    if key.startswith("lr-"):
        return "learning rate"
    if key.startswith("grad_norm") and key.endswith("clipped_share"):
        return "share of clipped steps"
    if key.startswith(("grad_norm", "gradient_norm")):
        return "gradient norm"
    if key.startswith("update_ratio"):
        return "update-to-weight ratio"
    if re.match(r"(gradient|weight|update)_histogram/", key):
        return "share of zeros and non-finite values"
    if key.startswith("term_"):
        return "gradient of each term" if key.startswith("term_gradient") else "cosine to the task's gradient"
    name = _RAW.sub("", _INTERVAL.sub("", _SPLIT.sub("", key)))
    return "accuracy" if name in ("acc", "accuracy", "clean_accuracy", "robust_accuracy") else name


def draw_curves(records: Iterable[Mapping[str, Any]], title: str = "") -> Figure | None:
    """Draw one panel each for loss, accuracy, learning rate, gradient norm and every other metric (a technique's term).

    A metric's parts (training, validation, steps, epochs) share a panel.

    Args:
        records: Lines of a journal.
        title: Text above the panels.

    Returns:
        The figure, or None if there is nothing to draw.
    """
    series = read_series(records)
    panels: dict[str, list[str]] = defaultdict(list)
    for key in sorted(series):
        if panel := panel_of(key):
            panels[panel].append(key)
    if not panels:
        return None
    names = [n for n in _FIRST if n in panels] + sorted(panels.keys() - set(_FIRST))
    columns = min(3, len(names))
    rows = math.ceil(len(names) / columns)
    figure = Figure(figsize=(4.6 * columns, 0.4 + 3.1 * rows), layout="constrained")
    figure.suptitle(title)
    for number, name in enumerate(names, start=1):
        axes = figure.add_subplot(rows, columns, number)
        _draw_panel(axes, {key: series[key] for key in panels[name]})
        axes.set_title(name, fontsize=11)
        values = [value for key in panels[name] for value in series[key][1]]
        if name.startswith(("gradient", "update")) and 0 < min(values) < max(values) / 30:
            axes.set_yscale("log")
        if number > len(names) - columns:
            axes.set_xlabel("optimizer step")
    return figure


def save_curves(folder: str | Path) -> Path | None:
    """Draw ``curves.png`` from a run's journal and those of the runs it was resumed from; None if nothing was logged.

    Where the system refuses to write it, the picture that was there stays, and the error is raised.
    """
    folder = Path(folder).resolve()
    figure = draw_curves(whole_journal(folder), f"{folder.parent.name}/{folder.name}")
    if figure is None:
        return None
    path = folder / "curves.png"
    with whole_file(path) as file:
        figure.savefig(file, format="png", dpi=110)
    return path


def _draw_panel(axes: Axes, series: Mapping[str, Series]) -> None:
    split_up = {key for key in series if f"{key.removesuffix('_step')}_epoch" in series and not key.endswith("_epoch")}
    colors: dict[str, str] = {}
    for key, (steps, values) in series.items():
        # A metric's steps and its epoch means have one colour, the noisy steps pale behind the means.
        color = colors.setdefault(_INTERVAL.sub("", key), f"C{len(colors) % 10}")
        pale = key in split_up
        axes.plot(
            steps,
            values,
            color=color,
            alpha=0.35 if pale else 1.0,
            linewidth=1.0 if pale else 1.6,
            marker="o" if not pale and len(values) <= 30 else None,
            markersize=3,
            label=key if len(series) <= _LEGEND_LIMIT else None,
        )
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.tick_params(labelsize=8)
    axes.locator_params(axis="x", integer=True)  # there is no step 2.5
    if len(series) <= _LEGEND_LIMIT:
        crowded = len(series) > _LEGEND_LIMIT // 2  # no place is free of curves
        axes.legend(fontsize=7 if crowded else 8, frameon=crowded, edgecolor="none", framealpha=0.8)
