"""Each technique and callback, stopped at every moment, on one rank and on two.

Weights, optimizer, schedulers, callbacks, random generators, batches and logged values are compared before each step.
"""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_tuning import (
    BatchNormRecalibration,
    ExactResume,
    FiniteGuard,
    SaveOnSignal,
    SnapshotEnsemble,
    WeightSWA,
    assert_resumes_exactly,
)
from lightning_tuning.resume import MOMENTS

from .callback_settings import CALLBACKS
from .nets import InTurns, loaders, make
from .settings import ROWS, Setting
from .test_all_callbacks import KeptPlace, TermHost

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
on_ranks = pytest.mark.parametrize("ranks", [1, 2])
TWO_RANKS = ("mid-epoch", "SIGTERM")
"""Those at which ranks have to agree; test_matrix.py has all of them on two ranks, for several techniques at once."""

AT_THE_END = {BatchNormRecalibration, WeightSWA}
"""They compute statistics of batch norm anew at a run's end, which max_steps is, and the longer run does not there."""
OWN_STATISTICS = {FiniteGuard, SnapshotEnsemble}
"""They copy each rank's own statistics of batch norm. A checkpoint has rank 0's, which DDP gives to all ranks."""


def keeping_place(setting, size=32):
    """The suite's training data in loaders that go on within an epoch."""
    made = loaders(setting, 8, size)
    parts = made if isinstance(made, dict) else {"labeled": made}
    kept = {
        name: KeptPlace(part.dataset, 8, sampler=InTurns(len(part.dataset)), generator=torch.Generator())
        for name, part in parts.items()
    }
    return kept if setting.streams else kept["labeled"]


def certify(ranks, module, setting, callbacks=list, moments=MOMENTS):
    """Four batches an epoch on each rank, two of them an accumulation window."""
    val = loaders(Setting({}), 8, 16)

    def kwargs():
        given = callbacks()
        stopping = [] if any(isinstance(callback, SaveOnSignal) for callback in given) else [SaveOnSignal()]
        return {
            "accelerator": "cpu",
            "callbacks": [ExactResume(), *stopping, *given],
            "accumulate_grad_batches": 2,
            "use_distributed_sampler": False,
            **({"strategy": "ddp_fork", "devices": ranks} if ranks > 1 else {}),
        }

    moments = moments if ranks == 1 else TWO_RANKS
    report = assert_resumes_exactly(
        module, lambda: (keeping_place(setting, 32 * ranks), val), kwargs, moments, batches=4
    )
    assert report.ranks == ranks
    assert [result.moment for result in report.results] == list(moments)


@on_ranks
@pytest.mark.parametrize("row", ROWS)
def test_each_technique(row, ranks):
    certify(ranks, functools.partial(make, row), ROWS[row][1])


@on_ranks
@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_each_callback(kind, ranks):
    moments = [moment for moment in MOMENTS if kind not in AT_THE_END or moment != "max_steps"]
    plain = CALLBACKS[kind].plain or (ranks == 2 and kind in OWN_STATISTICS)
    host = functools.partial(TermHost, plain=plain, confidence_penalty_weight=0.1)
    certify(ranks, host, Setting({}), lambda: [CALLBACKS[kind].make()], moments)
