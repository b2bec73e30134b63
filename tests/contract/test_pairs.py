"""Every two techniques on one module: they train, stay finite, and a resumed run equals the straight one bitwise.

By default each technique is tried with its neighbour in the order of stages; all other pairs are with the slow tests.
"""

from __future__ import annotations

import itertools

import pytest
import torch

from lightning_tuning import ExactResume, compose
from lightning_tuning.errors import CompositionError
from lightning_tuning.mixins import TECHNIQUES

from .nets import Host, assert_equal_state, loaders, trainer
from .settings import conflict, stacked, with_companions

PAIRS = list(itertools.combinations(TECHNIQUES, 2))


def fit(pair, tmp_path, epochs, ckpt_path=None):
    setting = stacked(pair)
    torch.manual_seed(0)
    net = compose(Host, *with_companions(pair), name="Net")(**setting.on)
    made = trainer(tmp_path, max_epochs=epochs, callbacks=[ExactResume(seed=3)])
    made.fit(net, loaders(setting, 8, size=16), ckpt_path=ckpt_path)
    return made


NEIGHBOURS = set(itertools.pairwise(TECHNIQUES))


def row(pair):
    marks = () if pair in NEIGHBOURS or conflict(*pair) else pytest.mark.slow
    return pytest.param(pair, id="-".join(technique.stem for technique in pair), marks=marks)


@pytest.mark.parametrize("pair", [row(pair) for pair in PAIRS if not conflict(*pair)])
def test_two_techniques_train_and_resume(pair, tmp_path):
    straight = fit(pair, tmp_path, 2)
    assert straight.global_step == 4
    assert all(torch.isfinite(value).all() for value in straight.model.state_dict().values())
    fit(pair, tmp_path, 1).save_checkpoint(tmp_path / "epoch.ckpt")
    resumed = fit(pair, tmp_path, 2, tmp_path / "epoch.ckpt")
    assert_equal_state(straight.model.state_dict(), resumed.model.state_dict())
    assert_equal_state(straight.optimizers[0].state_dict(), resumed.optimizers[0].state_dict())


@pytest.mark.parametrize("pair", [row(pair) for pair in PAIRS if conflict(*pair)])
def test_two_techniques_that_conflict_are_refused(pair, tmp_path):
    with pytest.raises(CompositionError, match=r"^\w+Mixin and \w+Mixin conflict: .+\.$"):
        fit(pair, tmp_path, 1)
