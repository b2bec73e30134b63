"""Each technique and callback, stopped at every moment, on one rank and on two.

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

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
on_ranks = pytest.mark.parametrize(("ranks", "workers"), [(1, 0), (1, 2), (2, 0), (2, 2)])


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


def certify(ranks, workers, module, setting, callbacks=list):
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
        module, lambda: (keeping_place(setting, 32 * ranks, workers), val), kwargs, batches=4
    )
    assert report.ranks == ranks
    assert [result.moment for result in report.results] == list(MOMENTS)


@on_ranks
@pytest.mark.parametrize("row", ROWS)
def test_each_technique(row, ranks, workers):
    certify(ranks, workers, functools.partial(make, row), ROWS[row][1])


@on_ranks
@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_each_callback(kind, ranks, workers):
    host = functools.partial(TermHost, plain=CALLBACKS[kind].plain, confidence_penalty_weight=0.1)
    certify(ranks, workers, host, Setting({}), lambda: [CALLBACKS[kind].make()])
