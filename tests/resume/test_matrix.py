"""The package's own promise: several techniques at once, stopped at every moment, with workers and on two ranks."""

from __future__ import annotations

import pytest
from torch import nn

from lightning_tuning import (
    DigitsDataModule,
    EarlyStop,
    ExactResume,
    ImageClassifier,
    SaveOnSignal,
    Schedule,
    WeightEMA,
    assert_resumes_exactly,
)
from lightning_tuning.resume import MOMENTS


def module():
    network = nn.Sequential(
        nn.Flatten(), nn.Linear(64, 16), nn.BatchNorm1d(16), nn.ReLU(), nn.Dropout(0.2), nn.Linear(16, 10)
    )
    return ImageClassifier(network=network, num_classes=10, sam_rho=0.05, ema_teacher_decay=0.9, mixup_alpha=0.2)


def callbacks():
    return [
        ExactResume(),
        SaveOnSignal(),
        Schedule(warmup="2st"),
        EarlyStop("val/loss", patience="9ep"),
        WeightEMA(decay=0.9, start="2st"),
    ]


@pytest.mark.parametrize(
    ("ranks", "workers"),
    [(1, 0), pytest.param(1, 2, marks=pytest.mark.slow), *(pytest.param(2, w, marks=pytest.mark.slow) for w in (0, 2))],
)
def test_every_moment(ranks, workers):
    kwargs = {"accelerator": "cpu", "callbacks": callbacks(), "accumulate_grad_batches": 2}
    if ranks > 1:
        kwargs.update(strategy="ddp_fork", devices=ranks)

    def data():
        return DigitsDataModule(num_labels=100, batch_size=4, image_size=8, num_workers=workers)

    report = assert_resumes_exactly(module, data, kwargs)
    assert [result.step for result in report.results] == [5, 6, 6, 6, 5, 5]
    assert [result.moment for result in report.results] == list(MOMENTS)
    assert report.ranks == ranks
