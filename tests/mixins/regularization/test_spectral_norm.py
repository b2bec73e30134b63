import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import nn

from lightning_tuning import EMATeacherMixin, RDropMixin, SAMMixin, SpectralNormMixin
from lightning_tuning.errors import InvalidValueError, NoEffectError
from tests.mixins.tiny import Tiny, assert_same, batches, convolution, deep, fit, linear, smooth
from tests.numerics import array


class Net(SpectralNormMixin, Tiny):
    pass


class TaughtNet(EMATeacherMixin, SpectralNormMixin, Tiny):
    pass


class Repeated(SAMMixin, RDropMixin, SpectralNormMixin, Tiny):
    pass


def matrix(layer):
    w = array(layer._parameters["weight"])
    return (np.swapaxes(w, 0, 1) if isinstance(layer, nn.ConvTranspose2d) else w).reshape(layer.bias.numel(), -1)


def converge(net):
    """Give each layer its singular vector exactly, from an SVD."""
    for layer in net.modules():
        if hasattr(layer, "spectral_norm_u"):
            layer.spectral_norm_u.copy_(torch.from_numpy(np.linalg.svd(matrix(layer))[0][:, 0]))


def sigma(layer):
    return np.linalg.svd(matrix(layer))[1][0]


LAYERS = [
    (nn.Linear(4, 6), (5, 4), F.linear, {}),
    (nn.Conv1d(2, 6, 3), (5, 2, 7), F.conv1d, {}),
    (nn.Conv2d(4, 6, 3, groups=2), (5, 4, 5, 5), F.conv2d, {"groups": 2}),
    (nn.ConvTranspose2d(4, 6, 2), (5, 4, 3, 3), F.conv_transpose2d, {}),
]


@pytest.mark.parametrize(("layer", "shape", "function", "extra"), LAYERS)
def test_the_layer_has_the_weight_divided_by_its_largest_singular_value(layer, shape, function, extra):
    net = Net(copy.deepcopy(layer).double(), spectral_norm_bound=0.7)
    converge(net)
    x = torch.randn(*shape, dtype=torch.float64)
    weight = 0.7 * net.network.weight / sigma(net.network)
    torch.testing.assert_close(net(x), function(x, weight, net.network.bias, **extra), rtol=1e-12, atol=1e-12)
    assert np.linalg.svd(0.7 * matrix(net.network) / sigma(net.network))[1][0] == pytest.approx(0.7)


def test_the_first_estimate_is_near():
    net = Net(nn.Linear(40, 30), spectral_norm_bound=1.0)
    found = np.linalg.norm(matrix(net.network).T @ array(net.network.spectral_norm_u))
    assert 0.97 * sigma(net.network) < found <= sigma(net.network) * (1 + 1e-6)


def test_gradient_against_differences_of_the_svd():
    net = Net(linear().double(), spectral_norm_bound=0.7)
    converge(net)
    x, ids = batches(1, dtype=torch.float64)[0]
    net.training_step((x, ids), 0).backward()
    w, bias = array(net.network.weight), array(net.network.bias)

    def loss(weight):
        logits = array(x) @ (0.7 * weight / np.linalg.svd(weight)[1][0]).T + bias
        return F.cross_entropy(torch.from_numpy(logits), ids).item()

    for index in np.ndindex(*w.shape):
        step = np.zeros_like(w)
        step[index] = 1e-5
        expected = (loss(w + step) - loss(w - step)) / 2e-5
        assert net.network.weight.grad[index].item() == pytest.approx(expected, rel=1e-5, abs=1e-9)


def test_the_parameter_keeps_its_name_and_is_back_after_the_forward():
    bare, net = Tiny(deep()), Net(deep(), spectral_norm_bound=1.0)
    assert [name for name, _ in net.named_parameters()] == [name for name, _ in bare.named_parameters()]
    assert net.state_dict().keys() - bare.state_dict().keys() == {
        "network.0.spectral_norm_u",
        "network.4.spectral_norm_u",
    }
    net(batches(1)[0][0])
    assert net.network[0].weight is net.network[0]._parameters["weight"]
    with pytest.raises(RuntimeError):
        net(torch.zeros(2, 99))
    assert net.network[0].weight is net.network[0]._parameters["weight"]
    copy.deepcopy(net)


def us(net):
    return [layer.spectral_norm_u.clone() for layer in net.modules() if hasattr(layer, "spectral_norm_u")]


@pytest.mark.parametrize("iterations", [1, 3])
def test_the_vector_moves_once_a_step_with_the_new_weights(iterations):
    """However many passes the step takes: here four, and a window of two batches."""
    net = Repeated(deep(), sam_rho=0.1, rdrop_weight=1.0, spectral_norm_bound=1.0, spectral_norm_iterations=iterations)
    seen = [us(net)]

    class Look(Repeated):
        def on_train_batch_start(self, batch, batch_idx):
            seen.append(us(self))

        def on_train_batch_end(self, *args):
            super().on_train_batch_end(*args)
            seen.append(us(self))

    net.__class__ = Look
    fit(net, batches(2), accumulate_grad_batches=2)
    _, start, first, middle, end = seen
    assert_same(start, first)
    assert_same(first, middle)
    for u, moved, layer in zip(middle, end, [net.network[0], net.network[4]], strict=True):
        w, u = matrix(layer), array(u)
        for _ in range(iterations):
            u = w @ (w.T @ u)
            u /= np.linalg.norm(u)
        np.testing.assert_allclose(array(moved), u, rtol=1e-5, atol=1e-6)
        assert not np.array_equal(array(moved), array(middle[0]))


def test_evaluation_moves_nothing():
    net = Net(smooth(), spectral_norm_bound=1.0)
    before = us(net)
    for mode in (True, False):
        net.train(mode)
        net(batches(1)[0][0])
    assert_same(before, us(net))


def test_the_estimate_stays_near_while_training():
    net = Net(smooth(), spectral_norm_bound=1.0, lr=0.02)
    fit(net, batches(4) * 20)
    for layer in (net.network[0], net.network[2]):
        found = np.linalg.norm(matrix(layer).T @ array(layer.spectral_norm_u))
        assert found == pytest.approx(sigma(layer), rel=2e-2)


def test_a_teacher_has_an_average_that_works():
    net = TaughtNet(smooth(), spectral_norm_bound=1.0, ema_teacher_decay=0.9)
    fit(net, batches(8))
    layer = net.ema_teacher.network[0]
    u = array(layer.spectral_norm_u)
    assert not np.array_equal(u, array(net.network[0].spectral_norm_u))
    hidden = net.ema_teacher.network[0](torch.eye(4)) - layer.bias
    w = matrix(layer)
    np.testing.assert_allclose(array(hidden).T, w / np.linalg.norm(w.T @ u / np.linalg.norm(u)), rtol=1e-5)
    x = batches(1)[0][0]
    assert torch.equal(net.eval()(x), net.ema_teacher(x))


def test_a_plain_state_dict_loads_and_is_normalised():
    plain = deep()
    with torch.no_grad():
        plain[0].weight.copy_(torch.diag_embed(torch.tensor([4.0, 1.0, 1.0, 1.0]))[torch.arange(8) % 4])
        plain[0].bias.zero_()
    saved = plain.state_dict()
    keys = set(saved)
    net = Net(deep(), spectral_norm_bound=1.0)
    net.network.load_state_dict(saved)
    assert set(saved) == keys
    assert sigma(net.network[0]) == pytest.approx(4 * 2**0.5)
    ours = net.network[0](torch.tensor([[1.0, 0, 0, 0]]))
    assert ours[0, 0].item() == pytest.approx(1 / 2**0.5, rel=1e-5)


def test_its_own_state_dict_loads_bitwise():
    net = Net(smooth(), spectral_norm_bound=1.0)
    fit(net, batches(4))
    other = Net(smooth(), spectral_norm_bound=1.0)
    other.load_state_dict(net.state_dict())
    assert_same(net.state_dict(), other.state_dict())
    x = batches(1)[0][0]
    assert torch.equal(net(x), other(x))


def test_weights_changed_after_it_was_built_count():
    net = Net(linear(), spectral_norm_bound=1.0, lr=0.0)
    with torch.no_grad():
        net.network.weight.copy_(torch.tensor([[0, 0, 0, 9.0], [1, 0, 0, 0], [0, 2, 0, 0]]))
        net.network.spectral_norm_u.copy_(torch.tensor([1e-3, 1.0, 1.0]))
    fit(net, batches(1))
    np.testing.assert_allclose(array(net.network.spectral_norm_u), [1, 0, 0], atol=1e-6)


def test_layers_by_name():
    net = Net(convolution(), spectral_norm_bound=1.0, spectral_norm_layers=r".*\.0")
    assert [name for name, _ in net.named_buffers() if "spectral" in name] == ["network.0.spectral_norm_u"]


def test_what_is_no_linear_layer_or_frozen_or_attention_stays_as_it_is():
    frozen = nn.Linear(4, 4).requires_grad_(False)
    weight_norm = nn.utils.parametrizations.weight_norm(nn.Linear(4, 4))
    network = nn.ModuleList(
        [nn.Embedding(5, 4), nn.LayerNorm(4), nn.MultiheadAttention(4, 2), frozen, weight_norm, nn.Linear(4, 4)]
    )
    net = Net(network, spectral_norm_bound=1.0)
    assert [name for name, _ in net.named_buffers()] == ["network.5.spectral_norm_u"]


def test_a_transformer_answers_in_evaluation_as_in_training():
    """Its fused path would read the weights past the hooks."""
    layer = nn.TransformerEncoderLayer(4, 2, 8, dropout=0.0, batch_first=True)
    net = Net(layer, spectral_norm_bound=0.1)
    x = torch.randn(2, 3, 4)
    with torch.no_grad():
        torch.testing.assert_close(net.train()(x), net.eval()(x))


def test_under_autocast_the_singular_value_is_computed_in_float32():
    net = Net(nn.Linear(64, 64), spectral_norm_bound=1.0)
    seen = []
    net.network.register_forward_pre_hook(lambda layer, args: seen.append(layer.weight))
    with torch.autocast("cpu", torch.bfloat16):
        assert net(torch.eye(64)).dtype == torch.bfloat16
    w, u = matrix(net.network), array(net.network.spectral_norm_u)
    np.testing.assert_allclose(array(seen[0]), w / np.linalg.norm(w.T @ u), rtol=1e-6)


def test_it_compiles():
    net = Net(smooth(), spectral_norm_bound=1.0)
    x = batches(1)[0][0]
    expected = net(x)
    torch.testing.assert_close(torch.compile(net.network, backend="eager")(x), expected)


def test_the_random_numbers_of_the_run_are_not_touched():
    torch.manual_seed(0)
    net = Net(smooth(), spectral_norm_bound=1.0)
    after = torch.rand(1)
    torch.manual_seed(0)
    Tiny(smooth())
    assert torch.equal(after, torch.rand(1))
    assert net.network[0].weight.requires_grad


def test_off_changes_no_layer():
    net = Net(smooth(), spectral_norm_bound=None)
    assert net.state_dict().keys() == Tiny(smooth()).state_dict().keys()
    assert not net.network[0]._forward_pre_hooks


def test_no_layer():
    with pytest.raises(NoEffectError) as caught:
        fit(Net(spectral_norm_bound=1.0, spectral_norm_layers="head"), batches(1))
    assert str(caught.value) == (
        "SpectralNormMixin is on but can change nothing: Tiny has no linear or convolutional layer with a trainable "
        "weight whose name matches 'head' at the end of its __init__, where it has to build them. Mend that, or "
        "switch it off: spectral_norm_bound=None."
    )


def test_a_weight_of_zeros():
    net = Net(smooth(), spectral_norm_bound=1.0)
    with torch.no_grad():
        net.network[2].weight.zero_()
    with pytest.raises(InvalidValueError, match=r"the weight of network\.2, which is all zeros"):
        fit(net, batches(1))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"spectral_norm_bound": 0}, "spectral_norm_bound is 0; it must be a number in (0, inf)."),
        ({"spectral_norm_iterations": 0}, "spectral_norm_iterations is 0; it must be an integer of at least 1."),
        ({"spectral_norm_layers": "("}, "spectral_norm_layers is '(', which is no regular expression: "),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(InvalidValueError) as caught:
        Net(**arguments)
    assert str(caught.value).startswith(message)
