"""The heat maps of the looks at a network: layer by step."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_PANELS: dict[str, tuple[str, dict[str, Any]]] = {
    "dead": ("share of dead units", {"cmap": "Reds", "vmin": 0, "vmax": 1}),
    "saturated": ("share of saturated outputs", {"cmap": "Reds", "vmin": 0, "vmax": 1}),
    "variation": ("share of the output that depends on the input, log10", {"cmap": "Reds_r", "vmin": -4, "vmax": 0}),
    "std": ("standard deviation of the outputs, log10", {"cmap": "coolwarm", "vmin": -4, "vmax": 4}),
    "gradient": ("RMS of the weight gradient, log10", {"cmap": "viridis", "vmin": -8, "vmax": 0}),
}
_MOST_LABELS = 40


def draw_health(steps: Sequence[int], series: Mapping[str, Sequence[float]]) -> Figure:
    """A heat map for each metric that there is: layers from top to bottom in forward order, looks from left to right.

    Args:
        steps: The optimizer steps of the looks, rising.
        series: A value a look by ``<metric>/<layer>``, the layers in forward order; NaN where there is none. What is
            not finite is grey.
    """
    from matplotlib.figure import Figure

    by_metric: dict[str, dict[str, Sequence[float]]] = {}
    for key, values in series.items():
        metric, _, layer = key.partition("/")
        if metric in _PANELS:
            by_metric.setdefault(metric, {})[layer] = values
    panels = [metric for metric in _PANELS if metric in by_metric]
    heights = [1.2 + 0.17 * min(len(by_metric[metric]), _MOST_LABELS) for metric in panels]
    figure = Figure(figsize=(9, max(sum(heights), 1.0)), layout="constrained")
    if panels and steps:
        all_axes = figure.subplots(len(panels), 1, squeeze=False, height_ratios=heights)[:, 0]
        for axes, metric in zip(all_axes, panels, strict=True):
            _draw_panel(axes, metric, steps, by_metric[metric])
        all_axes[-1].set_xlabel("optimizer step")
    return figure


def _draw_panel(axes: Axes, metric: str, steps: Sequence[int], layers: Mapping[str, Sequence[float]]) -> None:
    import numpy as np

    title, style = _PANELS[metric]
    values = np.array(list(layers.values()), dtype=float)
    if "log10" in title:
        with np.errstate(divide="ignore", invalid="ignore"):
            values = np.where(values == 0, style["vmin"], np.log10(values))
    # Each look's column reaches to the next look.
    width = steps[-1] - steps[-2] if len(steps) > 1 else 1
    edges = [*steps, steps[-1] + width]
    axes.set_facecolor("0.6")
    shown = np.ma.masked_invalid(values)
    mesh = axes.pcolormesh(edges, np.arange(len(layers) + 1), shown, rasterized=True, **style)
    axes.figure.colorbar(mesh, ax=axes, pad=0.01)
    every = math.ceil(len(layers) / _MOST_LABELS)
    rows = range(0, len(layers), every)
    axes.set_yticks([row + 0.5 for row in rows], [list(layers)[row] for row in rows], fontsize=7)
    axes.invert_yaxis()
    axes.set_title(title, fontsize=10)
