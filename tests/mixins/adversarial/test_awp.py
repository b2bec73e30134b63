import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning import AdversarialMixin, AWPMixin, EMATeacherMixin, SAMMixin
from lightning_tuning.errors import CompositionError, InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, assert_same, batches, deep, fit, linear, parameters, smooth
from tests.numerics import array, one_hot, softmax

LAYERS = ("0.weight", "0.bias", "2.weight", "2.bias")


class Net(AWPMixin, Tiny):
    pass


def weights(network):
    return {name: array(value).copy() for name, value in network.state_dict().items()}


def gradient(w, x, ids):
    """Of the cross entropy of ``smooth()``, by hand."""
    hidden = np.tanh(x @ w["0.weight"].T + w["0.bias"])
    error = (softmax(hidden @ w["2.weight"].T + w["2.bias"]) - one_hot(ids, 3)) / len(x)
    back = (error @ w["2.weight"]) * (1 - hidden**2)
    return {"2.weight": error.T @ hidden, "2.bias": error.sum(0), "0.weight": back.T @ x, "0.bias": back.sum(0)}


def perturbed(w, g, gamma):
    """Each layer by its own norm, biases not at all."""
    return {
        name: value + gamma * np.linalg.norm(value) * g[name] / np.linalg.norm(g[name]) if "weight" in name else value
        for name, value in w.items()
    }


def by_hand(network, data, gamma, lr=0.1, momentum=0.9, window=1, begins=0):
    w = weights(network)
    velocity = {name: np.zeros_like(value) for name, value in w.items()}
    for step, start in enumerate(range(0, len(data), window)):
        part = [(x.numpy(), ids.numpy()) for x, ids in data[start : start + window]]

        def of(at, part=part):
            each = [gradient(at, x, ids) for x, ids in part]
            return {name: sum(g[name] for g in each) / window for name in at}

        g = of(w)
        if step >= begins:
            g = of(perturbed(w, g, gamma))
        velocity = {name: momentum * velocity[name] + g[name] for name in w}
        w = {name: w[name] - lr * velocity[name] for name in w}
    return w


def assert_close(network, expected):
    for name, value in weights(network).items():
        np.testing.assert_allclose(value, expected[name], rtol=1e-10, atol=1e-12, err_msg=name)


@pytest.mark.parametrize("window", [1, 2, 3])
def test_against_numpy(window):
    """Also a short last window."""
    network, data = smooth().double(), batches(7, dtype=torch.float64)
    expected = by_hand(network, data, 0.3, window=window)
    net = Net(network, awp_gamma=0.3)
    fit(net, data, precision="64-true", accumulate_grad_batches=window)
    assert_close(network, expected)


def test_the_setting_is_felt():
    network, data = smooth().double(), batches(4, dtype=torch.float64)
    plain, on = by_hand(network, data, 0.0), by_hand(network, data, 0.3)
    assert all(np.abs(plain[name] - on[name]).max() > 1e-3 for name in LAYERS)


@pytest.mark.parametrize(("warmup", "begins"), [("3 steps", 3), ("25%", 2), ("1 epoch", 4), (None, 0)])
def test_warmup(warmup, begins):
    network, data = smooth().double(), batches(4, dtype=torch.float64)
    expected = by_hand(network, data * 2, 0.3, begins=begins)
    fit(Net(network, awp_gamma=0.3, awp_warmup=warmup), data, precision="64-true", max_epochs=2)
    assert_close(network, expected)


class Seeing(Tiny):
    """Notes the weights of each pass, and those that the optimizer steps from."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.seen, self.stepped_from = [], []

    def training_step(self, batch, batch_idx):
        self.seen.append((self.replaying, copy.deepcopy(self.network.state_dict())))
        return super().training_step(batch, batch_idx)

    def on_before_optimizer_step(self, optimizer):
        self.stepped_from.append(copy.deepcopy(self.network.state_dict()))


class SeeingNet(AWPMixin, Seeing):
    pass


def test_the_step_starts_bitwise_from_the_unperturbed_weights_and_buffers_move_once():
    net = SeeingNet(deep(), awp_gamma=0.5)
    fit(net, batches(3))
    assert [replaying for replaying, _ in net.seen] == [False, True] * 3
    for (_, first), (_, second), before_step in zip(net.seen[::2], net.seen[1::2], net.stepped_from, strict=True):
        for name in first:
            same = torch.equal(first[name], second[name])
            assert same is not (name in ("0.weight", "4.weight") or "running" in name or "tracked" in name), name
        trained = dict(net.network.named_parameters())
        assert_same({n: first[n] for n in trained}, {n: before_step[n] for n in trained})
    assert net.network[1].num_batches_tracked == 3


def test_both_passes_have_the_same_random_numbers_and_what_was_kept():
    class Host(Tiny):
        def training_step(self, batch, batch_idx):
            noise = self.kept_for_replay("noise", lambda: torch.randn(3))
            seen.append((noise, torch.randn(3)))
            return super().training_step(batch, batch_idx)

    class Noisy(AWPMixin, Host):
        pass

    seen = []
    fit(Noisy(smooth(), awp_gamma=0.1), batches(4), accumulate_grad_batches=2)
    for start in (0, 4):
        for first, second in zip(seen[start : start + 2], seen[start + 2 : start + 4], strict=True):
            assert first[0] is second[0]
            assert torch.equal(first[1], second[1])
    assert not torch.equal(seen[0][0], seen[1][0])
    assert not torch.equal(seen[0][0], seen[0][1])


def test_fp16_perturbs_as_fp32_does():
    """The scale of the first gradient cancels."""
    network, data = smooth(), batches(1)
    nets = [Net(copy.deepcopy(network), awp_gamma=0.5, lr=1.0, momentum=0.0) for _ in range(2)]
    fit(nets[0], data)
    fit(nets[1], data, precision="16-mixed")
    for a, b in zip(*map(parameters, nets), strict=True):
        np.testing.assert_allclose(array(a), array(b), atol=3e-3)


def test_a_layer_without_gradient_stays_and_one_without_weights_is_passed_once():
    network = nn.Sequential(linear(), nn.Linear(3, 3))
    network[1].weight.data.zero_()  # the first layer's gradient is zero
    net = Net(network, awp_gamma=0.5)
    fit(net, batches(2))
    assert all(torch.isfinite(p).all() for p in network.parameters())


class Freezing(Tiny):
    def on_train_batch_start(self, batch, batch_idx):
        self.network.weight.requires_grad_(batch_idx == 0)


class FreezingNet(AWPMixin, Freezing):
    pass


def test_where_all_weights_are_frozen_later_the_step_is_a_plain_one():
    network, data = linear(), batches(3)
    net, bare = FreezingNet(copy.deepcopy(network), awp_gamma=1e-9, momentum=0.0), Freezing(network, momentum=0.0)
    passes = []
    net.network.register_forward_hook(lambda *_: passes.append(1))
    fit(net, data)
    fit(bare, data)
    assert len(passes) == 4
    for a, b in zip(net.network.parameters(), network.parameters(), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_nothing_to_perturb():
    with pytest.raises(NoEffectError, match=r"Tiny has no trainable parameter of two or more .* awp_gamma=0\.0"):
        fit(Net(nn.Sequential(nn.BatchNorm1d(4), nn.Flatten()), awp_gamma=0.1), batches(1))


class Both(SAMMixin, AWPMixin, Tiny):
    pass


def test_sam_and_awp_are_alternatives():
    with pytest.raises(CompositionError, match="SAMMixin and AWPMixin conflict: each climbs"):
        fit(Both(sam_rho=0.1, awp_gamma=0.1), batches(1))


@pytest.mark.parametrize("order", [(SAMMixin, AWPMixin), (AWPMixin, SAMMixin)])
@pytest.mark.parametrize("on", [{"sam_rho": 0.1, "awp_gamma": 0.0}, {"sam_rho": 0.0, "awp_gamma": 0.1}])
def test_on_one_class_the_one_that_is_on_works_as_alone(order, on):
    class Composed(*order, Tiny):
        pass

    alone = type("Alone", (SAMMixin if on["sam_rho"] else AWPMixin, Tiny), {})
    network, data = smooth(), batches(3)
    nets = [
        Composed(copy.deepcopy(network), **on),
        alone(copy.deepcopy(network), **{name: value for name, value in on.items() if value}),
    ]
    for net in nets:
        fit(net, data)
    assert_same(*map(parameters, nets))


class Taught(AWPMixin, EMATeacherMixin, Tiny):
    pass


def test_a_teacher_is_not_perturbed():
    net = Taught(smooth(), awp_gamma=0.2, ema_teacher_decay=0.0)
    fit(net, batches(3))
    assert_same(parameters(net.network), [p.detach() for p in net.ema_teacher.network.parameters()])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"awp_gamma": -1}, r"awp_gamma is -1; it must be a number in \[0, inf\)\."),
        ({"awp_warmup": "soon"}, "awp_warmup is 'soon'; write a number and its unit: '5ep'"),
        ({"awp_warmup": "0 steps"}, "awp_warmup is '0 steps'"),
        ({"awp_warmup": 5}, "awp_warmup is 5; write a number"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        Net(**arguments)


class Attacked(AWPMixin, AdversarialMixin, Tiny):
    pass


class Sharpened(SAMMixin, AdversarialMixin, Tiny):
    pass


@pytest.mark.parametrize(("cls", "ascent"), [(Attacked, {"awp_gamma": 0.2}), (Sharpened, {"sam_rho": 0.2})])
def test_with_adversarial_training_the_second_pass_has_the_inputs_of_the_first(cls, ascent):
    net = cls(smooth(), adversarial_epsilon=0.3, adversarial_steps=2, **ascent)
    passes = []
    net.network.register_forward_hook(lambda *_: passes.append(1))
    fit(net, batches(2))
    for first, second, (x, _) in zip(net.batches[::2], net.batches[1::2], batches(2), strict=True):
        assert torch.equal(first[0], second[0])
        assert not torch.equal(first[0], x)
    assert len(passes) == 2 * (2 + 2)
