"""What every technique, and all of them stacked, must hold."""

from __future__ import annotations

import io
import pickle

import lightning.pytorch as pl
import pytest
import torch
from jsonargparse import ArgumentParser
from lightning.pytorch.loggers import CSVLogger

from lightning_tuning import ExactResume, compose
from lightning_tuning.errors import CompositionError
from lightning_tuning.mixins import STAGES, TECHNIQUES
from lightning_tuning.mixins.composition import own_arguments, techniques_of

from .nets import NETS, SHAPE, Host, assert_equal_state, loaders, make, trainer
from .settings import ROWS, SETTINGS


class Silent(Host):
    """A host without hyper-parameters."""

    def save_hyperparameters(self, *args, **kwargs):
        pass


every_row = pytest.mark.parametrize("row", ROWS)
STEPS = 8  # of 2 epochs of 32 samples in batches of 8


def test_the_table_has_every_technique():
    assert set(SETTINGS) == set(TECHNIQUES)


@every_row
def test_off_is_the_bare_host_bitwise(row, tmp_path):
    _, setting = ROWS[row]
    data = loaders(setting, 8)
    torch.manual_seed(0)
    bare, net = Host(), make(row, off=True)
    bare_trainer, net_trainer = trainer(tmp_path), trainer(tmp_path)
    torch.manual_seed(1)
    bare_trainer.fit(bare, data["labeled"] if setting.streams else data)
    torch.manual_seed(1)
    net_trainer.fit(net, data)
    assert_equal_state(dict(bare.state_dict()), dict(net.state_dict()))
    assert_equal_state(bare_trainer.optimizers[0].state_dict(), net_trainer.optimizers[0].state_dict())
    assert net.tuning_settings() == {}


@every_row
def test_on_is_not_the_bare_host(row, tmp_path):
    """The row's setting is felt, so that its other tests can fail."""
    _, setting = ROWS[row]
    nets = [make(row, off=True, without=True), make(row)]
    for net in nets:
        torch.manual_seed(1)
        trainer(tmp_path).fit(net, loaders(setting, 8))
    x = torch.randn(5, *SHAPE)
    assert not torch.equal(*[net.eval()(x) for net in nets])


@every_row
def test_compute_loss_is_the_hosts_in_evaluation(row):
    net = make(row).eval()
    logits, target = torch.randn(4, 3), torch.tensor([0, 1, 2, 0])
    assert torch.equal(net.compute_loss(logits, target), Host.compute_loss(net, logits, target))


def fit_epochs(net, setting, tmp_path, epochs, ckpt_path=None, **kwargs):
    made = trainer(tmp_path, max_epochs=epochs, callbacks=[ExactResume(seed=3)], **kwargs)
    made.fit(net, loaders(setting, 8), ckpt_path=ckpt_path)
    return made


LOWER = [pytest.param(precision, marks=pytest.mark.slow) for precision in ("bf16-mixed", "16-mixed")]
"""By default each row is resumed in one precision; ``test_mixed_precision_stays_finite`` trains it in the others."""


@every_row
@pytest.mark.parametrize("precision", ["32-true", *LOWER])
def test_resume_is_the_straight_run_bitwise(row, precision, tmp_path):
    _, setting = ROWS[row]
    straight = make(row)
    straight_trainer = fit_epochs(straight, setting, tmp_path, 3, precision=precision)

    first = fit_epochs(make(row), setting, tmp_path, 1, precision=precision)
    first.save_checkpoint(tmp_path / "epoch.ckpt")
    resumed = make(row, seed=99)
    torch.manual_seed(12345)  # whatever the new process drew before
    resumed_trainer = fit_epochs(resumed, setting, tmp_path, 3, tmp_path / "epoch.ckpt", precision=precision)

    assert resumed_trainer.global_step == straight_trainer.global_step == 12
    assert_equal_state(dict(straight.state_dict()), dict(resumed.state_dict()))
    assert_equal_state(straight_trainer.optimizers[0].state_dict(), resumed_trainer.optimizers[0].state_dict())


@every_row
def test_checkpoints_load_without_executing_code(row, tmp_path):
    _, setting = ROWS[row]
    net = make(row)
    fit_epochs(net, setting, tmp_path, 1).save_checkpoint(tmp_path / "a.ckpt")
    torch.load(tmp_path / "a.ckpt", weights_only=True)
    loaded = NETS[row].load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    x = torch.randn(5, *SHAPE)
    assert torch.equal(loaded.eval()(x), net.eval()(x))
    assert loaded.tuning_settings() == net.tuning_settings() == {**setting.on, **loaded.tuning_settings()}


@every_row
def test_a_host_that_saves_no_hyperparameters_keeps_the_settings(row, tmp_path):
    mixins, setting = ROWS[row]
    net = compose(Silent, *mixins, name="Net")(**setting.on)
    fit_epochs(net, setting, tmp_path, 1).save_checkpoint(tmp_path / "a.ckpt")
    loaded = type(net).load_from_checkpoint(tmp_path / "a.ckpt", weights_only=True)
    assert loaded.tuning_settings() == net.tuning_settings()
    x = torch.randn(5, *SHAPE)
    assert torch.equal(loaded.eval()(x), net.eval()(x))


@every_row
@pytest.mark.parametrize("precision", ["bf16-mixed", "16-mixed"])
def test_mixed_precision_stays_finite(row, precision, tmp_path):
    _, setting = ROWS[row]
    net = make(row)
    before = {name: p.clone() for name, p in net.named_parameters()}
    trainer(tmp_path, precision=precision).fit(net, loaders(setting, 8))
    after = dict(net.state_dict())
    assert all(torch.isfinite(value).all() for value in after.values())
    assert all(not torch.equal(value, after[name]) for name, value in before.items())


class Overflow(pl.Callback):
    """Makes the gradients of one step infinite, and keeps the state around it."""

    def __init__(self, step: int) -> None:
        self.step, self.before, self.after = step, None, None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == self.step:
            self.before = {k: v.clone() for k, v in pl_module.state_dict().items()}

    def on_after_backward(self, trainer, pl_module):
        if trainer.fit_loop.epoch_loop.batch_idx == self.step:
            next(p for p in pl_module.parameters() if p.grad is not None).grad.view(-1)[0] = float("inf")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch_idx == self.step:
            self.after = {k: v.clone() for k, v in pl_module.state_dict().items()}


@every_row
def test_a_step_that_the_scaler_skips_advances_nothing(row, tmp_path):
    _, setting = ROWS[row]
    overflow = Overflow(step=2)
    net = make(row, plain=True)  # the forward of the skipped step itself does move batch norm's statistics
    fp16 = trainer(tmp_path, precision="16-mixed", max_epochs=1, callbacks=[overflow])
    fp16.fit(net, loaders(setting, 8))
    assert_equal_state(overflow.before, overflow.after)
    assert any(not torch.equal(v, overflow.after[k]) for k, v in net.state_dict().items())


def plain_float64(row):
    return make(row, plain=True).double()


def assert_close(a, b, tolerance=1e-10):
    assert a.keys() == b.keys()
    for key, value in a.items():
        torch.testing.assert_close(value, b[key], rtol=tolerance, atol=tolerance, msg=lambda m, k=key: f"{k}: {m}")


exact_rows = pytest.mark.parametrize("row", [row for row, (_, setting) in ROWS.items() if setting.exact])


@exact_rows
def test_accumulating_4_batches_of_8_is_one_batch_of_32(row, tmp_path):
    _, setting = ROWS[row]
    nets = [plain_float64(row), plain_float64(row)]
    for net, batch_size, accumulate in zip(nets, [8, 32], [4, 1], strict=True):
        made = trainer(tmp_path, max_epochs=3, precision="64-true", accumulate_grad_batches=accumulate)
        made.fit(net, loaders(setting, batch_size, 32, torch.float64))
        assert made.global_step == 3
    assert_close(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


@every_row
def test_accumulation_with_a_short_last_window(row, tmp_path):
    _, setting = ROWS[row]
    net = make(row)
    made = trainer(tmp_path, accumulate_grad_batches=3, precision="16-mixed", gradient_clip_val=1.0)
    made.fit(net, loaders(setting, 8, 56))  # 7 batches an epoch: windows of 3, 3 and 1
    assert made.global_step == 6
    assert all(torch.isfinite(value).all() for value in net.state_dict().values())


@every_row
def test_terms_are_logged(row, tmp_path):
    mixins, setting = ROWS[row]
    made = trainer(tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=1, max_epochs=1)
    # Of several mixings each batch gets one: 64 batches are enough for all of them.
    made.fit(make(row), loaders(setting, 8) if len(mixins) == 1 else loaders(setting, 2, 128))
    logged = set(made.logged_metrics)
    assert {*setting.terms, *(f"{term}_epoch" for term in setting.terms)} <= logged
    assert all(torch.isfinite(torch.as_tensor(made.logged_metrics[term])) for term in setting.terms)


@every_row
def test_the_command_line_parses_and_documents_each_argument(row):
    mixins, setting = ROWS[row]
    parser = ArgumentParser(exit_on_error=False)
    parser.add_class_arguments(NETS[row], "model")
    written = [f"--model.{name}={value}" for name, value in setting.on.items()]
    parsed = parser.parse_args(written).model.as_dict()
    assert {name: parsed[name] for name in setting.on} == setting.on
    text = io.StringIO()
    parser.print_help(text)
    for mixin in mixins:
        for name in own_arguments(mixin):
            described = text.getvalue().split(f"--model.{name} ")[-1]
            assert "(type:" in described.split("--model")[0], f"{name} is not documented"
            assert len(described.split("(type:")[0]) > 40, f"{name} has no description"


@pytest.mark.parametrize("mixin", [m for m in TECHNIQUES if m.stage], ids=lambda m: m.stem)
def test_the_wrong_order_raises_and_the_printed_line_works(mixin):
    other = next(m for m in TECHNIQUES if m.stage and m.stage != mixin.stage)
    right = sorted([mixin, other], key=lambda m: STAGES.index(m.stage))
    with pytest.raises(CompositionError, match=r"must stand left of .* Write: class Net\(") as caught:
        type("Net", (*reversed(right), Host), {})
    line = str(caught.value).split("Write: ")[1]
    namespace = {c.__name__: c for c in (*right, Host)}
    exec(f"{line} pass", namespace)
    assert techniques_of(namespace["Net"]) == right


@every_row
def test_pickle_keeps_the_network(row):
    net = make(row)
    copied = pickle.loads(pickle.dumps(net))
    assert type(copied) is NETS[row]
    x = torch.randn(5, *SHAPE)
    assert torch.equal(copied.eval()(x), net.eval()(x))
    assert copied.tuning_settings() == net.tuning_settings()
