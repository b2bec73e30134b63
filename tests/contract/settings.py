"""The one table that drives the contract suite: a small setting for each technique, and what its card promises."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from lightning_tuning.mixins import (
    TECHNIQUES,
    ConfidencePenaltyMixin,
    EMATeacherMixin,
    FixMatchMixin,
    FloodingMixin,
    L1Mixin,
    L2Mixin,
    L2SPMixin,
    LabelSmoothingMixin,
    MixupMixin,
    RDropMixin,
    SAMMixin,
    TuningMixin,
)


@dataclass(frozen=True)
class Setting:
    """A row of the contract suite."""

    on: dict[str, Any]
    """Arguments that switch the technique on, in a size that a tiny network feels."""
    streams: bool = False
    """Whether its batches have a labelled and an unlabelled part."""
    exact: bool = True
    """Whether k micro-batches, or k ranks, equal one batch of their samples (without batch norm and dropout)."""
    terms: tuple[str, ...] = field(default=())
    """The keys it logs."""
    refuses: tuple[str, ...] = ()
    """The kinds of input of ``test_inputs.py`` that it cannot do anything with, and says so."""


SETTINGS: dict[type[TuningMixin], Setting] = {
    # An epoch of 4 steps ends within an interval of 3.
    SAMMixin: Setting(
        {"sam_rho": 0.1, "sam_adaptive": True, "sam_eta": 0.02, "sam_gsam_alpha": 0.3, "sam_interval": 3}
    ),
    EMATeacherMixin: Setting({"ema_teacher_decay": 0.9}),
    FixMatchMixin: Setting(
        {"fixmatch_weight": 0.7, "fixmatch_threshold": 0.4},
        streams=True,
        terms=("train/fixmatch", "train/fixmatch_share"),
    ),
    # Partners come from the same micro-batch.
    MixupMixin: Setting({"mixup_alpha": 0.5}, exact=False, terms=("train/mixup",), refuses=("tokens",)),
    RDropMixin: Setting({"rdrop_weight": 0.8}, terms=("train/rdrop",)),
    LabelSmoothingMixin: Setting({"label_smoothing_epsilon": 0.15}),
    ConfidencePenaltyMixin: Setting({"confidence_penalty_weight": 0.3}, terms=("train/confidence_penalty",)),
    # |mean - level| is not the mean of |part - level|. The level lies among the losses of the tiny network.
    FloodingMixin: Setting({"flooding_level": 1.05}, exact=False, terms=("train/flooding", "train/flooding_share")),
    L1Mixin: Setting({"l1_weight": 1e-3}, terms=("train/l1",)),
    L2Mixin: Setting({"l2_weight": 1e-2}, terms=("train/l2",)),
    L2SPMixin: Setting({"l2sp_weight": 0.1}, terms=("train/l2sp",)),
}


def stacked(mixins: tuple[type[TuningMixin], ...]) -> Setting:
    """The setting of several techniques together."""
    settings = [SETTINGS[m] for m in mixins]
    return Setting(
        on={name: value for setting in settings for name, value in setting.on.items()},
        streams=any(setting.streams for setting in settings),
        exact=all(setting.exact for setting in settings),
        terms=tuple(term for setting in settings for term in setting.terms),
    )


STACK = stacked(TECHNIQUES)
EXACT = tuple(m for m in TECHNIQUES if SETTINGS[m].exact)

ROWS: dict[str, tuple[tuple[type[TuningMixin], ...], Setting]] = {
    **{mixin.stem: ((mixin,), setting) for mixin, setting in SETTINGS.items()},
    "stack": (TECHNIQUES, STACK),
    "exact_stack": (EXACT, stacked(EXACT)),
}
