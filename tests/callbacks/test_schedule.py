"""Schedule in real runs: the values that each optimizer step has, under every limit, precision and resume."""

from __future__ import annotations

import csv
import dataclasses
import math
import re
from pathlib import Path

import lightning.pytorch as pl
import pytest
import torch
import yaml
from lightning.pytorch.callbacks import GradientAccumulationScheduler, LearningRateMonitor, Timer
from lightning.pytorch.loggers import CSVLogger
from lightning.pytorch.utilities.exceptions import MisconfigurationException
from torch import nn

from lightning_tuning import (
    AdversarialMixin,
    DropoutMixin,
    EMATeacherMixin,
    ImageClassifier,
    LRRangeTest,
    MixupMixin,
    SAMMixin,
    Schedule,
    StochasticDepthMixin,
    compose,
)
from lightning_tuning.callbacks.schedule import preview
from lightning_tuning.errors import CompositionError, InvalidValueError
from lightning_tuning.timing.shape_text import _number_or_text
from lightning_tuning.timing.shapes import SHAPES
from tests.contract.nets import Host, assert_equal_state, loaders, trainer
from tests.contract.settings import Setting

LR, STEPS = 0.05, 4
"""The host's learning rate, and the batches of 8 in an epoch of 32 samples."""


class Seen(pl.Callback):
    """A value of the first group, or of the module, in each optimizer step."""

    def __init__(self, read=lambda trainer, module, group: group["lr"]):
        self.read, self.values = read, []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.values.append(self.read(trainer, pl_module, optimizer.param_groups[0]))


def attribute(name):
    return Seen(lambda trainer, module, group: getattr(module, name))


def key(name, group=0):
    return Seen(lambda trainer, module, _: trainer.optimizers[0].param_groups[group][name])


def fit(tmp_path, *callbacks, net=None, seen=None, ckpt_path=None, size=8, **kwargs):
    seen = seen or Seen()
    torch.manual_seed(0)
    made = trainer(tmp_path, callbacks=[*callbacks, seen], **kwargs)
    made.fit(net or Host(plain=True), loaders(Setting({}), size), ckpt_path=ckpt_path)
    return seen.values, made


def cosine(total):
    return [LR * ((1 + math.cos(math.pi * (step / total))) / 2) for step in range(total)]


@pytest.mark.parametrize(
    ("settings", "total"),
    [
        ({"max_epochs": 3}, 12),
        ({"max_steps": 5}, 5),
        ({"max_epochs": 2, "max_steps": 100}, 8),
        ({"max_epochs": 2, "accumulate_grad_batches": 3}, 4),
        ({"max_epochs": 3, "limit_train_batches": 3, "accumulate_grad_batches": 2}, 6),
    ],
)
def test_it_ends_with_the_run(settings, total, tmp_path):
    seen, made = fit(tmp_path, Schedule(), **settings)
    assert made.global_step == total
    assert seen == cosine(total)


def test_it_knows_a_gradient_accumulation_scheduler(tmp_path):
    schedule = Schedule(shape="multi_step(1ep, 2ep, gamma=0.5)")
    seen, _ = fit(tmp_path, GradientAccumulationScheduler({0: 4, 1: 2}), schedule, max_epochs=3)
    assert seen == pytest.approx([LR] + [LR / 2] * 2 + [LR / 4] * 2)
    seen, _ = fit(tmp_path, GradientAccumulationScheduler({0: 4, 1: 2}), Schedule(), max_epochs=3)
    assert seen == pytest.approx(cosine(5))


def test_samples_are_those_of_the_batches(tmp_path):
    seen, _ = fit(tmp_path, Schedule(shape="multi_step(24smp, gamma=0.5)"), max_epochs=2)
    assert seen == pytest.approx([LR] * 3 + [LR / 2] * 5)


def test_a_share_of_the_run_that_is_a_whole_number_of_steps_is_that(tmp_path):
    seen, _ = fit(tmp_path, Schedule(shape="multi_step(28%, gamma=0.5)"), max_steps=25, max_epochs=7)
    assert 0.28 * 25 > 7
    assert seen == pytest.approx([LR] * 7 + [LR / 2] * 18)


def test_a_run_without_a_length_is_refused_unless_the_shape_needs_none(tmp_path):
    with pytest.raises(MisconfigurationException, match=r"set trainer\.max_steps"):
        fit(tmp_path, Schedule(), max_epochs=-1)

    class Stop(pl.Callback):
        def on_train_batch_end(self, trainer, *args):
            trainer.should_stop = trainer.global_step == 3

    seen, _ = fit(tmp_path, Schedule(shape="inverse_sqrt", warmup="1st"), Stop(), max_epochs=-1)
    assert seen == pytest.approx([LR, LR, LR / 2**0.5])


# Time.


class Clock(pl.Callback):
    """A second for each batch, and a whole minute for the sanity of nobody."""

    def __init__(self, monkeypatch):
        self.now = 100.0
        monkeypatch.setattr("lightning.pytorch.callbacks.timer.time.monotonic", lambda: self.now)

    def on_train_batch_end(self, *args):
        self.now += 1.0


def test_max_time_ends_it_when_the_steps_do_not(tmp_path, monkeypatch):
    """10 seconds of a second each: the share of the time, in a run of 100 epochs."""
    seen, made = fit(tmp_path, Clock(monkeypatch), Schedule(shape="linear"), max_epochs=100, max_time={"seconds": 10})
    assert made.global_step == 10
    assert seen == pytest.approx([LR * (1 - step / 10) for step in range(10)])
    seen, _ = fit(tmp_path, Clock(monkeypatch), Schedule(shape="linear"), max_epochs=1, max_time={"seconds": 10})
    assert seen == pytest.approx([LR * (1 - step / 4) for step in range(4)])


def test_time_alone_is_a_length(tmp_path, monkeypatch):
    schedule = Schedule(shape="wsd(decay=50%)", warmup="2st")
    seen, _ = fit(tmp_path, Clock(monkeypatch), schedule, max_epochs=-1, max_time={"seconds": 8})
    assert seen == pytest.approx([LR * f for f in (0.5, 1, 1, 1, 1, 3 / 4, 2 / 4, 1 / 4)])


def test_the_time_of_a_resumed_run_goes_on(tmp_path, monkeypatch):
    _, made = fit(tmp_path, Clock(monkeypatch), Schedule(shape="linear"), max_epochs=1, max_time={"seconds": 10})
    made.save_checkpoint(tmp_path / "a.ckpt")
    more = {"max_epochs": 100, "max_time": {"seconds": 10}, "ckpt_path": tmp_path / "a.ckpt"}
    seen, _ = fit(tmp_path, Clock(monkeypatch), Schedule(shape="linear"), **more)
    assert seen == pytest.approx([LR * (1 - step / 10) for step in range(4, 10)])


def test_ranks_agree_on_the_time(tmp_path):
    class Late(Timer):
        """Another clock on each rank, which goes by batches."""

        batches = 0

        def time_elapsed(self, stage="train"):
            return self.batches * (1.0 + torch.distributed.get_rank())

        def on_train_batch_end(self, *args):
            self.batches += 1
            super().on_train_batch_end(*args)

    class Latest(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            rate = trainer.optimizers[0].param_groups[0]["lr"]
            assert rate == pytest.approx(
                LR * max(1 - (batch_idx + 1) / 3, 0), abs=1e-9
            )  # of the rank whose clock is ahead

    settings = {"strategy": "ddp_fork", "devices": 2, "max_epochs": 1, "size": 4}
    fit(tmp_path, Late(duration={"seconds": 6}), Schedule(shape="linear"), Latest(), **settings)


# Steps that the scaler skips.


class Infinite(pl.Callback):
    """Makes the gradient of one optimizer step infinite."""

    def __init__(self, step):
        self.step = step

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.step:
            next(pl_module.parameters()).grad.view(-1)[0] = float("inf")


def test_a_skipped_step_moves_nothing_and_the_end_is_reached(tmp_path):
    seen, made = fit(tmp_path, Schedule(shape="linear", warmup="1ep"), Infinite(5), precision="16-mixed", max_epochs=3)
    assert made.global_step == 12
    # The warm-up has 4 steps. The sixth is skipped, and the one after it has its value, but the way is one shorter.
    assert seen[:6] == pytest.approx([LR * f for f in (0.25, 0.5, 0.75, 1.0, 1.0, 7 / 8)])
    assert seen[6:] == pytest.approx([LR * (1 - k / 7) for k in range(1, 7)])


def test_a_step_skipped_in_the_warmup_is_made_again(tmp_path):
    """An epoch's end stays where it is: the epoch has one step less that counts."""
    seen, _ = fit(tmp_path, Schedule(shape="constant", warmup="4st"), Infinite(1), precision="16-mixed", max_epochs=2)
    assert seen == pytest.approx([LR * f for f in (0.25, 0.5, 0.5, 0.75, 1.0, 1.0, 1.0, 1.0)])
    schedule = Schedule(shape="multi_step(1ep, gamma=0.5)")
    seen, _ = fit(tmp_path, schedule, Infinite(1), precision="16-mixed", max_epochs=2)
    assert seen == pytest.approx([LR] * 4 + [LR / 2] * 4)


# Targets.


class Grouped(Host):
    def configure_optimizers(self):
        groups = [
            {"params": list(self.net[:3].parameters()), "name": "stem", "weight_decay": 0.0},
            {"params": list(self.net[3:].parameters()), "name": "rest", "lr": 0.02},
        ]
        return torch.optim.AdamW(groups, lr=LR, weight_decay=0.1)


def test_groups_keep_their_ratio(tmp_path):
    seen, made = fit(tmp_path, Schedule(shape="linear"), net=Grouped(plain=True), seen=key("lr", 1), max_epochs=1)
    assert seen == pytest.approx([0.02, 0.015, 0.01, 0.005])
    assert made.optimizers[0].param_groups[0]["lr"] == 0.0


@pytest.mark.parametrize("name", ["rest.lr", "1.lr"])
def test_one_group_by_name_or_number(name, tmp_path):
    seen, made = fit(tmp_path, Schedule(name, "linear"), net=Grouped(plain=True), seen=key("lr", 1), max_epochs=1)
    assert seen == pytest.approx([0.02, 0.015, 0.01, 0.005])
    assert made.optimizers[0].param_groups[0]["lr"] == LR


def test_two_groups_have_schedules_of_their_own(tmp_path):
    schedules = [Schedule("stem.lr", "constant", warmup="4st"), Schedule("rest.lr", "linear", value=0.4)]
    seen, made = fit(tmp_path, *schedules, net=Grouped(plain=True), seen=key("lr", 1), max_epochs=1)
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1])
    assert made.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR)


def test_weight_decay_rises_where_there_is_one(tmp_path):
    for value, full in [(None, 0.1), (0.2, 0.2)]:
        schedule = Schedule("weight_decay", "cosine(end=0.3)", value=value)
        seen, made = fit(tmp_path, schedule, net=Grouped(plain=True), seen=key("weight_decay", 1), max_epochs=1)
        heights = [(1 + math.cos(math.pi * step / 4)) / 2 for step in range(4)]
        assert seen == pytest.approx([0.3 + (full - 0.3) * height for height in heights])
        assert made.optimizers[0].param_groups[0]["weight_decay"] == 0.0


def test_momentum_of_sgd_and_the_first_beta_of_adam(tmp_path):
    schedule = Schedule("momentum", "one_cycle(rise=50%, start=0.95, end=0.95)", value=0.85)
    expected = preview(schedule, 4)["momentum"]
    assert fit(tmp_path, schedule, seen=key("momentum"), max_epochs=1)[0] == expected
    seen, _ = fit(tmp_path, schedule, net=Grouped(plain=True), seen=key("betas"), max_epochs=1)
    assert seen == [(value, 0.999) for value in expected]
    assert expected[0] == 0.95
    assert expected[1] == 0.85


class ByHand(pl.Callback):
    """Assigns a value before each batch."""

    def __init__(self, name, values):
        self.name, self.values = name, values

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        setattr(pl_module, self.name, self.values[trainer.global_step])


TECHNIQUES = {
    "sam_rho": (SAMMixin, 0.2),
    "mixup_alpha": (MixupMixin, 1.0),
    "ema_teacher_decay": (EMATeacherMixin, 0.9),
    "dropout_rate": (DropoutMixin, 0.5),
    "stochastic_depth_rate": (StochasticDepthMixin, 0.5),
    "adversarial_epsilon": (AdversarialMixin, 0.3),
}


@pytest.mark.parametrize("name", TECHNIQUES)
@pytest.mark.parametrize("shape", ["linear(end=10%)", "multi_step(3st, gamma=0)"])
def test_a_scheduled_technique_is_the_one_set_by_hand(name, shape, tmp_path):
    mixin, value = TECHNIQUES[name]
    extra = {"ema_teacher_warmup": False} if mixin is EMATeacherMixin else {}
    nets = []
    for way in ("scheduled", "by hand", "constant"):
        torch.manual_seed(0)
        net = compose(Host, mixin)(**{name: value, **extra})
        schedule = Schedule(name, shape, warmup="2st")
        by_hand = ByHand(name, preview(schedule, 8, {name: value})[name])
        callbacks = {"scheduled": [schedule], "by hand": [by_hand], "constant": []}
        fit(tmp_path, *callbacks[way], net=net, max_epochs=2)
        nets.append(dict(net.state_dict()))
    assert_equal_state(nets[0], nets[1])
    assert any(not torch.equal(a, nets[2][k]) for k, a in nets[0].items())


def test_a_number_of_the_users_own_module(tmp_path):
    class Weighted(Host):
        beta = 2.0

        def training_step(self, batch, batch_idx):
            return self.beta * super().training_step(batch, batch_idx)

    net = Weighted(plain=True)
    seen, _ = fit(tmp_path, Schedule("beta", "linear"), net=net, seen=attribute("beta"), max_epochs=1)
    assert seen == pytest.approx([2.0, 1.5, 1.0, 0.5])
    assert net.beta == 2.0


class Silent(Host):
    def save_hyperparameters(self, *args, **kwargs):
        """A host that saves none: the mixins save their own."""


@pytest.mark.parametrize("host", [Host, Silent])
def test_configured_values_come_back_and_are_those_of_the_checkpoint(host, tmp_path):
    net = compose(host, SAMMixin)(sam_rho=0.2)

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            assert pl_module.sam_rho < 0.2  # in the end 0: off
            assert pl_module.tuning_settings()["sam_rho"] == 0.2
            trainer.save_checkpoint(tmp_path / "within.ckpt")

    fit(tmp_path, Schedule("sam_rho"), Save(), net=net, max_epochs=1)
    assert net.sam_rho == 0.2
    assert "_configured" not in vars(net) or not vars(net)["_configured"]
    hyperparameters = torch.load(tmp_path / "within.ckpt", weights_only=True)["hyper_parameters"]
    assert hyperparameters["sam_rho"] == 0.2

    class Fail(pl.Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            if batch_idx == 2:
                raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fit(tmp_path, Schedule("sam_rho"), Fail(), net=net, max_epochs=1)
    assert net.sam_rho == 0.2


def test_a_ready_host_is_scheduled(tmp_path):
    net = ImageClassifier("mlp", num_classes=3, in_channels=2, image_size=5, mixup_alpha=0.4)
    seen, _ = fit(tmp_path, Schedule("mixup_alpha", "linear"), net=net, seen=attribute("mixup_alpha"), max_epochs=1)
    assert seen == pytest.approx([0.4, 0.3, 0.2, 0.1])


# Accumulation.


class Windows(pl.Callback):
    """How many batches each optimizer step took."""

    def __init__(self):
        self.sizes, self.batches, self.steps = [], 0, None

    def on_train_batch_start(self, trainer, *args):
        self.steps = trainer.global_step if self.steps is None else self.steps

    def on_train_batch_end(self, trainer, *args):
        self.batches += 1
        if trainer.global_step > self.steps:
            self.sizes.append(self.batches)
            self.batches, self.steps = 0, trainer.global_step


def test_the_accumulation_rises_between_epochs_and_others_know(tmp_path):
    windows, lr = Windows(), Schedule()
    growing = Schedule("accumulation", "multi_step(1ep, 2ep, gamma=2)", value=1)
    seen, made = fit(tmp_path, lr, growing, windows, max_epochs=4, accumulate_grad_batches=3)
    assert windows.sizes == [1, 1, 1, 1, 2, 2, 4, 4]
    assert seen == pytest.approx(cosine(8))
    assert made.accumulate_grad_batches == 3


def test_the_accumulation_of_a_share_of_the_run(tmp_path):
    windows = Windows()
    fit(tmp_path, Schedule("accumulation", "constant", warmup="50%"), windows, max_epochs=4, accumulate_grad_batches=4)
    assert windows.sizes == [2, 2, 4, 4, 4]


# Layers and batches.


def scales(made):
    return [(group["lr"], sum(p.numel() for p in group["params"])) for group in made.optimizers[0].param_groups]


def test_layer_decay_of_the_tiny_host(tmp_path):
    net = Host(plain=True)
    sizes = [sum(p.numel() for p in part.parameters()) for part in (net.net[:2], net.net[3], net.net[6])]
    _, made = fit(tmp_path, Schedule(shape="constant", layer_decay=0.5), net=net, max_epochs=1)
    assert scales(made) == [(LR / 4, sizes[0]), (LR / 2, sizes[1]), (LR, sizes[2])]


def test_layer_decay_keeps_groups_and_their_names(tmp_path):
    schedules = [
        Schedule(shape="linear(end=0.01)", layer_decay=0.5),
        Schedule("rest.weight_decay", "linear(end=50%)"),
        Schedule("1.momentum", "linear"),
    ]
    seen, made = fit(
        tmp_path, *schedules, net=Grouped(plain=True), seen=Seen(lambda t, m, g: t.optimizers[0].param_groups[1]["lr"])
    )
    groups = made.optimizers[0].param_groups
    assert [group["name"] for group in groups] == ["stem_layer0", "rest_layer1", "rest_layer2"]
    # The end is scaled as the start is.
    assert seen == pytest.approx([0.5 * (0.02 + (0.01 - 0.02) * step / 8) for step in range(8)])
    assert [group["weight_decay"] for group in groups] == pytest.approx([0.0, 0.05, 0.05])
    assert [group["betas"][0] for group in groups] == pytest.approx([0.9, 0.0, 0.0], abs=1e-15)


class Transformer(nn.Module):
    def __init__(self):
        super().__init__()
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.embed = nn.Linear(4, 8)
        layer = nn.TransformerEncoderLayer(8, 2, 16)
        self.encoder = nn.TransformerEncoder(layer, 3)
        self.norm = nn.LayerNorm(8)
        self.head = nn.Linear(8, 3)


class Bottleneck(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3)
        self.down = nn.Sequential(nn.Conv2d(2, 2, 1), nn.BatchNorm2d(2))


class ResNet(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv, self.norm = nn.Conv2d(2, 2, 3), nn.BatchNorm2d(2)
        self.layer1 = nn.Sequential(Bottleneck(), Bottleneck())
        self.layer2 = nn.Sequential(Bottleneck(), Bottleneck())
        self.fc = nn.Linear(2, 3)


@pytest.mark.parametrize("make", [Transformer, ResNet])
def test_the_layers_of_usual_networks(make):
    from lightning_tuning.callbacks._layer_rates import layers_of

    class Module(pl.LightningModule):
        def __init__(self):
            super().__init__()
            self.network, self.extra = make(), nn.Linear(8, 2)

    module = Module()
    names = {id(p): name for name, p in module.named_parameters()}
    layers = [[names[id(p)] for p in layer] for layer in layers_of(module.network, set(names))]
    if make is Transformer:
        assert layers[0] == ["network.token", "network.embed.weight", "network.embed.bias"]
        assert [layer[0] for layer in layers[1:4]] == [
            f"network.encoder.layers.{i}.self_attn.in_proj_weight" for i in range(3)
        ]
        assert "network.norm.weight" in layers[3]
        assert layers[4:] == [["network.head.weight", "network.head.bias"]]
    else:
        assert layers[0] == [f"network.{m}.{p}" for m in ("conv", "norm") for p in ("weight", "bias")]
        assert [len(layer) for layer in layers] == [4, 6, 6, 6, 6, 2]
    whole = layers_of(module, set(names))
    assert len(whole) == len(layers) + 1
    assert sum(map(len, whole)) == len(names)
    frozen = {id(p) for p in module.network.head.parameters()} if make is Transformer else set(names)
    assert layers_of(module, frozen)[0]


@pytest.mark.parametrize(("rule", "factor"), [("linear", 16 / 64), ("sqrt", 0.5)])
def test_the_rate_is_scaled_with_the_global_batch(rule, factor, tmp_path):
    schedule = Schedule(shape="constant", reference_batch=64, batch_rule=rule)
    seen, made = fit(tmp_path, schedule, max_epochs=1, accumulate_grad_batches=2)
    assert seen == pytest.approx([LR * factor] * 2)
    made.save_checkpoint(tmp_path / "a.ckpt")
    again = Schedule(shape="constant", reference_batch=64, batch_rule=rule)
    seen, _ = fit(tmp_path, again, max_epochs=2, accumulate_grad_batches=2, ckpt_path=tmp_path / "a.ckpt")
    assert seen == pytest.approx([LR * factor] * 2)
    wider = Schedule(shape="constant", reference_batch=64, batch_rule=rule)
    seen, _ = fit(tmp_path, wider, max_epochs=2, accumulate_grad_batches=2, size=16, ckpt_path=tmp_path / "a.ckpt")
    assert seen == pytest.approx([LR * (2 * factor if rule == "linear" else factor * 2**0.5)])


def test_the_devices_count(tmp_path):
    class Check(pl.Callback):
        def on_train_batch_start(self, trainer, *args):
            assert trainer.optimizers[0].param_groups[0]["lr"] == pytest.approx(LR * 2 * 4 / 16)

    ranks = {"strategy": "ddp_fork", "devices": 2}
    fit(tmp_path, Schedule(shape="constant", reference_batch=16), Check(), size=4, max_epochs=1, **ranks)


@pytest.mark.parametrize("value", [None, 0.02])
@pytest.mark.parametrize("first", [True, False])
def test_the_rate_that_a_range_test_finds_is_the_full_one(first, value, tmp_path):
    search = LRRangeTest(steps=10, apply=True, rule="minimum")
    schedule = Schedule(shape="linear", warmup="2st", value=value)
    seen, made = fit(tmp_path, *([search, schedule] if first else [schedule, search]), max_epochs=1)
    full = search.suggestions["minimum"]
    assert full is not None
    assert full != LR
    assert seen == pytest.approx([full * f for f in (0.5, 1.0, 1.0, 0.5)])
    made.save_checkpoint(tmp_path / "a.ckpt")
    more = {"max_epochs": 2, "ckpt_path": tmp_path / "a.ckpt"}
    seen, _ = fit(tmp_path, search, Schedule(shape="linear", warmup="2st", value=value), **more)
    assert seen == pytest.approx([full * (1 - step / 6) for step in range(2, 6)])


# Resume.


def test_a_value_that_is_changed_when_resuming_counts(tmp_path):
    _, made = fit(tmp_path, Schedule(shape="linear", value=0.1), max_epochs=1)
    made.save_checkpoint(tmp_path / "a.ckpt")
    for value, full in [(0.1, 0.1), (0.2, 0.2)]:
        more = {"max_epochs": 2, "ckpt_path": tmp_path / "a.ckpt"}
        seen, _ = fit(tmp_path, Schedule(shape="linear", value=value), **more)
        assert seen == pytest.approx([full * (1 - step / 8) for step in range(4, 8)])


def test_a_run_without_it_goes_on_with_it(tmp_path):
    _, made = fit(tmp_path, max_epochs=1)
    made.save_checkpoint(tmp_path / "a.ckpt")
    seen, _ = fit(tmp_path, Schedule(shape="linear"), max_epochs=2, ckpt_path=tmp_path / "a.ckpt")
    assert seen == pytest.approx([LR * (1 - step / 8) for step in range(4, 8)])


def test_a_checkpoint_within_an_accumulation_window(tmp_path):
    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.current_epoch == 1 and batch_idx == 2:
                trainer.save_checkpoint(tmp_path / "within.ckpt")

    settings = {"max_epochs": 3, "accumulate_grad_batches": 2}
    seen, _ = fit(tmp_path, Schedule(warmup="1ep"), Save(), **settings)
    again, _ = fit(tmp_path, Schedule(warmup="1ep"), ckpt_path=tmp_path / "within.ckpt", **settings)
    assert again == seen[3:]


@pytest.mark.parametrize("skipped", [1, 5])
def test_a_skip_before_the_checkpoint_is_remembered(skipped, tmp_path):
    """Early, in the warm-up of one epoch, or right before."""

    class Save(pl.Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            if trainer.global_step == 6:
                trainer.save_checkpoint(tmp_path / "skipped.ckpt")

    settings = {"precision": "16-mixed", "max_epochs": 3}
    seen, _ = fit(tmp_path, Schedule(warmup="1ep"), Infinite(skipped), Save(), **settings)
    again, _ = fit(tmp_path, Schedule(warmup="1ep"), ckpt_path=tmp_path / "skipped.ckpt", **settings)
    assert again == seen[6:]


def test_a_second_fit_of_the_same_trainer_goes_on(tmp_path):
    schedule, net = Schedule(shape="linear", until="8st"), Host(plain=True)
    seen, made = fit(tmp_path, schedule, net=net, max_epochs=1)
    made.fit_loop.max_epochs = 2
    made.fit(net, loaders(Setting({}), 8))
    assert seen == pytest.approx([LR * (1 - step / 8) for step in range(8)])
    assert fit(tmp_path, schedule, net=net, max_epochs=1)[0] == pytest.approx(seen[:4])


# Logging and preview.


def rows(made, name):
    made.logger.save()
    with open(made.logger.experiment.metrics_file_path) as file:
        return {int(row["step"]): float(row[name]) for row in csv.DictReader(file) if row.get(name)}


@pytest.mark.parametrize("first", [True, False])
def test_what_is_logged_is_what_the_step_had(first, tmp_path):
    monitor, others = LearningRateMonitor(), [Schedule(), Schedule("weight_decay", "linear")]
    callbacks = [monitor, *others] if first else [*others, monitor]
    logger = {"logger": CSVLogger(tmp_path), "log_every_n_steps": 2, "accumulate_grad_batches": 2, "max_epochs": 3}
    seen, made = fit(tmp_path, *callbacks, seen=key("weight_decay"), **logger)
    assert rows(made, "schedule/weight_decay") == pytest.approx({step: seen[step] for step in (1, 3, 5)})
    rates = rows(made, "lr-SGD")
    assert {1, 3, 5} <= rates.keys()
    assert rates == pytest.approx({step: cosine(6)[step] for step in rates})


def test_the_preview_is_what_a_run_does(tmp_path):
    schedules = [Schedule(warmup="1ep"), Schedule("weight_decay", "polynomial(3, end=2%)")]
    values = preview([*schedules, pl.Callback()], 8, {"lr": LR, "weight_decay": 1e-3}, steps_per_epoch=4)
    assert values.keys() == {"lr", "weight_decay"}
    assert fit(tmp_path, *schedules)[0] == values["lr"]
    assert fit(tmp_path, *schedules, seen=key("weight_decay"))[0] == values["weight_decay"]


def test_the_cards_examples_are_schedules():
    card = (Path(__file__).parents[2] / "docs" / "techniques" / "schedule.md").read_text()
    blocks = [yaml.safe_load(block) for block in re.findall(r"```yaml\n(.*?)```", card, re.DOTALL)]
    schedules = [Schedule(**c["init_args"]) for block in blocks for c in block["trainer"]["callbacks"]]
    assert len(schedules) > 10
    for schedule in schedules:
        values = preview(schedule, 200, steps_per_epoch=2)[schedule.target]
        assert all(math.isfinite(value) and value >= 0 for value in values)
    table = card.split("### Shapes")[1].split("### Targets")[0]
    rows = dict(re.findall(r"^\| `(\w+)` \| (.*?) ?\| ", table, re.MULTILINE))
    assert rows.keys() == SHAPES.keys()
    for name, shape in SHAPES.items():
        told = dict(re.findall(r"`(\w+)=?([^`]*)`", rows[name]))
        fields = {field.name: field.default for field in dataclasses.fields(shape) if field.name != "at"}
        assert told.keys() == fields.keys(), name
        assert all(not value or fields[key] in (value, _number_or_text(value)) for key, value in told.items())


# Refusals.


class Scheduled(Host):
    def configure_optimizers(self):
        optimizer = super().configure_optimizers()
        return [optimizer], [torch.optim.lr_scheduler.StepLR(optimizer, 1)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target": ""}, "target is ''"),
        ({"value": 0}, "value is 0"),
        ({"layer_decay": 0}, "layer_decay is 0"),
        ({"layer_decay": 1.5}, r"layer_decay is 1\.5"),
        ({"reference_batch": 0}, "reference_batch is 0"),
        ({"batch_rule": "cubic"}, "batch_rule is 'cubic'"),
        ({"target": "momentum", "layer_decay": 0.5}, "it is for learning rates, and target is 'momentum'"),
        ({"target": "weight_decay", "reference_batch": 256}, "it is for learning rates"),
        ({"target": "accumulation", "warmup": "5st"}, "accumulation changes between epochs"),
        ({"target": "accumulation", "value": 0.5}, "value is 0.5; an optimizer step takes at least 1 batch"),
        ({"target": "accumulation", "shape": "plateau"}, "accumulation changes between epochs"),
    ],
)
def test_arguments_that_are_refused(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Schedule(**arguments)


SHARP = {"sam_rho": 0.1, "freematch_weight": 0.0}


@pytest.mark.parametrize(
    ("callbacks", "net", "error", "message"),
    [
        ([Schedule("lr"), Schedule("0.lr")], Host, CompositionError, r"Two schedules set 0\.lr: 'lr' sets it too"),
        ([Schedule("lr"), Schedule("lr")], Host, RuntimeError, "more than one stateful callback of type `Schedule`"),
        ([Schedule("head.lr")], Host, InvalidValueError, r"no group 'head'\. It has: 0\."),
        ([Schedule("resst.lr")], Grouped, InvalidValueError, r"did you mean 'rest'\? It has: 0, stem, 1, rest\."),
        ([Schedule("lr")], Scheduled, CompositionError, "Schedule sets lr, and so does the StepLR that Scheduled.conf"),
        ([Schedule("sam_roh")], Host, InvalidValueError, "target is 'sam_roh'.* It must be lr, weight_decay"),
        (
            [Schedule("accumulation"), GradientAccumulationScheduler({1: 2})],
            Host,
            CompositionError,
            "and so does GradientAccumulationScheduler",
        ),
        ([Schedule("momentum", "cosine(end=1.5)")], Host, InvalidValueError, r"momentum is 1\..*\[0, 1\)"),
    ],
)
def test_targets_that_are_refused(callbacks, net, error, message, tmp_path):
    with pytest.raises(error, match=message):
        fit(tmp_path, *callbacks, net=net(plain=True), max_epochs=1)


@pytest.mark.parametrize(
    ("mixin", "settings", "schedule", "message"),
    [
        (SAMMixin, {"sam_rho": 0.0}, Schedule("sam_rho"), "SAMMixin is off. Set sam_rho to the full value"),
        (SAMMixin, {}, Schedule("sam_roh"), r"did you mean 'sam_rho'\?"),
        (SAMMixin, {}, Schedule("sam_interval"), "it is 1: only floating numbers"),
        (EMATeacherMixin, {}, Schedule("ema_teacher_half_life"), "ema_teacher_half_life is None. Give it a number"),
        (
            EMATeacherMixin,
            {"ema_teacher_decay": 0.9},
            Schedule("ema_teacher_decay", "cosine(end=1.5)"),
            r"ema_teacher_decay is 1\..*; it must be a number in \[0, 1\]",
        ),
    ],
)
def test_arguments_of_techniques_that_are_refused(mixin, settings, schedule, message, tmp_path):
    with pytest.raises(InvalidValueError, match=message):
        fit(tmp_path, schedule, net=compose(Host, mixin)(**settings), max_epochs=1)


def test_what_a_technique_reads_once_is_refused(tmp_path):
    from lightning_tuning import SpectralNormMixin

    net = compose(Host, SpectralNormMixin)(spectral_norm_bound=2.0)
    with pytest.raises(InvalidValueError, match="SpectralNormMixin reads it once only"):
        fit(tmp_path, Schedule("spectral_norm_bound"), net=net, max_epochs=1)


def test_other_momenta_and_manual_optimization_are_refused(tmp_path):
    class Cycled(Host):
        def configure_optimizers(self):
            optimizer = super().configure_optimizers()
            return [optimizer], [torch.optim.lr_scheduler.OneCycleLR(optimizer, 0.1, 10)]

    with pytest.raises(CompositionError, match="Schedule sets momentum, and so does the OneCycleLR"):
        fit(tmp_path, Schedule("momentum"), net=Cycled(plain=True), max_epochs=1)

    class Manual(Host):
        def __init__(self):
            super().__init__(plain=True)
            self.automatic_optimization = False

    with pytest.raises(MisconfigurationException, match="Schedule needs automatic optimization, but Manual"):
        fit(tmp_path, Schedule(), net=Manual(), max_epochs=1)


def test_points_behind_the_end_are_told(tmp_path):
    with pytest.warns(UserWarning, match="Schedule of lr: the run ends before the drop at 2ep and the drop at 9ep"):
        fit(tmp_path, Schedule(shape="multi_step(1ep, 2ep, 9ep)"), max_epochs=2)
    with pytest.warns(UserWarning, match="Schedule of accumulation: the run ends before the drop at 2ep"):
        fit(tmp_path, Schedule("accumulation", "multi_step(1ep, 2ep, gamma=2)", value=1), max_epochs=2)
