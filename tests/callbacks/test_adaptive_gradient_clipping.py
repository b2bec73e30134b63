"""AdaptiveGradientClipping against numpy, unit by unit."""

import copy

import numpy as np
import pytest
import torch
from torch import nn

from lightning_tuning.callbacks import AdaptiveGradientClipping
from lightning_tuning.errors import InvalidValueError, NoEffectError
from lightning_tuning.functional import adaptive_clip_, unit_norms
from tests.mixins.tiny import Tiny, batches, convolution, fit, linear, smooth
from tests.numerics import array

from .reference import Recorder, train

SHAPES = [(3, 4), (5,), (2, 5, 3), (), (4, 3, 2, 2), (1, 7)]


def rows(values):
    """One row a unit."""
    return values.reshape(len(values), -1) if values.ndim >= 2 else values.reshape(1, -1)


def clipped(gradient, weight, clip, eps):
    """The unit norms, and the gradient clipped unit by unit in a plain loop."""
    result, count = rows(gradient).copy(), 0
    for g, w in zip(result, rows(weight), strict=True):
        largest = clip * max(np.sqrt((w**2).sum()), eps)
        norm = np.sqrt((g**2).sum())
        if norm > largest:
            g *= largest / norm
            count += 1
    return result.reshape(gradient.shape), count


def tensors(seed, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    return [scale * torch.randn(shape, generator=generator, dtype=torch.float64) for shape in SHAPES]


def test_unit_norms():
    for norm, tensor in zip(unit_norms(tensors(0)), tensors(0), strict=True):
        assert norm.shape == (len(tensor), *[1] * (tensor.ndim - 1)) if tensor.ndim >= 2 else norm.shape == ()
        np.testing.assert_allclose(array(norm).ravel(), np.sqrt((rows(array(tensor)) ** 2).sum(1)), rtol=1e-12)


def test_half_precision_is_normed_in_float32():
    norms = unit_norms([torch.full((2, 1000), 300.0, dtype=torch.float16), torch.full((1000,), 300.0).half()])
    assert [norm.dtype for norm in norms] == [torch.float32] * 2
    assert all(torch.allclose(norm, torch.tensor(300 * 1000**0.5)) for norm in norms)


@pytest.mark.parametrize("clip", [0.01, 0.9])
@pytest.mark.parametrize("eps", [1e-3, 2.0])
@pytest.mark.parametrize("scale", [None, 64.0])
def test_against_a_loop_over_units(clip, eps, scale):
    gradients, weights = tensors(0), tensors(1)
    weights[0][1] = 0.0
    gradients[0][2] = 0.0
    expected = [clipped(array(g), array(w), clip, eps) for g, w in zip(gradients, weights, strict=True)]
    if scale is not None:
        gradients = [g * scale for g in gradients]
    factors = adaptive_clip_(gradients, weights, clip, eps, None if scale is None else torch.tensor(scale).double())
    for gradient, factor, (by_hand, count) in zip(gradients, factors, expected, strict=True):
        np.testing.assert_allclose(array(gradient) / (scale or 1.0), by_hand, rtol=1e-12)
        assert (factor < 1).sum() == count
    counts = [count for _, count in expected]
    assert sum(counts) > 0
    if (clip, eps) == (0.9, 2.0):
        assert sum(counts) < 14


def test_what_is_small_enough_stays_bitwise():
    gradients = [g.float() for g in tensors(0, 1e-3)]
    before = [g.clone() for g in gradients]
    adaptive_clip_(gradients, [w.float() for w in tensors(1)], 1.0, 1e-2)
    assert all(torch.equal(a, b) for a, b in zip(gradients, before, strict=True))


@pytest.mark.parametrize("clip_val", [None, 0.01])
def test_a_run_is_the_reference_loop_with_the_head_left_out(clip_val):
    network, data = convolution().double(), batches(5, shape=(2, 5, 5), dtype=torch.float64)
    network[4].p = 0.0
    net, logger = Tiny(copy.deepcopy(network)), Recorder()
    shares = []

    def edit(gradients, weights):
        results = {n: clipped(g, weights[n], 0.05, 1e-3) for n, g in gradients.items() if not n.startswith("5.")}
        shares.append(sum(count for _, count in results.values()) / sum(len(rows(gradients[n])) for n in results))
        return {n: gradient for n, (gradient, _) in results.items()}

    settings = {"precision": "64-true", "gradient_clip_val": clip_val, "logger": logger, "log_every_n_steps": 1}
    fit(net, data, callbacks=[AdaptiveGradientClipping(clip=0.05)], **settings)
    train(network, data, edit, clip=clip_val)
    for a, b in zip(net.network.parameters(), network.parameters(), strict=True):
        np.testing.assert_allclose(array(a), array(b), rtol=1e-9, atol=1e-12)
    assert logger.values("train/adaptive_gradient_clipping") == pytest.approx(shares)
    assert len({*shares, 0.0, 1.0}) > 3


class Frozen(Tiny):
    """The last layer is not trained, and stands for a teacher."""

    def __init__(self):
        super().__init__(smooth())
        self.teacher = smooth().requires_grad_(False)

    def configure_optimizers(self):
        return torch.optim.SGD(self.network.parameters(), lr=0.1)


class Tied(Tiny):
    """The head's weight is that of the first layer."""

    def __init__(self):
        super().__init__(nn.Sequential(nn.Linear(4, 4), nn.Tanh(), nn.Linear(4, 4)))
        self.network[2].weight = self.network[0].weight


def normed():
    return Tiny(nn.Sequential(nn.Linear(4, 8), nn.Tanh(), nn.utils.parametrizations.weight_norm(nn.Linear(8, 3))))


@pytest.mark.parametrize(
    ("make", "exclude", "left_out"),
    [
        (lambda: Tiny(smooth()), None, ["network.2.weight", "network.2.bias"]),
        (lambda: Tiny(convolution()), None, ["network.5.weight", "network.5.bias"]),
        (lambda: Tiny(nn.Sequential(smooth(), nn.BatchNorm1d(3))), None, ["network.0.2.weight", "network.0.2.bias"]),
        (Frozen, None, ["network.2.weight", "network.2.bias"]),
        (Tied, None, ["network.0.weight", "network.2.bias"]),
        (
            normed,
            None,
            [
                f"network.2.{n}"
                for n in ("bias", "parametrizations.weight.original0", "parametrizations.weight.original1")
            ],
        ),
        (lambda: Tiny(smooth()), "none", []),
        (lambda: Tiny(smooth()), r"^network\.0|bias$", ["network.0.weight", "network.0.bias", "network.2.bias"]),
    ],
)
def test_what_is_left_out(make, exclude, left_out):
    net = make()
    agc = AdaptiveGradientClipping(exclude=exclude)
    fit(net, batches(1, shape=(2, 5, 5) if isinstance(net.network[0], nn.Conv2d) else (4,)), callbacks=[agc])
    assert {n for n, p in net.named_parameters() if not agc._acts_on(p)} == {*left_out}


class Growing(Tiny):
    """Adds a layer from the second batch on."""

    def training_step(self, batch, batch_idx):
        if batch_idx == 1:
            self.early = nn.Linear(4, 4)
            self.optimizers(use_pl_optimizer=False).add_param_group({"params": self.early.parameters()})
        if batch_idx >= 1:
            batch = [self.early(batch[0]), batch[1]]
        return super().training_step(batch, batch_idx)


def test_parameters_that_are_added_later_are_looked_up():
    net, agc = Growing(smooth()), AdaptiveGradientClipping(exclude=r"early\.bias|2")
    fit(net, batches(3), callbacks=[agc])
    assert {n for n, p in net.named_parameters() if not agc._acts_on(p)} == {
        "early.bias",
        "network.2.weight",
        "network.2.bias",
    }


def test_an_expression_that_matches_nothing_and_a_model_that_is_all_head():
    with pytest.raises(InvalidValueError, match=r"exclude is 'haed', .*: network.weight, network.bias. Write 'none'"):
        fit(Tiny(linear()), batches(1), callbacks=[AdaptiveGradientClipping(exclude="haed")])
    with pytest.raises(NoEffectError, match="by default the classifier head is; exclude='none' clips all"):
        fit(Tiny(linear()), batches(1), callbacks=[AdaptiveGradientClipping()])
    fit(Tiny(linear()), batches(1), callbacks=[AdaptiveGradientClipping(exclude="none")])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"clip": 0}, r"clip is 0; it must be a number in \(0, inf\)"),
        ({"eps": 0}, r"eps is 0; it must be a number in \(0, inf\)"),
        ({"exclude": "["}, r"exclude is '\[', which is no regular expression"),
        ({"exclude": 3}, "exclude is 3, which is no regular expression"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError, match=message):
        AdaptiveGradientClipping(**arguments)
