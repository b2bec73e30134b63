"""What every callback that edits gradients must hold, alone and together with SAM."""

from __future__ import annotations

import csv
import math
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.strategies import SingleDeviceStrategy
from lightning.pytorch.utilities.exceptions import MisconfigurationException

from lightning_tuning import ExactResume, SAMMixin, callbacks, compose
from lightning_tuning.callbacks import _gradients
from lightning_tuning.errors import NoEffectError

from .callback_settings import CALLBACKS as ALL
from .nets import Host, assert_equal_state, loaders, trainer
from .settings import Setting
from .test_contract import Overflow, assert_close
from .test_contract_ddp import SaveRank

CALLBACKS = {kind: setting for kind, setting in ALL.items() if setting.kind == "edits"}
every_callback = pytest.mark.parametrize("kind", CALLBACKS, ids=lambda kind: kind.__name__)
DATA = Setting({})
SharpHost = compose(Host, SAMMixin, name="SharpHost")
HOSTS = {"alone": Host, "sam": SharpHost}
every_host = pytest.mark.parametrize("host", HOSTS)


def make(host="alone", seed=0, plain=False):
    torch.manual_seed(seed)
    return HOSTS[host](plain=plain, **({"sam_rho": 0.1} if host == "sam" else {}))


def fit(net, callback, tmp_path, *others, size=8, dtype=torch.float32, ckpt_path=None, **kwargs):
    made = trainer(tmp_path, callbacks=[callback, *others], **kwargs)
    made.fit(net, loaders(DATA, size, 32, dtype), ckpt_path=ckpt_path)
    return made


def test_the_table_has_every_callback_that_edits_gradients():
    kinds = [getattr(callbacks, name) for name in callbacks.__all__]
    assert {kind for kind in kinds if issubclass(kind, _gradients.GradientCallback)} == set(CALLBACKS)


@every_callback
def test_it_is_felt_and_leaves_nothing_behind(kind, tmp_path):
    nets = [make(), make()]
    states = []
    for net, callback in zip(nets, [pl.Callback(), CALLBACKS[kind].make()], strict=True):
        torch.manual_seed(1)
        made = fit(net, callback, tmp_path)
        states.append(torch.get_rng_state())
        assert not made.optimizers[0]._optimizer_step_post_hooks
        assert "_after_closure" not in vars(made.precision_plugin)
    assert all(torch.isfinite(value).all() for value in nets[1].state_dict().values())
    assert not torch.equal(nets[0].net[0].weight, nets[1].net[0].weight)
    assert torch.equal(*states)  # dropout and the like draw what they drew without it


@every_callback
@every_host
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "16-mixed"])
def test_resume_is_the_straight_run_bitwise(kind, host, precision, tmp_path):
    def run(net, epochs, ckpt_path=None):
        callback = CALLBACKS[kind].make()
        others = [ExactResume(seed=3)] + [Overflow(2)] * (precision == "16-mixed")
        return callback, fit(
            net, callback, tmp_path, *others, max_epochs=epochs, precision=precision, ckpt_path=ckpt_path
        )

    straight, resumed = make(host), make(host, seed=99)
    callback, straight_trainer = run(straight, 3)
    run(make(host), 1)[1].save_checkpoint(tmp_path / "epoch.ckpt")
    torch.load(tmp_path / "epoch.ckpt", weights_only=True)
    torch.manual_seed(12345)
    again, resumed_trainer = run(resumed, 3, tmp_path / "epoch.ckpt")
    assert resumed_trainer.global_step == straight_trainer.global_step == 12
    assert_equal_state(dict(straight.state_dict()), dict(resumed.state_dict()))
    assert_equal_state(straight_trainer.optimizers[0].state_dict(), resumed_trainer.optimizers[0].state_dict())
    assert str(callback.state_dict()) == str(again.state_dict())


class KeepState(pl.Callback):
    """Keeps a callback's state at each batch's end, as text."""

    def __init__(self, watched):
        self.watched, self.states = watched, []

    def on_train_batch_end(self, *args):
        self.states.append(str(self.watched.state_dict()))


@every_callback
@every_host
@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_advances_nothing(kind, host, fused, tmp_path):
    callback, overflow = CALLBACKS[kind].make(), Overflow(step=2)
    keep, net = KeepState(callback), make(host, plain=True)
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=0.05, fused=fused)
    fit(net, callback, tmp_path, overflow, keep, precision="16-mixed", max_epochs=1)
    assert_equal_state(overflow.before, overflow.after)
    assert any(not torch.equal(v, overflow.after[k]) for k, v in net.state_dict().items())
    assert keep.states[1] == keep.states[2]
    assert (len(set(keep.states)) == 3) is CALLBACKS[kind].stateful


class SmallScale(pl.Callback):
    """Starts the scaler where the first step does not overflow."""

    def on_fit_start(self, trainer, pl_module):
        trainer.precision_plugin.scaler._init_scale = 1024.0


@every_callback
@pytest.mark.parametrize("fused", [False, True])
def test_fp16_does_what_float32_does(kind, fused, tmp_path):
    """Gradients are unscaled when it acts, or, for a fused optimizer, treated as such."""
    start, nets = make(plain=True), [make(plain=True), make(plain=True)]
    for net, precision in zip(nets, ["32-true", "16-mixed"], strict=True):
        fused_here = fused and precision == "16-mixed"
        net.configure_optimizers = lambda n=net, f=fused_here: torch.optim.SGD(n.parameters(), lr=0.05, fused=f)
        others = [SmallScale()] if precision == "16-mixed" else []
        fit(net, CALLBACKS[kind].make(), tmp_path, *others, precision=precision, max_epochs=1)
    moves = [
        torch.cat([(a - b).flatten() for a, b in zip(net.parameters(), start.parameters(), strict=True)])
        for net in nets
    ]
    assert (moves[0] - moves[1]).norm() < 0.01 * moves[0].norm()


@every_callback
@every_host
def test_accumulating_4_batches_of_8_is_one_batch_of_32(kind, host, tmp_path):
    if not CALLBACKS[kind].exact:
        return
    nets = [make(host, plain=True).double() for _ in range(2)]
    for net, size, accumulate in zip(nets, [8, 32], [4, 1], strict=True):
        settings = {"precision": "64-true", "max_epochs": 4, "accumulate_grad_batches": accumulate}
        made = fit(net, CALLBACKS[kind].make(), tmp_path, size=size, dtype=torch.float64, **settings)
        assert made.global_step == 4
    assert_close(dict(nets[0].state_dict()), dict(nets[1].state_dict()))


@every_callback
@every_host
def test_two_ranks_are_one_process(kind, host, tmp_path):
    clip = {} if CALLBACKS[kind].clips_itself else {"gradient_clip_val": 0.5}
    settings = {"precision": "64-true", "accumulate_grad_batches": 2, "dtype": torch.float64, **clip}
    ranks = {"strategy": "ddp_fork", "devices": 2}
    fit(
        make(host, plain=True).double(),
        CALLBACKS[kind].make(),
        tmp_path,
        SaveRank(tmp_path),
        size=4,
        **ranks,
        **settings,
    )
    rank0, rank1 = (torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1))
    assert_equal_state(rank0, rank1)
    if CALLBACKS[kind].exact:
        one = make(host, plain=True).double()
        fit(one, CALLBACKS[kind].make(), tmp_path, size=8, **settings)
        assert_close(rank0, dict(one.state_dict()))


class Partly(Host):
    """A frozen layer, and a parameter that gets no gradient."""

    def __init__(self):
        super().__init__(plain=True)
        self.net[0].requires_grad_(False)
        self.idle = torch.nn.Parameter(torch.ones(3, 3))


@every_callback
def test_frozen_parameters_and_missing_gradients_are_left_alone(kind, tmp_path):
    torch.manual_seed(0)
    net = Partly()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    fit(net, CALLBACKS[kind].make(), tmp_path)
    changed = {name for name, value in net.state_dict().items() if not torch.equal(value, before[name])}
    assert changed == before.keys() - {"net.0.weight", "net.0.bias", "idle"}


class Manual(Host):
    """Two optimizers, stepped by hand."""

    def __init__(self):
        super().__init__(plain=True)
        self.automatic_optimization = False

    def training_step(self, batch, batch_idx):
        optimizers = self.optimizers()
        for optimizer in optimizers:
            optimizer.zero_grad()
        self.manual_backward(super().training_step(batch, batch_idx))
        for optimizer in optimizers:
            optimizer.step()

    def configure_optimizers(self):
        return [torch.optim.SGD(part.parameters(), lr=0.05) for part in (self.net[:4], self.net[4:])]


@every_callback
def test_manual_optimization_with_two_optimizers_resumes_bitwise(kind, tmp_path):
    def run(epochs, ckpt_path=None):
        torch.manual_seed(0)
        net, callback = Manual(), CALLBACKS[kind].make()
        made = fit(net, callback, tmp_path, max_epochs=epochs, ckpt_path=ckpt_path, logger=CSVLogger(tmp_path))
        return net, str(callback.state_dict()), made

    torch.manual_seed(0)
    bare = Manual()
    fit(bare, pl.Callback(), tmp_path)
    straight, state, _ = run(2)
    run(1)[2].save_checkpoint(tmp_path / "a.ckpt")
    resumed, state_again, _ = run(2, tmp_path / "a.ckpt")
    assert_equal_state(dict(straight.state_dict()), dict(resumed.state_dict()))
    assert state == state_again
    assert not torch.equal(bare.net[0].weight, straight.net[0].weight)


class Splitting(SingleDeviceStrategy):
    """Stands for a strategy that splits gradients."""


@every_callback
def test_strategies_that_split_gradients_are_refused(kind, tmp_path, monkeypatch):
    monkeypatch.setattr(_gradients, "DeepSpeedStrategy", Splitting)
    with pytest.raises(MisconfigurationException, match=f"^{kind.__name__} cannot work under Splitting: .* DDP"):
        fit(make(), CALLBACKS[kind].make(), tmp_path, strategy=Splitting("cpu"))


@every_callback
def test_a_model_in_which_it_can_change_nothing_is_refused(kind, tmp_path):
    net = make().requires_grad_(False)
    with pytest.raises(NoEffectError, match=f"^{kind.__name__} would do nothing: Host .* Remove the callback"):
        fit(net, CALLBACKS[kind].make(), tmp_path)


@every_callback
def test_terms_are_logged_at_logging_steps(kind, tmp_path):
    setting = CALLBACKS[kind]
    made = fit(make(), setting.make(), tmp_path, logger=CSVLogger(tmp_path), log_every_n_steps=3)
    made.logger.save()
    path = Path(made.logger.experiment.metrics_file_path)
    rows = list(csv.DictReader(path.read_text().splitlines())) if path.exists() else []
    assert [int(row["step"]) for row in rows if row.get(setting.terms[0])] == [2, 5] if setting.terms else not rows
    assert all(math.isfinite(float(row[term])) for row in rows for term in setting.terms if row[term])
    assert set(setting.terms) <= set(made.logged_metrics)
