"""Each technique and callback, stopped at every moment, on one rank and on two, without workers and with them.

Weights, optimizer, schedulers, callbacks, random generators, batches and logged values are compared before each step.
"""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_tuning import ExactResume, SaveOnSignal, assert_resumes_exactly
from lightning_tuning.resume import MOMENTS

from .callback_settings import CALLBACKS
from .nets import InTurns, loaders, make
from .settings import ROWS, Setting
from .test_all_callbacks import KeptPlace, TermHost

pytestmark = pytest.mark.filterwarnings("ignore")
everywhere = pytest.mark.parametrize(
    ("ranks", "workers", "moments"),
    [
        pytest.param(1, 0, MOMENTS, marks=pytest.mark.slow),
        pytest.param(2, 2, ("mid-epoch", "SIGTERM"), marks=pytest.mark.slow),
        *(pytest.param(*place, MOMENTS, marks=pytest.mark.exhaustive) for place in ((1, 2), (2, 0), (2, 2))),
    ],
    ids=lambda value: "".join(moment[0] for moment in value) if isinstance(value, tuple) else None,
)


def keeping_place(setting, size, workers):
    """The suite's training data in loaders that go on within an epoch."""
    made = loaders(setting, 8, size)
    parts = made if isinstance(made, dict) else {"labeled": made}
    kept = {
        name: KeptPlace(
            part.dataset, 8, sampler=InTurns(len(part.dataset)), generator=torch.Generator(), num_workers=workers
        )
        for name, part in parts.items()
    }
    return kept if setting.streams else kept["labeled"]


def certify(module, setting, ranks, workers, moments, callbacks=list):
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

    report = assert_resumes_exactly(
        module, lambda: (keeping_place(setting, 32 * ranks, workers), val), kwargs, moments, batches=4
    )
    assert report.ranks == ranks
    assert [result.moment for result in report.results] == list(moments)


@everywhere
@pytest.mark.parametrize("row", ROWS)
def test_each_technique(row, ranks, workers, moments):
    certify(functools.partial(make, row), ROWS[row][1], ranks, workers, moments)


@everywhere
@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_each_callback(kind, ranks, workers, moments):
    host = functools.partial(TermHost, plain=CALLBACKS[kind].plain, confidence_penalty_weight=0.1)
    certify(host, Setting({}), ranks, workers, moments, lambda: [CALLBACKS[kind].make()])
