"""The table that drives the contract suite of the callbacks that change what is learnt."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

from lightning.pytorch import Callback

from lightning_tuning.callbacks import AdaptiveGradientClipping, AutoClip, GradientCentralization, GradientNoise


@dataclass(frozen=True)
class CallbackSetting:
    """A row of the contract suite."""

    make: Callable[[], Callback]
    """The callback, in a size that a tiny network feels."""
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
}
