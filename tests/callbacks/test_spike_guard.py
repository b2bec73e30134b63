"""SpikeGuard: which steps are spikes, by numbers computed here, and what is done about them."""

from __future__ import annotations

import re
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint

from lightning_tuning import ExactResume, FiniteGuard, SpikeGuard
from lightning_tuning.callbacks._step_gate import StepValues
from lightning_tuning.errors import DivergenceError, InvalidValueError
from tests.contract.nets import assert_equal_state, loaders, trainer
from tests.contract.settings import Setting
from tests.contract.test_all_callbacks import KeptPlace
from tests.contract.test_contract import Overflow
from tests.contract.test_contract_ddp import SaveRank

from .poison import Frail, Poison, all_finite, lines

DATA = Setting({})


@pytest.fixture(autouse=True)
def _warnings_are_no_errors():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def make(seed=0, plain=True):
    torch.manual_seed(seed)
    return Frail(plain=plain)


def fit(net, callbacks, tmp_path, size=8, samples=32, ckpt_path=None, **kwargs):
    made = trainer(tmp_path, callbacks=callbacks, **kwargs)
    made.fit(net, KeptPlace(loaders(DATA, size, samples).dataset, size), ckpt_path=ckpt_path)
    return made


class Values(pl.Callback):
    """Each step's loss and gradient norm, computed in the hooks."""

    def __init__(self) -> None:
        self.losses: list[float] = []
        self.norms: list[float] = []

    def on_after_backward(self, trainer, pl_module):
        squares = [float(p.grad.double().square().sum()) for p in pl_module.parameters() if p.grad is not None]
        self.norm = sum(squares) ** 0.5

    def on_train_batch_end(self, trainer, pl_module, outputs, *args):
        self.losses.append(float(outputs["loss"]))
        self.norms.append(self.norm)


def asked(guard, losses):
    """Whether the guard objects to each of these losses in turn; those let through are known to it then."""
    answers = []
    for loss in losses:
        values = StepValues(loss, 1.0)
        answers.append(guard.objection(values) is not None)
        if not answers[-1]:
            guard.on_let_through(None, values)
    return answers


def test_a_spike_is_beyond_sigma_deviations_of_the_last_steps():
    values = np.random.default_rng(0).normal(10.0, 1.0, 50)
    guard = SpikeGuard(sigma=2.0, window=8, warmup=5, patience=99)
    known, expected = [], []
    for value in values:
        last = known[-8:]
        spike = len(last) >= 5 and value > np.mean(last) + 2 * np.std(last)
        expected.append(bool(spike))
        known += [] if spike else [value]
    assert asked(guard, values.tolist()) == expected
    assert 0 < sum(expected) < 20


def test_a_fall_is_no_spike_and_a_value_that_is_not_finite_always_is():
    guard = SpikeGuard(warmup=4)
    assert asked(guard, [5.0, float("nan"), 5.0, float("inf"), 5.0, 5.0, 1e-3, -80.0]) == [0, 1, 0, 1, 0, 0, 0, 0]
    assert "gradient's norm was nan" in guard.objection(StepValues(1.0, float("nan")))


def test_outliers_that_were_let_through_do_not_hide_the_next_from_the_robust_guard():
    losses = [1.0, 1.1, 0.9, 1.0, 1.1, 30.0, 0.9, 1.0, 20.0]
    assert asked(SpikeGuard(sigma=6, window=9, warmup=6), losses)[-1] is False
    assert asked(SpikeGuard(sigma=6, window=9, warmup=6, robust=True), losses)[-1] is True


@pytest.mark.parametrize("watch", ["loss", "gradient", "both"])
def test_a_spike_changes_nothing(watch, tmp_path):
    values, poison = Values(), Poison(6, how="large")
    guard = SpikeGuard(watch=watch, warmup=4)
    net = make(plain=False)
    fit(net, [values, poison, guard], tmp_path)
    assert_equal_state(poison.states[6], poison.after[6])
    assert not torch.equal(poison.states[7]["module"]["net.0.weight"], poison.after[7]["module"]["net.0.weight"])
    (line,) = lines(tmp_path)
    assert (line["guard"], line["step"], line["epoch"], line["batch"]) == ("SpikeGuard", 6, 1, 2)
    assert line["loss"] == pytest.approx(values.losses[6], rel=1e-6)
    assert line["gradient_norm"] == pytest.approx(values.norms[6], rel=1e-5)
    known = {"loss": values.losses, "gradient": values.norms}
    expected = {name: np.delete(known[name], 6) for name in (("loss", "gradient") if watch == "both" else (watch,))}
    state = guard.state_dict()["known"]
    assert state.keys() == expected.keys()
    for name, numbers in expected.items():
        assert state[name] == pytest.approx(numbers.tolist(), rel=1e-5)


def test_what_is_watched_under_accumulation_is_the_windows_mean(tmp_path):
    values, guard = Values(), SpikeGuard(watch="both", warmup=2)
    fit(make(), [values, guard], tmp_path, samples=56, accumulate_grad_batches=3, max_epochs=1)
    losses = np.array(values.losses) * 3  # Lightning hands them out divided
    state = guard.state_dict()["known"]
    assert state["loss"] == pytest.approx([losses[:3].mean(), losses[3:6].mean(), losses[6]], rel=1e-5)
    assert state["gradient"] == pytest.approx([values.norms[i] for i in (2, 5, 6)], rel=1e-5)


def test_what_is_watched_on_two_ranks_is_their_mean(tmp_path):
    class Keep(pl.Callback):
        def on_train_end(self, trainer, pl_module):
            torch.save(guard.state_dict(), tmp_path / f"state{trainer.global_rank}.pt")

    guard = SpikeGuard(watch="both", warmup=2, sigma=30)
    ranks = {"strategy": "ddp_fork", "devices": 2}
    made = trainer(tmp_path, callbacks=[guard, Keep(), Poison(3, how="large", rank=1), SaveRank(tmp_path)], **ranks)
    made.fit(make(), loaders(DATA, 4, 32))
    states = [torch.load(tmp_path / f"state{rank}.pt", weights_only=True) for rank in (0, 1)]
    assert states[0] == states[1]
    assert states[0]["total"] == 1
    one = SpikeGuard(watch="both", warmup=2, sigma=30)
    trainer(tmp_path, callbacks=[one, Poison(3, how="input")]).fit(make(), loaders(DATA, 8, 32))
    for name in ("loss", "gradient"):
        assert states[0]["known"][name] == pytest.approx(one.state_dict()["known"][name], rel=1e-4)
    assert_equal_state(*(torch.load(tmp_path / f"rank{rank}.pt", weights_only=True) for rank in (0, 1)))


def test_fp16_gradients_are_watched_without_their_scale(tmp_path):
    guards = [SpikeGuard(watch="gradient") for _ in range(2)]
    for guard, precision in zip(guards, ("32-true", "16-mixed"), strict=True):
        fit(make(), [guard, Overflow(1)] if precision == "16-mixed" else [guard], tmp_path, precision=precision)
    full, half = (guard.state_dict()["known"]["gradient"] for guard in guards)
    assert half[0] == pytest.approx(full[0], rel=0.02)
    assert len(half) == len(full) - 2  # the two that the scaler skipped; the run without them goes another way


def test_a_new_level_is_accepted_after_patience(tmp_path):
    guard = SpikeGuard(warmup=2, patience=3, sigma=6)
    assert asked(guard, [1.0, 1.0, 9.0]) == [0, 0, 1]
    net, poison = make(), Poison(*range(4, 12), how="large")
    net.configure_optimizers = lambda: torch.optim.SGD(net.parameters(), lr=1e-5)
    guard = SpikeGuard(warmup=3, patience=3, sigma=50)
    fit(net, [poison, guard], tmp_path, max_epochs=3)
    for step in (4, 5, 6):
        assert_equal_state(poison.states[step], poison.after[step])
    assert not torch.equal(poison.states[7]["module"]["net.0.weight"], poison.after[7]["module"]["net.0.weight"])
    assert guard.state_dict()["total"] == 3
    assert len(guard.state_dict()["known"]["loss"]) == 5
    assert "their level is taken for the normal one" in (tmp_path / "diagnosis.txt").read_text()


@pytest.mark.parametrize("action", ["stop", "reduce_lr", "rewind"])
def test_the_other_actions(action, tmp_path):
    guard = SpikeGuard(warmup=3, patience=2, action=action, **({"rewind_every": 1} if action == "rewind" else {}))
    net, poison = make(), Poison(4, 5, how="large")
    if action == "stop":
        with pytest.raises(DivergenceError, match=r"^SpikeGuard stopped .* above .* \(6 sigma of the last 4\)"):
            fit(net, [poison, guard], tmp_path)
        return
    fit(net, [poison, guard], tmp_path)
    assert guard.state_dict()["rate"] == (0.5 if action == "reduce_lr" else 1.0)
    back = poison.states[3 if action == "rewind" else 4]  # the snapshot of the last good step is of before its update
    assert_equal_state(back["module"], poison.states[6]["module"])


def test_two_guards_share_a_step(tmp_path):
    finite, spike = FiniteGuard(), SpikeGuard(warmup=3)
    net, poison = make(plain=False), Poison(4, 6, how="large")
    fit(net, [finite, spike, poison, Poison(5)], tmp_path)
    assert (finite.state_dict()["total"], spike.state_dict()["total"]) == (1, 2)
    assert [line["guard"] for line in lines(tmp_path)] == ["SpikeGuard", "FiniteGuard", "SpikeGuard"]
    assert_equal_state(poison.states[4], poison.after[6])
    assert all_finite(net)


@pytest.mark.parametrize("save", [4, 6, 8])
def test_resume_is_bitwise_with_spikes_before_and_after(save, tmp_path):
    def run(seed, ckpt_path=None):
        guard, net = SpikeGuard(warmup=3, window=4), make(seed, plain=False)
        keep = ModelCheckpoint(tmp_path, "kept", every_n_train_steps=save, save_top_k=-1, save_on_exception=False)
        callbacks = [ExactResume(seed=3), Poison(3, 5, 9, how="large"), guard, *([] if ckpt_path else [keep])]
        made = fit(net, callbacks, tmp_path, ckpt_path=ckpt_path, max_epochs=3, enable_checkpointing=None)
        return net, made, guard

    (net, made, guard), (again, made_again, guard_again) = run(0), run(9, tmp_path / "kept.ckpt")
    assert guard.state_dict() == guard_again.state_dict()
    assert guard.state_dict()["total"] == 3
    assert_equal_state(dict(net.state_dict()), dict(again.state_dict()))
    assert_equal_state(made.optimizers[0].state_dict(), made_again.optimizers[0].state_dict())


def test_a_resumed_run_takes_the_new_window_and_what_it_watches():
    old = SpikeGuard(watch="both", window=8, warmup=2)
    asked(old, [float(i) for i in range(6)])
    new = SpikeGuard(watch="loss", window=3, warmup=2)
    new.load_state_dict(old.state_dict())
    assert new.state_dict()["known"] == {"loss": [3.0, 4.0, 5.0]}


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"watch": "weights"}, "watch is 'weights'"),
        ({"sigma": 0}, "sigma is 0"),
        ({"window": 1}, "window is 1"),
        ({"warmup": 1}, "warmup is 1"),
        ({"window": 8, "warmup": 9}, "warmup is 9; it must be at most window, 8."),
        ({"action": "skip"}, "action is 'skip'"),
    ],
)
def test_values_that_are_not_allowed(setting, message):
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        SpikeGuard(**setting)
