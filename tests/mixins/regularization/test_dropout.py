from __future__ import annotations

import copy
import pickle
from math import exp

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import DropoutMixin, EMATeacherMixin, ExactResume, ImageClassifier, SAMMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import FEATURES, NUM_CLASSES, Tiny, assert_same, batches, convolution, deep, fit, smooth
from tests.numerics import array


class Net(DropoutMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, DropoutMixin, Tiny):
    pass


class SteepNet(SAMMixin, DropoutMixin, Tiny):
    pass


class Kinds(nn.Module):
    """Everything with a rate that can be set."""

    def __init__(self):
        super().__init__()
        self.plain = nn.ModuleList([nn.Dropout(0.3), nn.Dropout1d(0.3), nn.Dropout2d(0.3), nn.Dropout3d(0.3)])
        self.alpha = nn.ModuleList([nn.AlphaDropout(0.3), nn.FeatureAlphaDropout(0.3)])
        self.attention = nn.MultiheadAttention(4, 2, dropout=0.3)
        self.recurrent = nn.ModuleList([nn.LSTM(4, 4, 2, dropout=0.3), nn.GRU(4, 4, 3, dropout=0.3)])
        self.encoder = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.3)
        self.single = nn.LSTM(4, 4)
        self.head = nn.Linear(4, 3)


def rates(module) -> dict[str, float]:
    found = {name: m.p for name, m in module.named_modules() if isinstance(m, nn.modules.dropout._DropoutNd)}
    return {
        **found,
        **{name: m.dropout for name, m in module.named_modules() if isinstance(vars(m).get("dropout"), float)},
    }


def test_it_sets_every_kind_of_dropout():
    net = Net(Kinds(), dropout_rate=0.15)
    found = rates(net.network)
    assert found.pop("single") == 0.0  # has no place for dropout: torch would warn of another rate
    assert set(found.values()) == {0.15}
    assert len(found) == 6 + 1 + 2 + 4


@pytest.mark.parametrize("rate", [0.0, 0.4])
def test_what_is_set_is_what_is_dropped(rate):
    net = Net(nn.Sequential(nn.Dropout(0.9), nn.LSTM(4, 4, 2, dropout=0.9)), dropout_rate=rate)
    torch.manual_seed(0)
    dropped = net.network[0](torch.ones(100_000))
    assert (dropped == 0).double().mean().item() == pytest.approx(rate, abs=4 * (rate / 1e5) ** 0.5)
    x = torch.randn(3, 2, 4)
    assert torch.equal(net.network[1](x)[0], net.network[1](x)[0]) == (rate == 0)


def test_the_ready_hosts_have_layers_to_set():
    for name, count in (("mlp", 2), ("cnn", 1), ("resnet18", 1), ("wrn_16_2", 1)):
        assert list(rates(ImageClassifier(network=name, dropout_rate=0.25)).values()) == [0.25] * count


def test_a_pattern_names_what_is_set():
    net = Net(nn.Sequential(nn.Dropout(0.3), nn.Linear(4, 4), nn.Sequential(nn.Dropout(0.3))), dropout_layers=r".*2\.0")
    assert rates(net.network) == {"0": 0.3, "2.0": 0.1}


def hooked(net) -> list[str]:
    return [name for name, m in net.named_modules() if m._forward_pre_hooks]


def test_it_goes_before_every_layer_but_the_first():
    network = nn.Sequential(nn.Conv2d(2, 4, 3), nn.Conv1d(4, 4, 1), nn.Flatten(), nn.Linear(36, 8), nn.Linear(8, 3))
    assert hooked(Net(network, dropout_inject=True)) == ["network.1", "network.3", "network.4"]
    named = Net(copy.deepcopy(smooth()), dropout_inject=True, dropout_layers=r"network\.0")
    assert hooked(named) == ["network.0"]


def test_a_layer_behind_dropout_gets_no_second_one():
    net = Net(deep(), dropout_inject=True)
    assert hooked(net) == []
    assert rates(net.network) == {"3": 0.1}
    encoder = Net(nn.TransformerEncoderLayer(4, 2, 8), dropout_inject=True, dropout_layers=".*")
    assert hooked(encoder) == ["network.linear1"]  # linear2 has one in front; attention never calls its projection


@pytest.mark.parametrize("shape", [(64, 40), (16, 8, 40), (8, 4, 8, 40)])
def test_the_inputs_are_dropped_one_by_one_and_keep_their_expectation(shape):
    first, second = nn.Linear(40, 40), nn.Linear(40, 40)
    net = Net(nn.Sequential(first, second), dropout_rate=0.3, dropout_inject=True)
    seen = []
    second.register_forward_pre_hook(lambda layer, args: seen.append(args[0].detach()))
    torch.manual_seed(0)
    x = torch.randn(shape)
    clean = array(first(x))
    for _ in range(30):
        net(x)
    for y in map(array, seen):
        kept = y != 0
        np.testing.assert_allclose(y[kept], clean[kept] / 0.7, rtol=1e-5)
    shares = np.stack([array(y) == 0 for y in seen])
    assert shares.mean() == pytest.approx(0.3, abs=4 * (0.21 / shares.size) ** 0.5)
    assert shares.mean(0).min() > 0  # no element is dropped never


def test_a_layer_that_is_called_by_keyword():
    class Keyword(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(4, 4), nn.Linear(4, 3)

        def forward(self, x):
            return self.b(input=self.a(input=x))

    net = Net(Keyword(), dropout_rate=0.9, dropout_inject=True)
    torch.manual_seed(0)
    x = torch.randn(8, 4)
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), net(x))


class Rates(pl.Callback):
    """The rate in each micro-batch, and in SAM's second pass."""

    def __init__(self):
        self.seen = []

    def on_before_backward(self, trainer, pl_module, loss):
        hook = next(iter(pl_module._dropout_inputs.hooks.values()))
        assert pl_module.network[3].p == hook.rate
        self.seen.append(hook.rate)


def two_layers() -> nn.Module:
    return nn.Sequential(
        nn.Linear(FEATURES, 8), nn.Linear(8, 8), nn.Tanh(), nn.Dropout(0.9), nn.Tanh(), nn.Linear(8, NUM_CLASSES)
    )


@pytest.mark.parametrize(
    ("schedule", "expected"),
    [
        ("constant", lambda p: 0.4),
        ("linear", lambda p: 0.4 * p),
        ("curriculum", lambda p: 0.4 * (1 - exp(-3 * p))),
        ("early", lambda p: 0.4 * max(0, 1 - p / 0.5)),
    ],
)
def test_rates_over_the_run(schedule, expected):
    seen = Rates()
    net = Net(
        two_layers(),
        dropout_rate=0.4,
        dropout_inject=True,
        dropout_schedule=schedule,
        dropout_gamma=3.0,
        dropout_early_share=0.5,
    )
    trainer = fit(net, batches(6), max_epochs=2, accumulate_grad_batches=2, callbacks=[seen])
    assert seen.seen == pytest.approx([expected(step / 6) for step in range(6) for _ in range(2)])
    if schedule != "constant":
        mean = np.mean([expected(step / 6) for step in range(3, 6)])
        assert trainer.callback_metrics["train/dropout_epoch"].item() == pytest.approx(mean, rel=1e-6)


def test_sams_second_pass_has_the_rate_of_the_first():
    seen = Rates()
    net = SteepNet(two_layers(), dropout_rate=0.4, dropout_inject=True, dropout_schedule="linear", sam_rho=0.1)
    fit(net, batches(4), callbacks=[seen])
    assert seen.seen == pytest.approx([0, 0, 0.1, 0.1, 0.2, 0.2, 0.3, 0.3])


def test_a_resumed_run_has_the_rates_of_the_straight_one(tmp_path):
    def make(seed):
        torch.manual_seed(seed)
        return Net(two_layers(), dropout_rate=0.4, dropout_inject=True, dropout_schedule="curriculum")

    class Save(pl.Callback):
        def on_train_epoch_end(self, trainer, pl_module):
            if trainer.current_epoch == 0:
                trainer.save_checkpoint(tmp_path / "first.ckpt")

    straight, rest = Rates(), Rates()
    a, b = make(0), make(9)
    fit(a, batches(4), max_epochs=3, callbacks=[ExactResume(seed=1), Save(), straight])
    fit(b, batches(4), max_epochs=3, callbacks=[ExactResume(seed=1), rest], ckpt_path=tmp_path / "first.ckpt")
    assert rest.seen == straight.seen[4:]
    assert_same(a.state_dict(), b.state_dict())


def test_evaluation_and_a_teacher_drop_nothing():
    net = TaughtNet(two_layers(), dropout_rate=0.5, dropout_inject=True, ema_teacher_decay=0.0)
    fit(net, batches(3))
    x = torch.randn(5, FEATURES)
    bare = copy.deepcopy(net.network).eval()
    for m in bare.modules():
        m._forward_pre_hooks.clear()
    net.train()
    assert torch.equal(net.ema_teacher(x), bare(x))
    assert torch.equal(net.pseudo_logits(x), bare(x))
    assert not torch.equal(net(x), net(x))
    assert torch.equal(net.eval()(x), bare(x))
    assert all(".ema_teacher" not in f".{name}" for name in net._dropout_inputs.hooks)


def test_copies_have_hooks_of_their_own():
    net = Net(two_layers(), dropout_rate=0.5, dropout_inject=True)
    for other in (copy.deepcopy(net), pickle.loads(pickle.dumps(net))):
        other._set_dropout(0.0)
        x = torch.randn(5, FEATURES)
        assert torch.equal(other(x), other(x))
        assert not torch.equal(net(x), net(x))
        assert hooked(other) == hooked(net)


def test_a_hook_registered_after_unpickling_does_not_replace_ours(monkeypatch):
    net = pickle.dumps(Net(two_layers(), dropout_rate=0.5, dropout_inject=True))
    monkeypatch.setattr(torch.utils.hooks.RemovableHandle, "next_id", 0)  # as in a new process
    net = pickle.loads(net)
    handles = [m.register_forward_pre_hook(lambda layer, args: None) for m in net.modules()]
    for handle in handles:
        handle.remove()
    assert hooked(net) == ["network.1", "network.5"]


def test_layers_that_were_exchanged_after_init_are_found():
    net = Net(two_layers(), dropout_rate=0.5, dropout_inject=True)
    net.network[3], net.network[5] = nn.Dropout(0.9), nn.Linear(8, NUM_CLASSES)
    fit(net, batches(1))
    assert net.network[3].p == 0.5
    assert hooked(net) == ["network.1", "network.5"]
    assert [len(m._forward_pre_hooks) for m in net.network] == [0, 1, 0, 0, 0, 1]


def test_a_compiled_network_drops_too():
    net = Net(two_layers(), dropout_rate=0.5, dropout_inject=True)
    plain = copy.deepcopy(net)
    net.network.compile(backend="eager")
    x = torch.randn(5, FEATURES)
    for mode in (True, False):
        outputs = []
        for module in (net, plain):
            torch.manual_seed(3)
            outputs.append(module.train(mode)(x))
        assert torch.equal(*outputs)


def test_off_registers_nothing_and_sets_nothing():
    net = Net(two_layers(), dropout_rate=None, dropout_inject=True)
    assert hooked(net) == []
    assert rates(net.network) == {"3": 0.9}


def test_no_effect():
    with pytest.raises(NoEffectError, match=r"Tiny has no dropout layer\. Write dropout_inject=true"):
        fit(Net(smooth()), batches(1))
    with pytest.raises(NoEffectError, match="no linear or convolutional layer to put dropout before"):
        fit(Net(dropout_inject=True), batches(1))
    expected = r"dropout_layers='3' matches the whole name of none of its dropout layers: 'network\.4'\."
    with pytest.raises(NoEffectError, match=expected):
        fit(Net(convolution(), dropout_layers="3"), batches(1, shape=(2, 5, 5)))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"dropout_rate": 1.0}, r"dropout_rate is 1\.0; it must be a number in \[0, 1\)\."),
        ({"dropout_schedule": "lineal"}, r"dropout_schedule is 'lineal'; did you mean 'linear'\?"),
        ({"dropout_gamma": 0.0}, r"dropout_gamma is 0\.0; it must be a number in \(0, inf\)\."),
        ({"dropout_early_share": 1.5}, r"dropout_early_share is 1\.5; it must be a number in \(0, 1\]\."),
        ({"dropout_layers": "a("}, r"dropout_layers is 'a\(', which is no regular expression"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(deep(), **arguments)
