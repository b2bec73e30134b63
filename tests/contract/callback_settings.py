"""The table that drives the contract suite of the callbacks."""

from __future__ import annotations

import atexit
import functools
import shutil
import tempfile
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch
from lightning.pytorch import Callback

from lightning_tuning.callbacks import (
    ActivationHealth,
    AdaptiveGradientClipping,
    AugmentedSamples,
    AutoClip,
    BatchNormRecalibration,
    CheckpointSoup,
    EarlyStop,
    ExactResume,
    FiniteGuard,
    GradientCentralization,
    GradientHistogram,
    GradientNoise,
    GradientNorm,
    LRRangeTest,
    MicroBatch,
    MonitorCheck,
    PostHocEMA,
    PredictionSamples,
    PseudoLabelPanel,
    RobustAccuracy,
    SaveOnSignal,
    Schedule,
    SnapshotEnsemble,
    SpikeGuard,
    TermGradients,
    WeightEMA,
    WeightSWA,
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
    plain: bool = False
    """Whether it takes a host without batch norm alone."""


@functools.cache
def ingredients() -> list[str]:
    """Two checkpoints of the suite's host."""
    from .nets import Host

    folder = Path(tempfile.mkdtemp())
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    with torch.random.fork_rng():  # made once: the tests that ask later must draw what the first one draws
        for seed in (1, 2):
            torch.manual_seed(seed)
            torch.save({"state_dict": Host().state_dict()}, folder / f"{seed}.ckpt")
    return sorted(map(str, folder.glob("*.ckpt")))


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
    BatchNormRecalibration: CallbackSetting(lambda: BatchNormRecalibration(batches=3), kind="steers"),
    ActivationHealth: CallbackSetting(lambda: ActivationHealth(every_n_steps=2), kind="watches"),
    CheckpointSoup: CallbackSetting(
        lambda: CheckpointSoup(ingredients(), monitor="val/loss", mode="min"), kind="steers"
    ),
    LRRangeTest: CallbackSetting(lambda: LRRangeTest(steps=12), kind="watches"),
    GradientHistogram: CallbackSetting(lambda: GradientHistogram(2, weights=True, updates=True), kind="watches"),
    GradientNorm: CallbackSetting(lambda: GradientNorm("layer"), kind="watches"),
    MicroBatch: CallbackSetting(lambda: MicroBatch(parts=3), kind="steers", plain=True),
    MonitorCheck: CallbackSetting(MonitorCheck, kind="watches"),
    AugmentedSamples: CallbackSetting(lambda: AugmentedSamples(n=2), kind="watches"),
    PredictionSamples: CallbackSetting(lambda: PredictionSamples(n=2), kind="watches"),
    PseudoLabelPanel: CallbackSetting(lambda: PseudoLabelPanel(n=2), kind="watches"),
    RobustAccuracy: CallbackSetting(lambda: RobustAccuracy(epsilon=0.1, steps=2), kind="watches"),
    SaveOnSignal: CallbackSetting(SaveOnSignal, kind="watches"),
    Schedule: CallbackSetting(lambda: Schedule(warmup="2st", layer_decay=0.8), kind="steers"),
    FiniteGuard: CallbackSetting(lambda: FiniteGuard(action="rewind", rewind_every=3), kind="steers"),
    SpikeGuard: CallbackSetting(lambda: SpikeGuard(watch="both", sigma=1.0, window=4, warmup=2), kind="steers"),
    TermGradients: CallbackSetting(lambda: TermGradients(every_n_steps=2), kind="watches"),
    PostHocEMA: CallbackSetting(lambda: PostHocEMA(store_every="3st", candidates=[0.07, 0.2]), kind="steers"),
    SnapshotEnsemble: CallbackSetting(lambda: SnapshotEnsemble(cycles=2), kind="steers"),
    WeightEMA: CallbackSetting(lambda: WeightEMA(decay=0.9, start="2st"), kind="steers"),
    WeightSWA: CallbackSetting(lambda: WeightSWA(start="1st", every="1st", lr=0.02), kind="steers"),
    EarlyStop: CallbackSetting(lambda: EarlyStop("val/loss", patience=2, min_delta=10.0), kind="steers"),
}
NO_ROW = {ExactResume}
"""Every row here trains with it."""
