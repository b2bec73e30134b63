"""What a learning-rate range test has found: as a table and as a picture."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

from lightning_tuning.functional.lr_range import LR_RULES

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

_COLORS = dict(zip(LR_RULES, ("C0", "C1", "C2", "C3"), strict=True))


class LRRange(NamedTuple):
    """The points of a test and what they suggest."""

    mode: str
    lrs: list[float]
    losses: list[float]
    averages: list[float]
    diverged_at: float | None
    """The rate at which the test stopped."""
    suggestions: dict[str, float | None]

    def table(self, rule: str) -> list[str]:
        """The lines to print; the chosen rule is marked."""
        stopped = "" if self.diverged_at is None else f"; the loss diverged at {self.diverged_at:.3g}"
        tested = f"{len(self.lrs)} rates from {self.lrs[0]:.3g} to {self.lrs[-1]:.3g}" if self.lrs else "no rate"
        lines = [f"Learning-rate range test: {tested}{stopped}. Suggestions:"]
        for name in LR_RULES:
            lr = self.suggestions[name]
            lines.append(f"{'*' if name == rule else ' '} {name:<10} {'none' if lr is None else f'{lr:.3g}'}")
        return lines

    def why_nothing(self, rule: str) -> str:
        """A sentence on why that rule finds nothing."""
        if not self.lrs:
            return "The loss is not finite at the first rate already."
        if rule == "divergence":
            return "The loss did not diverge: raise max_lr."
        return "The loss never fell: try more steps or a wider range (min_lr, max_lr)."


def draw_lr_range(found: LRRange, own_lr: float, rule: str) -> Figure:
    """The losses over the learning rate, with what each rule suggests.

    Args:
        found: The test.
        own_lr: The configured learning rate.
        rule: The rule to emphasise.
    """
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7.5, 4.6), layout="constrained")
    axes = figure.add_subplot()
    if found.mode == "exponential":
        axes.set_xscale("log")
    if not found.lrs:
        axes.set_xlim(own_lr / 10, own_lr * 10)
    axes.plot(found.lrs, found.losses, color="0.75", linewidth=1, label="loss of each step")
    axes.plot(found.lrs, found.averages, color="0.15", linewidth=1.8, label="average")
    axes.axvline(own_lr, color="0.5", linestyle=":", label=f"configured: {own_lr:.3g}")
    for name in LR_RULES:
        lr = found.suggestions[name]
        if lr is not None:
            width, style = (2.2, "-") if name == rule else (1.3, "--")
            axes.axvline(lr, color=_COLORS[name], linewidth=width, linestyle=style, label=f"{name}: {lr:.3g}")
    if found.diverged_at is not None and found.lrs:
        end = 1.5 * max(found.diverged_at, own_lr)
        axes.axvspan(found.diverged_at, end, color="C3", alpha=0.12, label=f"diverged: {found.diverged_at:.3g}")
    _limit(axes, found)
    axes.set_xlabel("learning rate")
    axes.set_ylabel("training loss")
    axes.grid(alpha=0.25)
    axes.spines[["top", "right"]].set_visible(False)
    axes.legend(fontsize=8, frameon=False)
    return figure


def _limit(axes: Axes, found: LRRange) -> None:
    """Cut off what a divergence would squeeze the rest with."""
    if not found.averages:
        return
    low, first = min(*found.losses, *found.averages), found.averages[0]
    high = max(found.averages[: 1 + found.averages.index(min(found.averages))])
    span = max(high - low, abs(first) * 0.1, 1e-12)
    axes.set_ylim(low - 0.1 * span, high + 0.5 * span)
