import copy
import warnings

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, deep, fit, parameters, smooth
from tests.numerics import array, ema


class Net(EMATeacherMixin, Tiny):
    pass


class Trace(pl.Callback):
    """The student's state before the first and after each optimizer step."""

    def __init__(self):
        self.states = []

    def on_train_start(self, trainer, pl_module):
        self.note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == len(self.states):
            self.note(pl_module)

    def note(self, module):
        self.states.append({k: v.clone() for k, v in module.network.state_dict().items()})


def averaged(states, decay, warmup=True, buffers="average"):
    """The teacher that these states of a student make, in numpy."""
    teacher = {name: array(value) for name, value in states[0].items()}
    for update, state in enumerate(states[1:], start=1):
        for name, value in state.items():
            copied = not value.is_floating_point() or (buffers == "copy" and "running" in name)
            teacher[name] = array(value) if copied else ema(teacher[name], array(value), update, decay, warmup)
    return teacher


def assert_teacher(net, expected):
    state = net.ema_teacher.network.state_dict()
    assert state.keys() == expected.keys()
    for name, value in expected.items():
        np.testing.assert_allclose(array(state[name]), value, rtol=1e-5, atol=1e-6, err_msg=name)


@pytest.mark.parametrize(("network", "shape"), [(deep, (4,)), (convolution, (2, 5, 5))])
@pytest.mark.parametrize("warmup", [True, False])
@pytest.mark.parametrize("buffers", ["average", "copy"])
def test_the_teacher_is_the_average(network, shape, warmup, buffers):
    net, trace = Net(network(), ema_teacher_decay=0.8, ema_teacher_warmup=warmup, ema_teacher_buffers=buffers), Trace()
    fit(net, batches(7, shape=shape), callbacks=[trace])
    assert len(trace.states) == 8
    expected = averaged(trace.states, 0.8, warmup, buffers)
    assert_teacher(net, expected)
    tracked = next(name for name in expected if "tracked" in name)
    assert expected[tracked] == net.ema_teacher.network.state_dict()[tracked].item() == 7
    # The policies and schedules differ enough for the test to tell them apart.
    other = averaged(trace.states, 0.8, not warmup, "copy" if buffers == "average" else "average")
    for name in ("0.weight", "1.running_mean"):
        assert np.abs(other[name] - expected[name]).max() > 1e-3


def test_accumulation_moves_the_teacher_once_an_optimizer_step():
    net, trace = Net(deep(), ema_teacher_decay=0.8), Trace()
    fit(net, batches(7), accumulate_grad_batches=3, callbacks=[trace])
    assert len(trace.states) == 4
    assert net.ema_teacher_updates.item() == 3
    weights = {name: value for name, value in averaged(trace.states, 0.8).items() if "weight" in name}
    for name, value in weights.items():
        np.testing.assert_allclose(array(net.ema_teacher.network.state_dict()[name]), value, rtol=1e-5, atol=1e-6)


class Overflow(pl.Callback):
    """Makes the gradient of the third step infinite and compares the teacher around it."""

    unchanged = None

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = copy.deepcopy(pl_module.ema_teacher.state_dict()), pl_module.ema_teacher_updates.item()

    def on_after_backward(self, trainer, pl_module):
        if len(pl_module.batches) == 3:
            pl_module.network[0].weight.grad[0, 0] = float("inf")

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        same = all(torch.equal(v, self.before[0][k]) for k, v in pl_module.ema_teacher.state_dict().items())
        same = same and pl_module.ema_teacher_updates.item() == self.before[1]
        if batch_idx == 2:
            self.unchanged = same
        else:
            assert not same


@pytest.mark.parametrize("fused", [False, True])
def test_a_step_that_the_scaler_skips_moves_nothing(fused):
    class Fp16Net(EMATeacherMixin, Tiny):
        def configure_optimizers(self):
            return torch.optim.SGD(self.parameters(), lr=0.1, momentum=0.9, fused=fused)

    net, overflow = Fp16Net(smooth(), ema_teacher_decay=0.8), Overflow()
    trainer = fit(net, batches(5), precision="16-mixed", callbacks=[overflow])
    assert trainer.scaler.get_scale() == 2.0**15
    assert overflow.unchanged is True
    assert net.ema_teacher_updates.item() == 4


def test_the_teacher_is_not_trained():
    class AllParameters(EMATeacherMixin, Tiny):
        def configure_optimizers(self):
            return torch.optim.AdamW(self.parameters(), lr=0.1, weight_decay=0.5)

    net = AllParameters(deep(), ema_teacher_decay=0.8)
    trainer = fit(net, batches(3))
    teachers = list(net.ema_teacher.parameters())
    assert len(teachers) == len(list(net.network.parameters())) == 6
    assert not any(p.requires_grad for p in teachers)
    assert all(p.grad is None for p in teachers)
    optimized = {id(p) for group in trainer.optimizers[0].param_groups for p in group["params"]}
    assert optimized == {id(p) for p in net.network.parameters()}
    assert not {id(p) for p in trainer.optimizers[0].state} & {id(p) for p in teachers}
    assert {id(p) for p in net.trainable_parameters()} == optimized


def trained(**kwargs):
    net = Net(deep(), ema_teacher_decay=0.8, **kwargs)
    fit(net, batches(5))
    return net


def test_the_teacher_answers_in_evaluation_mode_and_the_student_in_training():
    net, x = trained(), batches(1)[0][0]
    teacher, student = copy.deepcopy(net.ema_teacher.network).eval(), copy.deepcopy(net.network)
    assert not torch.equal(teacher(x), copy.deepcopy(student).eval()(x))
    assert torch.equal(net.eval()(x), teacher(x))
    net.train()
    assert not any(m.training for m in net.ema_teacher.modules())
    assert net.network.training
    torch.manual_seed(3)
    answer = net(x)
    torch.manual_seed(3)
    assert torch.equal(answer, student.train()(x))


def test_validation_measures_the_teacher_and_leaves_the_modes():
    net, data = Net(deep(), ema_teacher_decay=0.8), batches(4)
    trainer = fit(net, data, val_data=data[:1])
    x, ids = data[0]
    expected = F.cross_entropy(copy.deepcopy(net.ema_teacher.network).eval()(x), ids).item()
    assert trainer.callback_metrics["val/loss"].item() == pytest.approx(expected)


def test_evaluation_and_labels_can_stay_with_the_student():
    net, x = trained(ema_teacher_evaluates=False, ema_teacher_labels=False), batches(1)[0][0]
    student = copy.deepcopy(net.network).eval()
    assert torch.equal(net.eval()(x), student(x))
    assert torch.equal(net.pseudo_logits(x), student(x))
    assert not net.pseudo_logits(x).requires_grad


def test_pseudo_labels_come_from_the_teacher_without_gradient_or_dropout():
    net, x = trained().train(), batches(1)[0][0]
    before = copy.deepcopy(net.state_dict())
    logits = net.pseudo_logits(x.clone().requires_grad_())
    assert torch.equal(logits, copy.deepcopy(net.ema_teacher.network).eval()(x))
    assert not logits.requires_grad
    assert_same(net.state_dict(), before)


@pytest.mark.parametrize("warmup", [True, False])
def test_decay_zero_is_the_student(warmup):
    net = Net(deep(), ema_teacher_decay=0.0, ema_teacher_warmup=warmup)
    fit(net, batches(3))
    assert_same(net.ema_teacher.network.state_dict(), net.network.state_dict())


def test_decay_one_is_the_first_student():
    net, trace = Net(smooth(), ema_teacher_decay=1.0, ema_teacher_warmup=False), Trace()
    fit(net, batches(3), callbacks=[trace])
    assert_same(net.ema_teacher.network.state_dict(), trace.states[0])


def test_off_has_no_teacher():
    net = Net(deep(), ema_teacher_decay=None)
    fit(net, batches(2))
    assert not any("ema" in name for name in net.state_dict())


def test_the_student_learns_as_without_a_teacher_bitwise():
    network, data = deep(), batches(4)
    nets = [Net(copy.deepcopy(network), ema_teacher_decay=0.8), Tiny(copy.deepcopy(network))]
    for net in nets:
        torch.manual_seed(5)
        fit(net, data)
    assert_same(nets[0].network.state_dict(), nets[1].network.state_dict())


def test_weights_loaded_before_fit_reach_the_teacher():
    net = Net(smooth(), ema_teacher_decay=1.0, ema_teacher_warmup=False)
    net.configure_model()
    loaded = smooth()
    net.network.load_state_dict(loaded.state_dict())
    fit(net, batches(1))
    assert_same(net.ema_teacher.network.state_dict(), loaded.state_dict())


def test_a_checkpoint_without_a_teacher(tmp_path):
    plain = Tiny(deep())
    fit(plain, batches(3)).save_checkpoint(tmp_path / "plain.ckpt")
    net = Net.load_from_checkpoint(tmp_path / "plain.ckpt", weights_only=True, network=deep(), ema_teacher_decay=0.8)
    assert_same(net.network.state_dict(), plain.network.state_dict())
    assert_same(net.ema_teacher.network.state_dict(), plain.network.state_dict())
    assert net.ema_teacher_updates.item() == 0


def test_a_run_without_a_teacher_goes_on_with_one(tmp_path):
    data = batches(3)
    fit(Tiny(smooth()), data).save_checkpoint(tmp_path / "plain.ckpt")
    net, trace = Net(smooth(), ema_teacher_decay=0.8), Trace()
    trainer = fit(net, data, max_epochs=3, ckpt_path=tmp_path / "plain.ckpt", callbacks=[Later(trace)])
    assert trainer.global_step == 9
    assert net.ema_teacher_updates.item() == 6
    assert_teacher(net, averaged(trace.states, 0.8))


class Later(pl.Callback):
    """A trace that begins with a resumed run."""

    def __init__(self, trace):
        self.trace = trace

    def on_train_start(self, trainer, pl_module):
        self.trace.note(pl_module)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.trace.note(pl_module)


def test_the_teacher_survives_saving_and_resuming(tmp_path):
    network, data = smooth(), batches(4)
    straight = Net(copy.deepcopy(network), ema_teacher_decay=0.8)
    fit(straight, data, max_epochs=2)
    first = fit(Net(copy.deepcopy(network), ema_teacher_decay=0.8), data)
    first.save_checkpoint(tmp_path / "half.ckpt")
    resumed = Net(smooth(), ema_teacher_decay=0.8)
    fit(resumed, data, max_epochs=2, ckpt_path=tmp_path / "half.ckpt")
    assert resumed.ema_teacher_updates.item() == 8
    assert_same(resumed.state_dict(), straight.state_dict())
    loaded = Net.load_from_checkpoint(
        tmp_path / "half.ckpt", weights_only=True, network=smooth(), ema_teacher_decay=0.8
    )
    assert_same(loaded.state_dict(), first.lightning_module.state_dict())


def test_a_second_fit_moves_the_teacher_once_a_step():
    net = Net(smooth(), ema_teacher_decay=0.8)
    fit(net, batches(3))
    fit(net, batches(3))
    assert net.ema_teacher_updates.item() == 6
    third = Net(smooth(), ema_teacher_decay=0.8)
    with pytest.raises(IndexError):
        fit(third, [*batches(2), (torch.zeros(1, 4), torch.tensor([7]))])
    fit(third, batches(3))
    assert third.ema_teacher_updates.item() == 5


class OneOptimizer(Tiny):
    """Uses the same optimizer in every fit."""

    optimizer = None

    def configure_optimizers(self):
        self.optimizer = self.optimizer or super().configure_optimizers()
        return self.optimizer


class OneOptimizerNet(EMATeacherMixin, OneOptimizer):
    pass


def test_an_optimizer_is_let_go_after_the_fit():
    net = OneOptimizerNet(smooth(), ema_teacher_decay=0.8)
    for _ in range(2):
        fit(net, batches(3))
    assert net.ema_teacher_updates.item() == 6
    net.optimizer.step()
    assert net.ema_teacher_updates.item() == 6


def test_tied_and_frozen_weights():
    class Tied(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)
            self.second.weight = self.first.weight
            self.head = nn.Linear(4, 3).requires_grad_(False)

        def forward(self, x):
            return self.head(self.second(self.first(x).tanh()))

    net, trace = Net(Tied(), ema_teacher_decay=0.8), Trace()
    fit(net, batches(4), callbacks=[trace])
    assert net.ema_teacher.network.second.weight is net.ema_teacher.network.first.weight
    assert_teacher(net, averaged(trace.states, 0.8))


class Exchanging(Tiny):
    """Exchanges a buffer for a new tensor at each step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.network.register_buffer("seen", torch.zeros(()))

    def training_step(self, batch, batch_idx):
        self.network.seen = self.network.seen + 1
        return super().training_step(batch, batch_idx)


class ExchangingNet(EMATeacherMixin, Exchanging):
    pass


def test_a_buffer_that_the_host_exchanges_is_followed():
    net, trace = ExchangingNet(smooth(), ema_teacher_decay=0.8), Trace()
    fit(net, batches(4), callbacks=[trace])
    assert_teacher(net, averaged(trace.states, 0.8))


def test_lightnings_warning_of_modules_in_evaluation_mode_does_not_come():
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fit(Net(deep(), ema_teacher_decay=0.8), batches(1))
    assert not [w for w in caught if "eval mode" in str(w.message)]


def test_parameters_of_the_module_stay_its_own():
    net = trained()
    copied = copy.deepcopy(net)
    fit(copied, batches(2))
    assert copied.ema_teacher_updates.item() == 7
    assert net.ema_teacher_updates.item() == 5
    assert len(parameters(net)) == 6


@pytest.mark.parametrize("decay", [-0.1, 1.5])
def test_a_decay_out_of_range(decay):
    with pytest.raises(InvalidValueError) as caught:
        Net(ema_teacher_decay=decay)
    assert str(caught.value) == f"ema_teacher_decay is {decay}; it must be a number in [0, 1]."


def test_an_unknown_policy():
    with pytest.raises(InvalidValueError) as caught:
        Net(ema_teacher_buffers="own")
    assert str(caught.value) == "ema_teacher_buffers is 'own'; it must be 'average' or 'copy'."
