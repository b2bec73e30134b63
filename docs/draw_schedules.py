"""Draws ``schedules.png``: one panel for each shape of ``Schedule``.

python docs/draw_schedules.py
"""

from pathlib import Path

from matplotlib.figure import Figure

from lightning_tuning.timing.curves import Curve
from lightning_tuning.timing.moments import PlainClock

STEPS = 1000
PANELS = {
    "constant": {"warmup": "10%"},
    "step(20%, gamma=0.5)": {},
    "multi_step(50%, 75%)": {},
    "exponential(end=1%)": {},
    "linear": {"warmup": "10%"},
    "polynomial(power=2)": {"warmup": "10%"},
    "cosine": {"warmup": "10%"},
    "cosine_restarts(14.3%, growth=2)": {},
    "one_cycle": {},
    "wsd(decay=20%)": {"warmup": "10%"},
    "inverse_sqrt": {"warmup": "10%"},
    "plateau(gamma=0.5)": {"warmup": "10%"},
}


def values(shape: str, settings: dict) -> list[float]:
    curve = Curve(shape, **settings)
    if not shape.startswith("plateau"):
        return curve.preview(STEPS)
    drops = (400, 620, 900)  # where the metric has stopped to improve
    return [curve.value(1.0, step, PlainClock(STEPS), sum(step >= drop for drop in drops)) for step in range(STEPS)]


def main() -> None:
    figure = Figure(figsize=(11, 6.6), layout="constrained")
    for axes, (shape, settings) in zip(
        figure.subplots(3, 4, sharex=True, sharey=True).flat, PANELS.items(), strict=True
    ):
        axes.plot([step / STEPS for step in range(STEPS)], values(shape, settings), linewidth=1.8)
        warmup = f"\nwarmup: {settings['warmup']}" if settings else "\n"
        axes.set_title(shape + warmup, fontsize=9.5, family="monospace")
        axes.set_ylim(-0.04, 1.08)
        axes.grid(alpha=0.3)
    figure.supxlabel("share of the run")
    figure.supylabel("share of the full value")
    figure.savefig(Path(__file__).parent / "images" / "schedules.png", dpi=100)


if __name__ == "__main__":
    main()
