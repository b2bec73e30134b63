"""Heat maps over the steps of a run."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_MOST_ROWS, _MOST_PANELS = 120, 60
_SMALLEST_SHARE = 1e-4


def norm_map(steps: NDArray[Any], names: list[str], values: NDArray[Any], title: str) -> Figure:
    """One row a layer, one column a step, colours on a logarithmic scale: black is zero, red infinite or NaN, and grey
    where a layer had no gradient.

    Args:
        steps: ``[T]``.
        names: Of the rows, ``[L]``.
        values: ``[T, L]``, >= 0; infinite for red, NaN for grey.
        title: Text above it.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = _evenly(len(names), _MOST_ROWS)
    positive = values[np.isfinite(values) & (values > 0)]
    low, high = (positive.min(), positive.max()) if positive.size else (0.1, 1.0)
    height = min(1.6 + 0.17 * len(chosen), 24)
    figure = Figure(figsize=(10, max(height, 2.8)), layout="constrained")
    axes = figure.add_subplot()
    colours = colormaps["viridis"].with_extremes(under="black", over="red", bad="lightgrey")
    rows = values[:, chosen].T
    shown = np.where(rows == 0, low / 10, np.where(np.isinf(rows), 10 * high, rows))  # infinity would be masked
    mesh = axes.pcolormesh(
        _edges(steps), np.arange(len(chosen) + 1), shown, norm=LogNorm(low, max(high, low * 1.01)), cmap=colours
    )
    axes.set_yticks(np.arange(len(chosen)) + 0.5, [names[i] for i in chosen], fontsize=7)
    axes.invert_yaxis()
    axes.set_xlabel("optimizer step")
    axes.set_title(title + _of_all(chosen, names), fontsize=11)
    figure.colorbar(mesh, ax=axes, pad=0.01)
    return figure


def histogram_maps(steps: NDArray[Any], names: list[str], counts: NDArray[Any], lowest: int, title: str) -> Figure:
    """A panel a layer: the share of the elements in each octave over the steps, zeros and what is not finite left out.

    Args:
        steps: ``[T]``.
        names: Of the panels, ``[L]``.
        counts: Elements in each octave, ``[T, L, B]``.
        lowest: The exponent of the first octave.
        title: Text above the panels.
    """
    from matplotlib import colormaps
    from matplotlib.colors import LogNorm
    from matplotlib.figure import Figure

    chosen = _evenly(len(names), _MOST_PANELS)
    columns = min(len(chosen), 3 if len(chosen) <= 9 else 6)
    rows = math.ceil(len(chosen) / columns)
    figure = Figure(figsize=(1.2 + (3.6 if columns <= 3 else 2.2) * columns, 1.2 + 1.9 * rows), layout="constrained")
    figure.suptitle(title + _of_all(chosen, names), fontsize=11)
    used = np.flatnonzero(counts.sum((0, 1)))
    first, last = (used[0], used[-1]) if used.size else (0, counts.shape[2] - 1)
    exponents = np.arange(first, last + 2) + lowest
    colours = colormaps["viridis"].with_extremes(under="white", bad="white")
    panels: list[Axes] = []
    for place, i in enumerate(chosen, start=1):
        axes = figure.add_subplot(rows, columns, place, sharex=panels[0] if panels else None)
        part = counts[:, i]
        share = part[:, first : last + 1] / np.maximum(part.sum(1, keepdims=True), 1)
        mesh = axes.pcolormesh(_edges(steps), exponents, share.T, norm=LogNorm(_SMALLEST_SHARE, 1.0), cmap=colours)
        axes.set_title(names[i], fontsize=8)
        axes.tick_params(labelsize=7, labelbottom=place > len(chosen) - columns, labelleft=(place - 1) % columns == 0)
        panels.append(axes)
    figure.supxlabel("optimizer step", fontsize=9)
    figure.supylabel("magnitude, log2", fontsize=9)
    figure.colorbar(mesh, ax=panels, pad=0.01, label="share of the elements")
    return figure


def _edges(steps: NDArray[Any]) -> NDArray[Any]:
    """The boundaries of the columns: half-way between the steps."""
    if len(steps) == 1:
        return np.array([steps[0] - 0.5, steps[0] + 0.5])
    middles = (steps[1:] + steps[:-1]) / 2
    return np.concatenate([[2 * steps[0] - middles[0]], middles, [2 * steps[-1] - middles[-1]]])


def _evenly(count: int, most: int) -> list[int]:
    return list(range(count)) if count <= most else sorted({round(i) for i in np.linspace(0, count - 1, most)})


def _of_all(chosen: list[int], names: list[str]) -> str:
    return "" if len(chosen) == len(names) else f" ({len(chosen)} of {len(names)})"
