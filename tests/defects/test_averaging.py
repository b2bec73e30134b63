"""What Lightning's WeightAveraging does wrong and WeightEMA right. A test that fails says that Lightning changed."""

from __future__ import annotations

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.callbacks import EMAWeightAveraging, ModelCheckpoint, OnExceptionCheckpoint

from lightning_tuning.callbacks import WeightEMA
from tests.callbacks.averages import Record, fit, make, state, validate
from tests.callbacks.test_sharded_averaging import train_on_two
from tests.contract.nets import Host
from tests.contract.test_contract import Overflow

both = pytest.mark.parametrize("right", [False, True], ids=["Lightning", "ours"])


def average(right, start=0, decay=0.8):
    if right:
        return WeightEMA(decay=decay, warmup_power=None, start=f"{start}st")
    return EMAWeightAveraging(decay=decay, update_starting_at_step=start)


def equal(a, b):
    return all(torch.equal(value, b[name]) for name, value in a.items())


@pytest.mark.filterwarnings("ignore:WeightEMA never moves")
@both
def test_before_its_start_initial_weights_are_validated_and_finally_overwrite_the_trained_ones(right, tmp_path):
    nets, records = [make(), make()], [Record(), Record()]
    fit(nets[0], [records[0]], tmp_path)
    fit(nets[1], [average(right, start=1000), records[1]], tmp_path)
    assert (records[1].measured == records[0].measured) is right
    assert equal(state(nets[1]), state(nets[0])) is right
    assert equal(state(nets[1]), state(make())) is not right


@both
def test_a_checkpoint_of_the_weights_alone_is_not_of_those_that_were_measured(right, tmp_path):
    saving, record = ModelCheckpoint(tmp_path, "kept", save_weights_only=True, monitor="val/loss"), Record()
    fit(make(), [average(right), saving, record], tmp_path, enable_checkpointing=None, max_epochs=1)
    loaded = Host.load_from_checkpoint(tmp_path / "kept.ckpt", weights_only=True)
    assert (validate(loaded, tmp_path) == record.measured[0]) is right


class Fail(pl.Callback):
    def on_validation_batch_end(self, *args):
        raise RuntimeError("stop")


@both
def test_an_exception_within_a_validation_exchanges_the_weights_for_good(right, tmp_path):
    nets = [make(), make()]
    for net, callbacks in zip(nets, [[], [average(right), OnExceptionCheckpoint(tmp_path, "failed")]], strict=True):
        with pytest.raises(RuntimeError, match="stop"):
            fit(net, [*callbacks, Fail()], tmp_path, enable_checkpointing=None)
    assert equal(state(nets[1]), state(nets[0])) is right
    saved = torch.load(tmp_path / "failed.ckpt", weights_only=True)
    current = saved["callbacks"]["WeightEMA"]["raw"] if right else saved["current_model_state"]
    assert equal({name: current[name] for name in dict(nets[0].named_parameters())}, state(nets[0])) is right


@both
def test_a_step_that_the_scaler_skipped_moves_the_average(right, tmp_path):
    callback, overflow, updates = average(right), Overflow(step=2), []
    settings = {"precision": "16-mixed", "max_epochs": 1}
    if not right:
        callback.on_fit_start = lambda *args: count(callback, updates)
    fit(make(), [callback, overflow], tmp_path, **settings)
    assert (callback._updates if right else len(updates)) == (3 if right else 4)


def count(callback, updates):
    update = callback._average_model.update_parameters
    callback._average_model.update_parameters = lambda module: (updates.append(1), update(module))


@pytest.mark.slow
def test_fsdp_2_is_too_much_for_it(tmp_path):
    """Ours is tested in tests/callbacks/test_sharded_averaging.py."""
    with pytest.raises(AssertionError, match="deepcopy"):
        train_on_two(tmp_path, epochs=1, callback=EMAWeightAveraging(decay=0.8))
