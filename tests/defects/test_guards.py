"""Stock Lightning trains on after a batch that is not finite and saves what is left; SpikeDetection cannot resume."""

from __future__ import annotations

import json

import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.callbacks.spike import SpikeDetection

from lightning_tuning import FiniteGuard, SpikeGuard
from tests.callbacks.poison import Frail, Poison, lines
from tests.contract.nets import loaders, trainer
from tests.contract.settings import Setting

pytestmark = pytest.mark.filterwarnings(r"ignore:Step \d+, epoch \d+")


def fit(callbacks, tmp_path, ckpt_path=None, epochs=2):
    torch.manual_seed(0)
    made = trainer(tmp_path, callbacks=callbacks, max_epochs=epochs, enable_checkpointing=None)
    made.fit(Frail(), loaders(Setting({}), 8), ckpt_path=ckpt_path)
    return made


def last(tmp_path):
    return torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]


def saving(tmp_path):
    return ModelCheckpoint(tmp_path, "last", enable_version_counter=False)


def test_one_nan_batch_leaves_nothing_of_the_model(tmp_path):
    """Defect: the run ends without an error, and ``last.ckpt`` holds NaN in every weight."""
    fit([Poison(2), saving(tmp_path)], tmp_path)
    weights = [value for value in last(tmp_path).values() if value.is_floating_point()]
    assert all(torch.isnan(value).all() for value in weights)


def test_one_nan_batch_leaves_the_guarded_model_as_it_was(tmp_path):
    fit([Poison(2), FiniteGuard(), saving(tmp_path)], tmp_path)
    assert all(torch.isfinite(value).all() for value in last(tmp_path).values())
    assert [line["batch"] for line in lines(tmp_path)] == [2]


def test_a_run_with_spike_detection_does_not_resume(tmp_path):
    """Defect: its ``load_state_dict`` reads an attribute ``running`` that it does not have."""
    fit([SpikeDetection(exclude_batches_path=str(tmp_path)), saving(tmp_path)], tmp_path, epochs=1)
    with pytest.raises(AttributeError, match="has no attribute 'running'"):
        fit([SpikeDetection(exclude_batches_path=str(tmp_path))], tmp_path, tmp_path / "last.ckpt")


def test_a_run_with_spike_guard_resumes(tmp_path):
    fit([SpikeGuard(), saving(tmp_path)], tmp_path, epochs=1)
    guard = SpikeGuard()
    made = fit([guard], tmp_path, tmp_path / "last.ckpt")
    assert made.global_step == len(guard.state_dict()["known"]["loss"]) == 8


def test_spike_detection_ends_the_run_after_the_weights_have_moved(tmp_path):
    """Defect: it looks at the loss when the step has been made, so the spike is in the weights, and the batches that it
    lists are those of an epoch, without saying which."""
    spikes, poison = SpikeDetection(exclude_batches_path=str(tmp_path)), Poison(5, how="large")
    with pytest.raises(RuntimeError, match="Training spike detected in batch 1"):
        fit([poison, spikes], tmp_path)
    assert not torch.equal(poison.states[5]["module"]["net.0.weight"], poison.after[5]["module"]["net.0.weight"])
    assert json.loads((tmp_path / "skip_batches.json").read_text()) == [0, 1]


def test_spike_guard_goes_on_and_the_weights_have_not_moved(tmp_path):
    poison = Poison(5, how="large")
    fit([poison, SpikeGuard(warmup=3)], tmp_path)
    assert torch.equal(poison.states[5]["module"]["net.0.weight"], poison.after[5]["module"]["net.0.weight"])
    assert [(line["epoch"], line["batch"]) for line in lines(tmp_path)] == [(1, 1)]
