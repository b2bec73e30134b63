"""The table that drives the contract suite of the callbacks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Literal

from lightning.pytorch import Callback

from lightning_tuning.callbacks import (
    AdaptiveGradientClipping,
    AutoClip,
    ExactResume,
    GradientCentralization,
    GradientHistogram,
    GradientNoise,
    GradientNorm,
    MonitorCheck,
    RobustAccuracy,
    TermGradients,
)


@dataclass(frozen=True)
class CallbackSetting:
    """A row of the contract suite."""

    make: Callable[[], Callback]
    """The callback, in a size that a tiny network feels."""
    kind: Literal["edits", "watches", "steers"] = "edits"
    """Whether it edits gradients, watches only, or steers: stops, schedules, averages, guards."""
    exact: bool = True
    """Whether k micro-batches, or k ranks, equal one batch of their samples (without batch norm and dropout)."""
    clips_itself: bool = False
    """Whether it takes the place of the Trainer's ``gradient_clip_val``."""
    stateful: bool = False
    """Whether it has a state that optimizer steps advance."""
    terms: tuple[str, ...] = field(default=())
    """The keys it logs."""


CALLBACKS: dict[type[Callback], CallbackSetting] = {
    GradientCentralization: CallbackSetting(GradientCentralization),
    AdaptiveGradientClipping: CallbackSetting(
        lambda: AdaptiveGradientClipping(clip=0.02), terms=("train/adaptive_gradient_clipping",)
    ),
    AutoClip: CallbackSetting(
        lambda: AutoClip(percentile=30, history=5),
        clips_itself=True,
        stateful=True,
        terms=("train/auto_clip", "train/auto_clip_norm"),
    ),
    GradientNoise: CallbackSetting(lambda: GradientNoise(seed=5), stateful=True, terms=("train/gradient_noise",)),
    GradientHistogram: CallbackSetting(lambda: GradientHistogram(2, weights=True, updates=True), kind="watches"),
    GradientNorm: CallbackSetting(lambda: GradientNorm("layer"), kind="watches"),
    MonitorCheck: CallbackSetting(MonitorCheck, kind="watches"),
    RobustAccuracy: CallbackSetting(lambda: RobustAccuracy(epsilon=0.1, steps=2), kind="watches"),
    TermGradients: CallbackSetting(lambda: TermGradients(every_n_steps=2), kind="watches"),
}
NO_ROW = {ExactResume}
"""Every row here trains with it."""
