import copy

import numpy as np
import pytest
import torch

from lightning_tuning import EMATeacherMixin, MixupMixin, RDropMixin, SAMMixin
from lightning_tuning.errors import InvalidValueError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, deep, fit, linear, parameters, smooth
from tests.numerics import array

from .sam_reference import reference


class Net(SAMMixin, Tiny):
    pass


def both(network, data, rho=0.2, clip=None, window=1, **kwargs):
    """The reference's network and the mixin's after the same run, and the net."""
    net = Net(network, sam_rho=rho)
    own = copy.deepcopy(network)
    torch.manual_seed(5)
    losses = reference(own, data, rho, clip=clip, window=window)
    state = torch.get_rng_state()
    torch.manual_seed(5)
    fit(net, data, gradient_clip_val=clip, accumulate_grad_batches=window, **kwargs)
    assert torch.equal(torch.get_rng_state(), state)
    return own, net, losses


@pytest.mark.parametrize(("network", "shape"), [(linear, (4,)), (smooth, (4,)), (deep, (4,)), (convolution, (2, 5, 5))])
@pytest.mark.parametrize("clip", [None, 0.3])
def test_equals_the_reference_loop_bitwise(network, shape, clip):
    data = batches(6, shape=shape)
    start = network()
    own, net, _ = both(copy.deepcopy(start), data, clip=clip)
    assert_same(net.network.state_dict(), own.state_dict())
    assert not torch.equal(parameters(start)[0], parameters(net)[0])


def test_it_is_not_plain_sgd():
    network, data = smooth(), batches(6)
    _, net, _ = both(copy.deepcopy(network), data)
    plain = Tiny(network)
    fit(plain, data)
    assert not torch.allclose(parameters(plain)[0], parameters(net)[0], atol=1e-4)


@pytest.mark.parametrize("window", [2, 3])
def test_a_window_climbs_once_bitwise_also_the_short_last_one(window):
    """7 batches: windows of 3, 3 and 1, the last divided by 3 as Lightning does."""
    own, net, _ = both(deep(), batches(7), window=window)
    assert_same(net.network.state_dict(), own.state_dict())


def test_accumulating_4_times_8_is_one_batch_of_32():
    network, data = smooth().double(), batches(8, dtype=torch.float64)
    joined = [tuple(torch.cat(parts) for parts in zip(*data[i : i + 4], strict=True)) for i in (0, 4)]
    nets = [Net(copy.deepcopy(network), sam_rho=0.2) for _ in range(2)]
    fit(nets[0], data, accumulate_grad_batches=4, precision="64-true")
    fit(nets[1], joined, precision="64-true")
    for a, b in zip(parameters(nets[0]), parameters(nets[1]), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-12, atol=1e-12)


def softmax_gradient(w, b, x, ids):
    """Cross entropy of a linear classifier: its gradient by hand."""
    logits = x @ w.T + b
    p = np.exp(logits - logits.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    error = (p - np.eye(3)[ids]) / len(x)
    return error.T @ x, error.sum(0)


@pytest.mark.parametrize("adaptive", [False, True])
@pytest.mark.parametrize("eta", [0.01, 0.2])
def test_against_numpy(adaptive, eta):
    """SAM and ASAM on a linear classifier, by hand in float64; ASAM scales the weight and not the bias."""
    data, rho, lr, momentum = batches(6, dtype=torch.float64), 0.5, 0.1, 0.9
    net = Net(linear().double(), lr=lr, momentum=momentum, sam_rho=rho, sam_adaptive=adaptive, sam_eta=eta)
    w, b = array(net.network.weight).copy(), array(net.network.bias).copy()
    velocity_w, velocity_b = np.zeros_like(w), np.zeros_like(b)
    for x, ids in data:
        grad_w, grad_b = softmax_gradient(w, b, x.numpy(), ids.numpy())
        scale = np.abs(w) + eta if adaptive else 1.0
        norm = np.sqrt(((scale * grad_w) ** 2).sum() + (grad_b**2).sum())
        climbed = w + rho * scale**2 * grad_w / norm, b + rho * grad_b / norm
        grad_w, grad_b = softmax_gradient(*climbed, x.numpy(), ids.numpy())
        velocity_w, velocity_b = momentum * velocity_w + grad_w, momentum * velocity_b + grad_b
        w, b = w - lr * velocity_w, b - lr * velocity_b
    fit(net, data, precision="64-true")
    np.testing.assert_allclose(array(net.network.weight), w, rtol=1e-11, atol=1e-13)
    np.testing.assert_allclose(array(net.network.bias), b, rtol=1e-11, atol=1e-13)


def test_rho_to_zero_is_the_base_optimizer():
    network, data = smooth(), batches(4)
    nets = [Net(copy.deepcopy(network), sam_rho=1e-12), Tiny(copy.deepcopy(network))]
    for net in nets:
        fit(net, data)
    for a, b in zip(*map(parameters, nets), strict=True):
        torch.testing.assert_close(a, b, rtol=1e-6, atol=1e-7)


def test_a_step_costs_two_forwards_and_hooks_of_the_step_run_once():
    calls = {"forward": 0, "on_before_optimizer_step": 0, "on_before_zero_grad": 0}
    net = Net(deep(), sam_rho=0.1)

    def count(name):
        calls[name] += 1

    net.network.register_forward_hook(lambda *_: count("forward"))
    net.on_before_optimizer_step = lambda optimizer: count("on_before_optimizer_step")
    net.on_before_zero_grad = lambda optimizer: count("on_before_zero_grad")
    fit(net, batches(5))
    assert calls == {"forward": 10, "on_before_optimizer_step": 5, "on_before_zero_grad": 5}


def test_both_passes_see_the_same_batch_masks_and_mixture():
    class Stacked(SAMMixin, MixupMixin, RDropMixin, Tiny):
        def forward(self, x):
            logits = super().forward(x)
            seen.append((x, self.network[3](torch.ones(100))))
            return logits

    seen = []
    net = Stacked(deep(), sam_rho=0.1, mixup_alpha=1.0, rdrop_weight=1.0)
    fit(net, batches(6), accumulate_grad_batches=2)
    assert len(seen) == 12
    for start in range(0, 12, 4):
        first, second = seen[start : start + 2], seen[start + 2 : start + 4]
        for (x, mask), (x_again, mask_again) in zip(first, second, strict=True):
            assert torch.equal(x, x_again)
            assert torch.equal(mask, mask_again)
        assert not torch.equal(first[0][1], first[1][1])


class Skipping(Tiny):
    """Skips batches by returning None."""

    def training_step(self, batch, batch_idx):
        return None if batch_idx in self.skipped else super().training_step(batch, batch_idx)


class SkippingNet(SAMMixin, Skipping):
    pass


def test_a_skipped_batch_is_no_step():
    data = batches(4)
    own, net = smooth(), SkippingNet(sam_rho=0.2)
    net.network, net.skipped = copy.deepcopy(own), {1}
    fit(net, data)
    velocity_step = reference(own, [data[0], data[2], data[3]], 0.2)
    assert len(velocity_step) == 3
    assert_same(net.network.state_dict(), own.state_dict())


@pytest.mark.parametrize("skipped", [0, 1])
def test_a_skipped_batch_of_a_window_counts_as_zero(skipped):
    data = batches(2)
    own, net = smooth(), SkippingNet(sam_rho=0.2)
    net.network, net.skipped = copy.deepcopy(own), {skipped}
    fit(net, data, accumulate_grad_batches=2)
    reference(own, [data[1 - skipped]], 0.2, share=2)
    assert_same(net.network.state_dict(), own.state_dict())


def test_fp16_climbs_in_the_same_direction_as_fp32():
    """The ascent is taken from scaled gradients, whose factor cancels."""
    network, data = smooth(), batches(3)
    nets = [Net(copy.deepcopy(network), sam_rho=0.2, lr=1.0, momentum=0.0) for _ in range(2)]
    fit(nets[0], data[:1])
    fit(nets[1], data[:1], precision="16-mixed")
    steps = [
        np.concatenate([array(a - b).ravel() for a, b in zip(parameters(network), parameters(net), strict=True)])
        for net in nets
    ]
    assert np.linalg.norm(steps[0]) > 0.1
    np.testing.assert_allclose(steps[0], steps[1], atol=2e-3)


class TaughtNet(SAMMixin, EMATeacherMixin, Tiny):
    pass


def test_a_teacher_neither_climbs_nor_follows_the_climbed_weights():
    network, data = smooth(), batches(5)
    taught = TaughtNet(copy.deepcopy(network), sam_rho=0.2, ema_teacher_decay=0.5, ema_teacher_warmup=False)
    fit(taught, data)
    own = copy.deepcopy(network)
    average = parameters(own)
    optimizer_free = []
    for count in range(1, 6):
        again = copy.deepcopy(network)
        reference(again, data[:count], 0.2)
        optimizer_free.append(parameters(again))
        average = [0.5 * a + 0.5 * p for a, p in zip(average, parameters(again), strict=True)]
    assert_same(parameters(taught), optimizer_free[-1])
    for a, p in zip(average, taught.ema_teacher.network.parameters(), strict=True):
        torch.testing.assert_close(a, p.detach(), rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(("name", "value"), [("sam_rho", -0.1), ("sam_eta", -1.0)])
def test_a_value_out_of_range(name, value):
    with pytest.raises(InvalidValueError) as caught:
        Net(**{name: value})
    assert str(caught.value) == f"{name} is {value}; it must be a number in [0, inf)."
