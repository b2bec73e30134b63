"""Each technique and callback, stopped in the middle of an epoch behind an accumulation window and on its last batch.

Weights, optimizer, schedulers, callbacks, random generators, batches and logged values are compared before each step.
"""

from __future__ import annotations

import functools

import pytest
import torch

from lightning_tuning import ExactResume, assert_resumes_exactly

from .callback_settings import CALLBACKS
from .nets import InTurns, loaders, make
from .settings import ROWS, Setting
from .test_all_callbacks import KeptPlace
from .test_all_callbacks import make as make_host

pytestmark = [pytest.mark.slow, pytest.mark.filterwarnings("ignore")]
MIDDLE = ("mid-epoch", "last batch")


def keeping_place(setting, size=32):
    """The suite's training data in loaders that go on within an epoch."""
    made = loaders(setting, 8, size)
    parts = made if isinstance(made, dict) else {"labeled": made}
    kept = {
        name: KeptPlace(part.dataset, 8, sampler=InTurns(len(part.dataset)), generator=torch.Generator())
        for name, part in parts.items()
    }
    return kept if setting.streams else kept["labeled"]


def certify(module, setting, callbacks):
    val = loaders(Setting({}), 8, 16)
    assert_resumes_exactly(
        module,
        lambda: (keeping_place(setting), val),
        lambda: {"accelerator": "cpu", "callbacks": [ExactResume(), *callbacks()], "accumulate_grad_batches": 2},
        MIDDLE,
        batches=4,
    )


@pytest.mark.parametrize("row", ROWS)
def test_each_technique(row):
    certify(functools.partial(make, row), ROWS[row][1], list)


@pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
def test_each_callback(kind):
    certify(functools.partial(make_host, kind), Setting({}), lambda: [CALLBACKS[kind].make()])
