import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, MaxNormMixin, SpectralNormMixin
from lightning_tuning.errors import CompositionError, InvalidValueError, NoEffectError
from lightning_tuning.timing.step_hook import after_each_step
from tests.mixins.tiny import Tiny, batches, convolution, fit, smooth
from tests.numerics import array


class Net(MaxNormMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, MaxNormMixin, Tiny):
    pass


class BothNet(MaxNormMixin, SpectralNormMixin, Tiny):
    pass


def row_norms(weight):
    w = array(weight)
    return np.sqrt((w.reshape(len(w), -1) ** 2).sum(1))


def test_training_is_sgd_with_a_projection_after_each_step():
    net = Net(smooth().double(), max_norm_bound=0.4)
    bare = smooth().double()
    bare.load_state_dict(net.network.state_dict())
    data = batches(6, dtype=torch.float64)
    fit(net, data, precision="64-true")

    values = [array(p).copy() for p in bare.parameters()]
    momentum = [np.zeros_like(v) for v in values]
    for x, ids in data:
        with torch.no_grad():
            for p, value in zip(bare.parameters(), values, strict=True):
                p.copy_(torch.from_numpy(value))
        gradients = torch.autograd.grad(F.cross_entropy(bare(x), ids), [*bare.parameters()])
        for i, gradient in enumerate(gradients):
            momentum[i] = 0.9 * momentum[i] + array(gradient)
            values[i] = values[i] - 0.1 * momentum[i]
            if values[i].ndim == 2:
                lengths = np.linalg.norm(values[i], axis=1, keepdims=True)
                values[i] = np.where(lengths > 0.4, values[i] * 0.4 / lengths, values[i])
    for p, value in zip(net.parameters(), values, strict=True):
        np.testing.assert_allclose(array(p), value, rtol=1e-10)
    assert row_norms(net.network[0].weight).max() == pytest.approx(0.4)
    assert row_norms(net.network[0].weight).min() < 0.39


def test_units_of_a_convolution_are_its_output_channels():
    net = Net(convolution(), max_norm_bound=0.3)
    fit(net, batches(2, shape=(2, 5, 5)))
    assert row_norms(net.network[0].weight).max() == pytest.approx(0.3)
    assert array(net.network[0].weight).reshape(4, -1).shape[1] == 18
    assert row_norms(net.network[5].weight).max() == pytest.approx(0.3)


@pytest.mark.parametrize("groups", [1, 2])
def test_units_of_a_transposed_convolution(groups):
    """Its weight is [in, out / groups, k, k]; each output channel sees the inputs of its group alone."""
    layer = nn.ConvTranspose2d(4, 6, 2, groups=groups)
    net = Net(nn.Sequential(layer, nn.Flatten(), nn.Linear(54, 3)), max_norm_bound=0.4)
    with torch.no_grad():
        layer.weight.mul_(5)
    before = array(layer.weight).copy()
    net._project()
    after = array(layer.weight)
    for group in range(groups):
        inside = slice(group * 4 // groups, (group + 1) * 4 // groups)
        for unit in range(6 // groups):
            w = before[inside, unit]
            length = np.sqrt((w**2).sum())
            assert length > 0.4
            np.testing.assert_allclose(after[inside, unit], w * 0.4 / length, rtol=1e-5)


def test_other_parameters_are_left_alone():
    network = nn.Sequential(
        nn.Embedding(5, 4), nn.LayerNorm(4), nn.Linear(4, 4), nn.utils.parametrizations.weight_norm(nn.Linear(4, 3))
    )
    network[2].requires_grad_(False)
    net = Net(nn.Sequential(*network, nn.Linear(3, 3)), max_norm_bound=0.01)
    before = {name: p.clone() for name, p in net.named_parameters()}
    net._project()
    changed = {name for name, p in net.named_parameters() if not torch.equal(p, before[name])}
    assert changed == {"network.4.weight"}


def test_a_teacher_follows_the_weights_within_the_bound():
    """With decay 0 it is the student, so it must be updated after the projection."""
    net = TaughtNet(smooth(), max_norm_bound=0.3, ema_teacher_decay=0.0)
    fit(net, batches(3))
    for student, teacher in zip(net.network.parameters(), net.ema_teacher.network.parameters(), strict=True):
        assert torch.equal(student, teacher)
    assert row_norms(net.ema_teacher.network[0].weight).max() == pytest.approx(0.3)


@pytest.mark.parametrize(("overflow", "steps"), [(0.0, 1), (1.0, 0)])
def test_a_fused_optimizers_overflow_counts_as_no_step(overflow, steps):
    """The scaler calls it nevertheless, and leaves it to the kernel to do nothing."""
    weight = nn.Parameter(torch.ones(2))
    weight.grad = torch.ones(2)
    optimizer = torch.optim.SGD([weight], lr=0.1, fused=True)
    optimizer.grad_scale, optimizer.found_inf = torch.tensor(1.0), torch.tensor(overflow)
    seen = []
    after_each_step([optimizer], lambda: seen.append(1))
    optimizer.step()
    assert len(seen) == steps
    assert torch.equal(weight, torch.ones(2)) == (not steps)


def test_within_an_accumulation_window_nothing_is_scaled():
    net = Net(smooth(), max_norm_bound=0.3)
    before = row_norms(net.network[0].weight)
    assert before.max() > 0.3
    seen = []

    class Look(Net):
        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append(row_norms(self.network[0].weight).max() > 0.31)

    look = Look(smooth(), max_norm_bound=0.3)
    fit(look, batches(4), accumulate_grad_batches=2)
    assert seen == [True, False, False, False]


def test_after_training_the_optimizer_is_free_of_it():
    net = Net(smooth(), max_norm_bound=0.3)
    trainer = fit(net, batches(2))
    assert not trainer.optimizers[0]._optimizer_step_post_hooks
    with torch.no_grad():
        net.network[0].weight.mul_(10)
    trainer.optimizers[0].step()
    assert row_norms(net.network[0].weight).max() > 0.3
    fit(net, batches(2))
    assert row_norms(net.network[0].weight).max() <= 0.3 * (1 + 1e-6)


def test_with_spectral_normalization_it_is_refused():
    with pytest.raises(CompositionError) as caught:
        fit(BothNet(smooth(), max_norm_bound=1.0, spectral_norm_bound=1.0), batches(1))
    assert str(caught.value) == (
        "MaxNormMixin and SpectralNormMixin conflict: A normalised layer divides its weight by its size, so a bound on "
        "that size would change nothing. Switch one of them off: max_norm_bound=None or spectral_norm_bound=None."
    )


def test_nothing_to_bound():
    net = Net(smooth().requires_grad_(False), max_norm_bound=1.0)
    net.register_parameter("scale", nn.Parameter(torch.ones(2, 2)))
    with pytest.raises(NoEffectError) as caught:
        fit(net, batches(1))
    assert str(caught.value) == (
        "MaxNormMixin is on but can change nothing: Tiny has no linear or convolutional layer with a trainable weight. "
        "All may be frozen. Mend that, or switch it off: max_norm_bound=None."
    )


@pytest.mark.parametrize("bound", [0, -1.0])
def test_a_bound_that_is_not_positive(bound):
    with pytest.raises(InvalidValueError) as caught:
        Net(max_norm_bound=bound)
    assert str(caught.value) == f"max_norm_bound is {bound}; it must be a number in (0, inf)."
