from __future__ import annotations

import copy
import itertools
import pickle

import lightning.pytorch as pl
import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import (
    DropoutMixin,
    EMATeacherMixin,
    L1Mixin,
    L2SPMixin,
    SAMMixin,
    WeightNoiseMixin,
)
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import FEATURES, NUM_CLASSES, Tiny, assert_same, batches, convolution, deep, fit, smooth
from tests.numerics import array


class Watching(Tiny):
    """Notes the state that its layers compute with in each training step."""

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.states = []

    def training_step(self, batch, batch_idx):
        self.states.append({name: value.detach().clone() for name, value in self.network.state_dict().items()})
        return super().training_step(batch, batch_idx)


class Net(WeightNoiseMixin, Watching):
    pass


class SteepNet(SAMMixin, WeightNoiseMixin, Watching):
    pass


class TaughtNet(EMATeacherMixin, WeightNoiseMixin, Watching):
    pass


class LassoNet(WeightNoiseMixin, L1Mixin, L2SPMixin, Watching):
    pass


class LassoLeftNet(L1Mixin, L2SPMixin, WeightNoiseMixin, Watching):
    pass


def gradients(network: nn.Module, state: dict, x, ids) -> list[np.ndarray]:
    """The gradient of the loss at other weights, by a network of its own."""
    own = copy.deepcopy(network)
    own.load_state_dict(state)
    return [array(g) for g in torch.autograd.grad(F.cross_entropy(own(x), ids), list(own.parameters()))]


@pytest.mark.parametrize("relative", [False, True])
@pytest.mark.parametrize(("network", "shape"), [(smooth, (4,)), (convolution, (2, 5, 5))])
def test_the_noise_that_the_layers_see(network, shape, relative):
    net = Net(network().eval(), weight_noise_std=0.2, weight_noise_relative=relative)
    clean = {name: array(value) for name, value in net.network.state_dict().items()}
    torch.manual_seed(0)
    for batch in batches(400, size=2, shape=shape):
        net.training_step(batch, 0)
    for name, before in clean.items():
        noise = np.stack([array(state[name]) for state in net.states]) - before
        if before.ndim < 2:
            assert not noise.any()
            continue
        std = 0.2 * (before.std() if relative else 1.0)
        assert noise.std() == pytest.approx(std, rel=4 / (2 * noise.size) ** 0.5)
        assert abs(noise.mean()) < 4 * std / noise.size**0.5
        first, second = noise[:-1].ravel(), noise[1:].ravel()
        assert abs(np.corrcoef(first, second)[0, 1]) < 4 / first.size**0.5


def test_the_gradient_is_that_at_the_noisy_weights():
    net = Net(smooth(), weight_noise_std=0.5)
    x, ids = batches(1)[0]
    torch.manual_seed(0)
    net.training_step((x, ids), 0).backward()
    expected = gradients(net.network, net.states[0], x, ids)
    for p, gradient in zip(net.network.parameters(), expected, strict=True):
        np.testing.assert_allclose(array(p.grad), gradient, atol=1e-7)
    clean = gradients(net.network, net.network.state_dict(), x, ids)
    assert not np.allclose(clean[0], expected[0], atol=1e-3)


@pytest.mark.parametrize("window", [1, 3])
def test_a_run_steps_from_the_clean_weights_with_the_noisy_gradients(window):
    network, data = smooth().double(), batches(6, dtype=torch.float64)
    net = Net(copy.deepcopy(network), weight_noise_std=0.3)
    fit(net, data, accumulate_grad_batches=window)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for start in range(0, 6, window):
        steps = range(start, start + window)
        parts = [gradients(network, net.states[i], *data[i]) for i in steps]
        for p, *gradient in zip(network.parameters(), *parts, strict=True):
            p.grad = torch.tensor(np.mean(gradient, 0))
        optimizer.step()
    for ours, expected in zip(net.network.parameters(), network.parameters(), strict=True):
        np.testing.assert_allclose(array(ours), array(expected), atol=1e-12)
    assert not any(torch.equal(a["0.weight"], b["0.weight"]) for a, b in itertools.combinations(net.states, 2))


class Hooks(pl.Callback):
    """The state that each hook sees, where a checkpoint might be saved."""

    def __init__(self):
        self.seen = []

    def _look(self, trainer, pl_module, *args):
        self.seen.append(copy.deepcopy(pl_module.network.state_dict()))

    on_before_zero_grad = on_before_backward = on_after_backward = on_before_optimizer_step = _look
    on_train_batch_start = on_train_batch_end = on_validation_batch_start = _look


def test_hooks_and_evaluation_see_the_weights_without_noise():
    net, hooks = Net(smooth(), weight_noise_std=0.5, lr=0.0), Hooks()
    start = copy.deepcopy(net.network.state_dict())
    fit(net, batches(3), val_data=batches(2), callbacks=[hooks])
    assert len(hooks.seen) > 3 * 6
    for seen in hooks.seen:
        assert_same(seen, start)
    x, _ = batches(2)[-1]
    assert torch.equal(net.logits[-1], net.network(x))
    assert not torch.equal(net.states[0]["0.weight"], start["0.weight"])


class Fails(Watching):
    def training_step(self, batch, batch_idx):
        super().training_step(batch, batch_idx)
        if len(self.states) == 2:
            raise RuntimeError("within the step")


class FailsNet(WeightNoiseMixin, Fails):
    pass


def test_the_weights_are_back_after_none_and_after_an_error():
    net = FailsNet(smooth(), weight_noise_std=0.5)
    before, objects = copy.deepcopy(net.state_dict()), dict(net.named_parameters())
    assert net.training_step(batches(1)[0], 0) is None
    with pytest.raises(RuntimeError, match="within the step"):
        net.training_step(batches(1)[0], 0)
    assert_same(net.state_dict(), before)
    assert all(p is objects[name] for name, p in net.named_parameters())
    assert net.penalized_parameters().keys() == {"network.0.weight", "network.2.weight"}
    assert net._weight_noise_clean == {}


def test_sam_climbs_from_the_noisy_gradient_and_sees_the_same_noise_there():
    network, data = smooth().double(), batches(3, dtype=torch.float64)
    net = SteepNet(copy.deepcopy(network), weight_noise_std=0.3, sam_rho=0.2)
    fit(net, data)
    optimizer = torch.optim.SGD(network.parameters(), lr=0.1, momentum=0.9)
    for (x, ids), first, second in zip(data, net.states[::2], net.states[1::2], strict=True):
        at_first = gradients(network, first, x, ids)
        norm = np.sqrt(sum((g**2).sum() for g in at_first))
        for name, gradient in zip(first, at_first, strict=True):
            ascent = array(second[name] - first[name])
            np.testing.assert_allclose(ascent, 0.2 * gradient / norm, atol=1e-12, err_msg=name)
        for p, gradient in zip(network.parameters(), gradients(network, second, x, ids), strict=True):
            p.grad = torch.tensor(gradient)
        optimizer.step()
    for ours, expected in zip(net.network.parameters(), network.parameters(), strict=True):
        np.testing.assert_allclose(array(ours), array(expected), atol=1e-12)


def test_a_teacher_averages_the_weights_without_noise():
    net = TaughtNet(smooth(), weight_noise_std=0.5, ema_teacher_decay=0.0)
    fit(net, batches(3))
    assert_same(net.ema_teacher.network.state_dict(), net.network.state_dict())


@pytest.mark.parametrize("cls", [LassoNet, LassoLeftNet])
def test_penalties_are_on_the_weights_without_noise(cls):
    net = cls(smooth(), weight_noise_std=0.5, l1_weight=0.3, l2sp_weight=1.0, lr=0.0)
    x, ids = batches(1)[0]
    weights = [array(net.network[i].weight) for i in (0, 2)]
    noisy_loss = []
    net.compute_loss = lambda logits, target: noisy_loss.append(F.cross_entropy(logits, target)) or noisy_loss[-1]
    for _ in range(2):
        loss = net.training_step((x, ids), 0)
        assert (loss - noisy_loss.pop()).item() == pytest.approx(0.3 * sum(np.abs(w).sum() for w in weights), rel=1e-5)
    net.zero_grad()
    net.training_step((x, ids), 0).backward()
    expected = gradients(net.network, net.states[-1], x, ids)[0] + 0.3 * np.sign(weights[0])
    np.testing.assert_allclose(array(net.network[0].weight.grad), expected, atol=1e-6)


def test_trainable_parameters_are_the_weights_during_a_step():
    class Asks(Tiny):
        def training_step(self, batch, batch_idx):
            self.asked = self.trainable_parameters()
            return super().training_step(batch, batch_idx)

    class AskingNet(WeightNoiseMixin, Asks):
        pass

    net = AskingNet(deep(), weight_noise_std=0.5)
    net.network[4].bias.requires_grad_(False)
    expected = [p for p in net.parameters() if p.requires_grad]
    net.training_step(batches(1)[0], 0)
    assert [id(p) for p in net.asked] == [id(p) for p in expected]


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.down, self.up = nn.Linear(FEATURES, FEATURES), nn.Linear(FEATURES, FEATURES)
        self.up.weight = self.down.weight

    def forward(self, x):
        return self.up(self.down(x))[:, :NUM_CLASSES]


def test_tied_weights_have_one_noise():
    net = Net(Tied(), weight_noise_std=0.5)
    net.training_step(batches(1)[0], 0)
    assert torch.equal(net.states[0]["down.weight"], net.states[0]["up.weight"])
    assert not torch.equal(net.states[0]["down.weight"], net.network.down.weight)
    assert net.network.down.weight is net.network.up.weight


class Recurrent(nn.Module):
    def __init__(self):
        super().__init__()
        self.lstm, self.out = nn.LSTM(FEATURES, 8), nn.Linear(8, NUM_CLASSES)

    def forward(self, x):
        return self.out(self.lstm(x)[0])


def test_recurrent_layers_which_keep_lists_of_their_weights():
    net = Net(Recurrent(), weight_noise_std=0.5)
    x, ids = batches(1)[0]
    net.training_step((x, ids), 0).backward()
    expected = gradients(net.network, net.states[0], x, ids)
    for p, gradient in zip(net.network.parameters(), expected, strict=True):
        np.testing.assert_allclose(array(p.grad), gradient, atol=1e-6)
    for other in (net.network, copy.deepcopy(net.network), pickle.loads(pickle.dumps(net.network))):
        bare = Recurrent()
        bare.load_state_dict(other.state_dict())
        assert torch.equal(other(x), bare(x))


def test_frozen_weights_have_no_noise():
    net = Net(smooth(), weight_noise_std=0.5)
    net.network[0].weight.requires_grad_(False)
    net.training_step(batches(1)[0], 0)
    assert torch.equal(net.states[0]["0.weight"], net.network[0].weight)
    assert not torch.equal(net.states[0]["2.weight"], net.network[2].weight)


def test_a_compiled_network_has_the_noise_and_is_not_compiled_at_each_step():
    net = Net(smooth(), weight_noise_std=0.5)
    plain = copy.deepcopy(net)
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    net.network.compile(backend="eager")
    for i, batch in enumerate(batches(5)):
        losses = []
        for module in (net, plain):
            torch.manual_seed(i)
            losses.append(module.training_step(batch, 0))
        assert torch.equal(*losses)
    x = batches(1)[0][0]
    assert torch.equal(net.eval()(x), plain.eval()(x))
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] <= 2  # with noise and without


class Skips(Watching):
    """Skips every other step."""

    def training_step(self, batch, batch_idx):
        loss = super().training_step(batch, batch_idx)
        return loss if batch_idx % 2 else None


class SkipsNet(SAMMixin, WeightNoiseMixin, DropoutMixin, Skips):
    pass


def test_skipped_steps_with_sam_and_accumulation_leave_clean_weights():
    net, hooks = SkipsNet(deep(), weight_noise_std=0.5, sam_rho=0.1, lr=0.0), Hooks()
    start = copy.deepcopy(net.network.state_dict())
    fit(net, batches(6), accumulate_grad_batches=2, callbacks=[hooks])
    for name, p in net.network.named_parameters():
        assert torch.equal(p, start[name])
        assert p.is_leaf


def test_off_draws_nothing():
    net = Net(smooth(), weight_noise_std=0.0)
    state = torch.get_rng_state()
    net.training_step(batches(1)[0], 0)
    assert torch.equal(torch.get_rng_state(), state)
    assert_same(net.states[0], net.network.state_dict())


def test_no_effect_and_bad_arguments():
    net = Net(smooth())
    net.network.requires_grad_(False)
    with pytest.raises(NoEffectError, match="has no trainable parameter of two or more dimensions"):
        fit(net, batches(1))
    with pytest.raises(InvalidValueError, match=r"weight_noise_std is -0\.1; it must be a number in \[0, inf\)\."):
        Net(smooth(), weight_noise_std=-0.1)
