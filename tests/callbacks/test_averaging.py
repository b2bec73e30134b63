"""The service under the averaging callbacks: who sees which weights, and what checkpoints hold."""

from __future__ import annotations

import copy

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import BackboneFinetuning, ModelCheckpoint, WeightAveraging
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn
from torchmetrics import Metric

from lightning_tuning import EMATeacherMixin, ExactResume, compose
from lightning_tuning.callbacks import FiniteGuard, WeightEMA, _gradients
from lightning_tuning.callbacks._averaging import AveragedState, averaged_parts
from lightning_tuning.errors import NoEffectError
from tests.contract.nets import Host, assert_equal_state, loaders, trainer
from tests.contract.test_contract_ddp import SaveRank
from tests.numerics import array

from .averages import DATA, STEPS, Record, fit, make, state, validate

POLICIES = pytest.mark.parametrize("buffers", ["average", "copy", "recompute"])


def ema(**kwargs):
    return WeightEMA(**{"decay": 0.8, **kwargs})


def bare(tmp_path, host=Host, **kwargs):
    """The run without an average, and what it recorded."""
    net, record = make(host), Record()
    fit(net, [record], tmp_path, **kwargs)
    return net, record


# Training.


@POLICIES
def test_training_goes_on_with_the_weights(buffers, tmp_path):
    net = make()
    settings = {"accumulate_grad_batches": 2, "val_check_interval": 1}  # it swaps within accumulation windows
    fit(net, [ema(buffers=buffers, final="raw")], tmp_path, **settings)
    assert_equal_state(state(net), state(bare(tmp_path, **settings)[0]))


@pytest.mark.filterwarnings("ignore:WeightEMA never moves")
@POLICIES
def test_before_its_start_all_is_as_without_it(buffers, tmp_path):
    net, record = make(), Record()
    saving = ModelCheckpoint(tmp_path, "last", save_weights_only=True)
    fit(net, [ema(start="1000st", buffers=buffers), record, saving], tmp_path, enable_checkpointing=None)
    plain, plain_record = bare(tmp_path)
    assert_equal_state(state(net), state(plain))
    assert record.measured == plain_record.measured
    assert_equal_state(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], state(plain))


def test_validations_see_the_average_from_its_start_on(tmp_path):
    net, record = make(), Record()
    fit(net, [ema(start="1ep"), record], tmp_path)
    plain = bare(tmp_path)[1]
    assert record.measured[0] == plain.measured[0]
    assert record.measured[1] != plain.measured[1]
    assert_equal_state(record.validated[-1], state(net))


# Buffers.


def test_buffer_policies(tmp_path):
    seen = {}
    for buffers in ("average", "copy", "recompute"):
        net, record = make(), Record()
        fit(net, [ema(buffers=buffers), record], tmp_path)
        seen[buffers] = state(net), record
    weights = [{k: v for k, v in found.items() if "running" not in k} for found, _ in seen.values()]
    assert_equal_state(weights[0], weights[1])
    assert_equal_state(weights[0], weights[2])
    copied, record = seen["copy"]
    for name in ("net.1.running_mean", "net.3.norm2.running_var"):
        np.testing.assert_array_equal(array(copied[name]), record.states[-1][name])
    recomputed, record = seen["recompute"]
    x = torch.cat([x for x, _ in loaders(DATA, 8)])
    inputs = torch.nn.functional.conv2d(x, recomputed["net.0.weight"], recomputed["net.0.bias"]).transpose(0, 1)
    inputs = array(inputs.flatten(1)).astype(np.float64)
    np.testing.assert_allclose(array(recomputed["net.1.running_mean"]), inputs.mean(1), atol=1e-5)
    np.testing.assert_allclose(array(recomputed["net.1.running_var"]), inputs.var(1, ddof=1), rtol=1e-4)
    assert_equal_state(record.validated[-1], recomputed)  # the last validation measured just that


# Checkpoints.


class SaveWithin(pl.Callback):
    """Saves in the middle of a validation."""

    def __init__(self, path, weights_only):
        self.path, self.weights_only = path, weights_only

    def on_validation_batch_end(self, trainer, pl_module, outputs, batch, batch_idx, dataloader_idx=0):
        if batch_idx == 0 and trainer.current_epoch == 1:
            trainer.save_checkpoint(self.path, self.weights_only)


SAVERS = {
    "validation end": {"monitor": "val/loss", "save_top_k": -1, "every_n_epochs": 2},
    "epoch end": {"save_on_train_epoch_end": True, "every_n_epochs": 2, "save_top_k": -1},
    "last batch": {"every_n_train_steps": 2 * STEPS},
}


@pytest.mark.parametrize("weights_only", [False, True])
@pytest.mark.parametrize("when", [*SAVERS, "within the validation"])
@POLICIES
def test_a_checkpoint_holds_the_weights_that_were_measured(buffers, when, weights_only, tmp_path):
    path = tmp_path / "kept.ckpt"
    if when in SAVERS:
        saver = ModelCheckpoint(tmp_path, "kept", save_weights_only=weights_only, **SAVERS[when])
    else:
        saver = SaveWithin(path, weights_only)
    net, record = make(), Record()
    fit(net, [ema(buffers=buffers), saver, record], tmp_path, enable_checkpointing=None)
    if buffers == "recompute" and when == "last batch":
        return  # written before the validation that computes them
    measured = pytest.approx(record.measured[1], abs=1e-7)
    assert validate(Host.load_from_checkpoint(path, weights_only=True), tmp_path) == measured
    assert validate(make(seed=5), tmp_path, ckpt_path=path) == measured


@pytest.mark.parametrize("final", ["average", "raw"])
def test_after_the_fit(final, tmp_path):
    net, record, callback = make(), Record(), ema(final=final)
    made = fit(net, [callback, record], tmp_path)
    average = record.measured[-1]
    measured = average if final == "average" else bare(tmp_path)[1].measured[-1]
    assert validate(net, tmp_path) == measured
    assert made.validate(net, loaders(DATA, 16), verbose=False)[0]["val/loss"] == measured
    assert len({id(p) for p in net.parameters()} & {id(p) for p in made.optimizers[0].param_groups[0]["params"]})
    for weights_only in (False, True):  # a checkpoint holds the average, whatever the module carries
        made.save_checkpoint(tmp_path / "after.ckpt", weights_only)
        assert validate(make(seed=5), tmp_path, tmp_path / "after.ckpt") == average


@POLICIES
@pytest.mark.parametrize("final", ["average", "raw"])
def test_a_checkpoint_written_after_the_fit_resumes_bitwise(buffers, final, tmp_path):
    def run(seed, epochs, path=None):
        net, callback = make(seed=seed), ema(buffers=buffers, final=final)
        return net, fit(net, [callback, ExactResume(seed=3)], tmp_path, max_epochs=epochs, ckpt_path=path)

    straight = run(0, 4)[0]
    run(0, 2)[1].save_checkpoint(tmp_path / "after.ckpt")
    assert_equal_state(state(straight), state(run(7, 4, tmp_path / "after.ckpt")[0]))


@pytest.mark.parametrize("change", [("average", "copy"), ("copy", "average"), ("average", "recompute")])
def test_a_resumed_run_may_have_another_buffer_policy(change, tmp_path):
    first, then = change
    made = fit(make(), [ema(buffers=first), ExactResume(seed=3)], tmp_path, max_epochs=2)
    made.save_checkpoint(tmp_path / "a.ckpt")
    nets = [make(seed=7), make()]
    fit(nets[0], [ema(buffers=then, final="raw"), ExactResume(seed=3)], tmp_path, ckpt_path=tmp_path / "a.ckpt")
    fit(nets[1], [ExactResume(seed=3)], tmp_path)
    assert_equal_state(*map(state, nets))  # the weights to train on are restored, statistics included


def test_a_checkpoint_of_a_run_without_it_begins_the_average(tmp_path):
    fit(make(), [ExactResume(seed=3)], tmp_path, max_epochs=2).save_checkpoint(tmp_path / "a.ckpt")
    net, callback, record = make(seed=7), ema(), Record()
    fit(net, [callback, record, ExactResume(seed=3)], tmp_path, ckpt_path=tmp_path / "a.ckpt")
    assert callback._steps == 3 * STEPS
    assert callback._updates == STEPS
    average = record.states[0]["net.0.weight"]
    for update, seen in enumerate(record.states[1:], 1):
        share = min(1 - 1 / (update + 1), 0.8)
        average = share * average + (1 - share) * seen["net.0.weight"]
    np.testing.assert_allclose(array(net.net[0].weight), average, atol=1e-6)


def test_half_precision_resumes_bitwise(tmp_path):
    def run(seed, epochs, path=None):
        net, callback = make(seed=seed), ema(decay=0.99)
        settings = {"precision": "bf16-true", "max_epochs": epochs, "ckpt_path": path}
        return net, callback, fit(net, [callback, ExactResume(seed=3)], tmp_path, **settings)

    straight, callback, _ = run(0, 3)
    run(0, 1)[2].save_checkpoint(tmp_path / "a.ckpt")
    again, callback_again, _ = run(7, 3, tmp_path / "a.ckpt")
    assert_equal_state(state(straight), state(again))
    finer = callback._average.finer()
    assert finer
    assert_equal_state(finer, callback_again._average.finer())


# Exceptions.


class Fail(pl.Callback):
    def __init__(self, error, epoch=1):
        self.error, self.epoch = error, epoch

    def on_validation_batch_end(self, trainer, *args):
        if trainer.current_epoch == self.epoch and not trainer.sanity_checking:
            raise self.error


@pytest.mark.parametrize("error", [RuntimeError("stop"), KeyboardInterrupt()], ids=["error", "ctrl-c"])
@POLICIES
def test_an_exception_within_a_validation_leaves_the_weights_to_train_on(buffers, error, tmp_path):
    net, plain = make(), make()
    keep = pl.callbacks.OnExceptionCheckpoint(tmp_path, "failed")
    settings = {"enable_checkpointing": None}
    for module, callbacks in [(net, [Fail(error), ema(buffers=buffers), keep]), (plain, [Fail(error)])]:
        with pytest.raises(SystemExit if isinstance(error, KeyboardInterrupt) else RuntimeError):
            fit(module, callbacks, tmp_path, **settings)
    assert_equal_state(state(net), state(plain))
    assert not any(p.is_inference() for p in net.parameters())
    saved = torch.load(tmp_path / "failed.ckpt", weights_only=True)
    held = saved["callbacks"]["WeightEMA"]["raw"]
    assert held.keys() == averaged_parts(net, statistics=buffers != "copy")._asdict()["parameters"].keys() | (
        averaged_parts(net, statistics=buffers != "copy").statistics.keys()
    )
    for name, value in held.items():
        assert torch.equal(value, state(net)[name])
    assert not torch.equal(saved["state_dict"]["net.0.weight"], held["net.0.weight"])


# Several fits.


@pytest.mark.parametrize("final", ["average", "raw"])
def test_a_second_fit_of_the_trainer_goes_on_with_the_weights_and_the_average(final, tmp_path):
    records, callback = [Record(), Record()], ema(final=final)
    for record, ours in zip(records, [[], [callback]], strict=True):
        net = make()
        made = fit(net, [*ours, record, ExactResume(seed=3)], tmp_path, max_epochs=1)
        made.fit_loop.max_epochs = 3
        made.fit(net, loaders(DATA, 8), loaders(DATA, 16))
    assert len(records[0].states) == 5 + 9
    for bare_state, found in zip(*(record.states for record in records), strict=True):
        assert all(np.array_equal(value, found[name]) for name, value in bare_state.items())
    assert callback._updates == 3 * STEPS


@pytest.mark.parametrize("load", ["state_dict", "checkpoint"])
def test_weights_that_are_loaded_after_the_fit_are_not_overwritten(load, tmp_path):
    net, callback = make(), ema(final="average")
    made = fit(net, [callback], tmp_path, max_epochs=1)
    other = make(seed=5)
    if load == "state_dict":
        net.load_state_dict(other.state_dict())
    else:
        fit(other, [], tmp_path, max_epochs=1).save_checkpoint(tmp_path / "other.ckpt")
        made.validate(net, loaders(DATA, 16), ckpt_path=tmp_path / "other.ckpt", verbose=False)
    made.save_checkpoint(tmp_path / "now.ckpt")
    saved = torch.load(tmp_path / "now.ckpt", weights_only=True)
    assert_equal_state(dict(saved["state_dict"]), state(other))
    assert "raw" not in saved["callbacks"]["WeightEMA"]
    record = Record()
    made.callbacks.append(record)
    made.fit_loop.max_epochs = 2
    made.fit(net, loaders(DATA, 8), loaders(DATA, 16))
    np.testing.assert_array_equal(record.states[0]["net.0.weight"], array(other.net[0].weight))


def test_another_trainer_begins_anew_with_what_the_module_carries(tmp_path):
    net, callback = make(), ema()
    fit(net, [callback], tmp_path, max_epochs=1)
    carried, record = array(net.net[0].weight).copy(), Record()
    fit(net, [callback, record], tmp_path, max_epochs=1)
    np.testing.assert_array_equal(record.states[0]["net.0.weight"], carried)
    assert callback._steps == callback._updates == STEPS


# What is averaged.


class Counting(Metric):
    """A metric with a network of its own."""

    full_state_update = False

    def __init__(self):
        super().__init__()
        self.features = nn.Linear(2, 2)
        self.add_state("total", torch.zeros(()))

    def update(self, value):
        self.total += value

    def compute(self):
        return self.total


def test_teachers_frozen_parts_and_metrics_are_left_out():
    host = make(compose(Host, EMATeacherMixin, name="Taught"), ema_teacher_decay=0.9)
    names = averaged_parts(host)
    host.configure_model()
    host.metric = Counting()
    assert any(name.startswith("ema_teacher") for name, _ in host.named_parameters())
    assert averaged_parts(host).parameters.keys() == names.parameters.keys()
    assert averaged_parts(host).statistics.keys() == names.statistics.keys()
    host.net[3].requires_grad_(False)
    assert {name.split(".")[1] for name in averaged_parts(host).parameters} == {"0", "1", "6"}
    assert {name.split(".")[1] for name in averaged_parts(host).statistics} == {"1"}


def test_a_teacher_is_what_it_is_without_it(tmp_path):
    kind = compose(Host, EMATeacherMixin, name="Taught")
    nets = [make(kind, ema_teacher_decay=0.9) for _ in range(2)]
    saver = ModelCheckpoint(tmp_path, "kept")
    with pytest.warns(UserWarning, match="validations measure its teacher and not this average"):
        fit(nets[0], [ema(), saver], tmp_path, enable_checkpointing=None)
    fit(nets[1], [], tmp_path)
    for name, value in nets[1].ema_teacher.state_dict().items():
        assert torch.equal(nets[0].ema_teacher.state_dict()[name], value), name
    assert not torch.equal(nets[0].net[0].weight, nets[1].net[0].weight)
    saved = torch.load(tmp_path / "kept.ckpt", weights_only=True)
    assert not any("ema_teacher" in name for name in saved["callbacks"]["WeightEMA"]["raw"])


class Backbone(Host):
    def __init__(self):
        super().__init__()
        self.backbone = self.net[0]

    def configure_optimizers(self):
        return torch.optim.SGD([p for p in self.parameters() if p.requires_grad], lr=0.05)


def finetuning():
    return BackboneFinetuning(unfreeze_backbone_at_epoch=1, lambda_func=lambda epoch: 1.0, backbone_initial_lr=0.05)


@pytest.mark.parametrize("ours_first", [True, False])
def test_what_is_unfrozen_later_joins_with_its_value_of_then(ours_first, tmp_path):
    net, record, callback = make(Backbone), Record(), ema()
    callbacks = [callback, finetuning()] if ours_first else [finetuning(), callback]
    fit(net, [*callbacks, record], tmp_path)
    average = record.states[0]["net.0.weight"]
    assert np.array_equal(average, record.states[STEPS]["net.0.weight"])
    assert not np.array_equal(average, record.states[STEPS + 1]["net.0.weight"])
    for update, seen in enumerate(record.states[1:], 1):
        share = min(1 - 1 / (update + 1), 0.8)
        average = share * average + (1 - share) * seen["net.0.weight"]
    np.testing.assert_allclose(array(net.net[0].weight), average, atol=1e-6)


class Thawing(Host):
    """Its optimizer knows the frozen part from the start."""

    def __init__(self):
        super().__init__()
        self.net[0].requires_grad_(False)

    def on_train_epoch_start(self):
        self.net[0].requires_grad_(self.current_epoch > 0)


def test_a_run_resumed_after_unfreezing_is_the_straight_one(tmp_path):
    def run(seed, epochs, path=None):
        net, callback = make(Thawing, seed=seed), ema(start="2st")
        callbacks = [callback, ExactResume(seed=3)]
        return net, callback, fit(net, callbacks, tmp_path, max_epochs=epochs, ckpt_path=path)

    straight, callback, _ = run(0, 3)
    assert "net.0.weight" in callback._average.raw()
    for epochs in (1, 2):
        run(0, epochs)[2].save_checkpoint(tmp_path / "a.ckpt")
        assert_equal_state(state(straight), state(run(7, 3, tmp_path / "a.ckpt")[0]))


class Compiled(Host):
    def __init__(self):
        super().__init__()
        self.net = torch.compile(self.net, backend="eager")


def test_a_compiled_part(tmp_path):
    net, plain = make(Compiled), make()
    fit(net, [ema()], tmp_path, max_epochs=1).save_checkpoint(tmp_path / "a.ckpt")
    fit(plain, [ema()], tmp_path, max_epochs=1)
    found = {name.replace("_orig_mod.", ""): value for name, value in state(net).items()}
    assert found.keys() == state(plain).keys()
    for name, value in state(plain).items():
        torch.testing.assert_close(found[name], value)
    again = make(Compiled, seed=7)
    fit(again, [ema()], tmp_path, max_epochs=1, ckpt_path=tmp_path / "a.ckpt")
    assert_equal_state(state(again), state(net))  # though there was nothing left to train


class Spoiled(Host):
    """One batch of each epoch has a loss that is not finite."""

    def training_step(self, batch, batch_idx):
        return super().training_step(batch, batch_idx) * (float("nan") if batch_idx == 1 else 1.0)


def test_a_step_that_a_guard_refused_is_none(tmp_path):
    net, callback = make(Spoiled), ema(start="2st")
    fit(net, [callback, FiniteGuard()], tmp_path)
    assert callback._steps == 3 * (STEPS - 1)
    assert callback._updates == 3 * (STEPS - 1) - 2
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


# Who may take part.


class WeightOther(WeightEMA):
    pass


@pytest.mark.parametrize("other", [WeightOther, WeightAveraging])
def test_two_that_exchange_weights_are_refused(other, tmp_path):
    with pytest.raises(MisconfigurationException, match=r"^WeightEMA and Weight\w+ both put averaged weights"):
        fit(make(), [ema(), other()], tmp_path)


class Splitting(SingleDeviceStrategy):
    """Stands for a strategy that keeps the weights elsewhere."""


def test_strategies_with_weights_of_their_own_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(_gradients, "DeepSpeedStrategy", Splitting)
    with pytest.raises(MisconfigurationException, match=r"^WeightEMA cannot work under Splitting.*preset:ddp"):
        fit(make(), [ema()], tmp_path, strategy=Splitting("cpu"))


def test_a_module_that_trains_nothing_is_refused(tmp_path):
    with pytest.raises(NoEffectError, match=r"^WeightEMA would do nothing: Host has no trained parameter"):
        fit(make().requires_grad_(False), [ema()], tmp_path)


def test_two_ranks_are_one_process(tmp_path):
    ranks = {"strategy": "ddp_fork", "devices": 2, "precision": "64-true"}
    net, one = (make(plain=True).double() for _ in range(2))
    trainer(tmp_path, callbacks=[ema(), SaveRank(tmp_path)], **ranks).fit(net, loaders(DATA, 4, dtype=torch.float64))
    trainer(tmp_path, callbacks=[ema()], precision="64-true").fit(one, loaders(DATA, 8, dtype=torch.float64))
    rank0, rank1 = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal_state(rank0, rank1)
    for name, value in state(one).items():
        torch.testing.assert_close(rank0[name], value)
        torch.testing.assert_close(state(net)[name], value)  # the process that forked gets the average too


def test_it_can_be_copied_after_a_fit(tmp_path):
    callback = ema()
    made = fit(make(), [callback], tmp_path, max_epochs=1)
    assert isinstance(vars(made.strategy)["lightning_module_state_dict"], AveragedState)
    assert copy.deepcopy(callback)._updates == STEPS
